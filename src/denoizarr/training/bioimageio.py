"""A model as a package of the BioImage Model Zoo: one zip that ``bioimageio.core`` and others run.

::

    rdf.yaml             axes, sizes, halo, pixel size, normalisation, checksums
    weights.pt           the network as TorchScript: any consumer runs it without code of ours
    test_input.npy       noise of the image's mean and standard deviation
    test_output.npy      what this package makes of it
    README.md

Raw intensities go in and denoised raw intensities come out: normalisation is part of the description. It is
written as ``scale_linear``: ``fixed_zero_mean_unit_variance`` adds 1e-6 to the standard deviation, which is
wrong for images of small numbers. Nothing of the ``bioimageio`` packages is needed to write it.

Source: the specification of model descriptions, version 0.5 (bioimage.io).
"""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import Tensor, nn

from denoizarr.errors import BadRequest
from denoizarr.geometry.grids import round_up
from denoizarr.kernels.centre_weights import Centre, keep_centres
from denoizarr.kernels.waves import Frequency
from denoizarr.stores import locations

from .model_header import PixelSize
from .normalisation import Normalisation

_FORMAT_VERSION = "0.5.4"
# Of the standard deviation of the output; other machines and versions of torch round otherwise.
_TOLERANCE = 1e-3
_UNITS = frozenset(
    {"angstrom", "nanometer", "micrometer", "millimeter", "centimeter", "decimeter", "meter", "kilometer"}
)
_SHORTEST = 32


class Model(Protocol):
    """What is exported of a :class:`~denoizarr.training.denoiser.Denoiser`, which imports this module."""

    axes: str
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    patch_size: tuple[int, ...]
    pixel_size: PixelSize | None
    normalisation: Normalisation
    target_normalisation: Normalisation | None
    blind_spot: NDArray[np.bool_]
    periodic: tuple[Frequency, ...]
    module: nn.Module
    kept: list[Centre]
    footprint: NDArray[np.bool_] | None
    digest: str

    @property
    def channels(self) -> int:
        """Number of channels."""

    def denoise(self, array: NDArray[Any]) -> NDArray[Any]:
        """Denoise a whole array in memory."""


class _Channels(nn.Module):
    """Runs a network of one channel over each channel of (n, c, [z,] y, x), and keeps its part of each voxel.

    ``kept`` holds levels and weights of each channel, or nothing; ``footprint`` goes with them.
    """

    def __init__(
        self,
        network: nn.Module,
        kept: Sequence[Centre],
        footprint: NDArray[np.bool_] | None,
    ) -> None:
        super().__init__()
        self.network, self.kept, self.footprint = network, tuple(kept), footprint

    def forward(self, x: Tensor) -> Tensor:
        """Map (n, c, [z,] y, x) to the same shape."""
        # One's own network may work in the place of its input.
        folded = x.flatten(0, 1).unsqueeze(1).clone()
        answer: Tensor = self.network(folded).reshape(x.shape)
        if not self.kept:
            return answer
        channels = [
            keep_centres(x[:, c], answer[:, c], curve, self.footprint) for c, curve in enumerate(self.kept)
        ]
        return torch.stack(channels, 1)


def write_package(denoiser: Model, path: str | Path) -> str:
    """Write the package and return its path; ``.zip`` is added.

    Parameters
    ----------
    denoiser : Denoiser
        On the CPU, in float32.
    path : str or Path

    Raises
    ------
    BadRequest
        The network cannot be written as TorchScript that holds for any size.
    """
    where = str(path) if str(path).endswith(".zip") else f"{path}.zip"
    shape = _test_shape(denoiser, 0)
    source = denoiser.normalisation
    noise = np.random.default_rng(0).standard_normal((1, denoiser.channels, *shape))
    per_channel = (denoiser.channels, *(1,) * len(shape))
    image = noise * np.reshape(source.std, per_channel) + np.reshape(source.mean, per_channel)
    image = image.astype(np.float32)
    several = denoiser.channels > 1
    answer = denoiser.denoise(image if several else image[:, 0]).reshape(image.shape)
    files = {
        "weights.pt": _torchscript(denoiser),
        "test_input.npy": _npy(image),
        "test_output.npy": _npy(answer),
        "README.md": _readme(denoiser).encode(),
    }
    description = _description(denoiser, files, float(answer.std()))
    files["rdf.yaml"] = yaml.safe_dump(description, sort_keys=False, allow_unicode=True).encode()
    locations.put(where, _zipped(files))
    return where


def _test_shape(denoiser: Model, more: int) -> tuple[int, ...]:
    """Return the smallest extents that leave some output once the halo is cropped, and ``more`` strides."""
    return tuple(
        2 * h + round_up(_SHORTEST, s) + more * s
        for h, s in zip(_aligned_halo(denoiser), denoiser.stride, strict=True)
    )


def _aligned_halo(denoiser: Model) -> tuple[int, ...]:
    """Return the halo in whole strides: who cuts blocks begins them a halo early, and must be on the grid."""
    return tuple(round_up(h, s) for h, s in zip(denoiser.halo, denoiser.stride, strict=True))


def _torchscript(denoiser: Model) -> bytes:
    module = _Channels(denoiser.module, denoiser.kept, denoiser.footprint).eval()
    traced_on, tried_on = (
        torch.from_numpy(
            np.random.default_rng(more).standard_normal(
                (1 + more, len(denoiser.kept) or 2, *_test_shape(denoiser, more))
            )
        ).float()
        for more in (0, 1)
    )
    buffer = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # torch calls the format old; the zoo's programs run nothing newer without code of ours.
        warnings.simplefilter("ignore")
        try:
            # Each on a copy: a network may work in the place of its input.
            traced = torch.jit.trace(module, traced_on.clone(), check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, buffer)
            found, expected = traced(tried_on.clone()), module(tried_on.clone())
            same = torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
        except Exception as error:
            reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
            raise BadRequest("the network cannot be written as TorchScript", got=reason[:300]) from error
    if not same:
        raise BadRequest(
            "the network as TorchScript answers otherwise for another size",
            remedy="let its forward() depend on the shape of its input by torch operations only",
        )
    return buffer.getvalue()


def _description(denoiser: Model, files: dict[str, bytes], spread: float) -> dict[str, Any]:
    return {
        "format_version": _FORMAT_VERSION,
        "type": "model",
        "name": f"denoizarr {len(denoiser.axes)}D denoiser {denoiser.digest[:8]}",
        "description": _summary(denoiser),
        "version": "0.1.0",
        "authors": [{"name": "denoizarr"}],
        "tags": ["denoising", "self-supervised", "2d" if denoiser.axes == "yx" else "3d"],
        "cite": [
            {
                "text": "Krull et al. 2019, Noise2Void - Learning Denoising from Single Noisy Images",
                "doi": "10.1109/CVPR.2019.00223",
            }
        ],
        "documentation": _file("README.md", files),
        "inputs": [_input(denoiser, files)],
        "outputs": [_output(denoiser, files)],
        "weights": {
            "torchscript": {
                **_file("weights.pt", files),
                "pytorch_version": str(torch.__version__).partition("+")[0],
            }
        },
        "config": _config(denoiser, spread),
    }


def _input(denoiser: Model, files: dict[str, bytes]) -> dict[str, Any]:
    source = denoiser.normalisation
    into = {
        "axis": "channel",
        "gain": [1 / std for std in source.std],
        "offset": [-mean / std for mean, std in zip(source.mean, source.std, strict=True)],
    }
    return {
        "id": "raw",
        "description": "Raw intensities.",
        "axes": _axes(denoiser, _input_axis),
        "test_tensor": _file("test_input.npy", files),
        "data": {"type": "float32"},
        "preprocessing": [_cast(), {"id": "scale_linear", "kwargs": into}, _cast()],
    }


def _output(denoiser: Model, files: dict[str, bytes]) -> dict[str, Any]:
    target = denoiser.target_normalisation or denoiser.normalisation
    back = {"axis": "channel", "gain": list(target.std), "offset": list(target.mean)}
    return {
        "id": "denoised",
        "description": "Denoised intensities, in the units of the input."
        if denoiser.target_normalisation is None
        else "Intensities as of the target that it was trained on.",
        "axes": _axes(denoiser, _output_axis),
        "test_tensor": _file("test_output.npy", files),
        "data": {"type": "float32"},
        "postprocessing": [{"id": "scale_linear", "kwargs": back}, _cast()],
    }


def _cast() -> dict[str, Any]:
    return {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}


def _config(denoiser: Model, spread: float) -> dict[str, Any]:
    source = denoiser.normalisation
    tolerance = {"relative_tolerance": _TOLERANCE, "absolute_tolerance": _TOLERANCE * spread}
    return {
        "bioimageio": {"reproducibility_tolerance": [tolerance]},
        "denoizarr": {
            "digest": denoiser.digest,
            "halo": list(denoiser.halo),
            "stride": list(denoiser.stride),
            "normalisation": {"mean": list(source.mean), "std": list(source.std)},
            "blind_spot": denoiser.blind_spot.astype(int).tolist(),
        },
    }


def _axes(denoiser: Model, space: Any) -> list[dict[str, Any]]:
    names = [f"channel{n}" for n in range(denoiser.channels)]
    channel = {"type": "channel", "id": "channel", "channel_names": names}
    return [{"type": "batch"}, channel, *(space(denoiser, index) for index in range(len(denoiser.axes)))]


def _space(denoiser: Model, index: int) -> dict[str, Any]:
    axis = denoiser.axes[index]
    entry: dict[str, Any] = {"type": "space", "id": axis}
    size = (denoiser.pixel_size or {}).get(axis)
    if size is not None and size["unit"] in _UNITS:
        # A float32 times an extent is exact in float64: the specification's n * scale / scale must give n
        # back, and 48 * 0.2 / 0.2 does not.
        entry |= {"unit": size["unit"], "scale": float(np.float32(size["value"]))}
    return entry


def _input_axis(denoiser: Model, index: int) -> dict[str, Any]:
    size = {"min": _test_shape(denoiser, 0)[index], "step": denoiser.stride[index]}
    return _space(denoiser, index) | {"size": size, "concatenable": True}


def _output_axis(denoiser: Model, index: int) -> dict[str, Any]:
    size = {"tensor_id": "raw", "axis_id": denoiser.axes[index]}
    halo = _aligned_halo(denoiser)[index]
    return _space(denoiser, index) | {"size": size} | ({"halo": halo} if halo else {})


def _file(name: str, files: dict[str, bytes]) -> dict[str, str]:
    return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}


def _summary(denoiser: Model) -> str:
    how = "from targets" if denoiser.target_normalisation else "from noisy images alone"
    return f"A {len(denoiser.axes)}D network that removes noise, trained {how} by denoizarr."


def _readme(denoiser: Model) -> str:
    sizes = [f"{a} {e['value']:g} {e['unit'] or ''}".strip() for a, e in (denoiser.pixel_size or {}).items()]
    lines = [
        f"# {_summary(denoiser)}",
        "",
        "Raw intensities go in, denoised raw intensities come out.",
        f"Along {', '.join(denoiser.axes)}: halo {denoiser.halo}, stride {denoiser.stride} voxels.",
        f"Trained on patches of {denoiser.patch_size} voxels. Pixel size: {', '.join(sizes) or 'unknown'}.",
        *_lines_left(denoiser),
        "",
        "## Validation",
        "",
        "Look at the raw image less the result: it should be noise, without structure.",
        "",
    ]
    return "\n".join(lines)


def _lines_left(denoiser: Model) -> list[str]:
    """Return what a user of the package has to know of a model that takes periodic lines out."""
    if not denoiser.periodic:
        return []
    found = ", ".join(f"({fy:.5g}, {fx:.5g})" for fy, fx in denoiser.periodic)
    text = (
        f"Trained on images less their periodic lines, at frequencies (y, x) of {found} cycles per pixel. "
        "This package does not take lines out: do so before, or use denoizarr."
    )
    return [text]


def _npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as package:
        for name, content in files.items():
            # Without the time of day, so that the same model gives the same package.
            package.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
