"""Verify: an untouched image passes, and each kind of damage is named where it is."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import denoizarr
from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadRequest, ImageNotFound, NotOmeZarr
from denoizarr.images import pyramid, save, write
from denoizarr.images.output import ledger_url
from denoizarr.images.save import save_image
from denoizarr.kernels.pooling import mean_pool
from denoizarr.pipeline.verify import verify
from denoizarr.pipeline.verify_report import VerifyReport
from denoizarr.stores import locations
from denoizarr.stores.images import as_image

VALUES = np.random.default_rng(0).integers(0, 60000, (3, 70, 90), dtype=np.uint16)
SMALL = VALUES[:, :40, :50]
SHARDED: dict[str, Any] = {"chunks": (1, 16, 16), "shards": (1, 32, 32), "levels": 3}
PLAIN: dict[str, Any] = {"chunks": (1, 32, 32), "ome_version": "0.4", "levels": 3}


def look(url: Path, **options: Any) -> VerifyReport:
    return verify(url, progress=False, **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(params=["0.5", "0.4"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished output of three levels of each version, with several records of each of the first two."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "blocks_per_batch", lambda *_: 4)
        patch.setattr(pyramid, "blocks_per_batch", lambda *_: 4)
        for version, options in (("0.5", SHARDED), ("0.4", PLAIN)):
            found[version] = tmp_path_factory.mktemp("untouched") / "a.ome.zarr"
            save_image(VALUES, found[version], **options)
            assert look(found[version]).problems == ()
    return found


@pytest.fixture
def output(tmp_path: Path, version: str, untouched: dict[str, Path]) -> Path:
    """A copy of it, with its ledger."""
    shutil.copytree(untouched[version].parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "a.ome.zarr"


def unit(url: Path, version: str, level: int, *index: int) -> Path:
    return url.joinpath(str(level), *(["c"] if version == "0.5" else []), *map(str, index))


def flip(path: Path, at: int = 30) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(bytes(data))


# An untouched image passes.


@pytest.mark.parametrize(
    ("dims", "shape"),
    [
        ("yx", (75, 61)),
        ("zyx", (3, 40, 50)),
        ("cyx", (2, 33, 47)),
        ("tzyx", (2, 3, 33, 40)),
        ("tczyx", (2, 2, 3, 33, 21)),
    ],
)
@pytest.mark.parametrize("layout", ["0.4", "0.5", "0.5 with shards"])
def test_an_untouched_output_passes(tmp_path: Path, dims: str, shape: tuple[int, ...], layout: str) -> None:
    ones = (1,) * (len(shape) - 2)
    options: dict[str, Any] = {"chunks": (*ones, 16, 16), "ome_version": layout[:3], "levels": 3}
    if "shards" in layout:
        options["shards"] = (*ones, 32, 16)
    values = VALUES.ravel()[: int(np.prod(shape))].reshape(shape)
    save_image(as_image(values, dims), tmp_path / "a.ome.zarr", **options)
    before = tree(tmp_path)
    report = look(tmp_path / "a.ome.zarr")
    assert report.problems == ()
    assert report.ok
    assert report.complete
    assert report.state == "complete"
    assert all(level.read == level.units == level.agreeing > 0 for level in report.levels)
    assert [level.compared for level in report.levels] == [0, *(level.units for level in report.levels[1:])]
    assert not report.notes
    assert tree(tmp_path) == before, "nothing is changed"


@settings(max_examples=12)
@given(st.data())
def test_any_layout_passes_and_any_flipped_byte_is_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 40), st.integers(1, 40)))
    chunks = data.draw(st.tuples(st.integers(1, 3), st.integers(5, 17), st.integers(5, 17)))
    multiple = data.draw(st.none() | st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)))
    version = data.draw(st.sampled_from(["0.4", "0.5"])) if multiple is None else "0.5"
    shards = None if multiple is None else tuple(c * m for c, m in zip(chunks, multiple, strict=True))
    url = tmp_path_factory.mktemp("any") / "a.ome.zarr"
    values = VALUES.ravel()[: int(np.prod(shape))].reshape(shape)
    save_image(values, url, chunks=chunks, shards=shards, ome_version=version, levels=2)
    report = look(url)
    assert report.problems == ()
    assert all(level.agreeing == level.units for level in report.levels)
    objects = sorted(p for level in report.levels for p in (url / level.path).rglob("*") if p.name.isdigit())
    victim = data.draw(st.sampled_from([p for p in objects if p.is_file()]))
    flip(victim, data.draw(st.integers(0, victim.stat().st_size - 1)))
    report = look(url)
    assert {f.key.split("#")[0] for f in report.damaged} == {str(victim.relative_to(url))}
    assert sum(level.damaged for level in report.levels) == 1


@pytest.mark.parametrize("dtype", ["i2", "f4", "f8", "bool"])
def test_every_dtype_passes(tmp_path: Path, dtype: str) -> None:
    values = SMALL > 30000 if dtype == "bool" else (SMALL // 300).astype(dtype)
    save_image(values, tmp_path / "a.ome.zarr", **SHARDED)
    assert look(tmp_path / "a.ome.zarr").problems == ()


def test_an_image_of_zeros_passes(tmp_path: Path) -> None:
    save_image(np.zeros_like(SMALL), tmp_path / "a.ome.zarr", **SHARDED)
    assert look(tmp_path / "a.ome.zarr").problems == ()


def test_without_its_ledger_it_says_what_it_could_not_check(output: Path) -> None:
    shutil.rmtree(ledger_url(str(output)))
    report = look(output)
    assert report.ok
    assert report.complete
    assert report.ledger is None
    assert "no ledger beside it" in " ".join(report.notes)
    assert all(level.agreeing == 0 for level in report.levels)
    assert report.levels[1].compared == report.levels[1].units, "the pyramid is checked all the same"


@pytest.mark.parametrize("version", ["0.5"])
def test_it_moves_with_its_ledger(output: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    for path in (output, Path(ledger_url(str(output)))):
        path.rename(tmp_path / "elsewhere" / path.name)
    assert look(tmp_path / "elsewhere" / output.name).levels[0].agreeing > 0


# Each kind of damage is named.


@pytest.mark.parametrize("with_ledger", [True, False])
@pytest.mark.parametrize("level", [0, 1])
def test_a_flipped_bit_is_named(output: Path, version: str, level: int, with_ledger: bool) -> None:
    if not with_ledger:
        shutil.rmtree(ledger_url(str(output)))
    victim = unit(output, version, level, 1, 0, 1)
    flip(victim, 40)
    report = look(output)
    (problem,) = report.problems
    key = str(victim.relative_to(output))
    assert problem.startswith(f"level {level}: {key}")
    assert "z 1:2" in problem
    assert "cannot be decoded" in problem
    (found,) = report.damaged
    assert found.level == str(level)
    assert found.key.startswith(key)
    start, stop = np.array(found.start), np.array(found.stop)
    assert (start >= (1, 0, 32)).all()
    assert (stop <= (2, 32, 64)).all()
    assert report.levels[level].damaged == 1
    assert sum(r.damaged for r in report.levels) == 1


def test_every_byte_of_a_shard_is_guarded(tmp_path: Path) -> None:
    """Data, index and padding alike: what does not show in decoding shows in the checksum."""
    save_image(VALUES[0, :32, :32], tmp_path / "a.ome.zarr", chunks=(16, 16), shards=(32, 32), levels=1)
    victim = tmp_path / "a.ome.zarr" / "0" / "c" / "0" / "0"
    whole = victim.read_bytes()
    for at in [*range(0, len(whole), 97), len(whole) - 1, len(whole) - 20]:
        flip(victim, at)
        assert look(tmp_path / "a.ome.zarr").levels[0].damaged == 1, at
        victim.write_bytes(whole)


def test_the_inner_chunk_of_a_shard_is_named(tmp_path: Path) -> None:
    save_image(VALUES[0], tmp_path / "a.ome.zarr", chunks=(16, 16), shards=(32, 32), levels=1)
    victim = tmp_path / "a.ome.zarr" / "0" / "c" / "1" / "1"
    index = np.frombuffer(victim.read_bytes()[-(16 * 4 + 4) : -4], "<u8").reshape(2, 2, 2)
    for y, x in ((0, 1), (1, 0)):
        flip(victim, int(index[y, x, 0]) + 20)
    report = look(tmp_path / "a.ome.zarr")
    assert {f.key: (f.start, f.stop) for f in report.damaged} == {
        "0/c/1/1#0,1": ((32, 48), (48, 64)),
        "0/c/1/1#1,0": ((48, 32), (64, 48)),
    }
    assert report.levels[0].damaged == 1, "one object"
    assert "(y 32:48, x 48:64) cannot be decoded" in report.problems[0]


@pytest.mark.parametrize("length", [0, 5, 100])
def test_a_torn_object_is_named(output: Path, version: str, length: int) -> None:
    victim = unit(output, version, 0, 0, 1, 0)
    victim.write_bytes(victim.read_bytes()[:length])
    (problem,) = look(output).problems
    assert f"{victim.relative_to(output)} (z 0:1, y 32:64, x 0:32) cannot be decoded" in problem


@pytest.mark.parametrize("with_ledger", [True, False])
def test_a_deleted_chunk_is_named(output: Path, version: str, with_ledger: bool) -> None:
    if not with_ledger:
        shutil.rmtree(ledger_url(str(output)))
    victim = unit(output, version, 0, 2, 1, 1)
    victim.unlink()
    report = look(output)
    assert report.problems == (f"level 0: {victim.relative_to(output)} (z 2:3, y 32:64, x 32:64) is absent",)
    assert not report.complete
    assert [f.key for f in report.missing] == [str(victim.relative_to(output))]
    assert report.levels[0].absent == 1
    assert look(output, missing="fill").problems == report.problems, "our own writer leaves nothing out"


@pytest.mark.parametrize("with_ledger", [True, False])
def test_two_swapped_chunks_are_named(output: Path, version: str, with_ledger: bool) -> None:
    if not with_ledger:
        shutil.rmtree(ledger_url(str(output)))
    one, other = unit(output, version, 0, 0, 0, 0), unit(output, version, 0, 0, 1, 1)
    first = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(first)
    problems = look(output).problems
    named = [p for p in problems if "is not what was written" in p]
    if with_ledger:
        assert [p.split(" ")[2] for p in named] == [str(p.relative_to(output)) for p in (one, other)]
    else:
        assert not named
    # Both decode: without checksums, level 1 tells, which was made of what lay there before.
    assert [p for p in problems if "voxels are not the means of level 0" in p and "y 0:32, x 0:32" in p]


@pytest.mark.parametrize("with_ledger", [True, False])
def test_an_altered_level_is_named_though_it_decodes(output: Path, version: str, with_ledger: bool) -> None:
    if not with_ledger:
        shutil.rmtree(ledger_url(str(output)))
    array = zarr.open_array(str(output), path="1", mode="r+")
    array[0, 3, 40] += np.uint16(1)
    problems = look(output).problems
    where = f"level 1: {unit(output, version, 1, 0, 0, 1).relative_to(output)} (z 0:1, y 0:32, x 32:45)"
    assert f"{where}: 1 of 416 voxels are not the means of level 0" in problems
    assert any(p.startswith(f"{where} is not what was written") for p in problems) == with_ledger
    # A sum of four may round to the same: level 2 says so or not.
    assert len([p for p in problems if not p.startswith("level 2")]) == 1 + with_ledger


def test_a_level_that_was_made_wrong_is_named_though_its_checksums_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "mean_pool", lambda values, factors: mean_pool(values, factors)[..., ::-1])
    save_image(SMALL, tmp_path / "a.ome.zarr", **{**SHARDED, "levels": 2})
    report = look(tmp_path / "a.ome.zarr")
    assert report.levels[1].agreeing == report.levels[1].units
    assert report.levels[1].inconsistent == report.levels[1].units == len(report.problems)
    assert all("voxels are not the means of level 0" in p for p in report.problems)


def _records(output: Path, level: int) -> list[Path]:
    return sorted((Path(ledger_url(str(output))) / f"level-{level}").iterdir())


@pytest.mark.parametrize("version", ["0.5"])
@pytest.mark.parametrize("how", ["empty", "cut", "no object", "without checksums", "of other blocks"])
def test_a_torn_record_is_named(output: Path, how: str) -> None:
    record = _records(output, 0)[1]
    text = record.read_text()
    data = json.loads(text)
    record.write_text(
        {
            "empty": "",
            "cut": text[: len(text) // 2],
            "no object": "[]",
            "without checksums": json.dumps(data | {"results": [{}] * 4}),
            "of other blocks": json.dumps(data | {"blocks": [0, 4]}),
        }[how]
    )
    report = look(output)
    said = {"without checksums": "lacks checksums", "of other blocks": "is of blocks [0, 4], expected [4, 8]"}
    assert f"level 0: record level-0/00000001.json {said.get(how, 'is torn')}, and vouches for nothing" in (
        report.problems
    )
    assert "level 0: without a good record in the ledger: blocks 4 to 7 of 27" in report.problems
    assert any(
        p.startswith("marked finished, but the ledger has no good record of 4 of ") for p in report.problems
    )
    assert report.levels[0].unrecorded == ((4, 8),)
    assert not report.complete
    assert record.exists(), "a look deletes nothing"


@pytest.mark.parametrize("version", ["0.5"])
def test_a_removed_record_is_named(output: Path) -> None:
    for number in (1, 2, 5):
        _records(output, 0)[0].with_name(f"{number:08d}.json").unlink()
    report = look(output)
    assert "level 0: without a good record in the ledger: blocks 4 to 11, 20 to 23 of 27" in report.problems
    assert len(report.problems) == 2
    assert report.levels[0].agreeing == 27 - 12
    assert report.levels[0].read == 27, "what is there is checked as far as it can be"


@pytest.mark.parametrize("version", ["0.5"])
def test_a_record_of_another_job_is_named(output: Path) -> None:
    record = _records(output, 1)[0]
    record.write_text(json.dumps(json.loads(record.read_text()) | {"job": "f" * 32}))
    problems = look(output).problems
    assert "level 1: record level-1/00000000.json is of another job, and vouches for nothing" in problems


@pytest.mark.parametrize("version", ["0.5"])
def test_a_ledger_of_another_image_is_named(output: Path, tmp_path: Path) -> None:
    save_image(SMALL.astype("i4"), tmp_path / "b.ome.zarr", **SHARDED)
    there = Path(ledger_url(str(output)))
    shutil.rmtree(there)
    shutil.copytree(tmp_path / "b.ome.zarr.ledger", there)
    report = look(output)
    assert any("and the ledger says" in p for p in report.problems)
    assert sum(level.damaged for level in report.levels) == 0, "one sentence a level, not one for each object"


@pytest.mark.parametrize("version", ["0.5"])
def test_a_torn_claim_is_named(output: Path) -> None:
    (Path(ledger_url(str(output))) / "job.json").write_text("{")
    (problem,) = look(output).problems
    assert problem.startswith("the ledger beside it is torn")
    (Path(ledger_url(str(output))) / "job.json").unlink()
    (problem,) = look(output).problems
    assert problem == "the ledger beside it does not say whose it is: its job.json is gone"


@pytest.mark.parametrize("version", ["0.5"])
def test_an_unfinished_mark_is_named(output: Path) -> None:
    group = zarr.open_group(str(output), mode="r+")
    group.attrs["denoizarr.state"] = "incomplete"
    report = look(output)
    assert report.problems == (
        "every block is recorded, but the image is not marked finished; run the job that began it again",
    )
    assert not report.complete
    assert report.levels[0].agreeing == 27


@pytest.mark.parametrize("version", ["0.5"])
def test_a_mark_that_was_taken_off_is_named(output: Path) -> None:
    group = zarr.open_group(str(output), mode="r+")
    del group.attrs["denoizarr.state"]
    report = look(output)
    assert report.problems == ("a ledger lies beside it, but the image does not say that denoizarr wrote it",)
    assert report.state == "foreign"


@pytest.mark.parametrize("kind", ["nan", "inf"])
def test_a_voxel_that_is_not_finite_is_named(tmp_path: Path, version: str, kind: str) -> None:
    url = tmp_path / "a.ome.zarr"
    values = SMALL.astype("f4")
    values[1, 30, 40] = np.nan if kind == "nan" else -np.inf
    save_image(values, url, **(SHARDED if version == "0.5" else PLAIN))
    report = look(url)
    count = "1 NaN and 0 infinite" if kind == "nan" else "0 NaN and 1 infinite"
    assert f"level 0: {count} voxels, one of them at z 1, y 30, x 40" in report.problems
    assert [(level.nan, level.infinite) for level in report.levels] == [(kind == "nan", kind == "inf")] * 3
    assert len(report.problems) == 3, "one for each level, and levels with NaN agree with one another"
    allowed = look(url, nonfinite="allow")
    assert allowed.ok
    assert allowed.levels[0].nan + allowed.levels[0].infinite == 1


def test_infinities_of_both_signs_agree_with_their_mean(tmp_path: Path) -> None:
    values = np.ones((64, 64), "f4")
    values[0, 0], values[0, 1] = np.inf, np.nan
    save_image(values, tmp_path / "a.ome.zarr", chunks=(32, 32), levels=2)
    assert look(tmp_path / "a.ome.zarr", nonfinite="allow").ok


@pytest.mark.parametrize("version", ["0.5"])
def test_a_level_without_an_array_is_named(output: Path) -> None:
    locations.delete_prefix(output / "1")
    report = look(output)
    assert any(p.startswith("level 1: nothing lies here") for p in report.problems)
    assert "level 1: no array" in report.in_words()
    assert not report.complete
    assert report.levels[2].read == report.levels[2].units


@pytest.mark.parametrize("version", ["0.5"])
def test_an_object_that_cannot_be_read_is_named_and_the_rest_goes_on(output: Path, version: str) -> None:
    victim = unit(output, version, 0, 0, 0, 0)
    victim.unlink()
    victim.symlink_to(victim)  # the system refuses to follow it, as a bad disk would refuse
    report = look(output)
    assert report.levels[0].read == 27
    assert any(str(victim.relative_to(output)) in p for p in report.problems)


@pytest.mark.parametrize("how", ["flip", "delete"])
def test_what_is_damaged_is_mended_as_the_note_says(output: Path, version: str, how: str) -> None:
    before = tree(output)
    for level, index in ((0, (1, 1, 2)), (1, (0, 0, 1))):
        victim = unit(output, version, level, *index)
        flip(victim, 40) if how == "flip" else victim.unlink()
    notes = [note for note in look(output).notes if "delete the records" in note]
    named = [word.strip(",") for note in notes for word in note.split() if word.strip(",").endswith(".json")]
    assert named == ["level-0/00000003.json", "level-1/00000000.json"]
    for name in named:
        (Path(ledger_url(str(output))) / name).unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "blocks_per_batch", lambda *_: 4)
        patch.setattr(pyramid, "blocks_per_batch", lambda *_: 4)
        summary = save_image(VALUES, output, **(SHARDED if version == "0.5" else PLAIN))
    assert summary.blocks_done == 8
    assert look(output).ok
    assert tree(output) == before


# Unfinished outputs.


@pytest.mark.parametrize("with_ledger", [True, False])
def test_an_unfinished_output_is_told_and_nothing_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, with_ledger: bool
) -> None:
    url, left = tmp_path / "a.ome.zarr", [14]

    def copy(spec: Any, block: int, copy: Any = save.copy_block) -> Any:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return copy(spec, block)

    monkeypatch.setattr(write, "blocks_per_batch", lambda *_: 4)
    with monkeypatch.context() as patch:
        patch.setattr(save, "copy_block", copy)
        with pytest.raises((KeyboardInterrupt, denoizarr.DenoizarrError)):
            save_image(VALUES, url, **(SHARDED if version == "0.5" else PLAIN))
    flip(unit(url, version, 0, 0, 0, 0), 40)
    flip(unit(url, version, 0, 1, 1, 0), 40)  # the 13th: written, and not recorded: it will be done again
    if not with_ledger:
        shutil.rmtree(ledger_url(str(url)))
        problems = look(url).problems
        assert problems[0] == "not finished, and no ledger beside it says what is done"
        assert "level 0: 13 of 27 write units absent" in problems
        assert len([p for p in problems if "cannot be decoded" in p]) == 2
        return
    report = look(url)
    assert report.state == "incomplete"
    assert not report.ok
    assert not report.complete
    assert report.problems[0].startswith("not finished: ")
    assert "level 0: still to be done: blocks 12 to 26 of 27" in report.problems
    assert "level 1: still to be done: blocks 0 to 7 of 8" in report.problems or version == "0.4"
    assert (report.levels[0].read, report.levels[0].not_done) == (12, 15)
    assert [f.key.split("#")[0] for f in report.damaged] == [
        str(unit(url, version, 0, 0, 0, 0).relative_to(url))
    ]
    # What has records is mended by deleting them; then the job goes on as ever.
    _records(url, 0)[0].unlink()
    save_image(VALUES, url, **(SHARDED if version == "0.5" else PLAIN))
    assert look(url).ok


@pytest.mark.parametrize("torn", [True, False])
def test_an_output_that_has_only_its_ledger_is_told(tmp_path: Path, torn: bool) -> None:
    Ledger.claim(ledger_url(str(tmp_path / "a.ome.zarr")), {"kind": "copy"})
    if torn:
        (tmp_path / "a.ome.zarr").mkdir()
        (tmp_path / "a.ome.zarr" / "zarr.json").write_text("")
    report = look(tmp_path / "a.ome.zarr")
    assert report.state == "incomplete"
    assert "not finished; run the job that began it again" in report.problems
    assert any("cannot be opened" in p for p in report.problems)


# Foreign images.


def _foreign(
    path: Path,
    levels: list[np.ndarray[Any, Any]],
    *,
    fill: bool = True,
    shards: tuple[int, ...] | None = None,
    **array: Any,
) -> Path:
    group = zarr.open_group(str(path), mode="w")
    datasets = []
    for number, values in enumerate(levels):
        made = group.create_array(
            f"s{number}",
            shape=values.shape,
            dtype=values.dtype,
            chunks=(16,) * values.ndim,
            shards=shards,
            config={"write_empty_chunks": fill},
            **array,
        )
        made[:] = values
        scale = {"type": "scale", "scale": [2.0**number] * values.ndim}
        datasets.append({"path": f"s{number}", "coordinateTransformations": [scale]})
    axes = [{"name": d, "type": "space"} for d in "zyx"[-levels[0].ndim :]]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets, "name": "n"}],
    }
    return path


def _scene(shape: tuple[int, int] = (101, 90)) -> np.ndarray[Any, Any]:
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(1).normal(0, 30, shape)
    return (1000 + 400 * np.sin(y / 9) * np.cos(x / 7) + noise).astype(np.uint16)


def _half(values: np.ndarray[Any, Any], how: str) -> np.ndarray[Any, Any]:
    from scipy.ndimage import gaussian_filter

    even = values[: values.shape[0] // 2 * 2, : values.shape[1] // 2 * 2]
    boxes = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2).transpose(0, 2, 1, 3)
    if how == "cut mean":
        return boxes.mean((2, 3)).astype(values.dtype)
    if how == "float mean":
        return boxes.astype(np.float32).mean((2, 3)).astype(np.float32)
    if how == "median":
        return np.sort(boxes.reshape(*boxes.shape[:2], 4), -1)[..., 1]
    if how == "gaussian":
        return gaussian_filter(values.astype(np.float32), 1.0)[::2, ::2].round().astype(values.dtype)
    return values[{"stride": slice(None, None, 2), "other stride": slice(1, None, 2)}[how],][
        :, {"stride": slice(None, None, 2), "other stride": slice(1, None, 2)}[how]
    ]


HOW = {
    "cut mean": "mean",
    "float mean": "mean",
    "stride": "picked",
    "other stride": "picked",
    "median": "picked",
    "gaussian": "smoothed",
}


@pytest.mark.parametrize("how", HOW)
def test_a_foreign_pyramid_passes_however_it_was_made(tmp_path: Path, how: str) -> None:
    finest = _scene().astype("f4" if how == "float mean" else "u2")
    levels = [finest, _half(finest, how)]
    levels.append(_half(levels[1], how))
    report = look(_foreign(tmp_path / "f.zarr", levels))
    assert report.problems == ()
    assert report.ok
    assert report.complete
    assert report.state == "foreign"
    assert {level.reduction for level in report.levels[1:]} == {HOW[how]}
    assert "no checksums" in report.notes[0]


@pytest.mark.parametrize("how", HOW)
def test_a_foreign_level_that_is_not_of_its_image_is_named(tmp_path: Path, how: str) -> None:
    finest = _scene().astype("f4" if how == "float mean" else "u2")
    level = _half(finest, how).copy()
    level[:16, :16], level[32:48, 16:32] = level[32:48, 16:32].copy(), level[:16, :16].copy()
    report = look(_foreign(tmp_path / "f.zarr", [finest, level]))
    assert [p.split(" ")[2] for p in report.problems] == ["s1/c/0/0", "s1/c/2/1"]
    assert all("cannot come from those of level s0" in p for p in report.problems)


def test_one_wrong_voxel_of_a_foreign_mean_is_named(tmp_path: Path) -> None:
    finest = _scene()
    level = _half(finest, "cut mean")
    level[20, 20] = 9
    (problem,) = look(_foreign(tmp_path / "f.zarr", [finest, level])).problems
    assert "s1/c/1/1 (y 16:32, x 16:32): 1 of 256 voxels cannot come" in problem


def test_levels_of_no_whole_ratio_are_not_compared(tmp_path: Path) -> None:
    finest = _scene((90, 90))
    url = _foreign(tmp_path / "f.zarr", [finest, finest[:60, :60]])
    group = zarr.open_group(str(url), mode="r+")
    ome = dict(group.attrs["ome"])  # type: ignore[arg-type, call-overload]
    ome["multiscales"][0]["datasets"][1]["coordinateTransformations"][0]["scale"] = [1.5, 1.5]
    group.attrs["ome"] = ome
    report = look(url)
    assert report.ok
    assert any("not a whole-number reduction" in note for note in report.notes)


@pytest.mark.parametrize("shards", [None, (32, 32)])
def test_what_a_foreign_writer_left_out(tmp_path: Path, shards: tuple[int, ...] | None) -> None:
    values = _scene((64, 64))
    values[:32, :32] = 0
    values[48:, 48:] = 0
    url = _foreign(tmp_path / "f.zarr", [values], fill=False, shards=shards)
    report = look(url)
    assert not report.ok
    lacking = [p.split(" ")[2] for p in report.problems]
    if shards is None:
        assert lacking == ["s0/c/0/0", "s0/c/0/1", "s0/c/1/0", "s0/c/1/1", "s0/c/3/3"]
    else:
        assert lacking == ["s0/c/0/0", "s0/c/1/1#1,1"]
        assert report.missing[1].start == (48, 48)
        assert (report.levels[0].absent, report.levels[0].absent_chunks) == (1, 1)
    filled = look(url, missing="fill")
    assert filled.ok
    assert filled.complete
    assert "which read as the fill value" in " ".join(filled.notes)


def test_foreign_stores_of_every_kind(tmp_path: Path, write_store: Any, store_kind: Any) -> None:
    url = Path(write_store(tmp_path / "f.zarr", SMALL, "zyx", store_kind, chunks=(1, 16, 16)))
    if store_kind.ome_version is None:
        with pytest.raises(NotOmeZarr):
            look(url)
        return
    report = look(url)
    assert report.ok
    assert report.levels[0].read == (8 if store_kind.sharded else 36)
    victim = next(p for p in (url / "s0").rglob("*") if p.is_file() and p.name.isdigit())
    victim.write_bytes(victim.read_bytes()[:9])
    (found,) = look(url).damaged
    assert found.key == str(victim.relative_to(url))


@pytest.mark.parametrize("codec", ["none", "gzip", "blosc"])
def test_a_torn_foreign_chunk_is_named(tmp_path: Path, codec: str) -> None:
    codecs: dict[str, Any] = {
        "none": None,
        "gzip": zarr.codecs.GzipCodec(),
        "blosc": zarr.codecs.BloscCodec(),
    }
    url = _foreign(tmp_path / "f.zarr", [_scene((64, 64))], compressors=codecs[codec])
    victim = url / "s0" / "c" / "1" / "2"
    victim.write_bytes(victim.read_bytes()[:50])
    (problem,) = look(url).problems
    assert "level s0: s0/c/1/2 (y 16:32, x 32:48) cannot be decoded" in problem


def test_axes_in_another_order_are_told_as_stored(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 99, (20, 18, 33), dtype="u2")
    url = _foreign(tmp_path / "f.zarr", [values, values[::2, ::2, ::2]])
    group = zarr.open_group(str(url), mode="r+")
    ome = dict(group.attrs["ome"])  # type: ignore[arg-type, call-overload]
    ome["multiscales"][0]["axes"] = [{"name": d, "type": "space"} for d in "xyz"]
    group.attrs["ome"] = ome
    (url / "s0" / "c" / "1" / "0" / "2").unlink()
    report = look(url)
    assert report.problems == ("level s0: s0/c/1/0/2 (x 16:20, y 0:16, z 32:33) is absent",)


def test_memory_is_bounded_by_write_units_and_not_by_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoizarr.pipeline.verify.usable_cores", lambda: 1)
    values = np.random.default_rng(0).integers(0, 99, (48, 512, 512), dtype=np.uint16)
    save_image(values, tmp_path / "a.ome.zarr", chunks=(1, 256, 256), shards=(1, 512, 512), levels=2)
    look(tmp_path / "a.ome.zarr", sample=1)  # what is imported and cached on the way is not counted
    tracemalloc.start()
    report = look(tmp_path / "a.ome.zarr")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert report.ok
    assert report.levels[1].compared == 24
    # A unit with its bytes, and the finer voxels below a chunk as float64: 8 MB, whatever the image's size.
    assert peak < values.nbytes / 2


# What is asked for.


@pytest.mark.parametrize("version", ["0.5"])
def test_a_sample_reads_only_its_share_and_is_drawn_by_its_seed(output: Path) -> None:
    report = look(output, sample=5)
    assert [level.read for level in report.levels][:2] == [5, 5]
    assert report.ok
    assert any("at most 5 write units of each level" in note for note in report.notes)
    for victim in (output / "0").rglob("*"):
        if victim.is_file() and victim.name.isdigit():
            victim.unlink()
    drawn = [{f.key for f in look(output, sample=5, seed=seed).missing} for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5


def test_many_problems_are_shortened_and_all_counted(tmp_path: Path) -> None:
    url = _foreign(tmp_path / "f.zarr", [np.zeros((190, 190), "u1")], fill=False)
    report = look(url)
    assert report.levels[0].absent == 144
    assert len(report.missing) == 100
    assert len(report.problems) == 21
    assert report.problems[-1] == "level s0: and 124 more absent objects"


@pytest.mark.parametrize("version", ["0.5"])
@pytest.mark.parametrize(
    ("change", "says"),
    [({"sample": 0}, "sample"), ({"missing": "ignore"}, "missing"), ({"nonfinite": "fill"}, "nonfinite")],
)
def test_options_that_are_none_are_refused(output: Path, change: dict[str, Any], says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        look(output, **change)


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageNotFound):
        look(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    with pytest.raises(NotOmeZarr):
        look(tmp_path / "run")
    save_image(VALUES[0], tmp_path / "run" / "denoised.ome.zarr", levels=1)
    with pytest.raises(NotOmeZarr, match=r"name an image in it: denoised\.ome\.zarr$"):
        look(tmp_path / "run")


def test_the_report_in_words_and_as_json(output: Path, version: str) -> None:
    sound = look(output)
    assert sound.in_words().splitlines()[0].startswith(f"{output}: nothing wrong; marked finished, ")
    assert len(sound.in_words().splitlines()) == 4
    unit(output, version, 0, 0, 0, 0).unlink()
    report = look(output)
    data = json.loads(json.dumps(report.to_json()))
    assert data["ok"] is False
    assert data["complete"] is False
    assert data["levels"][0]["absent"] == 1
    assert data["problems"] == list(report.problems)
    assert f"problem: {report.problems[0]}" in report.in_words().splitlines()
    assert f"{output}: 1 problem; " in report.in_words()


@pytest.mark.parametrize("version", ["0.5"])
def test_workers_find_the_same(output: Path, version: str, client: Any) -> None:
    flip(unit(output, version, 0, 1, 0, 1), 40)
    unit(output, version, 1, 0, 0, 0).unlink()
    here, there = look(output), look(output, client=client)
    assert there.problems == here.problems
    assert there.levels == here.levels


def test_it_is_at_the_front_door() -> None:
    assert denoizarr.verify is verify
    assert denoizarr.VerifyReport is VerifyReport
