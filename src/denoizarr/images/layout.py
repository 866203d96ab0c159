"""The layout of what is written: levels, chunks, shards, codecs. Decided once, before the first voxel.

Defaults: chunks of 1 x 512 x 512 (y, x; one plane of t, c, z), shards of up to 2048 x 2048, of four planes
where a level halves z, levels until max(y, x) <= 256. A plane is the unit because the networks and the usual
viewers work plane by plane.

The shards of a coarser level hold what a shard of the finest level holds, as long as that is whole chunks::

    level 0   2048 x 2048     a task that has the voxels of one shard of level 0 has those of the shards
    level 1   1024 x 1024     above it, and writes them along: nothing is read again
    level 2    512 x 512
    level 3   2048 x 2048     less than a chunk: large shards again, in a pass over level 2
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd
from zarr.codecs import BloscCodec, Crc32cCodec

from denoizarr.errors import BadRequest, MisalignedGrid, UnsupportedStore
from denoizarr.geometry.grids import Grid, ceil_div, round_up
from denoizarr.stores.foreign import is_foreign_name
from denoizarr.stores.ome_zarr import Level, OmeImage, OmeVersion

_CHUNK, _SHARD, _COARSEST = 512, 2048, 256
_ALONG = 2  # levels above a shard until a chunk is larger than what lies above it
_SHARD_VOXELS = 16 * 2**20


@dataclass(frozen=True, slots=True)
class LevelLayout:
    """One array of the pyramid.

    Attributes
    ----------
    path : str
    shape, chunks : tuple of int
    shards : tuple of int or None
    scale, translation : tuple of float
        Per axis, in the axis' unit.
    factors : tuple of int
        Voxels of the next finer level in one of this, per axis; ones for the finest.
    """

    path: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    factors: tuple[int, ...]

    @property
    def write_units(self) -> Grid:
        """The grid of what one task may write: shards where there are any, else chunks."""
        return Grid(self.shape, self.shards or self.chunks)


@dataclass(frozen=True, slots=True)
class OutputLayout:
    """An OME-Zarr image that is to be written; small, picklable, and enough to open any of its arrays.

    Attributes
    ----------
    url : str
    dims : tuple of str
    dtype : str
    ome_version : {"0.4", "0.5"}
    units : tuple of str or None
    levels : tuple of LevelLayout
        Finest first.
    name : str
    omero : dict
        Rendering hints.
    along : int
        How many of the coarser levels are written with the finest: unit ``n`` of each lies above unit ``n``
        of the finest.
    extra : dict
        Attributes that are carried along untouched.
    """

    url: str
    dims: tuple[str, ...]
    dtype: str
    ome_version: OmeVersion
    units: tuple[str | None, ...]
    levels: tuple[LevelLayout, ...]
    name: str = ""
    omero: Mapping[str, Any] = field(default_factory=dict)
    along: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ome(self) -> OmeImage:
        """The metadata of the image."""
        levels = tuple(Level(v.path, v.scale, v.translation) for v in self.levels)
        return OmeImage(
            self.ome_version, self.dims, self.units, levels, self.name, dict(self.omero), dict(self.extra)
        )

    def identity(self) -> dict[str, Any]:
        """Return what of the layout decides the output's bytes."""
        return {
            "dims": list(self.dims),
            "dtype": self.dtype,
            "ome_version": self.ome_version,
            "levels": [
                [list(v.shape), list(v.chunks), list(v.shards or ()), list(v.factors)] for v in self.levels
            ],
            "scale": list(self.levels[0].scale),
            "translation": list(self.levels[0].translation),
            "units": list(self.units),
            "omero": dict(self.omero),
            "along": self.along,
            **({"extra": dict(self.extra)} if self.extra else {}),
        }


def plan_layout(
    url: str,
    *,
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    scale: Sequence[float],
    translation: Sequence[float],
    units: Sequence[str | None],
    ome_version: str = "0.5",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    levels: int | None = None,
    name: str = "",
    omero: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    decoded: Sequence[int] | None = None,
) -> OutputLayout:
    """Decide the layout of an output image.

    Parameters
    ----------
    url : str
    dims, shape, dtype
        Of the finest level.
    scale, translation, units
        Per axis.
    ome_version : {"0.5", "0.4"}
    chunks, shards : sequence of int, optional
        One int per dim; shards must be multiples of chunks, and are not available in 0.4. Those of coarser
        levels are smaller where they can be written along with the finest.
    levels : int, optional
        Number of levels; by default until max(y, x) <= 256.
    decoded : sequence of int, optional
        What one read of the source decodes at least, such as a strip of a compressed TIFF. Default shards
        hold whole ones, so that none is decoded for several blocks, where that is not too much for a worker.

    Raises
    ------
    BadRequest, MisalignedGrid
    """
    if is_foreign_name(url):
        raise UnsupportedStore(
            "only OME-Zarr is written here", where=url, remedy="name it NAME.ome.zarr, and convert it"
        )
    if ome_version not in ("0.4", "0.5"):
        raise BadRequest("unknown OME-Zarr version", got=ome_version, expected='"0.5" or "0.4"')
    if ome_version == "0.4" and shards is not None:
        raise BadRequest(
            "OME-Zarr 0.4 has no shards",
            got=tuple(shards),
            remedy='use ome_version="0.5" or leave shards out',
        )
    for label, given in (("chunks", chunks), ("shards", shards)):
        if given is not None and (len(given) != len(shape) or any(int(n) < 1 for n in given)):
            raise BadRequest(
                f"{label} need one positive int per dim",
                got=tuple(given),
                expected=f"{len(shape)} for {dims}",
            )
    if levels is not None and levels < 1:
        raise BadRequest("an image needs a level", where="levels", got=levels, expected="1 or more")
    asked_chunks = tuple(int(c) for c in chunks) if chunks is not None else _default_chunks(dims)
    if shards is not None and any(int(s) % c for s, c in zip(shards, asked_chunks, strict=True)):
        raise MisalignedGrid(
            "shards must be whole multiples of chunks",
            got=f"shards {tuple(shards)}, chunks {asked_chunks}",
            remedy="change either",
        )
    above = _factors_above(dims, shape, scale, levels)
    planned: list[LevelLayout] = []
    factors, along = (1,) * len(shape), 0
    while True:
        level_chunks = tuple(min(c, n) for c, n in zip(asked_chunks, shape, strict=True))
        unit = _unit_above(planned[-1], shape, level_chunks, factors) if along == len(planned) - 1 else None
        if ome_version == "0.4":
            along += unit == level_chunks
            level_shards = None
        else:
            along += unit is not None
            level_shards = unit or _shards(
                dims, shape, level_chunks, shards, above, None if planned else decoded
            )
        planned.append(
            LevelLayout(
                str(len(planned)),
                shape,
                level_chunks,
                level_shards,
                tuple(float(s) for s in scale),
                tuple(float(t) for t in translation),
                factors,
            )
        )
        if len(planned) == levels or (levels is None and _is_coarsest(dims, shape)):
            break
        factors = _factors(dims, shape, scale)
        if max(factors) == 1:
            break
        # The centre of a voxel of the next level is the centre of the box it averages.
        translation = tuple(t + s * (f - 1) / 2 for t, s, f in zip(translation, scale, factors, strict=True))
        scale = tuple(s * f for s, f in zip(scale, factors, strict=True))
        shape = tuple(ceil_div(n, f) for n, f in zip(shape, factors, strict=True))
    version: OmeVersion = "0.5" if ome_version == "0.5" else "0.4"
    return OutputLayout(
        url,
        dims,
        dtype.name,
        version,
        tuple(units),
        tuple(planned),
        name,
        dict(omero or {}),
        along,
        dict(extra or {}),
    )


def _unit_above(
    finer: LevelLayout, shape: tuple[int, ...], chunks: tuple[int, ...], factors: tuple[int, ...]
) -> tuple[int, ...] | None:
    """Return the unit of a level that lies exactly above a unit of the finer one, None where it cuts chunks.

    Unit n is above unit n: both levels have as many along every axis.
    """
    found = []
    for n, c, f, below, u in zip(
        shape, chunks, factors, finer.shape, finer.shards or finer.chunks, strict=True
    ):
        if u >= below:
            found.append(round_up(n, c))
        elif u % (f * c) == 0:
            found.append(u // f)
        else:
            return None
    return tuple(found)


def _default_chunks(dims: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(_CHUNK if d in "yx" else 1 for d in dims)


def chunks_like(dims: tuple[str, ...], chunks: Sequence[int], shape: Sequence[int]) -> tuple[int, ...] | None:
    """Return an input's chunks where they make a good output too, else None: no volumes and no slivers."""
    lateral = [min(c, n) >= min(64, n) for d, c, n in zip(dims, chunks, shape, strict=True) if d in "yx"]
    return tuple(int(c) for c in chunks) if prod(chunks) <= _SHARD_VOXELS and all(lateral) else None


def _shards(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    asked: Sequence[int] | None,
    above: Sequence[tuple[int, ...]],
    decoded: Sequence[int] | None,
) -> tuple[int, ...]:
    if asked is not None:
        return tuple(round_up(min(s, n), c) for s, n, c in zip(asked, shape, chunks, strict=True))
    whole = _that_fit(dims, shape, chunks, above, decoded) if decoded is not None else None
    return whole or _that_fit(dims, shape, chunks, above, (1,) * len(dims)) or chunks


def _that_fit(
    dims: tuple[str, ...],
    shape: tuple[int, ...],
    chunks: tuple[int, ...],
    above: Sequence[tuple[int, ...]],
    decoded: Sequence[int],
) -> tuple[int, ...] | None:
    """Return the largest shards of whole ``decoded`` boxes that a worker may hold; None where there are none.

    Those with the most levels above them before larger ones. Chunks of many planes get shards of fewer
    chunks, along y and x first.
    """
    depth = dict(zip(dims, above[-1], strict=True)).get("z", 1) if above else 1
    widest = max(c for d, c in zip(dims, chunks, strict=True) if d in "yx")
    least = [ceil_div(n, c) for n, c in zip(decoded, chunks, strict=True)]
    limit = _SHARD_VOXELS if max(least) == 1 else 2 * _SHARD_VOXELS
    fitting = []
    for deep, side in product((4, 2, 1), (2048, 1024, 512, 256, 128, 64)):
        most = [deep if d == "z" else ceil_div(side, c) for d, c in zip(dims, chunks, strict=True)]
        most = [1 if d in "tc" else m for d, m in zip(dims, most, strict=True)]
        # A multiple of so many chunks that there are whole ones above it.
        most = [round_up(m, 2**_ALONG) if m >= 2**_ALONG else m for m in most]
        most = [max(m, at_once) for m, at_once in zip(most, least, strict=True)]
        found = tuple(round_up(min(n, m * c), c) for n, m, c in zip(shape, most, chunks, strict=True))
        if deep <= depth and side >= min(widest, _SHARD) and prod(found) <= limit:
            fitting.append(found)
    return max(fitting, key=lambda unit: _whole_above(unit, shape, chunks, above), default=None)


def _whole_above(
    unit: tuple[int, ...], shape: tuple[int, ...], chunks: tuple[int, ...], above: Sequence[tuple[int, ...]]
) -> int:
    """Return for how many of the levels above there are whole chunks above a unit."""
    for number, factors in enumerate(above):
        sizes = zip(unit, shape, chunks, factors, strict=True)
        if not all(u >= n or u % (f * c) == 0 for u, n, c, f in sizes):
            return number
    return len(above)


def _factors_above(
    dims: tuple[str, ...], shape: tuple[int, ...], scale: Sequence[float], levels: int | None
) -> list[tuple[int, ...]]:
    """Return voxels of the finest level in one of each of those that may be written along."""
    found: list[tuple[int, ...]] = []
    total = (1,) * len(shape)
    for number in range(_ALONG):
        factors = _factors(dims, shape, scale)
        if number + 1 == levels or (levels is None and _is_coarsest(dims, shape)) or max(factors) == 1:
            break
        total = tuple(a * b for a, b in zip(total, factors, strict=True))
        found.append(total)
        shape = tuple(ceil_div(n, f) for n, f in zip(shape, factors, strict=True))
        scale = tuple(s * f for s, f in zip(scale, factors, strict=True))
    return found


def _is_coarsest(dims: tuple[str, ...], shape: tuple[int, ...]) -> bool:
    return max(n for d, n in zip(dims, shape, strict=True) if d in "yx") <= _COARSEST


def _factors(dims: tuple[str, ...], shape: tuple[int, ...], scale: Sequence[float]) -> tuple[int, ...]:
    """Return 2 for y and x, and for z while its spacing is within twice theirs."""
    spacing = dict(zip(dims, scale, strict=True))
    lateral = max(abs(spacing["y"]), abs(spacing["x"]))  # a reversed axis has a negative scale
    halved = {"y", "x"} | ({"z"} if "z" in spacing and abs(spacing["z"]) <= 2 * lateral else set())
    return tuple(2 if d in halved and n > 1 else 1 for d, n in zip(dims, shape, strict=True))


def create_array(group: zarr.Group, layout: OutputLayout, level: LevelLayout) -> None:
    """Create one array of the output with this package's codecs; nothing happens where it exists."""
    if level.path in group:
        return
    common: dict[str, Any] = {
        "shape": level.shape,
        "dtype": layout.dtype,
        "chunks": level.chunks,
        "fill_value": 0,
        # A chunk of zeros must be stored too: an absent object has to mean "not done". See also open_level.
        "config": {"write_empty_chunks": True},
    }
    if layout.ome_version == "0.5":
        group.create_array(
            level.path,
            shards=level.shards,
            # Without the trailing checksum 97 % of single flipped bits decode in silence.
            # Level 3 makes noise .3 % smaller, smooth images 1.6 %, and takes 1.4 to 1.9 times as long.
            compressors=[BloscCodec(cname="zstd", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
            dimension_names=layout.dims,
            **common,
        )
    else:
        group.create_array(
            level.path,
            compressors=Zstd(level=3, checksum=True),  # Zarr v2 takes one codec; this one checks itself
            chunk_key_encoding={"name": "v2", "separator": "/"},
            **common,
        )
