"""Coarser levels that are written with the finest: the bytes of a pass over it, without the pass."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import ObjectStore

from denoizarr.images import save
from denoizarr.images.layout import OutputLayout, plan_layout
from denoizarr.images.save import save_image
from denoizarr.pipeline.verify import verify
from denoizarr.stores.images import as_image, open_image

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 60000, (6, 150, 270), dtype=np.uint16)
OPTIONS: dict[str, Any] = {"chunks": (1, 32, 32), "shards": (4, 128, 128), "levels": 4}


@contextmanager
def nothing_along() -> Iterator[None]:
    """All coarser levels by the pass over the one below, into the same layout."""

    def plan(*arguments: Any, **options: Any) -> OutputLayout:
        return replace(plan_layout(*arguments, **options), along=0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(save, "plan_layout", plan)
        yield


def objects(url: Path) -> dict[str, bytes]:
    """The stored objects of all levels."""
    found = (p for p in url.rglob("*") if p.is_file() and not p.name.startswith("zarr.json"))
    return {str(p.relative_to(url)): p.read_bytes() for p in found}


@settings(max_examples=12)
@given(
    st.sampled_from(["u1", "u2", "i2", "i4", "f4", "f8"]),
    st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 70)),
    st.tuples(st.integers(1, 4), st.integers(9, 40), st.integers(9, 40)),
    st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3),
    st.sampled_from([1.0, 2.5, 5.0]),
    st.sampled_from(["0.5", "0.4"]),
)
def test_the_bytes_are_those_of_a_pass_over_the_level_below(
    dtype: str, shape: Any, chunks: Any, per_shard: Any, spacing: float, version: str
) -> None:
    rng = np.random.default_rng(list(shape))
    values = (rng.normal(size=shape) * 50).astype(dtype)
    image = as_image(values).assign_coords(z=np.arange(shape[0]) * spacing)
    options: dict[str, Any] = {"chunks": chunks, "levels": 4, "ome_version": version}
    if version == "0.5":
        options["shards"] = [c * n for c, n in zip(chunks, per_shard, strict=True)]
    with TemporaryDirectory() as name:
        folder = Path(name)
        save_image(image, folder / "a" / "i.ome.zarr", **options)
        with nothing_along():
            save_image(image, folder / "b" / "i.ome.zarr", **options)
        assert objects(folder / "a" / "i.ome.zarr") == objects(folder / "b" / "i.ome.zarr")


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 40), st.integers(1, 9000), st.integers(1, 9000)),
    st.tuples(st.integers(1, 64), st.integers(1, 700), st.integers(1, 700)) | st.none(),
    st.tuples(*[st.floats(0.05, 9)] * 3),
)
def test_unit_n_lies_above_unit_n(shape: Any, chunks: Any, scale: Any) -> None:
    layout = plan_layout(
        "/nowhere", dims=("z", "y", "x"), shape=shape, dtype=np.dtype("u2"), scale=scale,
        translation=[0.0] * 3, units=[None] * 3, chunks=chunks,
    )  # fmt: skip
    for finer, coarser in zip(layout.levels, layout.levels[1 : 1 + layout.along], strict=False):
        assert finer.write_units.counts == coarser.write_units.counts
        for number in {0, len(finer.write_units) // 2, len(finer.write_units) - 1}:
            below, above = finer.write_units.box(number), coarser.write_units.box(number)
            assert above.start == tuple(a // f for a, f in zip(below.start, coarser.factors, strict=True))
            assert above.stop == tuple(-(-b // f) for b, f in zip(below.stop, coarser.factors, strict=True))


@pytest.mark.parametrize("scale", [(1.0, 1.0, 1.0), (2.5, 1.0, 1.0), (9.0, 1.0, 1.0)])
def test_two_levels_lie_above_what_is_written_by_default(scale: Any) -> None:
    layout = plan_layout(
        "/nowhere", dims=("z", "y", "x"), shape=(300, 9000, 7000), dtype=np.dtype("u2"), scale=scale,
        translation=[0.0] * 3, units=[None] * 3,
    )  # fmt: skip
    assert layout.along == 2
    assert all(np.prod(level.shards or ()) <= 2**24 for level in layout.levels)


def test_records_have_the_checksums_of_all_that_was_written(tmp_path: Path) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    steps = sorted(p.name for p in (tmp_path / "a.ome.zarr.ledger").iterdir() if p.is_dir())
    assert steps == ["level-0", "level-3"], "levels 1 and 2 have no pass of their own"
    record = json.loads((tmp_path / "a.ome.zarr.ledger" / "level-0" / "00000000.json").read_text())
    assert all(len(result["above"]) == 2 for result in record["results"])
    report = verify(url, progress=False)
    assert report.ok, report.problems
    assert [level.agreeing for level in report.levels] == [level.units for level in report.levels]


@pytest.mark.parametrize("harm", ["flipped", "gone"])
@pytest.mark.parametrize("level", [1, 2])
def test_what_is_damaged_above_is_named_with_the_record_and_written_again(
    tmp_path: Path, level: int, harm: str
) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    before = objects(url)
    victim = url / str(level) / "c" / "1" / "0" / "2"
    data = bytearray(victim.read_bytes())
    data[40] ^= 4
    victim.unlink()
    if harm == "flipped":
        victim.write_bytes(bytes(data))
    report = verify(url, progress=False)
    assert not report.ok
    found = report.damaged if harm == "flipped" else report.missing
    assert {f.key for f in found} >= {f"{level}/c/1/0/2"} or {f.key.split("#")[0] for f in found} == {
        f"{level}/c/1/0/2"
    }
    (record,) = {name for note in report.notes for name in re.findall(r"level-0/\d{8}\.json", note)}
    (tmp_path / "a.ome.zarr.ledger" / record).unlink()
    save_image(VALUES, url, **OPTIONS)
    assert objects(url) == before


def test_a_record_without_them_vouches_for_none_above(tmp_path: Path) -> None:
    url = tmp_path / "a.ome.zarr"
    save_image(VALUES, url, **OPTIONS)
    path = tmp_path / "a.ome.zarr.ledger" / "level-0" / "00000000.json"
    record = json.loads(path.read_text())
    del record["results"][0]["above"]
    path.write_text(json.dumps(record))
    report = verify(url, progress=False)
    assert not any(level.unrecorded for level in report.levels if level.path in "03")
    assert all(level.unrecorded for level in report.levels if level.path in "12")


def test_a_job_that_stopped_goes_on_and_redoes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "a.ome.zarr"
    monkeypatch.setattr("denoizarr.images.save.BATCH_VOXELS", 1)
    with nothing_along():
        save_image(VALUES, tmp_path / "b.ome.zarr", **OPTIONS)
    copied: list[int] = []

    def copy(spec: Any, block: int, copy: Any = save.copy_block) -> Any:
        copied.append(block)
        if len(copied) == 5:
            raise ValueError("a kill")
        return copy(spec, block)

    monkeypatch.setattr(save, "copy_block", copy)
    with pytest.raises(Exception, match="kill"):
        save_image(VALUES, url, **OPTIONS)
    report = verify(url, progress=False)
    assert [level.not_done for level in report.levels] == [1, 1, 1, report.levels[3].units]
    save_image(VALUES, url, **OPTIONS)
    assert len(copied) == report.levels[0].units + 1
    assert objects(url) == objects(tmp_path / "b.ome.zarr")


@pytest.fixture
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], int]:
    """Bytes of stored objects that were read below a folder, by any handle of Zarr."""
    counts: dict[str, int] = {}
    get = ObjectStore.get

    async def counting(self: Any, key: str, *arguments: Any, **options: Any) -> Any:
        found = await get(self, key, *arguments, **options)
        if found is not None and "zarr.json" not in key:
            where = f"{self.store.prefix}/{key}"
            counts[where] = counts.get(where, 0) + len(found)
        return found

    monkeypatch.setattr(ObjectStore, "get", counting)
    return lambda folder: sum(n for where, n in counts.items() if where.startswith(str(folder)))


def test_level_0_is_not_read_a_second_time(tmp_path: Path, bytes_read: Callable[[Path], int]) -> None:
    url, other = tmp_path / "a.ome.zarr", tmp_path / "b.ome.zarr"
    options = OPTIONS | {"levels": 3}
    save_image(VALUES, url, **options)
    with nothing_along():
        save_image(VALUES, other, **options)
    stored = {n: sum(p.stat().st_size for p in (url / n / "c").rglob("*") if p.is_file()) for n in "012"}
    saved = bytes_read(other) - bytes_read(url)
    assert saved >= stored["0"] + stored["1"]
    assert bytes_read(url) < 1.1 * sum(stored.values()), "what is written is read back once, to check it"
    assert np.array_equal(open_image(url).values, VALUES)
    assert zarr.open_array(str(url / "2"), mode="r").shape == (2, 38, 68)
