"""Saving: what comes back is what went in; finished or not; never over something of someone else's."""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from denoizarr.errors import (
    BadRequest,
    CorruptChunk,
    IncompleteOutput,
    LedgerMismatch,
    MisalignedGrid,
    OutputExists,
)
from denoizarr.geometry.boxes import Box
from denoizarr.images import save, write
from denoizarr.images.output import write_box
from denoizarr.images.save import save_image
from denoizarr.stores import locations
from denoizarr.stores.describe import info
from denoizarr.stores.images import as_image, open_image

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 60000, (3, 70, 90), dtype=np.uint16)
OPTIONS: dict[str, Any] = {"chunks": (1, 16, 16), "shards": (1, 32, 32), "levels": 2}


def _hash(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "u4", "i2", "i4", "f4", "f8", ">u2", "bool"])
def test_round_trip(tmp_path: Path, dtype: str, version: str) -> None:
    values = (VALUES > 30000) if dtype == "bool" else (VALUES // 300).astype(dtype)
    summary = save_image(values, tmp_path / "a.ome.zarr", ome_version=version, chunks=(1, 32, 32), levels=1)
    image = open_image(tmp_path / "a.ome.zarr")
    assert image.dtype == values.dtype.newbyteorder("=")
    assert np.array_equal(image.values, values)
    assert summary.blocks_done == summary.blocks_total > 0
    assert info(tmp_path / "a.ome.zarr")["state"] == "complete"
    assert info(tmp_path / "a.ome.zarr")["levels"][0]["missing_chunks"] == 0


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_not_a_number_and_zeros_are_kept(tmp_path: Path, version: str) -> None:
    values = np.zeros((40, 40), "f4")
    values[3, 4], values[5, 6] = np.nan, np.inf
    save_image(values, tmp_path / "a.ome.zarr", chunks=(8, 8), levels=1, ome_version=version)
    assert np.array_equal(open_image(tmp_path / "a.ome.zarr").values, values, equal_nan=True)
    assert info(tmp_path / "a.ome.zarr")["levels"][0]["missing_chunks"] == 0, "chunks of zeros are stored too"


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("shape", [(40, 50), (3, 40, 50), (2, 2, 3, 40, 50)])
def test_other_readers_open_it(tmp_path: Path, version: str, shape: tuple[int, ...]) -> None:
    from ome_zarr_models.v04.image import Image as Image04
    from ome_zarr_models.v05.image import Image as Image05

    url = tmp_path / "a.ome.zarr"
    values = VALUES.ravel()[:40].repeat(1000)[: int(np.prod(shape))].reshape(shape)
    dims = "tczyx"[-len(shape) :]
    image = as_image(values, dims)
    image.coords["x"].attrs["units"] = "micrometer"
    save_image(image, url, ome_version=version, levels=2)
    group = zarr.open_group(str(url), mode="r")
    model: Any = Image05 if version == "0.5" else Image04
    checked = model.from_zarr(group)
    assert (
        len(checked.attributes.multiscales if version == "0.4" else checked.ome_attributes.multiscales) == 1
    )
    with warnings.catch_warnings():
        # ome_zarr imports and opens with deprecated calls of zarr and dask; nothing of it is ours.
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url  # type: ignore[import-untyped]
        from ome_zarr.reader import Reader  # type: ignore[import-untyped]

        location = parse_url(str(url), mode="r")
        assert location is not None
        nodes = list(Reader(location)())
        assert np.array_equal(np.asarray(nodes[0].data[0]), values)
        assert len(nodes[0].data) == 2
        assert [axis["name"] for axis in nodes[0].metadata["axes"]] == list(dims)


def test_world_coordinates_survive(tmp_path: Path) -> None:
    image = as_image(VALUES).assign_coords(
        z=[5.0, 8.0, 11.0], y=np.arange(70) * 0.1, x=np.arange(90) * 0.1 - 3
    )
    image.coords["y"].attrs["units"] = "nanometer"
    save_image(image, tmp_path / "a.ome.zarr", **OPTIONS)
    found = open_image(tmp_path / "a.ome.zarr")
    for d in "zyx":
        assert np.allclose(found.coords[d].values, image.coords[d].values)
    assert found.coords["y"].attrs["units"] == "nanometer"
    part = found.isel(z=slice(1, 3), y=slice(10, 20), x=slice(None, None, 3))
    save_image(part, tmp_path / "b.ome.zarr", levels=1)
    again = open_image(tmp_path / "b.ome.zarr")
    assert np.array_equal(again.values, part.values)
    for d in "zyx":
        assert np.allclose(again.coords[d].values, part.coords[d].values)


def test_rendering_hints_survive_only_while_they_fit(tmp_path: Path) -> None:
    omero = {
        "channels": [{"label": "a", "color": "FF0000", "window": {"min": 0, "max": 1, "start": 0, "end": 1}}]
        * 3
    }
    image = as_image(VALUES, "cyx").assign_attrs(ome={"omero": omero})
    save_image(image, tmp_path / "a.ome.zarr", **OPTIONS)
    assert open_image(tmp_path / "a.ome.zarr").attrs["ome"]["omero"] == omero
    save_image(open_image(tmp_path / "a.ome.zarr").isel(c=slice(0, 1)), tmp_path / "b.ome.zarr", **OPTIONS)
    (channel,) = open_image(tmp_path / "b.ome.zarr").attrs["ome"]["omero"]["channels"]
    assert "label" not in channel, "another image's"
    assert channel["window"] != omero["channels"][0]["window"]


# Finished or not, and resumed.


class Stop(Exception):  # noqa: N818
    """Raised in the middle of a job, as a kill would end it."""


def _stop_after(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    left = [n]

    def copy(spec: Any, block: int, copy: Any = save.copy_block) -> Any:
        if left[0] == 0:
            raise Stop
        left[0] -= 1
        return copy(spec, block)

    monkeypatch.setattr(save, "copy_block", copy)
    monkeypatch.setattr(write, "blocks_per_batch", lambda *_: 2)


def test_an_unfinished_output_says_so_and_resumes_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, url = tmp_path / "whole.ome.zarr", tmp_path / "a.ome.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(write, "blocks_per_batch", lambda *_: 2)
        save_image(VALUES, whole, **OPTIONS)
    with monkeypatch.context() as patch:
        _stop_after(patch, 7)
        with pytest.raises(Exception, match="batches failed"):
            save_image(VALUES, url, **OPTIONS)
    with pytest.raises(IncompleteOutput, match="not finished"):
        open_image(url)
    assert info(url)["state"] == "incomplete"
    with monkeypatch.context() as patch:
        patch.setattr(write, "blocks_per_batch", lambda *_: 2)
        summary = save_image(VALUES, url, **OPTIONS)
    assert summary.blocks_skipped == 6
    assert summary.blocks_done == summary.blocks_total - 6
    assert np.array_equal(open_image(url).values, VALUES)
    assert _hash(url) == _hash(whole)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_deleted_records_are_redone_and_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    url = tmp_path / "a.ome.zarr"
    options = OPTIONS | {"ome_version": version} | ({"shards": None} if version == "0.4" else {})
    monkeypatch.setattr(write, "blocks_per_batch", lambda *_: 4)
    save_image(VALUES, url, **options)
    before = _hash(url)
    gone = sorted((tmp_path / "a.ome.zarr.ledger" / "level-0").iterdir())[1]
    blocks = json.loads(gone.read_text())["blocks"]
    gone.unlink()
    seen: list[tuple[int, str]] = []

    def copy(spec: Any, block: int, copy: Any = save.copy_block) -> Any:
        seen.append((block, info(url)["state"]))
        return copy(spec, block)

    with monkeypatch.context() as patch:
        patch.setattr(save, "copy_block", copy)
        summary = save_image(VALUES, url, **options)
    assert seen == [(block, "incomplete") for block in range(*blocks)], (
        "only those, and not under a finished name"
    )
    assert summary.blocks_done == blocks[1] - blocks[0]
    assert _hash(url) == before
    assert save_image(VALUES, url, **options).blocks_done == 0
    assert _hash(url) == before


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("length", [0, 7, 300])
def test_a_torn_object_is_replaced_when_its_block_is_redone(
    tmp_path: Path, version: str, length: int
) -> None:
    url = tmp_path / "a.ome.zarr"
    options: dict[str, Any] = {"levels": 1, "chunks": (1, 16, 16), "ome_version": version}
    save_image(VALUES, url, **options)
    before = _hash(url)
    for victim in [p for p in (url / "0").rglob("*") if p.is_file() and p.name.isdigit()]:
        victim.write_bytes(victim.read_bytes()[:length])
    for record in (tmp_path / "a.ome.zarr.ledger" / "level-0").iterdir():
        record.unlink()
    save_image(VALUES, url, **options)
    assert _hash(url) == before


@pytest.mark.parametrize("what", ["all", "level"])
def test_a_ledger_does_not_vouch_for_an_output_that_is_gone(tmp_path: Path, what: str) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    before = _hash(url)
    locations.delete_prefix(url if what == "all" else url / "1")
    summary = save_image(VALUES, url, **OPTIONS)
    assert summary.blocks_skipped == 0
    assert _hash(url) == before


# What lies at the destination already.


def test_another_jobs_output_is_refused(tmp_path: Path) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    before = _hash(tmp_path)
    with pytest.raises(LedgerMismatch, match="input"):
        save_image(VALUES + np.uint16(1), url, **OPTIONS)
    with pytest.raises(LedgerMismatch, match=r"output\.levels"):
        save_image(VALUES, url, levels=1)
    rescaled = as_image(VALUES).assign_coords(x=np.arange(90) * 0.5)
    with pytest.raises(LedgerMismatch, match="scale"):
        save_image(rescaled, url, **OPTIONS)
    assert _hash(tmp_path) == before
    save_image(VALUES + np.uint16(1), url, overwrite=True, **OPTIONS)
    assert np.array_equal(open_image(url).values, VALUES + 1)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_strangers_folder_is_refused_and_untouched(tmp_path: Path, what: str, overwrite: bool) -> None:
    there = tmp_path / "thesis"
    if what == "folder":
        there.mkdir()
        (there / "chapter1.txt").write_text("years of work")
    else:
        there.write_text("years of work")
    before = _hash(tmp_path)
    with pytest.raises(OutputExists):
        save_image(VALUES, there, overwrite=overwrite, **OPTIONS)
    assert _hash(tmp_path) == before


def test_a_foreign_zarr_is_replaced_only_on_request(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VALUES)
    before = _hash(tmp_path)
    with pytest.raises(OutputExists):
        save_image(VALUES, tmp_path / "a.zarr", **OPTIONS)
    assert _hash(tmp_path) == before
    save_image(VALUES, tmp_path / "a.zarr", overwrite=True, **OPTIONS)
    assert np.array_equal(open_image(tmp_path / "a.zarr").values, VALUES)


@pytest.mark.parametrize("change", [lambda i: i, lambda i: i * 2, lambda i: i.isel(z=1)])
def test_an_image_is_never_written_over_itself(tmp_path: Path, change: Any) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    (tmp_path / "link").symlink_to(url)
    before = _hash(url)
    for destination in (url, tmp_path / "link", url / "inside.zarr", tmp_path):
        with pytest.raises(BadRequest, match="overlaps"):
            save_image(change(open_image(url)), destination, overwrite=True, levels=1)
    assert _hash(url) == before


def test_misaligned_shards_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(MisalignedGrid, match="multiples"):
        save_image(VALUES, tmp_path / "a.ome.zarr", chunks=(1, 16, 16), shards=(1, 24, 32))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize(
    ("start", "stop", "cuts"),
    [
        ((0, 0), (32, 32), False),
        ((32, 64), (64, 90), False),
        ((64, 0), (70, 90), False),
        ((0, 0), (31, 32), True),
        ((1, 0), (32, 32), True),
        ((0, 0), (64, 89), True),
        ((69, 0), (70, 32), True),
    ],
)
def test_a_cut_write_unit_is_refused(
    tmp_path: Path, sharded: bool, start: Any, stop: Any, cuts: bool
) -> None:
    shape, unit = (70, 90), (32, 32)
    sizes: dict[str, Any] = {"chunks": (16, 16), "shards": unit} if sharded else {"chunks": unit}
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, dtype="u2", **sizes)
    box = Box(start, stop)
    values = VALUES[0][box.slices]
    if cuts:
        with pytest.raises(MisalignedGrid, match="whole write units"):
            write_box(array, box, values)
        assert not list((tmp_path / "a.zarr").rglob("c/*"))
        return
    first = write_box(array, box, values)
    assert write_box(array, box, values) == first
    assert write_box(array, box, values + np.uint16(1)) != first
    assert np.array_equal(array[box.slices], values + 1)


def test_values_of_another_dtype_are_our_own_mistake(tmp_path: Path) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(4, 4), dtype="u1")
    with pytest.raises(AssertionError, match="wrap"):
        write_box(array, Box.whole((4, 4)), np.full((4, 4), 300, "i4"))


def test_chunks_and_shards_are_what_was_asked(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr", chunks=(2, 20, 30), shards=(2, 40, 60), levels=1)
    level = info(tmp_path / "a.ome.zarr")["levels"][0]
    assert (level["chunks"], level["shards"]) == ([2, 20, 30], [2, 40, 60])
    assert np.array_equal(open_image(tmp_path / "a.ome.zarr").values, VALUES)


def test_no_dataarray_without_dask_is_needed(tmp_path: Path) -> None:
    save_image(xr.DataArray(VALUES[0].T, dims=("x", "y")), tmp_path / "a.ome.zarr", levels=1)
    assert np.array_equal(open_image(tmp_path / "a.ome.zarr").values, VALUES[0])


@pytest.mark.parametrize("sharded", [True, False])
def test_a_block_is_replaced_whole_and_never_absent_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharded: bool
) -> None:
    """Its twin may have recorded it: a kill between a deletion and the next write would lose it."""
    sizes: dict[str, Any] = {"chunks": (16, 16), "shards": (32, 32)} if sharded else {"chunks": (32, 32)}
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(40, 40), dtype="u2", **sizes)
    box = Box((32, 32), (40, 40))  # at the far end: cropped
    values = VALUES[0][box.slices]
    first = write_box(array, box, values)
    there = tmp_path / "a.zarr" / "c" / "1" / "1"
    whole = there.read_bytes()
    there.write_bytes(whole[:-3])

    async def forbidden(*_: Any) -> None:
        raise AssertionError("nothing is deleted")

    monkeypatch.setattr(type(array.store), "delete", forbidden)
    assert write_box(array, box, values) == first
    assert there.read_bytes() == whole
    assert write_box(array, box, np.zeros_like(values))["checksum"], "zeros are stored as well"
    assert there.exists()


def test_a_write_that_does_not_last_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=(8, 8), dtype="u2", chunks=(8, 8))
    values = np.arange(64, dtype="u2").reshape(8, 8)
    put = type(array.store).set
    for spoil, says in (
        (lambda data: data[:-5], "cannot be read back"),
        (lambda _: None, "is gone"),
    ):

        async def spoiled(store: Any, key: str, value: Any, spoil: Any = spoil) -> None:
            if (data := spoil(value.to_bytes())) is not None:
                await put(store, key, type(value).from_bytes(data))

        with monkeypatch.context() as patched:
            patched.setattr(type(array.store), "set", spoiled)
            with pytest.raises(CorruptChunk, match=says):
                write_box(array, Box.whole((8, 8)), values)
        for path in (tmp_path / "a.zarr" / "c").rglob("*"):
            path.is_file() and path.unlink()
    write_box(array, Box.whole((8, 8)), values)
    with monkeypatch.context() as patched:
        stale = (tmp_path / "a.zarr" / "c" / "0" / "0").read_bytes()
        patched.setattr(type(array.store), "set", _nothing)
        with pytest.raises(CorruptChunk, match="is not what was written"):
            write_box(array, Box.whole((8, 8)), values + np.uint16(1))
    assert (tmp_path / "a.zarr" / "c" / "0" / "0").read_bytes() == stale


async def _nothing(*_: Any) -> None:
    """Lose a write, as a disk does that promises more than it has."""


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("torn", [b"", b'{"zarr_f'])
def test_metadata_that_a_power_cut_tore_are_written_again_and_no_block_is(
    tmp_path: Path, version: str, torn: bytes
) -> None:
    url = tmp_path / "a.ome.zarr"
    options: dict[str, Any] = {"levels": 2, "chunks": (1, 16, 16), "ome_version": version}
    first = save_image(VALUES, url, **options)
    before = _hash(url)
    names = [p for p in url.rglob("*") if p.name in ("zarr.json", ".zgroup", ".zattrs", ".zarray")]
    assert len(names) >= 3
    for name in names:
        name.write_bytes(torn)
        again = save_image(VALUES, url, **options)
        assert (again.blocks_skipped, again.blocks_done) == (first.blocks_done, 0), name
        assert _hash(url) == before, name


def test_a_torn_claim_is_said_with_what_to_do(tmp_path: Path) -> None:
    save_image(VALUES, tmp_path / "a.ome.zarr", **OPTIONS)
    (tmp_path / "a.ome.zarr.ledger" / "job.json").write_bytes(b"")
    with pytest.raises(LedgerMismatch, match=r"does not say any more whose it is .*delete this one and its"):
        save_image(VALUES, tmp_path / "a.ome.zarr", **OPTIONS)
    save_image(VALUES, tmp_path / "a.ome.zarr", overwrite=True, **OPTIONS)
