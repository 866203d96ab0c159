"""NIfTI files: read box by box, and what they say beside their voxels, kept whole.

A file's axes are x, y, z and volumes, x fastest, and stay what they are: nothing is ever reoriented. Its
affine and its header travel in an attribute of the image, so that a file written from it has them again, and
the b-values and directions of a diffusion series, from the text files beside it, with them.

Needs the extra ``nifti`` (nibabel; indexed_gzip reads parts of compressed files).
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, ImageNotFound, MetadataError, UnsupportedStore

from .ome_zarr import NIFTI
from .sources import UNDECODABLE, Array
from .tiff_metadata import ForeignMetadata

SUFFIXES = (".nii", ".nii.gz")
_AXES = ("x", "y", "z", "t", "c")
_UNITS = {
    "mm": "millimeter",
    "meter": "meter",
    "micron": "micrometer",
    "sec": "second",
    "msec": "millisecond",
    "usec": "microsecond",
}
_TO_NIFTI = {name: sign for sign, name in _UNITS.items()}
_GRADIENTS = {"bvals": (".bval", ".bvals"), "bvecs": (".bvec", ".bvecs")}


def is_nifti_name(url: str | Path) -> bool:
    """Tell whether the name ends as a NIfTI file's does."""
    return str(url).lower().endswith(SUFFIXES)


def nibabel() -> ModuleType:
    """Return the library that knows the format.

    Raises
    ------
    UnsupportedStore
        It is not installed.
    """
    try:
        import nibabel as found
    except ImportError as error:
        raise UnsupportedStore(
            "NIfTI needs nibabel", got=str(error), remedy="pip install 'denoizarr[nifti]'"
        ) from error
    return found


@dataclass(frozen=True, slots=True, eq=False)
class NiftiFile:
    """A NIfTI file, opened.

    Attributes
    ----------
    shape : tuple of int
        x, y, z and volumes, as stored.
    dims : tuple of str
    dtype : numpy.dtype
        Of the intensities: as stored, or float where the header scales them.
    metadata : ForeignMetadata
    """

    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    metadata: ForeignMetadata
    proxy: Any

    @property
    def chunks(self) -> tuple[int, ...]:
        """A plane: what is read at least without passing over the rest."""
        return (*self.shape[:2], *(1,) * (len(self.shape) - 2))

    def read(self, wanted: tuple[slice, ...]) -> Array:
        """Return a box, along the axes as stored."""
        return np.asarray(self.proxy[wanted]).astype(self.dtype, copy=False)


def open_nifti(path: str) -> NiftiFile:
    """Open a file; no voxels are read.

    Raises
    ------
    UnsupportedStore, ImageNotFound, MetadataError
    """
    try:
        state = Path(path).stat()
    except OSError as error:
        raise ImageNotFound("no NIfTI file", where=path, got=error.strerror) from error
    file = _opened(path, state.st_mtime_ns, state.st_size)
    n_volumes = file.shape[3] if len(file.shape) > 3 else 1
    # Not kept with the file: they are files of their own, and may be corrected.
    extra = {NIFTI: file.metadata.extra[NIFTI] | _gradients(path, n_volumes)}
    return replace(file, metadata=replace(file.metadata, extra=extra))


@lru_cache(maxsize=8)
def _opened(path: str, _written: int, _size: int) -> NiftiFile:
    nib = nibabel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of headers that are odd, and read all the same
        try:
            image = nib.load(path)
        except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, *UNDECODABLE) as error:
            raise MetadataError(
                "the file cannot be read as what its name says", where=path, got=str(error)
            ) from error
    if not isinstance(image, nib.Nifti1Image):  # Nifti2Image is one
        raise MetadataError("not a NIfTI file", where=path, got=type(image).__name__)
    proxy, header = image.dataobj, image.header
    shape = tuple(int(n) for n in image.shape)
    # Trailing axes of one voxel are the format's way of saying that there are none.
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if not 2 <= len(shape) <= 5 or (len(image.shape) != len(shape) and len(image.shape) > 5):
        raise MetadataError("a NIfTI file of these axes is not read here", where=path, got=image.shape)
    stored = np.dtype(proxy.dtype).newbyteorder("=")
    if stored.kind not in "uif":
        raise MetadataError("not an image of real numbers", where=path, got=stored)
    is_scaled = (proxy.slope, proxy.inter) != (1.0, 0.0)
    dtype = np.dtype(np.float32 if stored.itemsize <= 2 else np.float64) if is_scaled else stored
    dims = _AXES[: len(shape)]
    zooms = [float(z) for z in header.get_zooms()[: len(shape)]]
    space, time = header.get_xyzt_units()
    units = {d: _UNITS[space] for d in "xyz" if space in _UNITS} | (
        {"t": _UNITS[time]} if time in _UNITS and len(shape) > 3 else {}
    )
    metadata = ForeignMetadata(
        {d: zoom for d, zoom in zip(dims, zooms, strict=True) if zoom > 0 and d != "c"},
        {d: unit for d, unit in units.items() if d in dims},
        ("the header's scaling: intensities are as it says, in float",) if is_scaled else (),
        extra={NIFTI: _carried(image)},
    )
    return NiftiFile(shape, dims, dtype, metadata, _Squeezed(proxy, len(shape)))


@dataclass(frozen=True, slots=True)
class _Squeezed:
    """The voxels of a file without its last axes of length one."""

    proxy: Any
    ndim: int

    def __getitem__(self, wanted: tuple[slice, ...]) -> Any:
        return self.proxy[(*wanted, *(0,) * (self.proxy.ndim - self.ndim))]


def _carried(image: Any) -> dict[str, Any]:
    written = BytesIO()
    image.header.write_to(written)
    return {
        "header": base64.b64encode(written.getvalue()).decode(),
        "affine": [[float(v) for v in row] for row in image.affine],
    }


def _gradients(path: str, n_volumes: int) -> dict[str, Any]:
    """Return the b-values and directions that lie beside a file, if any do.

    Raises
    ------
    MetadataError
        They are not one for each volume.
    """
    stem = path[: -len(next(s for s in reversed(SUFFIXES) if path.lower().endswith(s)))]
    found: dict[str, Any] = {}
    for name, suffixes in _GRADIENTS.items():
        beside = next((Path(stem + s) for s in suffixes if Path(stem + s).is_file()), None)
        if beside is None:
            continue
        try:
            values = np.loadtxt(beside, ndmin=2)
        except (ValueError, UnicodeDecodeError) as error:
            raise MetadataError("not a table of numbers", where=str(beside), got=str(error)) from error
        table = values.reshape(-1) if name == "bvals" else values if values.shape[0] == 3 else values.T
        if table.shape[-1] != n_volumes or (name == "bvecs" and table.shape[0] != 3):
            raise MetadataError(
                f"{name} and volumes differ in number",
                where=str(beside),
                got=f"{values.shape[0]} x {values.shape[1]} numbers",
                expected=f"{n_volumes} volumes, as in {Path(path).name}",
                remedy="correct the file, or move it away",
            )
        if name == "bvals" and not np.isfinite(table).all():
            raise MetadataError("b-values that are not finite", where=str(beside), remedy="correct the file")
        # Some programs write NaN for the direction of a b0 volume.
        found[name] = (
            [None if v != v else v for v in table.tolist()]
            if table.ndim == 1
            else [[None if v != v else v for v in row] for row in table.tolist()]
        )
    return found


def header_of(carried: Mapping[str, Any], where: str) -> Any:
    """Return the header that an image carries, little-endian.

    Raises
    ------
    MetadataError
        It is none.
    """
    nib = nibabel()
    try:
        raw = base64.b64decode(carried["header"], validate=True)
        size = int.from_bytes(raw[:4], "little")
        kind = nib.Nifti2Header if 540 in (size, int.from_bytes(raw[:4], "big")) else nib.Nifti1Header
        found = kind.from_fileobj(BytesIO(raw), check=False)
    except (KeyError, ValueError, TypeError, nib.spatialimages.HeaderDataError) as error:
        raise MetadataError("not a NIfTI header", where=where, got=str(error)) from error
    swapped = found.as_byteswapped("<")
    swapped.extensions = found.extensions  # which swapping forgets
    return swapped


def new_header(shape: tuple[int, ...], scale: Mapping[str, float], units: Mapping[str, str | None]) -> Any:
    """Return the header of an image that never was a NIfTI file: axes along the scanner's."""
    # Extents of a NIfTI-1 file are 16-bit.
    header = nibabel().Nifti1Header() if max(shape) < 2**15 else nibabel().Nifti2Header()
    header.set_data_shape(shape)
    header.set_zooms([scale.get(d, 1.0) for d in _AXES[: len(shape)]])
    space = {_TO_NIFTI.get(units.get(d) or "") for d in "xyz"} - {None}
    time = _TO_NIFTI.get(units.get("t") or "")
    header.set_xyzt_units(space.pop() if len(space) == 1 else "unknown", time or "unknown")
    affine: NDArray[np.float64] = np.diag([*(scale.get(d, 1.0) for d in "xyz"), 1.0])
    header.set_sform(affine, code="scanner")
    return header


def gradient_texts(carried: Mapping[str, Any], n_volumes: int, path: str) -> dict[str, str]:
    """Return the text files that belong beside a NIfTI file: b-values in a row, directions in three.

    Those of another number of volumes are left out.
    """
    stem = path[: -len(next(s for s in reversed(SUFFIXES) if path.lower().endswith(s)))]
    texts = {}
    for name, suffixes in _GRADIENTS.items():
        # None, which is how JSON has a NaN, becomes one again.
        rows = np.atleast_2d(np.asarray(carried.get(name, ()), np.float64))
        if rows.size and rows.shape[1] == n_volumes:
            texts[stem + suffixes[0]] = "".join(" ".join(f"{v:.17g}" for v in row) + "\n" for row in rows)
    return texts


def bvals_of(attributes: Mapping[str, Any]) -> list[float] | None:
    """Return the b-values that an image carries."""
    carried = attributes.get(NIFTI)
    found = carried.get("bvals") if isinstance(carried, Mapping) else None
    return None if found is None else [float(v) for v in found]


def check_voxels(dtype: np.dtype[Any], where: str) -> None:
    """Refuse a dtype that NIfTI does not have.

    Raises
    ------
    BadRequest
    """
    if dtype.name not in (
        "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64",
    ):  # fmt: skip
        raise BadRequest("NIfTI has no such voxels", where=where, got=dtype, remedy="save it as float32")
