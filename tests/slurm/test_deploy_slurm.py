"""The files that an operator copies, as they are: parsed, linted, and submitted to a real SLURM."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from denoizarr.pipeline.cluster_file import load_cluster
from tests.end_to_end.jobs import run_cli, scan_noise, tree_hash
from tests.end_to_end.predictions import Case

from .slurm_site import Site, wait_until

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "slurm"
SCRIPTS = sorted(
    path
    for path in [*FOLDER.iterdir(), *(DEPLOY / "certificates").iterdir()]
    if path.suffix in (".sh", ".sbatch") or not path.suffix
)
SMALL = "--mem=2G --cpus-per-task=1 --time=10"


def test_there_are_scripts() -> None:
    assert {"denoizarr.sbatch", "array.sbatch", "make-certificates", "site.sh"} <= {p.name for p in SCRIPTS}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_bash_and_clean(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["shellcheck", "-x", script], check=False, capture_output=True, text=True, cwd=DEPLOY.parent
    )
    assert done.returncode == 0, done.stdout


def test_the_linter_finds_a_bad_script(tmp_path: Path) -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    bad = tmp_path / "bad.sbatch"
    bad.write_text("#!/usr/bin/env bash\nrm -r $1/work\n")
    assert subprocess.run(["shellcheck", bad], check=False, capture_output=True).returncode == 1


def test_the_example_of_a_cluster_is_one() -> None:
    settings = load_cluster(FOLDER / "cluster.yaml").settings()
    settings.check()
    assert settings.slurm is not None
    # What is commented out are keys, too.
    text = re.sub(r"^  # ?(?=\w+: )", "  ", (FOLDER / "cluster.yaml").read_text(), flags=re.MULTILINE)
    every = yaml.safe_load(text)["slurm"]
    assert set(every) == set(settings.slurm.__slots__) - {"shared_directory", "wait_hours"}


def test_the_recipe_of_the_container_fits_the_repository() -> None:
    """It is not built here: there is nothing to build it with."""
    recipe = (FOLDER / "denoizarr.def").read_text()
    sections = dict(re.findall(r"^%(\w+)\n(.*?)(?=^%|\Z)", recipe, re.MULTILINE | re.DOTALL))
    assert set(sections) == {"files", "post", "environment", "runscript", "test"}
    for line in sections.pop("files").split("\n"):
        if line.strip():
            assert (DEPLOY.parent / line.split()[0]).exists()
    for name, script in sections.items():
        done = subprocess.run(["sh", "-n"], input=script, check=False, capture_output=True, text=True)
        assert done.returncode == 0, f"{name}: {done.stderr}"


@pytest.mark.slow
def test_training_that_is_stopped_and_then_prediction_give_the_bytes_of_an_undisturbed_run(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from denoizarr.images.save import save_image

    source, log = tmp_path / "in.ome.zarr", tmp_path / "train.csv"
    save_image(scan_noise((3, 128, 128)), source, levels=1)
    options = ["--features", "4", "--epochs", "12", "--patches-per-epoch", "64", "--patch-size", "32"]
    local = run_cli("train", str(source), "--out", str(tmp_path / "local.safetensors"), *options)
    assert local.returncode == 0, local.stderr
    cluster = tmp_path / "cluster.yaml"
    workers = {"interface": "lo", "walltime": "10"}
    cluster.write_text(
        yaml.safe_dump({"kind": "slurm", "workers": 2, "slurm": workers, "memory_limit": "1GiB"})
    )
    monkeypatch.setenv("TRAIN_OPTIONS", SMALL)
    monkeypatch.setenv("PREDICT_OPTIONS", SMALL)
    monkeypatch.setenv("CLUSTER", str(cluster))
    monkeypatch.setenv("DENOIZARR_ENV", "")
    files = [str(tmp_path / name) for name in ("in.ome.zarr", "model.safetensors", "out.ome.zarr")]
    submit = [str(FOLDER / "train-then-predict"), *files, *options, "--log", str(log)]
    train, predict = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.split()
    assert slurm.state(predict) == "PENDING"
    wait_until(lambda: log.exists() and len(log.read_text().splitlines()) > 2, "some epochs", 300)
    slurm.run("scancel", "--signal=TERM", "--batch", train)
    out = tmp_path / f"slurm-{train}.out"
    wait_until(lambda: "back into the queue, restart 1" in out.read_text(), "it goes back")
    assert slurm.state(predict) == "PENDING", "a training that was stopped is not done"
    slurm.wait_for(train, "COMPLETED", seconds=300)
    assert "Stopped: stopped by SIGTERM" in out.read_text()
    slurm.wait_for(predict, "COMPLETED", seconds=300)
    assert Path(files[1]).read_bytes() == (tmp_path / "local.safetensors").read_bytes()
    here = ["predict", str(tmp_path / "local.safetensors"), files[0], str(tmp_path / "local.ome.zarr")]
    done = run_cli(*here, "--memory-limit", "1GiB", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert tree_hash(Path(files[2])) == tree_hash(tmp_path / "local.ome.zarr")


def test_an_array_of_shares_and_what_finishes_it_give_the_bytes_of_one_process(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of the command line's own blocks, chunks and tiles.
    case = Case(tmp_path, (4, 70, 100))
    local = run_cli("predict", case.model, case.source, str(tmp_path / "local.ome.zarr"), "--workers", "1")
    assert local.returncode == 0, local.stderr
    monkeypatch.setenv("SHARE_OPTIONS", SMALL)
    monkeypatch.setenv("FINISH_OPTIONS", SMALL)
    monkeypatch.setenv("DENOIZARR_ENV", "")
    destination = tmp_path / "out.ome.zarr"
    submit = [str(FOLDER / "array-then-finish"), "2", "predict", case.model, case.source, str(destination)]
    array, finish = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.split()
    slurm.wait_for(array, "COMPLETED", seconds=300)
    for number in (1, 2):
        assert f"share {number}/2 is done" in (tmp_path / f"slurm-{array}_{number}.out").read_text()
    slurm.wait_for(finish, "COMPLETED", seconds=300)
    assert tree_hash(destination) == tree_hash(tmp_path / "local.ome.zarr")


def test_a_share_that_fails_keeps_the_finish_from_beginning(
    slurm: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHARE_OPTIONS", SMALL)
    monkeypatch.setenv("FINISH_OPTIONS", SMALL)
    monkeypatch.setenv("DENOIZARR_ENV", "")
    submit = [str(FOLDER / "array-then-finish"), "1", "predict", "absent", "absent", str(tmp_path / "out")]
    array, finish = subprocess.run(submit, check=True, capture_output=True, text=True).stdout.split()
    assert slurm.wait_for(array, "FAILED", "COMPLETED", seconds=60) == "FAILED"
    assert slurm.wait_for(finish, "CANCELLED", "COMPLETED", seconds=60) == "CANCELLED"


@pytest.mark.parametrize(
    ("script", "arguments"),
    [("array-then-finish", ["3"]), ("train-then-predict", ["a", "b"])],
)
def test_too_few_arguments_show_how_to_call_it(script: str, arguments: list[str]) -> None:
    done = subprocess.run([FOLDER / script, *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"./{script}" in done.stderr
