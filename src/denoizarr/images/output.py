"""An output image on its way from nothing to complete: begun, written unit by unit, marked finished.

::

    claim the ledger -> metadata, state "incomplete" -> blocks -> pyramid -> state "complete"
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.core.sync import sync

from denoizarr.engine import failpoints
from denoizarr.engine.driver_lock import NOTE
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, is_done
from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    ImageNotFound,
    MetadataError,
    MisalignedGrid,
    NotOmeZarr,
    OutputExists,
    OutputLocked,
)
from denoizarr.geometry.boxes import Box
from denoizarr.stores import locations, records
from denoizarr.stores.held_arrays import array_over
from denoizarr.stores.objects import stored_checksum
from denoizarr.stores.ome_zarr import STATE, ome_attributes
from denoizarr.stores.own_thread import in_own_thread
from denoizarr.stores.sources import UNDECODABLE
from denoizarr.stores.strict import chunk_key, write_unit

from .layout import LevelLayout, OutputLayout, create_array
from .windows import with_windows


def ledger_url(destination: str) -> str:
    """Return where the ledger of an output lies: beside it."""
    return locations.join(destination).rstrip("/") + ".ledger"


def begin_output(layout: OutputLayout, identity: dict[str, Any], *, overwrite: bool = False) -> Ledger:
    """Claim the destination for a job and create its metadata; for a job that was begun, find it again.

    ``overwrite`` deletes the Zarr image that lies there, finished or not, and its ledger.

    Raises
    ------
    OutputExists
        Something lies there that no ledger vouches for; with ``overwrite``, something that is no Zarr image.
    LedgerMismatch
        It is another job's.
    """
    beside = ledger_url(layout.url)
    check_free(layout.url, overwrite=overwrite)
    if overwrite:
        _clear(layout.url, beside)
    # In a bucket a listing said what there is to delete.
    anew = overwrite and locations.is_remote(layout.url)
    ledger = Ledger.claim(beside, {"output": layout.identity(), **identity}, anew=anew)
    failpoints.reach("claimed")
    torn = _delete_torn_metadata(layout)
    group = _group_of(layout)
    with locations.translated(layout.url):
        begun = group.attrs.get(STATE) is not None
        lacking = [level for level in layout.levels if level.path not in group]
        if any(level.path not in torn for level in lacking):
            # Someone deleted the image, or a level of it, but not the ledger: its records vouch for nothing.
            ledger.forget()
        if not begun or lacking:
            group.update_attributes({**ome_attributes(layout.ome), STATE: "incomplete"})
            failpoints.reach("named")
        for level in lacking:
            create_array(group, layout, level)
    failpoints.reach("laid-out")
    return ledger


def check_free(destination: str, *, overwrite: bool = False) -> None:
    """Refuse a destination where something lies that no ledger vouches for.

    With ``overwrite``, only what is no Zarr hierarchy of anyone's: that is not ours to delete.

    Raises
    ------
    OutputExists
    """
    locations.refuse_read_only(destination)
    if not locations.exists(destination) or Ledger.is_begun(ledger_url(destination)):
        return
    if not overwrite:
        raise OutputExists(
            "something lies at the destination already",
            where=locations.redact(destination),
            remedy="choose another destination or pass overwrite",
        )
    names = locations.list_names(destination) if not locations.is_file(destination) else [""]
    if names and not {"zarr.json", ".zgroup", ".zarray"} & set(names):
        raise OutputExists(
            "what lies at the destination is no Zarr image",
            where=locations.redact(destination),
            remedy="choose another destination, or delete it yourself",
        )


def _delete_torn_metadata(layout: OutputLayout) -> set[str]:
    """Delete what a power cut left of metadata; return the paths of the levels whose it was.

    They are written again as they were: what lies below them is as good as it was.
    """
    names = ("zarr.json",) if layout.ome_version == "0.5" else (".zgroup", ".zattrs", ".zarray")
    torn = set()
    for path in ("", *(level.path for level in layout.levels)):
        keys = [locations.join(layout.url, path, name) for name in names]
        if any(map(_is_torn, keys)):
            torn.add(path)
            for key in keys:
                locations.delete(key)
    return torn


def _is_torn(key: str) -> bool:
    try:
        records.read_json(key)
    except ImageNotFound:
        return False
    except MetadataError:
        return True
    return False


def _group_of(layout: OutputLayout) -> zarr.Group:
    return locations.open_group(layout.url, "a", zarr_format=3 if layout.ome_version == "0.5" else 2)


def _clear(url: str, beside: str) -> None:
    """Delete an output and its ledger; a kill in between leaves no record that vouches for what is gone.

    The records go first and the claim last; the driver's own note stays.
    """
    if Ledger.is_begun(beside):
        Ledger(beside, "").forget()
    locations.delete_prefix(url)
    for name in sorted(locations.list_names(beside), key="job.json".__eq__):
        if name != NOTE:
            locations.delete_prefix(locations.join(beside, name))


def check_apart(destination: str, sources: Iterable[str]) -> None:
    """Refuse an output that would overwrite, or lie inside, what it is computed from.

    Parameters
    ----------
    destination : str
    sources : iterable of str
        Paths and URLs of the stores and files that are read.

    Raises
    ------
    BadRequest
    """
    for source in sources:
        if locations.overlap(source, destination):
            raise BadRequest(
                "the destination overlaps the input",
                where=locations.redact(destination),
                got=f"input {locations.redact(source)}",
                remedy="choose another destination",
            )


def reopen_output(layout: OutputLayout, ledger: Ledger, steps: Sequence[Step]) -> None:
    """Mark a complete output incomplete again if some of its batches are to be redone."""
    if is_complete(layout.url) and not all(is_done(step, ledger) for step in steps):
        _mark(layout, {STATE: "incomplete"})


def finish_output(layout: OutputLayout) -> None:
    """Mark the output complete, with its display windows: one small write, after everything else."""
    if not is_complete(layout.url):
        shown = ome_attributes(replace(layout.ome, omero=with_windows(layout)))
        _mark(layout, {**shown, STATE: "complete"})


def _mark(layout: OutputLayout, attributes: dict[str, Any]) -> None:
    """Change the image's attributes; not those that another driver has changed meanwhile."""
    name = "zarr.json" if layout.ome_version == "0.5" else ".zattrs"
    key = locations.join(layout.url, name)
    old = locations.get(key)
    body = json.loads(old)
    inside = body["attributes"] if layout.ome_version == "0.5" else body
    inside |= attributes
    if not locations.replace(key, old, json.dumps(body, indent=2).encode()):
        raise OutputLocked(
            "the image was changed while it was marked",
            where=locations.redact(key),
            remedy="see that no other job writes it, and run this one again",
        )


def is_complete(url: str) -> bool:
    """Tell whether a finished image of this package lies at ``url``."""
    try:
        return locations.open_group(url, "r").attrs.get(STATE) == "complete"
    except (ImageNotFound, NotOmeZarr):  # nothing, or what a kill left of its very first write
        return False


def open_level(layout: OutputLayout, level: LevelLayout) -> zarr.Array[Any]:
    """Open one array of the output for writing."""
    store = locations.zarr_store(layout.url, create=True)
    with locations.translated(layout.url):
        # Zarr keeps this setting with a handle, not with the array: without it, chunks of zeros are left out.
        array = zarr.open_array(store, path=level.path, mode="r+")
        return array.with_config({"write_empty_chunks": True})


def write_box(array: zarr.Array[Any], box: Box, values: NDArray[Any]) -> dict[str, Any]:
    """Write whole write units, read them back, and return what the ledger keeps of them.

    Parameters
    ----------
    array : zarr.Array
        Open for writing.
    box : Box
        A union of whole write units, cropped at the array's far end.
    values : ndarray
        Of the box's shape and the array's dtype.

    Returns
    -------
    dict
        ``checksum``: 16 hex digits for each stored object, in key order; ``written_bytes``: of all of them.

    Raises
    ------
    MisalignedGrid
        The box cuts a write unit: two tasks would write it, and one of them would lose.
    CorruptChunk
        What was read back is not what was written.
    """
    unit = write_unit(array)
    cut = any(
        a % u or (b % u and b != n) for a, b, u, n in zip(box.start, box.stop, unit, array.shape, strict=True)
    )
    assert values.shape == box.shape, f"{values.shape} for {box}"
    assert values.dtype == array.dtype, (
        f"{values.dtype} for an array of {array.dtype}: zarr would wrap it in silence"
    )
    if cut:
        raise MisalignedGrid(
            "a block that is no union of whole write units",
            where=array.path,
            got=box,
            expected=f"steps of {unit}",
        )
    keys = [chunk_key(array, index) for index in _units_in(box, unit)]
    with locations.translated(str(array.store)):
        stored = _write_and_read(array, box, values, keys)
    return {
        "checksum": "".join(stored_checksum(data.to_bytes()) for data in stored),
        "written_bytes": sum(len(data) for data in stored),
    }


def _write_and_read(
    array: zarr.Array[Any], box: Box, values: NDArray[Any], keys: Sequence[str]
) -> list[Buffer]:
    """Write whole objects and return them as they were read back, once.

    They are encoded in memory: zarr itself reads a shard, or a chunk at the far end, before it writes it,
    and a torn one would have to be deleted first, under a twin of this block that has just written it.
    """
    objects: dict[str, Buffer] = {}
    # A chunk of zeros is stored too: an absent object has to mean "not done".
    over = array_over(array.with_config({"write_empty_chunks": True}), objects)
    in_own_thread(over.async_array.setitem(box.slices, values))
    for key in keys:
        sync(array.store.set(key, objects.pop(key)))
    failpoints.reach("written")
    found = [sync(array.store.get(key, default_buffer_prototype())) for key in keys]
    stored = [data for data in found if data is not None]
    where = f"{array.path} {box.slices}"
    if len(stored) < len(keys):
        raise CorruptChunk("what was written is gone", where=where)
    try:
        over = array_over(array, dict(zip(keys, stored, strict=True)))
        back = np.asarray(in_own_thread(over.async_array.getitem(box.slices)))
    except UNDECODABLE as error:
        raise CorruptChunk("what was written cannot be read back", where=where, got=str(error)) from error
    if not np.array_equal(back, values, equal_nan=values.dtype.kind == "f"):
        raise CorruptChunk("what was read back is not what was written", where=where)
    failpoints.reach("read-back")
    return stored


def _units_in(box: Box, unit: tuple[int, ...]) -> list[tuple[int, ...]]:
    ranges = [range(a // u, -(-b // u)) for a, b, u in zip(box.start, box.stop, unit, strict=True)]
    index = np.indices([len(r) for r in ranges]).reshape(len(ranges), -1).T
    return [tuple(int(r[i]) for r, i in zip(ranges, row, strict=True)) for row in index]
