"""The JSON header of a model's file: written from a model, and checked field by field when read.

::

    format, version      "denoizarr-denoiser", 2
    network              our network's shape by field, or {"own": class of one's own network}
    axes                 "yx" or "zyx"
    halo, stride         of the network, per axis of ``axes``, in voxels
    normalisation        {"mean": [per channel], "std": [per channel]}, raw intensities
    target_normalisation the same for the target that it was trained on, or null
    blind_spot           0 and 1, nested along ``axes``: what was hidden around a predicted voxel
    patch_size           per axis of ``axes``, in voxels
    pixel_size           by axis {"value": ..., "unit": ...}, of the image that it was trained on, or null
    centre               [{"levels": [...], "weights": [...]} per channel], and where the answer is shifted
                         "shift_levels" and "shifts"; absent for none
    footprint            0 and 1, nested along ``axes``: the voxels averaged for it; absent for one
    periodic             [[fy, fx], ...] in cycles per pixel: lines taken out of every image; absent for none
    example              one's own network only: what it answers to a fixed tile
    training, provenance for people
    digest               of all other fields and the tensors
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import ConfigError, DenoizarrError, ModelError
from denoizarr.kernels.blind_spot_rules import check_kernel
from denoizarr.kernels.unet import NetworkShape, halo_of
from denoizarr.kernels.waves import Frequency
from denoizarr.stores.records import canonical, digest

from .centre_weights import CentreWeights
from .normalisation import Normalisation
from .own_network import OwnNetwork
from .tensor_files import Weights, tensors_digest

FORMAT, VERSION = "denoizarr-denoiser", 2
AXES = {2: "yx", 3: "zyx"}
PixelSize = dict[str, dict[str, Any]]

_LONGEST_TEXT = 500
# Far above any real one; a hostile header must not make us allocate or loop for long.
_MOST_CHANNELS, _WIDEST_KERNEL, _WIDEST_REACH = 2**16, 1024, 2**16
# Half a cycle per pixel, and what refining may add to it.
_MOST_LINES, _HIGHEST = 1024, 0.51
_MOST_LEVELS = 1024
_CURVE = ("levels", "weights", "shift_levels", "shifts")


@dataclass(frozen=True, slots=True)
class ModelHeader:
    """What a file says about its network.

    Attributes
    ----------
    network : NetworkShape or str
        The shape of ours, or the description of one's own.
    halo, stride, patch_size : tuple of int
        Per spatial axis, in voxels.
    normalisation, target_normalisation : Normalisation
    blind_spot : ndarray of bool, odd extents
    pixel_size : dict or None
    periodic : tuple of (float, float)
    centre : tuple of CentreWeights or None
    footprint : ndarray of bool, odd extents, or None
    example : tuple of float or None
        What one's own network answers to :func:`~denoizarr.training.own_network.example_answer`'s tile.
    training, provenance : dict
    digest : str
    """

    network: NetworkShape | str
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    patch_size: tuple[int, ...]
    normalisation: Normalisation
    target_normalisation: Normalisation | None
    blind_spot: NDArray[np.bool_]
    pixel_size: PixelSize | None
    periodic: tuple[Frequency, ...]
    centre: tuple[CentreWeights, ...] | None
    footprint: NDArray[np.bool_] | None
    example: tuple[float, ...] | None
    training: dict[str, Any]
    provenance: dict[str, Any]
    digest: str

    @property
    def ndim(self) -> int:
        """Number of spatial axes."""
        return len(self.halo)


def network_entry(network: NetworkShape | OwnNetwork) -> dict[str, Any]:
    """Return the header's field ``network``."""
    return {"own": network.description} if isinstance(network, OwnNetwork) else asdict(network)


def file_digest(header: Mapping[str, Any], weights: Weights) -> str:
    """Return the digest of a file: of its tensors and of all of its header but the digest itself."""
    return digest([{k: v for k, v in header.items() if k != "digest"}, tensors_digest(weights)])


def parsed_header(header: Mapping[str, Any], where: str) -> ModelHeader:
    """Check a header and return what it says.

    Raises
    ------
    ModelError
        The file is of another kind or version, or a field is missing, superfluous or not valid; the message
        names the field.
    """
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise ModelError(
            "a file of another kind or version",
            where=where,
            got=f"format {header.get('format')!r}, version {header.get('version')!r}",
            expected=f"{FORMAT!r}, version {VERSION}",
            remedy="train again, or use the version of denoizarr that wrote it",
        )
    # Files of before have no such fields.
    header = {"periodic": [], "centre": None, "footprint": None, **header}
    known = {"format", "version", "axes"} | {field.name for field in fields(ModelHeader)}
    for odd in sorted(set(header) ^ known):
        raise ModelError("a field is missing or unknown", where=f"{where}, {odd}")
    read = _Reader(header, where)
    axes = read("axes", _axes)
    n = len(axes)
    network = read("network", lambda value: _network(value, n))
    shape = network if isinstance(network, NetworkShape) else None
    normalisation = read("normalisation", _normalisation)
    return ModelHeader(
        network=network,
        halo=read("halo", lambda value: _matching(_lengths(value, n, 0), halo_of(shape) if shape else None)),
        stride=read(
            "stride", lambda value: _matching(_lengths(value, n, 1), shape.stride if shape else None)
        ),
        patch_size=read("patch_size", lambda value: _lengths(value, n, 1)),
        normalisation=normalisation,
        target_normalisation=read(
            "target_normalisation", lambda value: checked_target(_maybe(value, _normalisation), normalisation)
        ),
        blind_spot=read("blind_spot", lambda value: _kernel(value, n)),
        pixel_size=read("pixel_size", lambda value: checked_pixel_size(value, axes)),
        periodic=read("periodic", checked_periodic),
        centre=read("centre", lambda value: _maybe(value, lambda entries: _centre(entries, normalisation))),
        footprint=read("footprint", lambda value: _maybe(value, lambda nested: _kernel(nested, n))),
        example=read("example", lambda value: _example(value, shape)),
        training=read("training", lambda value: checked_record(value, "training")),
        provenance=read("provenance", lambda value: checked_record(value, "provenance")),
        digest=read("digest", _text),
    )


class _Reader:
    """Reads one field at a time; whatever is wrong with it ends in a ``ModelError`` with its name."""

    def __init__(self, header: Mapping[str, Any], where: str) -> None:
        self.header, self.where = header, where

    def __call__(self, name: str, parse: Any) -> Any:
        value = self.header[name]
        try:
            return parse(value)
        except (DenoizarrError, KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0][:200]
            raise ModelError(
                "the model's header is not valid", where=f"{self.where}, {name}", got=reason
            ) from error


def checked_pixel_size(value: Any, axes: str) -> PixelSize | None:
    """Return a pixel size by axis of ``axes`` after a check of its form; None stays None.

    Raises
    ------
    ConfigError
        An axis, number or unit is not valid.
    """
    if value is None:
        return None
    expected = 'by axis {"value": a positive number, "unit": a text or None}, of axes ' + axes
    for axis, entry in _mapping(value).items():
        length: Any = _mapping(entry).get("value")
        unit: Any = entry.get("unit")
        known = axis in axes and axis and set(entry) == {"value", "unit"}
        if not (known and _is_number(length) and length > 0 and (unit is None or _is_text(unit))):
            got = f"{axis}: {entry!r}"[:200]
            raise ConfigError("not a pixel size", where="pixel_size", got=got, expected=expected)
    return {a: {"value": float(e["value"]), "unit": e["unit"]} for a, e in value.items()}


def checked_periodic(value: Any) -> tuple[Frequency, ...]:
    """Return frequencies of periodic lines after a check of their form.

    Raises
    ------
    ConfigError
        Not a list of pairs of numbers from -0.5 to 0.5.
    """
    pairs = isinstance(value, list) and len(value) <= _MOST_LINES
    if not pairs or not all(
        isinstance(pair, list) and len(pair) == 2 and all(_is_number(f) and abs(f) <= _HIGHEST for f in pair)
        for pair in value
    ):
        raise ConfigError(
            "not the frequencies of periodic lines",
            where="periodic",
            got=repr(value)[:200],
            expected="pairs (fy, fx) in cycles per pixel",
        )
    return tuple((float(fy), float(fx)) for fy, fx in value)


def checked_centre(
    centre: Sequence[CentreWeights] | None,
    normalisation: Normalisation,
    target_normalisation: Normalisation | None,
) -> tuple[CentreWeights, ...] | None:
    """Return what is kept of a voxel's own value after a check that it fits the model.

    Raises
    ------
    ConfigError
        Not one per channel; or the model answers in a target's intensities.
    """
    if centre is None:
        return None
    if target_normalisation is not None:
        raise ConfigError("an answer like a target's keeps nothing of the input", where="centre")
    if len(centre) != len(normalisation.mean):
        got, expected = f"{len(centre)} channels", len(normalisation.mean)
        raise ConfigError("weights for each channel", where="centre", got=got, expected=expected)
    return tuple(centre)


def checked_footprint(footprint: NDArray[np.bool_] | None, ndim: int) -> NDArray[np.bool_] | None:
    """Return a footprint after a check that it is a kernel; None where it is the voxel alone.

    Raises
    ------
    BadRequest
        As :func:`~denoizarr.kernels.blind_spot_rules.check_kernel`.
    """
    if footprint is None or np.size(footprint) == 1:
        return None
    footprint = np.array(footprint)
    check_kernel(footprint, ndim)
    return footprint


def checked_target(target: Normalisation | None, source: Normalisation) -> Normalisation | None:
    """Return the target's normalisation after a check that it has as many channels as the image's.

    Raises
    ------
    ConfigError
        It has not.
    """
    if target is not None and len(target.mean) != len(source.mean):
        raise ConfigError(
            "image and target have one mean and std per channel each",
            where="target_normalisation",
            got=f"{len(target.mean)} channels",
            expected=len(source.mean),
        )
    return target


def checked_record(value: Any, name: str) -> dict[str, Any]:
    """Return a copy of what is written for people, after a check that JSON holds it as it is.

    Raises
    ------
    ConfigError
        It is no dict, or holds a number that is not finite, a text that is no Unicode, or another object.
    """
    try:
        copied: dict[str, Any] = json.loads(canonical(_mapping(value)).encode())
    except (ValueError, TypeError, RecursionError) as error:
        raise ConfigError(
            "not a JSON object",
            where=name,
            got=str(error).split("\n")[0][:200],
            expected="texts, finite numbers, True, False, None, and lists and dicts of them",
        ) from error
    return copied


def _axes(value: Any) -> str:
    if value not in AXES.values():
        raise ConfigError("no such axes", got=repr(value)[:200], expected=" or ".join(AXES.values()))
    return str(value)


def _network(value: Any, ndim: int) -> NetworkShape | str:
    entry = _mapping(value)
    if "own" in entry:
        if set(entry) != {"own"} or not _is_text(entry["own"]):
            raise ConfigError("not the description of a network", got=repr(value)[:200])
        return str(entry["own"])
    shape = NetworkShape(**entry)
    missing = sorted({field.name for field in fields(NetworkShape)} - set(entry))
    if missing:
        raise ConfigError("a field is missing", got=missing[0])
    if shape.ndim != ndim:
        raise ConfigError("another number of axes than axes", where="ndim", got=shape.ndim, expected=ndim)
    return shape


def _lengths(value: Any, n: int, lowest: int) -> tuple[int, ...]:
    whole = isinstance(value, list) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or len(value) != n or not all(lowest <= v <= _WIDEST_REACH for v in value):
        expected = f"{n} integers from {lowest} to {_WIDEST_REACH}"
        raise ConfigError("not a length per axis", got=repr(value)[:200], expected=expected)
    return tuple(value)


def _matching(lengths: tuple[int, ...], computed: int | None) -> tuple[int, ...]:
    if computed is not None and set(lengths) != {computed}:
        raise ConfigError("not what the network has", got=lengths, expected=computed)
    return lengths


def _normalisation(value: Any) -> Normalisation:
    entry = _mapping(value)
    for part in ("mean", "std"):
        numbers = entry[part]
        if (
            not isinstance(numbers, list)
            or len(numbers) > _MOST_CHANNELS
            or not all(map(_is_number, numbers))
        ):
            raise ConfigError("not one number per channel", where=part, got=repr(numbers)[:200])
    return Normalisation(tuple(map(float, entry["mean"])), tuple(map(float, entry["std"])))


def _centre(value: Any, normalisation: Normalisation) -> tuple[CentreWeights, ...] | None:
    if not isinstance(value, list) or len(value) > _MOST_CHANNELS:
        raise ConfigError("not weights per channel", got=repr(value)[:200])
    curves = []
    for entry in map(_mapping, value):
        if set(entry) not in ({*_CURVE[:2]}, {*_CURVE}):
            raise ConfigError("a field is missing or unknown", got=", ".join(sorted(entry))[:200])
        for part, numbers in entry.items():
            if (
                not isinstance(numbers, list)
                or len(numbers) > _MOST_LEVELS
                or not all(map(_is_number, numbers))
            ):
                raise ConfigError("not one number per level", where=part, got=repr(numbers)[:200])
        curves.append(CentreWeights(**{part: tuple(map(float, numbers)) for part, numbers in entry.items()}))
    return checked_centre(curves, normalisation, None)


def _kernel(value: Any, ndim: int) -> NDArray[np.bool_]:
    kernel = np.array(value)  # a ragged one is a ValueError
    if kernel.dtype.kind not in "iu" or kernel.ndim != ndim or not np.isin(kernel, (0, 1)).all():
        raise ConfigError("a blind-spot kernel holds 0 and 1", got=f"{kernel.dtype}, shape {kernel.shape}")
    if max(kernel.shape, default=0) > _WIDEST_KERNEL:
        raise ConfigError("a blind-spot kernel out of range", got=f"shape {kernel.shape}")
    check_kernel(kernel.astype(np.bool_), ndim)
    return kernel.astype(np.bool_)


def _example(value: Any, shape: NetworkShape | None) -> tuple[float, ...] | None:
    if (value is None) != (shape is not None):
        raise ConfigError("one's own network has one, ours has none", got=repr(value)[:200])
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(map(_is_number, value)):
        raise ConfigError("not the numbers of an answer", got=repr(value)[:200])
    return tuple(map(float, value))


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", got=repr(value)[:200])
    return value


def _text(value: Any) -> str:
    if not _is_text(value):
        raise ConfigError("not a short text", got=repr(value)[:200])
    return str(value)


def _is_text(value: Any) -> bool:
    # Half of a surrogate pair is a str of Python's, but cannot be written.
    return (
        isinstance(value, str)
        and 0 < len(value) <= _LONGEST_TEXT
        and not any("\ud800" <= letter <= "\udfff" for letter in value)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _maybe(value: Any, parse: Any) -> Any:
    return None if value is None else parse(value)
