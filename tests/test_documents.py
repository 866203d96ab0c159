"""What the documents say of files and defaults is so."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from typer.testing import CliRunner

import denoizarr
import denoizarr.cli
from denoizarr.cli.app import app
from denoizarr.pipeline.config import JobConfig

ROOT = Path(__file__).parents[1]
FOLDERS = [ROOT / "docs", ROOT / "deploy"]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
DOCUMENTS += [document for folder in FOLDERS for document in sorted(folder.rglob("*.md"))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#]+)\)", document.read_text())
    missing = [
        link for link in links if not link.startswith("http") and not (document.parent / link).exists()
    ]
    assert not missing


def test_the_tables_defaults_are_those_of_the_job():
    defaults = JobConfig.load({"input": "in", "output": "out"}).model_dump(mode="json")
    rows = re.findall(
        r"^\| `(\w+)\.(\w+)` \| ([^|]+) \|", (ROOT / "docs/job-file.md").read_text(), re.MULTILINE
    )
    stated = {
        (section, key): value.strip().strip("`")
        for section, key, value in rows
        if value.strip() and section in defaults  # the run folder's files have dots, too
    }
    assert len(stated) > 20
    for (section, key), value in stated.items():
        # coverage is the filter's own where the job says nothing.
        expected = 0.25 if key == "coverage" else defaults[section][key]
        assert str(yaml.safe_load(value)) == str(expected), f"{section}.{key}"


def test_every_key_of_the_job_has_a_row():
    job = JobConfig.load({"input": "in", "output": "out"}).model_dump()
    rows = "\n".join(re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs/job-file.md").read_text(), re.MULTILINE))
    keys = {key for section in job.values() if isinstance(section, dict) for key in section}
    keys |= {key for key, value in job.items() if not isinstance(value, dict)}
    assert not {key for key in keys if not re.search(rf"\b{key}\b", rows)}


def test_the_readme_has_its_two_commands():
    blocks = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks[0].strip().endswith("denoizarr demo --out demo-out")
    assert blocks[1].strip().endswith("pytest -q -n 2 --dist loadfile")
    assert all(block.startswith("python3 -m venv ") for block in blocks[:2])


def test_the_commands_and_the_code_of_the_guide_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    image = rng.normal(100, 4, (2, 320, 384))
    y, x = np.mgrid[0:150, 0:150]
    image[:, :150, :150] += 200 + 80 * np.sin(x / 5) * np.cos(y / 7)
    denoizarr.save_image(image.round().astype(np.uint16), "stack.ome.zarr")
    tifffile.imwrite("mask.tif", (image > 150).astype(np.uint8), metadata={"axes": "ZYX"})
    guide = (ROOT / "docs/where-to-look.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    names = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "the guide", "exec"), names)  # noqa: S102  # our own document
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "denoizarr"
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(blocks) >= 8
    for picture in re.findall(r"\b\w+\.png\b", guide):
        assert (tmp_path / picture).stat().st_size, picture
    # What the guide says of them.
    indices = {name: denoizarr.PatchIndex.open(f"{name}.zarr") for name in ("masked", "both", "background")}
    assert indices["both"].n_patches < indices["masked"].n_cells
    assert "threshold" not in indices["background"].settings
    assert 0 < names["structure"].n_patches < names["structure"].n_cells


def test_the_commands_and_the_code_of_training_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:256, 0:256]
    clean = np.broadcast_to(200 + 80 * np.sin(x / 9) * np.cos(y / 11), (16, 256, 256))
    for name, values in (("stack", clean + rng.normal(0, 9, clean.shape)), ("clean", clean)):
        denoizarr.save_image(values.round().astype(np.uint16)[:3], f"{name}.ome.zarr", levels=1)
    denoizarr.save_image(denoizarr.open_image("stack.ome.zarr").values, "noisy.ome.zarr", levels=1)
    deep = (clean + rng.normal(0, 9, clean.shape)).round().astype(np.uint16)[:, :64, :64]
    denoizarr.save_image(deep, "deep.ome.zarr", levels=1)
    np.save("kernel.npy", np.ones((1, 5), bool))
    guide = (ROOT / "docs/training.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    names, ran = {}, set()
    for language, block in blocks:
        if language == "python":
            code = block.replace(
                "TrainingOptions(", "TrainingOptions(num_epochs=1, patches_per_epoch=16, features=4, "
            )
            exec(compile(code, "the guide", "exec"), names)  # noqa: S102  # our own document
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line.replace("16,64,64", "8,16,16"))
            if program == "torchrun":  # tests/end_to_end/test_training.py starts one
                assert arguments[3:6] == ["-m", "denoizarr.cli", "train"]
                continue
            assert program == "denoizarr"
            if arguments[0] == "train":
                arguments += ["--epochs", "1", "--patches-per-epoch", "16", "--features", "4"]
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            ran.add(arguments[0])
    assert ran == {"train", "predict", "export"}
    assert (tmp_path / "model.zip").stat().st_size
    # What the guide says of them.
    assert names["plane"].shape == (256, 256)
    assert names["structured"].blind_spot.shape == (1, 9)
    assert names["supervised"].target_normalisation is not None
    assert names["patches"].shape == (16, 1, 64, 64)
    assert len(names["losses"]) == 1
    assert names["fed"].digest == names["watched"].digest == names["denoiser"].digest
    assert names["again"].digest == names["own"].digest
    assert list((tmp_path / "samples").glob("*.png"))
    assert denoizarr.Denoiser.load("volumes.safetensors").axes == "zyx"
    assert denoizarr.open_image("denoised.ome.zarr").shape == (3, 256, 256)
