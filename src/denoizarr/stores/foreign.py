"""Images in other formats, read box by box: TIFF (pages, OME, ImageJ, folders of planes), PNG, npy, NIfTI."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree as ET

import numpy as np
import tifffile

from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    DenoizarrError,
    ImageNotFound,
    MetadataError,
    UnsupportedStore,
)
from denoizarr.geometry.boxes import Box

from . import locations, records
from .nifti import SUFFIXES as NIFTI_SUFFIXES
from .nifti import open_nifti
from .ome_zarr import DIMS
from .records import digest
from .sources import UNDECODABLE, Array, ImageReader
from .tiff import open_tiff
from .tiff_metadata import ForeignMetadata

Kind = Literal["tiff", "png", "npy", "nifti"]
_KINDS: dict[str, Kind] = {".tif": "tiff", ".tiff": "tiff", ".btf": "tiff", ".png": "png", ".npy": "npy"}
_KINDS |= dict.fromkeys(NIFTI_SUFFIXES, "nifti")
_PROBES_AT_ONCE, _FEW = 16, 64


@dataclass(frozen=True, slots=True)
class ForeignSource:
    """One file, or several of one shape stacked along a new first axis.

    Attributes
    ----------
    paths : tuple of str
        In stacking order.
    kind : {"tiff", "png", "npy", "nifti"}
    axes : tuple of str
        One name per axis of the stack, in stored order; with several files the stacking axis first.
    shape : tuple of int
        Of the stack, in stored order.
    dtype : str
    sizes : tuple of int
        Bytes of every file: part of the identity of a conversion.
    """

    paths: tuple[str, ...]
    kind: Kind
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    sizes: tuple[int, ...]


def is_foreign(url: str | Path) -> bool:
    """Tell whether the path names a foreign file, a folder of them or a glob that matches some."""
    if locations.is_remote(url):
        return is_foreign_name(url)  # which are read on disks only, and say so
    path = locations.local_path(url)
    if _suffix(path) in _KINDS:
        return True
    if path.is_dir() and not any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray")):
        return any(_suffix(p) in _KINDS for p in path.iterdir())
    return False


def is_foreign_name(url: str | Path) -> bool:
    """Tell whether the name ends as a file of another format does: TIFF, PNG, npy, NIfTI."""
    return str(url).lower().endswith(tuple(_KINDS))


def _suffix(path: Path) -> str:
    """Return the end of a file's name that says what it is: .nii.gz in whole."""
    ends = path.suffix.lower()
    return Path(path.stem).suffix.lower() + ends if ends == ".gz" else ends


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key under which plane2 comes before plane10."""
    return [
        (0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part
    ]


def find_files(sources: Sequence[str | Path]) -> list[str]:
    """Return the files that paths, folders and globs name, in natural order within each.

    Raises
    ------
    ImageNotFound, UnsupportedStore
    """
    found: list[str] = []
    for source in sources:
        path = locations.local_path(source)
        if path.is_dir():
            here = [str(p) for p in path.iterdir() if _suffix(p) in _KINDS]
        elif path.exists():
            here = [str(path)]
        else:
            here = glob.glob(str(path))  # noqa: PTH207  (an absolute pattern)
        if not here:
            raise ImageNotFound("no image files here", where=str(source), remedy="check the path or pattern")
        found += sorted(sorted(here), key=natural_order)  # twice: plane1 and plane01 have equal keys
    suffixes = {_suffix(Path(name)) for name in found}
    unknown = sorted(suffixes - _KINDS.keys())
    if unknown:
        raise UnsupportedStore(
            "files of a kind that is not read here",
            where=found[0],
            got=", ".join(unknown),
            expected=", ".join(_KINDS),
        )
    if len({_KINDS[suffix] for suffix in suffixes}) > 1:
        raise BadRequest(
            "files of several kinds", got=", ".join(sorted(suffixes)), remedy="name files of one kind"
        )
    return found


def describe_foreign(
    sources: Sequence[str | Path], axes: str | None = None
) -> tuple[ForeignSource, ForeignMetadata]:
    """Find the files, check that they make one image, and read their metadata; no voxels are read.

    Parameters
    ----------
    sources : sequence of str or Path
        Files, folders and globs.
    axes : str, optional
        Axis names in stored order, for all axes of the stack, such as "zyx".

    Raises
    ------
    ImageNotFound, UnsupportedStore, BadRequest, MetadataError
    """
    paths = find_files(sources)
    kind = _KINDS[_suffix(Path(paths[0]))]
    shape, dtype, stored_axes, metadata = _probe(paths[0], kind)
    # Headers are small, and a disk far away takes its time for each.
    with ThreadPoolExecutor(min(_PROBES_AT_ONCE, len(paths))) as pool:
        others = pool.map(lambda path: _probe(path, kind)[:2], paths[1:])
        for path, (other_shape, other_dtype) in zip(paths[1:], others, strict=True):
            if (other_shape, other_dtype) != (shape, dtype):
                pool.shutdown(cancel_futures=True)
                raise BadRequest(
                    "files of a stack differ",
                    where=path,
                    got=f"{other_dtype} {other_shape}",
                    expected=f"{dtype} {shape} as in {Path(paths[0]).name}",
                )
    if len(paths) > 1:
        stacked = next((d for d in ("z", "t", "c") if d not in stored_axes), "")
        shape, stored_axes = (len(paths), *shape), (stacked, *stored_axes)
    names = tuple(axes) if axes is not None else stored_axes
    if (
        len(names) != len(shape)
        or len(set(names)) != len(names)
        or not set(names) <= set(DIMS)
        or not {"y", "x"} <= set(names)
    ):
        raise BadRequest(
            "axes and files disagree",
            where=paths[0],
            got=f"axes {''.join(names)!r} for shape {shape}",
            expected="one of t, c, z, y, x for every axis",
            remedy="pass axes in stored order, such as zyx",
        )
    sizes = tuple(Path(path).stat().st_size for path in paths)
    return ForeignSource(tuple(paths), kind, names, shape, dtype, sizes), metadata


def _probe(path: str, kind: Kind) -> tuple[tuple[int, ...], str, tuple[str, ...], ForeignMetadata]:
    """Return shape, dtype, axis names and metadata of one file, from its header."""
    nothing = ForeignMetadata({}, {})
    try:
        if kind == "npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            usual = {2: "yx", 3: "zyx", 4: "czyx", 5: "tczyx"}.get(array.ndim, "")
            found = array.shape, array.dtype.name, tuple(usual), nothing
        elif kind == "png":
            shape, dtype = _png_header(path)
            found = shape, dtype, ("y", "x") if len(shape) == 2 else ("y", "x", "c"), nothing
        else:
            image = open_nifti(path) if kind == "nifti" else open_tiff(path)
            found = image.shape, image.dtype.name, image.dims, image.metadata
    except DenoizarrError:
        raise
    except FileNotFoundError as error:
        raise ImageNotFound("a file of the stack is gone", where=path) from error
    except (*UNDECODABLE, KeyError, IndexError, tifffile.TiffFileError, ET.ParseError) as error:
        raise MetadataError(
            "the file cannot be read as what its name says", where=path, got=str(error)
        ) from error
    if np.dtype(found[1]).kind not in "uifb":
        raise MetadataError("not an image of real numbers", where=path, got=found[1])
    return found


def _png_header(path: str) -> tuple[tuple[int, ...], str]:
    from PIL import Image

    with Path(path).open("rb") as raw:
        depth, colour = raw.read(26)[24:26]  # of the IHDR chunk, which always comes first
    if depth == 16 and colour != 0:
        # Pillow would drop the low byte of every sample in silence.
        raise UnsupportedStore(
            "a PNG of 16-bit colour",
            where=path,
            expected="8-bit colour or 16-bit grey",
            remedy="save it as TIFF",
        )
    with Image.open(path) as file:
        bands = len(file.getbands())
        # Palettes and 1-bit images decode to grey or RGB; 16-bit grey opens as mode I;16 or I.
        dtype = "uint16" if file.mode.startswith("I") else "uint8"
        bands = 3 if file.mode == "P" else bands
        return ((file.height, file.width) if bands == 1 else (file.height, file.width, bands)), dtype


@lru_cache(maxsize=8)
def open_foreign(source: ForeignSource) -> ImageReader:
    """Open a foreign image for reading; dims come in the order t, c, z, y, x."""
    return _reader_of(source, source, open_foreign)


@dataclass(frozen=True, slots=True)
class ForeignListing:
    """A foreign image of many files, by the object in which they are listed: what a task gets in their place.

    Attributes
    ----------
    url : str
    digest : str
        Of what is listed there.
    """

    url: str
    digest: str


def listed_reader(source: ForeignSource, url: str) -> ImageReader:
    """Return a reader that travels as the place of a listing, which ``write_listing`` writes."""
    listing = ForeignListing(url, digest(asdict(source)))
    return _reader_of(source, listing, open_listing)


def write_listing(source: ForeignSource, url: str) -> None:
    """List a foreign image's files where those who read it find them."""
    records.write_json(url, asdict(source))


@lru_cache(maxsize=2)
def open_listing(listing: ForeignListing) -> ImageReader:
    """Open a foreign image whose files are listed.

    Raises
    ------
    MetadataError
        Another image's are.
    """
    body = records.read_json(listing.url)
    if digest(body) != listing.digest:
        raise MetadataError("the list of files is another image's", where=listing.url)
    fields: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in body.items()
    }
    return _reader_of(ForeignSource(**fields), listing, open_listing)


def _reader_of(source: ForeignSource, handle: Any, reopen: Callable[[Any], ImageReader]) -> ImageReader:
    order = tuple(source.axes.index(d) for d in DIMS if d in source.axes)
    stacked = len(source.paths) > 1
    shape = tuple(source.shape[i] for i in order)
    chunk = (1, *_file_chunks(source)) if stacked else _file_chunks(source)

    def fetch(box: Box) -> Array:
        start, stop = [0] * len(order), [0] * len(order)
        for axis, a, b in zip(order, box.start, box.stop, strict=True):
            start[axis], stop[axis] = a, b
        wanted = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
        if stacked:
            values = np.empty(tuple(b - a for a, b in zip(start, stop, strict=True)), source.dtype)
            for plane, path in zip(values, source.paths[wanted[0]], strict=True):
                plane[...] = _read_file(path, source, wanted[1:])
        else:
            values = _read_file(source.paths[0], source, wanted)
        return values.transpose(order)

    return ImageReader(
        fetch,
        dims=tuple(d for d in DIMS if d in source.axes),
        shape=shape,
        dtype=np.dtype(source.dtype),
        chunks=tuple(min(chunk[i], source.shape[i]) for i in order),
        identity={
            # Of a hundred thousand files, the names alone would be megabytes in every ledger.
            "files": list(source.paths) if len(source.paths) <= _FEW else digest(list(source.paths)),
            "sizes": list(source.sizes) if len(source.paths) <= _FEW else digest(list(source.sizes)),
            "axes": "".join(source.axes),
        },
        name=source.paths[0] if not stacked else f"{source.paths[0]} and {len(source.paths) - 1} more",
        source=handle,
        reopen=reopen,
        urls=source.paths,
    )


def _file_chunks(source: ForeignSource) -> tuple[int, ...]:
    """Return what one read of a file decodes at least: a page, a strip or a tile of a TIFF."""
    of_file = source.shape[1:] if len(source.paths) > 1 else source.shape
    if source.kind in ("tiff", "nifti"):
        return (open_tiff if source.kind == "tiff" else open_nifti)(source.paths[0]).chunks
    return of_file if source.kind == "png" else (*(1,) * (len(of_file) - 2), *of_file[-2:])


def _read_file(path: str, source: ForeignSource, wanted: tuple[slice, ...]) -> Array:
    try:
        if source.kind == "npy":
            return np.array(np.load(path, mmap_mode="r", allow_pickle=False)[wanted])
        if source.kind == "png":
            return _read_png(path)[wanted]
        return (open_nifti if source.kind == "nifti" else open_tiff)(path).read(wanted)
    except FileNotFoundError as error:
        raise ImageNotFound("a file of the stack is gone", where=path) from error
    except DenoizarrError:
        raise
    except (*UNDECODABLE, KeyError, IndexError, tifffile.TiffFileError) as error:
        raise CorruptChunk(
            "the file cannot be decoded", where=path, got=str(error), remedy="restore the file"
        ) from error


def _read_png(path: str) -> Array:
    from PIL import Image

    with Image.open(path) as file:
        picture = file.convert("RGB") if file.mode == "P" else file.convert("L") if file.mode == "1" else file
        values = np.asarray(picture)
    return values.astype(np.uint16) if values.dtype.kind == "i" else values
