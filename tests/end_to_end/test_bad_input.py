"""Bad input gets one line of its own class, exit status 2, and leaves nothing that reads as finished."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr

from denoizarr.images.save import save_image

from .jobs import run_cli, scan_noise, write_job

SMALL = (2, 160, 160)


def no_such_path(folder: Path) -> Path:
    return write_job(folder)


def no_ome_zarr(folder: Path) -> Path:
    zarr.open_group(folder / "in.ome.zarr", mode="w").create_array("a", shape=(4, 4), dtype="u1")
    return write_job(folder)


def unknown_key(folder: Path) -> Path:
    return write_job(folder, scan_noise(SMALL), patch_fliter={"name": "max"})


def broken_yaml(folder: Path) -> Path:
    path = write_job(folder, scan_noise(SMALL))
    path.write_text(path.read_text() + "\n  - {")
    return path


def patch_too_large(folder: Path) -> Path:
    return write_job(folder, scan_noise(SMALL), stage1={"patch_size": 256})


def another_jobs_output(folder: Path) -> Path:
    path = write_job(folder, scan_noise(SMALL))
    ledger = folder / "run" / "ledger"
    ledger.mkdir(parents=True)
    (ledger / "job.json").write_text(json.dumps({"format": 1, "identity": {"job": {}, "inputs": []}}))
    return path


def foreign_folder(folder: Path) -> Path:
    path = write_job(folder, scan_noise(SMALL))
    (folder / "run").mkdir()
    (folder / "run" / "thesis.tex").write_text("my only copy")
    return path


def constant_image(folder: Path) -> Path:
    return write_job(folder, np.full(SMALL, 7, np.uint16))


def nan_in_the_image(folder: Path) -> Path:
    image = scan_noise(SMALL).astype(np.float32)
    image[1, 20, 30] = np.nan
    return write_job(folder, image)


def deleted_chunk(folder: Path) -> Path:
    path = write_job(folder, scan_noise(SMALL))
    (folder / "in.ome.zarr/0/c/1/0/0").unlink()
    return path


CASES = {
    no_such_path: ("ImageNotFound", "in.ome.zarr"),
    no_ome_zarr: ("NotOmeZarr", "multiscales"),
    unknown_key: ("ConfigError", "did you mean 'patch_filter'"),
    broken_yaml: ("ConfigError", "line"),
    patch_too_large: ("PatchTooLarge", "256"),
    another_jobs_output: ("LedgerMismatch", "another job"),
    foreign_folder: ("OutputExists", "run"),
    constant_image: ("DegenerateData", "7"),
    nan_in_the_image: ("NonFiniteData", "z=1, y=20, x=30"),
    deleted_chunk: ("MissingChunk", "c/1/0/0"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_bad_input(case, tmp_path):
    job = case(tmp_path)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    result = run_cli("run", str(job))
    name, words = CASES[case]
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{name}: "), result.stderr
    assert words in last
    assert "Traceback" not in result.stderr
    assert result.returncode == 2
    assert not (tmp_path / "run" / "denoised.ome.zarr").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    assert before <= {path for path in tmp_path.rglob("*") if path.is_file()}, (
        "nothing that was there is lost"
    )


def test_debug_shows_the_traceback(tmp_path):
    result = run_cli("info", str(tmp_path / "none"), "--debug")
    assert "Traceback" in result.stderr
    assert "ImageNotFound" in result.stderr


def test_plan_says_why_a_job_would_be_refused(tmp_path):
    result = run_cli("plan", str(patch_too_large(tmp_path)), "--json")
    assert result.returncode == 2
    assert "256" in json.loads(result.stdout.splitlines()[-1])["problems"][0]
    assert not (tmp_path / "run").exists()


def test_usage_errors_are_status_2():
    assert run_cli("convert", "only-one").returncode == 2
    assert run_cli("no-such-verb").returncode == 2


@pytest.mark.parametrize(
    "verb",
    ["demo", "info", "convert", "extract-mask", "train", "predict", "export", "plan", "run", "report"],
)
def test_every_verb_has_help_with_an_example(verb):
    result = run_cli(verb, "--help")
    assert result.returncode == 0
    assert f"denoizarr {verb}" in result.stdout.split("Example:")[1]


def test_a_report_needs_a_finished_run(tmp_path):
    save_image(scan_noise(SMALL), tmp_path / "in.ome.zarr")
    result = run_cli("report", str(tmp_path))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
