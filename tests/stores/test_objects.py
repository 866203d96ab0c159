"""A stored object read once: its checksum, its voxels, and what of it is absent or damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.core.buffer import Buffer

from denoizarr.geometry.grids import Grid
from denoizarr.stores.objects import read_unit, stored_checksum
from denoizarr.stores.sources import open_array
from denoizarr.stores.strict import StrictStore, write_unit

VALUES = np.random.default_rng(0).integers(0, 60000, (40, 50), dtype=np.uint16)


def _write(folder: Path, **options: Any) -> zarr.Array[Any]:
    made = zarr.create_array(str(folder / "a.zarr"), shape=VALUES.shape, dtype="u2", **options)
    made[:] = VALUES
    return open_array(str(folder / "a.zarr"), "", "fill")


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("order", ["plain", "sharded"])
def test_every_unit_is_read_once_and_gives_its_voxels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zarr_format: int, order: str
) -> None:
    if zarr_format == 2 and order == "sharded":
        pytest.skip("Zarr 2 has no shards")
    shards = (32, 32) if order == "sharded" else None
    array = _write(tmp_path, chunks=(16, 16), shards=shards, zarr_format=zarr_format)
    reads: list[str] = []
    get = zarr.storage.ObjectStore.get

    async def counted(self: Any, key: str, *rest: Any) -> Buffer | None:
        reads.append(key)
        return await get(self, key, *rest)

    monkeypatch.setattr(zarr.storage.ObjectStore, "get", counted)
    units = Grid(VALUES.shape, write_unit(array))
    for number, box in enumerate(units):
        found = read_unit(array, number)
        assert (found.box, found.flaws) == (box, ())
        assert found.values is not None
        assert np.array_equal(found.values, VALUES[box.slices])
        data = (tmp_path / "a.zarr" / found.key).read_bytes()
        assert (found.checksum, found.n_bytes) == (stored_checksum(data), len(data))
    assert len(reads) == len(set(reads)) == len(units)


def test_the_checksum_is_of_every_byte() -> None:
    data = bytes(range(64))
    assert stored_checksum(data) == stored_checksum(bytes(bytearray(data)))
    assert len({stored_checksum(data[:i] + b"\xff" + data[i + 1 :]) for i in range(64)}) == 64
    assert len(stored_checksum(b"")) == 16


def test_an_absent_object_is_a_flaw_and_no_error(tmp_path: Path) -> None:
    array = _write(tmp_path, chunks=(16, 16))
    (tmp_path / "a.zarr" / "c" / "1" / "0").unlink()
    found = read_unit(array, 4)
    assert (found.checksum, found.values, found.n_bytes) == (None, None, 0)
    assert [(f.key, f.absent) for f in found.flaws] == [("c/1/0", True)]


def test_absent_inner_chunks_are_named_and_filled(tmp_path: Path) -> None:
    made = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(40, 50), dtype="u2", chunks=(16, 16), shards=(48, 64), fill_value=7
    )
    made[:16, :16] = 3
    found = read_unit(open_array(str(tmp_path / "a.zarr"), "", "fill"), 0)
    assert [f.key for f in found.flaws][:2] == ["c/0/0#0,1", "c/0/0#0,2"]
    assert len(found.flaws) == 11, "those beyond the image's end are none"
    assert all(f.absent for f in found.flaws)
    assert found.flaws[2].box.stop == (16, 50), "cropped at the image's end"
    assert found.values is not None
    assert (found.values[:16, :16] == 3).all()
    assert (found.values[16:] == 7).all()


@settings(max_examples=60)
@given(st.data())
def test_no_bytes_whatever_raise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Torn, flipped, swapped for anything: a flaw that is named, or the same voxels."""
    kind = data.draw(st.sampled_from(["blosc", "zstd", "gzip", "none", "shard"]))
    codecs: dict[str, Any] = {
        "blosc": zarr.codecs.BloscCodec(),
        "zstd": zarr.codecs.ZstdCodec(checksum=True),
        "gzip": zarr.codecs.GzipCodec(),
        "none": None,
        "shard": zarr.codecs.ZstdCodec(checksum=True),
    }
    folder = tmp_path_factory.mktemp("objects")
    array = _write(
        folder, chunks=(16, 16), shards=(32, 32) if kind == "shard" else None, compressors=codecs[kind]
    )
    victim = folder / "a.zarr" / "c" / "0" / "0"
    whole = victim.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    change = data.draw(st.sampled_from(["cut", "flip", "noise", "longer"]))
    victim.write_bytes(
        {
            "cut": whole[:at],
            "flip": whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
            "noise": np.random.default_rng(at).bytes(at),
            "longer": whole + whole[:at],
        }[change]
    )
    found = read_unit(array, 0)
    assert found.checksum == stored_checksum(victim.read_bytes())
    assert found.values is not None or found.flaws
    if kind in ("zstd", "gzip", "shard") and change in ("cut", "noise"):
        assert found.flaws
        assert all(flaw.reason.startswith("cannot be decoded: ") for flaw in found.flaws)


def test_an_unreadable_object_is_a_flaw(tmp_path: Path) -> None:
    array = _write(tmp_path, chunks=(16, 16))
    victim = tmp_path / "a.zarr" / "c" / "0" / "0"
    victim.unlink()
    victim.symlink_to(victim)
    (flaw,) = read_unit(array, 0).flaws
    assert flaw.reason.startswith("cannot be read: ")
    assert not flaw.absent


def test_the_store_is_the_one_that_open_array_made(tmp_path: Path) -> None:
    assert isinstance(_write(tmp_path, chunks=(16, 16)).store, StrictStore)
