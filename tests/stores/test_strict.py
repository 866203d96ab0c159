"""No voxel is invented: what a store lacks is an error or is counted, and a flipped bit is found."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from denoizarr.errors import CorruptChunk, DenoizarrError, MissingChunk
from denoizarr.geometry.boxes import Box
from denoizarr.images.save import save_image
from denoizarr.stores.images import open_image, reader_of

VALUES = np.random.default_rng(1).integers(1, 60000, (2, 40, 50), dtype=np.uint16)
WHOLE = Box.whole(VALUES.shape)
Write = Callable[..., str]


def _objects(url: str) -> list[Path]:
    return sorted(p for p in Path(url).rglob("*") if p.is_file() and p.name[0].isdigit() and p.suffix == "")


@pytest.fixture
def store(tmp_path: Path, write_store: Write, store_kind: Any) -> tuple[str, str | None, Any]:
    url = write_store(tmp_path / "a.zarr", VALUES, "zyx", store_kind, chunks=(1, 16, 16))
    return url, None if store_kind.ome_version else "zyx", store_kind


def test_an_absent_object_is_an_error_that_names_it(store: tuple[str, str | None, Any]) -> None:
    url, axes, _ = store
    objects = [p for p in Path(url).rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))]
    gone = max(objects)
    gone.unlink()
    reader = reader_of(open_image(url, axes=axes))
    with pytest.raises(MissingChunk, match="the store lacks a chunk") as caught:
        reader.read(WHOLE)
    assert gone.name in str(caught.value)
    assert 'missing="fill"' in str(caught.value)
    assert np.array_equal(reader.read(Box((0, 0, 0), (1, 16, 16))), VALUES[:1, :16, :16]), (
        "the rest is readable"
    )


def test_fill_reads_and_counts(store: tuple[str, str | None, Any]) -> None:
    url, axes, kind = store
    objects = [p for p in Path(url).rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr.json"))]
    max(objects).unlink()
    reader = reader_of(open_image(url, axes=axes, missing="fill"))
    values = reader.read(WHOLE)
    assert len(reader.absent_in(WHOLE)) == 1
    assert reader.absent_in(Box((0, 0, 0), (1, 16, 16))) == []
    filled = values != VALUES
    assert (values[filled] == 0).all()
    assert 0 < filled.sum() <= (2 if kind.sharded else 1) * 32 * 32
    assert len(reader_of(open_image(url, axes=axes)).absent_in(WHOLE)) == 1


def test_v2_chunks_with_dots_in_their_names(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(4, 4), chunks=(2, 2), dtype="u1", zarr_format=2
    )
    array[:] = 7
    assert (tmp_path / "a.zarr" / "1.1").exists()
    (tmp_path / "a.zarr" / "1.1").unlink()
    reader = reader_of(open_image(tmp_path / "a.zarr", axes="yx", missing="fill"))
    assert reader.absent_in(Box.whole((4, 4))) == ["1.1"]
    with pytest.raises(MissingChunk, match=r"1\.1"):
        open_image(tmp_path / "a.zarr", axes="yx").compute()


@pytest.mark.parametrize("missing", ["error", "fill"])
def test_an_inner_chunk_that_a_present_shard_lacks(tmp_path: Path, missing: Any) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(32, 48), chunks=(8, 8), shards=(16, 16), dtype="u2"
    )
    array[:] = 9
    array[8:16, 24:32] = 0  # all fill: zarr leaves it out of the shard
    reader = reader_of(open_image(tmp_path / "a.zarr", axes="yx", missing=missing))
    assert reader.absent_in(Box.whole((32, 48))) == ["c/0/1#1,1"]
    assert reader.absent_in(Box((0, 0), (8, 48))) == []
    assert (reader.read(Box((0, 0), (8, 48))) == 9).all()
    if missing == "error":
        with pytest.raises(MissingChunk, match="c/0/1#1,1"):
            reader.read(Box((8, 24), (9, 25)))
        return
    assert (reader.read(Box((8, 24), (16, 32))) == 0).all()


def test_the_empty_corners_of_a_shard_beyond_the_image_are_not_missing(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(20, 20), chunks=(8, 8), shards=(32, 32), dtype="u2"
    )
    array[:] = 5
    reader = reader_of(open_image(tmp_path / "a.zarr", axes="yx"))
    assert reader.absent_in(Box.whole((20, 20))) == []
    assert (reader.read(Box.whole((20, 20))) == 5).all()


def test_a_shard_that_is_mended_reads_again(tmp_path: Path) -> None:
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(16, 16), chunks=(8, 8), shards=(16, 16), dtype="u2"
    )
    array[:8] = 9
    reader = reader_of(open_image(tmp_path / "a.zarr", axes="yx"))
    with pytest.raises(MissingChunk):
        reader.read(Box.whole((16, 16)))
    array[8:] = 9
    assert (reader.read(Box.whole((16, 16))) == 9).all()


@pytest.mark.parametrize(("version", "options"), [("0.5", {}), ("0.5", {"shards": (1, 32, 32)}), ("0.4", {})])
def test_a_flipped_bit_anywhere_in_a_chunk_of_ours_is_found(
    tmp_path: Path, version: str, options: dict[str, Any]
) -> None:
    url = str(tmp_path / "a.ome.zarr")
    save_image(VALUES, url, ome_version=version, chunks=(1, 16, 16), levels=1, **options)
    victim = _objects(url)[0]
    whole = victim.read_bytes()
    rng = random.Random(0)  # noqa: S311
    # The header, the middle and the trailer (checksum, index of a shard), and then anywhere.
    places = [
        *range(20),
        *range(len(whole) - 20, len(whole)),
        *(rng.randrange(len(whole)) for _ in range(24)),
    ]
    for place in places:
        torn = bytearray(whole)
        torn[place] ^= 1 << rng.randrange(8)
        victim.write_bytes(torn)
        try:
            values = reader_of(open_image(url)).read(WHOLE)
        except (CorruptChunk, MissingChunk):
            continue
        assert np.array_equal(values, VALUES), f"byte {place} of {len(whole)}: wrong voxels in silence"
    victim.write_bytes(whole)
    assert np.array_equal(reader_of(open_image(url)).read(WHOLE), VALUES)


@pytest.mark.parametrize("length", [0, 1, 10, 60])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_torn_chunk_is_found(tmp_path: Path, length: int, version: str) -> None:
    url = str(tmp_path / "a.ome.zarr")
    save_image(VALUES, url, ome_version=version, levels=1)
    victim = _objects(url)[0]
    victim.write_bytes(victim.read_bytes()[:length])
    with pytest.raises(CorruptChunk):
        reader_of(open_image(url)).read(WHOLE)


@pytest.mark.parametrize("codec", ["gzip", "bz2", "lzma", "zlib", "lz4", "zstd", "blosc"])
def test_a_torn_chunk_of_a_foreign_codec_has_our_error(tmp_path: Path, codec: str) -> None:
    import numcodecs

    compressor = {
        "gzip": "GZip",
        "bz2": "BZ2",
        "lzma": "LZMA",
        "zlib": "Zlib",
        "lz4": "LZ4",
        "zstd": "Zstd",
        "blosc": "Blosc",
    }
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(40, 50), chunks=(40, 50), dtype="u2", zarr_format=2,
        compressors=getattr(numcodecs, compressor[codec])(),
    )  # fmt: skip
    array[:] = VALUES[0]
    victim = tmp_path / "a.zarr" / "0.0"
    whole = victim.read_bytes()
    for torn in (whole[: len(whole) // 2], b"", b"\0" * 64, whole[::-1]):
        victim.write_bytes(torn)
        reader = reader_of(open_image(tmp_path / "a.zarr", axes="yx"))
        with pytest.raises(CorruptChunk):
            reader.read(Box.whole((40, 50)))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_torn_blosc_frame_is_found_before_its_decoder_sees_it(tmp_path: Path, zarr_format: Any) -> None:
    # The decoder believes the header: cut short, it gave wrong voxels in silence, or killed the process.
    import numcodecs

    codec = numcodecs.Blosc() if zarr_format == 2 else zarr.codecs.BloscCodec()
    array = zarr.create_array(
        str(tmp_path / "a.zarr"), shape=(40, 50), chunks=(40, 50), dtype="u2", zarr_format=zarr_format,
        compressors=codec,
    )  # fmt: skip
    array[:] = VALUES[0]
    victim = tmp_path / "a.zarr" / ("0.0" if zarr_format == 2 else "c/0/0")
    whole = victim.read_bytes()
    assert np.array_equal(open_image(tmp_path / "a.zarr", axes="yx").values, VALUES[0])
    for length in (5, 16, 17, len(whole) // 2, len(whole) - 1):
        victim.write_bytes(whole[:length])
        with pytest.raises(CorruptChunk):
            reader_of(open_image(tmp_path / "a.zarr", axes="yx")).read(Box.whole((40, 50)))


def test_a_folder_that_vanishes_is_our_error(tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "a.zarr"), data=VALUES, chunks=(1, 16, 16))
    reader = reader_of(open_image(tmp_path / "a.zarr", axes="zyx"))
    shutil.rmtree(tmp_path / "a.zarr")
    with pytest.raises(DenoizarrError):
        reader.read(WHOLE)
