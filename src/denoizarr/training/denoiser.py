"""A trained model: in memory, in one file, and run over a tile.

``run_tile`` is the one path from intensities to intensities. Whole arrays in memory and the blocks of an
image of any size both go through it, so that they agree.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, ConfigError, ModelError
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import Tile, tiles_of
from denoizarr.kernels.blindspot import check_kernel
from denoizarr.kernels.unet import NetworkShape, build_network, fold_batch_norm, halo_of
from denoizarr.stores.records import digest

from .exactness import exact_cuda
from .tensor_files import Weights, check_weights, read_tensors, tensors_digest, write_tensors

Precision = Literal["float32", "float64"]

_FORMAT, _VERSION = "denoizarr-denoiser", 1
_SUFFIX = ".safetensors"
_PRECISIONS: dict[str, tuple[torch.dtype, type[np.floating[Any]]]] = {
    "float32": (torch.float32, np.float32),
    "float64": (torch.float64, np.float64),
}
# Whole planes are cut so that denoise() needs a few hundred megabytes beyond its input and output.
_TILE = 512


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The mean and standard deviation, in raw intensities, that every channel is normalised by.

    Attributes
    ----------
    mean, std : tuple of float
        One per channel; an image without channels has one.

    Raises
    ------
    ConfigError
        They do not pair up, or are not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            got = f"{len(self.mean)} and {len(self.std)}"
            raise ConfigError("one mean and one std per channel", where="normalisation", got=got)
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(std > 0 for std in self.std):
            got = f"mean {self.mean}, std {self.std}"
            raise ConfigError("not a usable mean and std", where="normalisation", got=got)


class Denoiser:
    """A blind-spot network and all that is needed to apply it.

    Channels are independent: one single-channel network is applied to each channel, with that channel's mean
    and standard deviation. Safe to run from several threads at once.

    Parameters
    ----------
    shape : NetworkShape
    weights : dict of str to Tensor
        The state of the network that :func:`~denoizarr.kernels.unet.build_network` builds; float32.
    normalisation : Normalisation
    blind_spot : ndarray of bool, odd extents (y, x)
        The kernel that was hidden in training.
    patch_size : tuple of int
        (y, x) in pixels, as trained.
    training : dict, optional
        What a person wants to know about how it was trained; JSON-able; decides nothing.

    Attributes
    ----------
    halo, stride : tuple of int
        Per spatial axis, in voxels: what a tile must read around its valid part, and what its origin and
        extents must be multiples of.
    digest : str
        Names all that decides the output: weights and header, without ``training``.
    """

    def __init__(
        self,
        shape: NetworkShape,
        weights: Weights,
        normalisation: Normalisation,
        *,
        blind_spot: NDArray[np.bool_] | None = None,
        patch_size: tuple[int, ...] = (64, 64),
        training: dict[str, Any] | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.shape, self.normalisation, self.patch_size = shape, normalisation, tuple(patch_size)
        self.blind_spot = np.ones((1,) * shape.ndim, np.bool_) if blind_spot is None else np.array(blind_spot)
        check_kernel(self.blind_spot)
        self.training = dict(training or {})
        self.halo, self.stride = (halo_of(shape),) * shape.ndim, (shape.stride,) * shape.ndim
        self.device, self.precision = torch.device(device), precision
        if precision not in _PRECISIONS:
            raise BadRequest("no such precision", got=repr(precision), expected=" or ".join(_PRECISIONS))
        self._dtype, self._numpy = _PRECISIONS[precision]
        self._weights = {name: value.detach().cpu().contiguous().clone() for name, value in weights.items()}
        self.digest = _digest(self._weights, self._deciding_header())
        with torch.device("meta"):
            net = build_network(shape)
        net.load_state_dict(self._weights, assign=True)
        if self.device.type == "cuda":
            exact_cuda()
        # Folded in the precision it runs in, so that float64 is exact to float64.
        folded = fold_batch_norm(net.to(self._dtype)).to(self.device)
        memory_format = torch.channels_last if shape.ndim == 2 else torch.channels_last_3d
        self._network = folded.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in torch's stubs

    @property
    def channels(self) -> int:
        """Number of channels that the model was trained on; an image without channels has one."""
        return len(self.normalisation.mean)

    @property
    def bytes_per_voxel(self) -> int:
        """Projected peak memory of :meth:`run_tile`, in bytes per voxel of the tile, the network's own aside.

        The finest level decides: what the last decoder reads (twice ``features`` channels), the skip and what
        was upsampled, which it was made of, are alive together: 545 bytes per voxel for 32 features in
        float32, and 720 were measured where freed tensors stay with the process. A convolution in float64
        unrolls its input nine times.
        """
        channels = 7 if self.precision == "float32" else 7 + 2 * 3**self.shape.ndim
        return (channels * self.shape.features + 16) * self._numpy().itemsize

    def to(self, device: str | None = None, precision: Precision | None = None) -> Denoiser:
        """Return the same model on another device ("cpu", "cuda") or in another precision."""
        return Denoiser(
            self.shape,
            self._weights,
            self.normalisation,
            blind_spot=self.blind_spot,
            patch_size=self.patch_size,
            training=self.training,
            device=str(device or self.device),
            precision=precision or self.precision,
        )

    # ---- running

    def run_tile(self, tile: NDArray[Any], channel: int = 0) -> NDArray[Any]:
        """Denoise one tile.

        Parameters
        ----------
        tile : ndarray of shape (y, x), float
            Raw intensities; extents are multiples of the stride. It equals the same part of the whole image's
            result where its origin lies on the stride's grid, ``halo`` voxels away from its borders.
        channel : int
            Whose mean and standard deviation to use.

        Returns
        -------
        ndarray
            Raw intensities, same shape, float32 (float64 in that precision). Nothing is clipped or rounded.
        """
        if tile.ndim != self.shape.ndim or any(
            n % s or not n for n, s in zip(tile.shape, self.stride, strict=True)
        ):
            raise BadRequest(
                "the extents of a tile are multiples of the network's stride",
                got=f"shape {tile.shape}",
                expected=f"{self.shape.ndim} axes, multiples of {self.stride}",
            )
        mean, std = (
            self._numpy(self.normalisation.mean[channel]),
            self._numpy(self.normalisation.std[channel]),
        )
        normalised = (tile.astype(self._numpy) - mean) / std
        with torch.inference_mode():
            # The voxels of one tile are never batched with another's: bits depend on the batch size.
            answer = self._network(torch.from_numpy(normalised)[None, None].to(self.device))[0, 0]
            result: NDArray[Any] = answer.cpu().numpy()
        result *= std
        result += mean
        return result

    def denoise(self, array: NDArray[Any]) -> NDArray[Any]:
        """Denoise a whole array in memory.

        Parameters
        ----------
        array : ndarray of shape (..., y, x) or, with several channels, (..., c, y, x)
            Raw intensities of any real type. Leading axes are looped over.

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
        ndim, several = self.shape.ndim, int(self.channels > 1)
        if array.dtype.kind not in "uifb" or array.ndim < ndim + several or 0 in array.shape:
            raise BadRequest("not an image in memory", got=f"{array.dtype} of shape {array.shape}")
        if several and array.shape[-ndim - 1] != self.channels:
            raise BadRequest(
                "the model has another number of channels",
                got=f"{array.shape[-ndim - 1]} along axis {-ndim - 1} of shape {array.shape}",
                expected=self.channels,
            )
        result = np.empty(array.shape, self._numpy)
        for index in np.ndindex(*array.shape[:-ndim]):
            self._denoise_plane(array[index], result[index], index[-1] if several else 0)
        return result

    def _denoise_plane(self, plane: NDArray[Any], result: NDArray[Any], channel: int) -> None:
        whole = Box.whole(plane.shape)
        for tile in tiles_of(whole, (_TILE,) * plane.ndim, plane.shape, self.halo, self.stride):
            answer = self.run_tile(_read(plane, tile), channel)
            result[tile.valid.slices] = answer[tile.valid.relative_to(tile.read.start).slices]

    # ---- the file

    def _deciding_header(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "version": _VERSION,
            "network": asdict(self.shape),
            "normalisation": asdict(self.normalisation),
            "blind_spot": self.blind_spot.astype(int).tolist(),
            "patch_size": list(self.patch_size),
        }

    def save(self, url: str | Path) -> str:
        """Write the model to one file, replacing it whole, and return its path; ``.safetensors`` is added."""
        header = self._deciding_header() | {"training": self.training, "digest": self.digest}
        where = _named(url)
        write_tensors(where, header, self._weights)
        return where

    @classmethod
    def load(cls, url: str | Path, *, device: str = "cpu", precision: Precision = "float32") -> Denoiser:
        """Read a model; nothing in the file is executed.

        Raises
        ------
        ImageNotFound
            There is no such file.
        ModelError
            The file is damaged, foreign or of a newer version; the message names the field.
        """
        where = _named(url)
        header, weights = read_tensors(where)
        try:
            return _from_parts(header, weights, where, device, precision)
        except (ConfigError, KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ModelError):
                raise
            got = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise ModelError("the model's header is not valid", where=where, got=got) from error


def _named(url: str | Path) -> str:
    text = str(url)
    return text if text.endswith(_SUFFIX) else text + _SUFFIX


def _read(plane: NDArray[Any], tile: Tile) -> NDArray[Any]:
    inside = plane[tile.inside(plane.shape).slices]
    padding = tile.padding(plane.shape)
    return np.pad(inside, padding, mode="edge") if any(after for _, after in padding) else inside


def _digest(weights: Weights, header: dict[str, Any]) -> str:
    return digest([header, tensors_digest(weights)])


def _from_parts(
    header: dict[str, Any], weights: Weights, where: str, device: str, precision: Precision
) -> Denoiser:
    if header["format"] != _FORMAT or header["version"] != _VERSION:
        raise ModelError(
            "a file of another kind or version",
            where=where,
            got=f"format {header['format']!r}, version {header['version']!r}",
            expected=f"{_FORMAT!r}, version {_VERSION}",
            remedy="use the version of denoizarr that wrote it",
        )
    shape = NetworkShape(**header["network"])
    check_weights(weights, shape, where)
    kernel = np.array(header["blind_spot"])
    if not np.isin(kernel, (0, 1)).all():
        raise ModelError("a blind-spot kernel holds 0 and 1", where=f"{where}, blind_spot")
    mean, std = (tuple(float(v) for v in header["normalisation"][part]) for part in ("mean", "std"))
    patch_size = tuple(int(n) for n in header["patch_size"])
    if len(patch_size) != shape.ndim or min(patch_size) < 1:
        raise ModelError("not a patch size", where=f"{where}, patch_size", got=header["patch_size"])
    model = Denoiser(
        shape,
        weights,
        Normalisation(mean, std),
        blind_spot=kernel.astype(np.bool_),
        patch_size=patch_size,
        training=header["training"],
        device=device,
        precision=precision,
    )
    if model.digest != header["digest"]:
        raise ModelError(
            "the file is damaged: its content does not have the recorded digest",
            where=where,
            got=model.digest,
            expected=header["digest"],
        )
    return model
