"""The regressions of all volumes: from one scatter, on disk, and onto every box."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from denoizarr.errors import DegenerateData, MetadataError
from denoizarr.kernels.leave_one_out import Predictor, leave_one_out
from denoizarr.kernels.neighbourhoods import n_offsets
from denoizarr.kernels.scatter import Floats, Scatter
from denoizarr.stores import locations
from denoizarr.stores.objects import stored_checksum
from denoizarr.stores.records import canonical
from denoizarr.stores.sources import Array

from .options import Patch2SelfOptions
from .volume_groups import VolumeGroups

_KEY = "denoizarr"
# With fewer there is little to predict a volume from (DIPY warns at the same number).
_FEW_VOLUMES = 10
_SAME = 1e-12
# How much more than a volume the terms that predict it may vary together; magnitudes whose products
# float32 holds.
_MOST_TERMS, _HELD = 16.0, (1e-15, 1e15)


@dataclass(frozen=True, slots=True, eq=False)
class Regressions:
    """What predicts every volume.

    Attributes
    ----------
    weights : float64 array (n, n * p)
        A row for each volume; of a volume that is kept, a one at its own voxel.
    intercepts : float64 array (n,)
    r_squared : float64 array (n,)
        NaN for volumes that are kept, or constant.
    voxels : int
        From how many the regressions come.
    warnings : tuple of str
    centre : float64 array (n * p,)
        Means of the variables; zero for volumes that are kept.
    benign : bool
        No volume is predicted by terms that vary far more than itself, and float32 holds them all.
    """

    weights: Floats
    intercepts: Floats
    r_squared: Floats
    voxels: int
    warnings: tuple[str, ...]
    centre: Floats
    benign: bool

    def predictor(self, dtype: np.dtype[Any]) -> Predictor:
        """Return what predicts into an output of this dtype.

        In float32 the sums take half the time. They are made so for float32 and float16, where they are
        benign, and not for integers: those would be rounded twice.
        """
        if not self.benign or dtype.kind != "f" or dtype.itemsize > 4:
            return Predictor(self.weights, self.intercepts)
        centre = self.centre.astype(np.float32)
        intercepts = self.intercepts + self.weights @ centre.astype(np.float64)
        return Predictor(self.weights.astype(np.float32), intercepts, centre)

    @property
    def norms(self) -> Floats:
        """The length of each volume's weights: large where a prediction hangs on differences of volumes."""
        norms: Floats = np.linalg.norm(self.weights, axis=1)
        return norms

    def shifted(self, by: Floats) -> Regressions:
        """Return the same with each volume's predictions larger by so much."""
        return replace(self, intercepts=self.intercepts + by)


def regress(total: Scatter, groups: VolumeGroups, options: Patch2SelfOptions) -> Regressions:
    """Return every volume's regression on the others of its group.

    Parameters
    ----------
    total : Scatter
        Of the neighbourhoods of all volumes, ``p`` variables each.
    groups : VolumeGroups
    options : Patch2SelfOptions

    Raises
    ------
    DegenerateData
        A mask leaves no voxel.
    """
    p = n_offsets(options.radius)
    n = len(total.mean) // p
    if not total.count:
        raise DegenerateData(
            "no voxel is left to learn from", where="mask", remedy="see that it is not all zero"
        )
    weights, intercepts, r_squared = np.zeros((n, n * p)), np.zeros(n), np.full(n, np.nan)
    kept = np.array(groups.copied, int)
    weights[kept, kept * p + p // 2] = 1
    warnings = [f"only {n} volumes: little noise may be removed"] if n < _FEW_VOLUMES else []
    for group in groups.groups:
        volumes = np.array(group)
        variables = (volumes[:, None] * p + np.arange(p)).reshape(-1)
        part = Scatter(total.count, total.mean[variables], total.scatter[np.ix_(variables, variables)])
        found = leave_one_out(part, p, model=options.model, alpha=options.alpha)
        weights[np.ix_(volumes, variables)] = found.weights
        intercepts[volumes], r_squared[volumes] = found.intercepts, found.r_squared
        warnings += _warnings(part, volumes, p, tuple(volumes[list(found.without_variance)]))
        if found.floored:
            warnings.append(
                f"{found.floored} of {len(variables)} combinations of variables do not vary beyond rounding: "
                "their scatter was raised to the floor"
            )
    centre = total.mean.copy()
    centre.reshape(n, p)[kept] = 0  # or float32 would round what is kept
    return Regressions(
        weights,
        intercepts,
        r_squared,
        total.count,
        tuple(warnings),
        centre,
        _is_benign(total, weights, p),
    )


def _is_benign(total: Scatter, weights: Floats, p: int) -> bool:
    """Tell whether float32 sums of deviations are within some 1e-6 of each volume's own spread."""
    spread = np.sqrt(np.diagonal(total.scatter) / total.count)
    terms, whole = np.abs(weights) @ spread, spread[p // 2 :: p]
    size = np.abs(total.mean) + spread
    largest, least = size.max(), spread[spread > 0].min(initial=np.inf)
    return bool((terms <= _MOST_TERMS * whole).all() and largest < _HELD[1] and least > _HELD[0])


def _warnings(part: Scatter, volumes: Array, p: int, constant: tuple[int, ...]) -> list[str]:
    said = []
    if part.count <= len(part.mean):
        said.append(
            f"{part.count} voxels for {len(part.mean)} variables: the regressions fit the noise itself"
        )
    if constant:
        said.append(f"volumes without variance become their mean: {_listed(constant)}")
    centres = np.arange(len(volumes)) * p + p // 2
    spread = np.sqrt(np.diagonal(part.scatter)[centres])
    varying = np.flatnonzero(~np.isin(volumes, constant) & (spread > 0))
    scaled = part.scatter[np.ix_(centres[varying], centres[varying])]
    scaled = scaled / spread[varying] / spread[varying][:, None]
    close = np.triu(scaled > 1 - _SAME, 1)
    pairs = [(volumes[varying[i]], volumes[varying[k]]) for i, k in np.argwhere(close)]
    if pairs:
        named = ", ".join(f"{a} and {b}" for a, b in pairs[:8])
        said.append(f"volumes that are one another's copies keep their noise: {named}")
    return said


def _listed(volumes: tuple[int, ...]) -> str:
    return ", ".join(map(str, volumes[:16])) + (", ..." if len(volumes) > 16 else "")


def write_regressions(url: str, regressions: Regressions) -> str:
    """Write them to one file, replacing it whole; return its checksum."""
    header = {
        "voxels": regressions.voxels,
        "warnings": list(regressions.warnings),
        "benign": regressions.benign,
    }
    tensors = {
        "weights": regressions.weights,
        "intercepts": regressions.intercepts,
        "r_squared": regressions.r_squared,
        "centre": regressions.centre,
    }
    data = safetensors.numpy.save(tensors, metadata={_KEY: canonical(header)})
    locations.put(url, data)
    return stored_checksum(data)


def read_regressions(url: str, checksum: str | None = None) -> Regressions:
    """Read what :func:`write_regressions` wrote.

    Raises
    ------
    ImageNotFound
        Nothing lies there.
    MetadataError
        It is no such file, or another than the one of this checksum.
    """
    data = locations.get(url)
    if checksum is not None and stored_checksum(data) != checksum:
        raise MetadataError("another file than was written", where=locations.redact(url))
    try:
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][_KEY])
        tensors = safetensors.numpy.load(data)
        return Regressions(
            tensors["weights"],
            tensors["intercepts"],
            tensors["r_squared"],
            int(header["voxels"]),
            tuple(map(str, header["warnings"])),
            tensors["centre"],
            header["benign"] is True,
        )
    except (safetensors.SafetensorError, KeyError, ValueError, TypeError) as error:
        raise MetadataError("no file of regressions", where=locations.redact(url), got=str(error)) from error


def write_scatter(url: str, part: Scatter) -> str:
    """Write a part of the scatter to one file, replacing it whole; return its checksum."""
    tensors = {"count": np.array(part.count, np.int64), "mean": part.mean, "scatter": part.scatter}
    data = safetensors.numpy.save(tensors)
    locations.put(url, data)
    return stored_checksum(data)


def read_scatter(url: str, checksum: str) -> Scatter:
    """Read what :func:`write_scatter` wrote.

    Raises
    ------
    ImageNotFound
        Nothing lies there.
    MetadataError
        It is another file than the one of this checksum.
    """
    data = locations.get(url)
    if stored_checksum(data) != checksum:
        raise MetadataError("another file than was written", where=locations.redact(url))
    tensors = safetensors.numpy.load(data)
    return Scatter(int(tensors["count"]), tensors["mean"], tensors["scatter"])
