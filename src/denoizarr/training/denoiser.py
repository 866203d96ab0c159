"""A trained model: in memory, in one file, and run over a tile.

``run_tile`` is the one path from intensities to intensities. Whole arrays in memory and the blocks of an
image of any size both go through it, so that they agree.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import Tile, tiles_of
from denoizarr.kernels.blind_spot_rules import check_kernel
from denoizarr.kernels.centre_weights import keep_centres
from denoizarr.kernels.unet import NetworkShape, build_network, fold_batch_norm, halo_of
from denoizarr.kernels.wave_fit import plane_without_waves
from denoizarr.kernels.waves import Frequency
from denoizarr.stores.records import digest

from .bioimageio import write_package
from .centre_weights import CentreWeights, in_units
from .exactness import exact_cuda
from .model_file import read_model, write_model
from .model_header import (
    AXES,
    FORMAT,
    VERSION,
    PixelSize,
    checked_centre,
    checked_footprint,
    checked_periodic,
    checked_pixel_size,
    checked_record,
    checked_target,
    network_entry,
)
from .normalisation import Normalisation
from .own_network import OwnNetwork, peak_bytes_per_voxel
from .tensor_files import Weights, tensors_digest

Precision = Literal["float32", "float64", "bfloat16"]

_SUFFIX = ".safetensors"
# What the network computes in, and what everything around it does: a grey level of bfloat16 is 1 in 256.
_PRECISIONS: dict[str, tuple[torch.dtype, torch.dtype, type[np.floating[Any]]]] = {
    "float32": (torch.float32, torch.float32, np.float32),
    "float64": (torch.float64, torch.float64, np.float64),
    "bfloat16": (torch.bfloat16, torch.float32, np.float32),
}
# Per axis: denoise() needs some hundred megabytes beyond its input and output in 2D, and 1.3 GB in 3D.
_TILE = {2: 512, 3: 64}


class Denoiser:
    """A trained network and all that is needed to apply it.

    Channels are independent: one single-channel network is applied to each channel, with that channel's mean
    and standard deviation. Safe to run from several threads at once.

    Parameters
    ----------
    network : NetworkShape or OwnNetwork
        Our network by its shape, or one's own as :func:`~denoizarr.training.own_network.measure_network`
        returns it.
    weights : dict of str to Tensor
        The state of the network (of the one that :func:`~denoizarr.kernels.unet.build_network` builds).
    normalisation : Normalisation
    target_normalisation : Normalisation, optional
        Of the target that it was trained on: the output is in the target's intensities. None: in the input's.
    blind_spot : ndarray of bool, odd extents (y, x) or (z, y, x), optional
        The kernel that was hidden in training; None is a single voxel.
    patch_size : tuple of int
        (y, x) or (z, y, x) in voxels, as trained; a pair stands for one plane of a volume.
    pixel_size : dict, optional
        By axis ``{"value": float, "unit": str or None}``, of the first image that it was trained on.
    periodic : sequence of (fy, fx)
        Frequencies, in cycles per pixel, of the waves that were taken out of the images that it was trained
        on; they are measured in every plane it is applied to, and taken out of it first.
    centre : tuple of CentreWeights, optional
        One per channel: the share of a voxel's own value in its answer, which no blind-spot network sees.
        None: the network's answer stands as it is.
    footprint : ndarray of bool, odd extents (y, x) or (z, y, x), optional
        Around a voxel those whose values count as its own, on average, with ``centre``; None: itself alone.
    training : dict, optional
        What a person wants to know about how it was trained; JSON-able; decides nothing.
    provenance : dict, optional
        Where it comes from; JSON-able; decides nothing. None: the versions of this package and of torch.
    device : str
        "cpu", "cuda" or "cuda:1".
    precision : {"float32", "float64", "bfloat16"}
        Of the network; with bfloat16 intensities before and after it are float32.

    Attributes
    ----------
    axes : {"yx", "zyx"}
    kept : list of Centre
        Per channel what is kept of a voxel's own value, in units of the standard deviation, as
        :func:`~denoizarr.kernels.centre_weights.keep_centres` takes it.
    module : torch.nn.Module
        The network as it is run, its norms folded: maps (n, 1, [z,] y, x), normalised, to the same shape.
    halo, stride : tuple of int
        Per axis of ``axes``, in voxels: what a tile must read around its valid part, for the network and
        the footprint, and what its origin and extents must be multiples of.
    digest : str
        Names all that decides the output: weights and header, without pixel size, training and provenance.

    Raises
    ------
    BadRequest, ConfigError
        Kernel, normalisation or pixel size do not fit the network; or training or provenance hold what JSON
        does not, such as a number that is not finite.
    """

    def __init__(
        self,
        network: NetworkShape | OwnNetwork,
        weights: Weights,
        normalisation: Normalisation,
        *,
        target_normalisation: Normalisation | None = None,
        blind_spot: NDArray[np.bool_] | None = None,
        patch_size: tuple[int, ...] = (64, 64),
        pixel_size: PixelSize | None = None,
        periodic: Sequence[Frequency] = (),
        centre: Sequence[CentreWeights] | None = None,
        footprint: NDArray[np.bool_] | None = None,
        training: dict[str, Any] | None = None,
        provenance: dict[str, Any] | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.network, self.normalisation = network, normalisation
        self.target_normalisation = checked_target(target_normalisation, normalisation)
        self.axes = AXES[network.ndim]
        self.patch_size = (1,) * (network.ndim - len(patch_size)) + tuple(int(n) for n in patch_size)
        self.blind_spot = (
            np.ones((1,) * network.ndim, np.bool_) if blind_spot is None else np.array(blind_spot)
        )
        check_kernel(self.blind_spot, network.ndim)
        self.pixel_size = checked_pixel_size(pixel_size, self.axes)
        self.periodic = checked_periodic([list(frequency) for frequency in periodic])
        self.centre = checked_centre(centre, normalisation, target_normalisation)
        self.footprint = checked_footprint(footprint, network.ndim) if centre is not None else None
        self.training = checked_record(training or {}, "training")
        self.provenance = checked_record(provenance or _this_software(), "provenance")
        if isinstance(network, OwnNetwork):
            self._network_halo, self.stride = network.halo, network.stride
        else:
            self._network_halo = (halo_of(network),) * network.ndim
            self.stride = (network.stride,) * network.ndim
        beyond = (0,) * network.ndim if self.footprint is None else self.footprint.shape
        self.halo = tuple(h + n // 2 for h, n in zip(self._network_halo, beyond, strict=True))
        self.device, self.precision = torch.device(device), precision
        if precision not in _PRECISIONS:
            raise BadRequest("no such precision", got=repr(precision), expected=" or ".join(_PRECISIONS))
        self._dtype, outside, self._numpy = _PRECISIONS[precision]
        self._weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
        self.digest = digest([self._deciding_header(), tensors_digest(self._weights)])
        if self.device.type == "cuda":
            exact_cuda()
        self.module = _runnable(network, self._weights, self._dtype).to(self.device)
        self.kept = [
            in_units(curve, mean, std, outside, self.device)
            for curve, mean, std in zip(
                self.centre or (), normalisation.mean, normalisation.std, strict=False
            )
        ]

    @property
    def channels(self) -> int:
        """Number of channels that the model was trained on; an image without channels has one."""
        return len(self.normalisation.mean)

    @cached_property
    def bytes_per_voxel(self) -> int:
        """Projected peak memory of :meth:`run_tile`, in bytes per voxel of the tile, the network's own aside.

        The finest level decides: what the last decoder reads, in two parts, and what it makes of one are
        alive together: three times the features. Freed tensors stay with the process, so that up to twice as
        much was measured of volumes, and more of planes, whose tiles are many. A convolution in float64
        unrolls its input nine times (27 in 3D). One's own network is run over a small tile to see.
        """
        around = 16 * self._numpy().itemsize
        if isinstance(self.network, OwnNetwork):
            # Autocast keeps some of its tensors in float32: as if it were all.
            wide = torch.float64 if self.precision == "float64" else torch.float32
            return around + peak_bytes_per_voxel(self.module, self.stride, wide)
        channels = 8 if self.network.ndim == 2 else 6
        if self.precision == "float64":
            channels += 2 * 3**self.network.ndim
        return around + channels * self.network.features * self._dtype.itemsize

    def to(self, device: str | None = None, precision: Precision | None = None) -> Denoiser:
        """Return the same model on another device ("cpu", "cuda") or in another precision.

        In "bfloat16" the network is two to four times as fast on processors and GPUs that multiply it in
        hardware, and answers differ from those in float32 by about 0.02 standard deviations, single voxels by
        0.1.
        """
        return self._with(device=str(device or self.device), precision=precision or self.precision)

    def with_centre(
        self, centre: Sequence[CentreWeights] | None, footprint: NDArray[np.bool_] | None = None
    ) -> Denoiser:
        """Return the same model with other weights of a voxel's own value or its footprint, or with none."""
        return self._with(centre=centre, footprint=footprint)

    def _with(self, **changes: Any) -> Denoiser:
        settings: dict[str, Any] = {
            "target_normalisation": self.target_normalisation,
            "blind_spot": self.blind_spot,
            "patch_size": self.patch_size,
            "pixel_size": self.pixel_size,
            "periodic": self.periodic,
            "centre": self.centre,
            "footprint": self.footprint,
            "training": self.training,
            "provenance": self.provenance,
            "device": str(self.device),
            "precision": self.precision,
        }
        return Denoiser(self.network, self._weights, self.normalisation, **settings | changes)

    # ---- running

    def run_tile(self, tile: NDArray[Any], channel: int = 0) -> NDArray[Any]:
        """Denoise one tile.

        Parameters
        ----------
        tile : ndarray of shape (y, x) or (z, y, x), any real type
            Raw intensities; extents are multiples of the stride. It equals the same part of the whole image's
            result where its origin lies on the stride's grid, ``halo`` voxels away from its borders.
        channel : int
            Whose mean and standard deviation to use.

        Returns
        -------
        ndarray
            Raw intensities, same shape, float32 (float64 in that precision); not clipped, not rounded.
        """
        if tile.ndim != len(self.axes) or any(
            n % s or not n for n, s in zip(tile.shape, self.stride, strict=True)
        ):
            raise BadRequest(
                "the extents of a tile are multiples of the network's stride",
                got=f"shape {tile.shape}",
                expected=f"{len(self.axes)} axes, multiples of {self.stride}",
            )
        source, target = self.normalisation, self.target_normalisation or self.normalisation
        mean, std = self._numpy(source.mean[channel]), self._numpy(source.std[channel])
        normalised = tile.astype(self._numpy)
        normalised -= mean
        normalised /= std
        with torch.inference_mode():
            seen = torch.from_numpy(normalised).to(self.device)
            answer = self._answer(seen)
            if self.kept:
                answer = keep_centres(seen, answer, self.kept[channel], self.footprint)
            result: NDArray[Any] = answer.cpu().numpy()
        result *= self._numpy(target.std[channel])
        result += self._numpy(target.mean[channel])
        return result

    def _answer(self, seen: torch.Tensor) -> torch.Tensor:
        """Return the network's answer in the type of what it sees, in memory of its own."""
        # The voxels of one tile are never batched with another's: bits depend on the batch size.
        x = seen[None, None]
        if not isinstance(self.network, OwnNetwork):
            return self.module(x.to(self._dtype))[0, 0].to(seen.dtype)  # type: ignore[no-any-return]  # a module's
        # One's own network may work in the place of its input, or hand it back, and both are needed.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            return self.module(x.clone())[0, 0].to(seen.dtype, copy=True)  # type: ignore[no-any-return]

    def denoise(self, array: NDArray[Any]) -> NDArray[Any]:
        """Denoise a whole array in memory, less the periodic lines that the model knows of.

        Parameters
        ----------
        array : ndarray of shape (..., [z,] y, x) or, with several channels, (..., c, [z,] y, x)
            Raw intensities of any real type; the trailing axes are the model's. Leading axes are looped over.

        Returns
        -------
        ndarray of float32 (float64 in that precision)
            Raw intensities, same shape.

        Raises
        ------
        BadRequest
            Not an array of real numbers with these axes.
        """
        array = np.asarray(array)
        ndim, several = len(self.axes), int(self.channels > 1)
        if array.dtype.kind not in "uifb" or array.ndim < ndim + several or 0 in array.shape:
            raise BadRequest(
                "not an image in memory for this model",
                got=f"{array.dtype} of shape {array.shape}",
                expected=f"real numbers whose last axes are {'c, ' * several}{', '.join(self.axes)}",
            )
        if several and array.shape[-ndim - 1] != self.channels:
            raise BadRequest(
                "the model has another number of channels",
                got=f"{array.shape[-ndim - 1]} along axis {-ndim - 1} of shape {array.shape}",
                expected=self.channels,
            )
        result = np.empty(array.shape, self._numpy)
        for index in np.ndindex(*array.shape[:-ndim]):
            image = self._without_lines(array[index])
            self._denoise_box(image, result[index], index[-1] if several else 0)
        return result

    def _without_lines(self, image: NDArray[Any]) -> NDArray[Any]:
        """Return a plane or volume less its waves, as whole images are read in ``images.periodic``."""
        if not self.periodic:
            return image
        planes = image.reshape(-1, *image.shape[-2:])
        less = [plane_without_waves(plane, self.periodic) for plane in planes]
        return np.stack(less).reshape(image.shape)

    def _denoise_box(self, image: NDArray[Any], result: NDArray[Any], channel: int) -> None:
        sides = (_TILE[image.ndim],) * image.ndim
        for tile in tiles_of(Box.whole(image.shape), sides, image.shape, self.halo, self.stride):
            answer = self.run_tile(_read(image, tile), channel)
            result[tile.valid.slices] = answer[tile.valid.relative_to(tile.read.start).slices]

    # ---- the file

    def _deciding_header(self) -> dict[str, Any]:
        target = self.target_normalisation
        periodic = {"periodic": [list(frequency) for frequency in self.periodic]} if self.periodic else {}
        centre: dict[str, Any] = {}
        if self.centre is not None:
            centre["centre"] = [
                {name: list(values) for name, values in asdict(curve).items() if values}
                for curve in self.centre
            ]
        if self.footprint is not None:
            centre["footprint"] = self.footprint.astype(int).tolist()
        return (
            periodic
            | centre
            | {
                "format": FORMAT,
                "version": VERSION,
                "network": network_entry(self.network),
                "axes": self.axes,
                "halo": list(self._network_halo),
                "stride": list(self.stride),
                "normalisation": _listed(self.normalisation),
                "target_normalisation": None if target is None else _listed(target),
                "blind_spot": self.blind_spot.astype(int).tolist(),
                "patch_size": list(self.patch_size),
            }
        )

    def save(self, url: str | Path) -> str:
        """Write the model to one file, replacing it whole, and return its path; ``.safetensors`` is added."""
        header = self._deciding_header() | {
            "pixel_size": self.pixel_size,
            # Checked again: they may have been changed since.
            "training": checked_record(self.training, "training"),
            "provenance": checked_record(self.provenance, "provenance"),
        }
        where = _named(url)
        write_model(where, header, self.network, self._weights)
        return where

    def export_bioimageio(self, path: str | Path) -> str:
        """Write the model as a package of the BioImage Model Zoo and return its path; ``.zip`` is added.

        It holds the network as TorchScript, its normalisation, halo, stride, axes and pixel size, and a test
        image with what this package makes of it. ``bioimageio.core`` (the extra ``bioimageio``) runs it, and
        takes no periodic lines out: it runs the network alone.

        Raises
        ------
        BadRequest
            One's own network cannot be written as TorchScript.
        """
        return write_package(self.to("cpu", "float32"), path)

    @classmethod
    def load(
        cls,
        url: str | Path,
        *,
        network: nn.Module | OwnNetwork | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> Denoiser:
        """Read a model; nothing in the file is executed, and it is read only once its header is found valid.

        Parameters
        ----------
        url : str or Path
        network : torch.nn.Module or OwnNetwork, optional
            For a model of one's own network: the module, with any weights. A file holds no code.
        device : str
        precision : {"float32", "float64", "bfloat16"}

        Raises
        ------
        ImageNotFound
            There is no such file.
        ModelError
            The file is damaged, foreign or of a newer version; the message names the field. Or the network is
            not the one that was trained.
        """
        header, structure, weights = read_model(_named(url), network)
        return cls(
            structure,
            weights,
            header.normalisation,
            target_normalisation=header.target_normalisation,
            blind_spot=header.blind_spot,
            patch_size=header.patch_size,
            pixel_size=header.pixel_size,
            periodic=header.periodic,
            centre=header.centre,
            footprint=header.footprint,
            training=header.training,
            provenance=header.provenance,
            device=device,
            precision=precision,
        )


def _runnable(network: NetworkShape | OwnNetwork, weights: Weights, dtype: torch.dtype) -> nn.Module:
    if isinstance(network, OwnNetwork):
        # In the layout that its author wrote it for: a .view() in it may not survive another.
        # And with autocast in bfloat16: what it adds up itself, it may need to add up in float32.
        return network.with_weights(weights).to(torch.float32 if dtype == torch.bfloat16 else dtype)
    with torch.device("meta"):
        net = build_network(network)
    net.load_state_dict(weights, assign=True)
    # Folded in the precision it runs in, so that float64 is exact to float64; bfloat16 is rounded to once.
    folded = fold_batch_norm(net.to(torch.float32 if dtype == torch.bfloat16 else dtype)).to(dtype)
    memory_format = torch.channels_last if network.ndim == 2 else torch.channels_last_3d
    return folded.to(memory_format=memory_format)  # type: ignore[call-overload,no-any-return]  # not in torch's stubs


def _listed(normalisation: Normalisation) -> dict[str, list[float]]:
    return {"mean": list(normalisation.mean), "std": list(normalisation.std)}


def _this_software() -> dict[str, Any]:
    from denoizarr import __version__

    versions = {
        "denoizarr": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }
    return {"software": versions}


def _named(url: str | Path) -> str:
    text = str(url)
    return text if text.endswith(_SUFFIX) else text + _SUFFIX


def _read(image: NDArray[Any], tile: Tile) -> NDArray[Any]:
    inside = image[tile.inside(image.shape).slices]
    padding = tile.padding(image.shape)
    return np.pad(inside, padding, mode="edge") if any(after for _, after in padding) else inside
