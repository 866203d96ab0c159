"""``denoizarr extract-mask`` as a user runs it."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import denoizarr
from denoizarr.cli.app import app
from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.training.rings import RingsSettings
from denoizarr.training.significance import SignificanceSettings
from tests.end_to_end.jobs import scan_noise


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("stack") / "stack.ome.zarr"
    denoizarr.save_image(scan_noise((3, 256, 256)), where, levels=1)
    return where


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, ["extract-mask", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_kernel_a_picture_and_what_was_found(image: Path, tmp_path: Path) -> None:
    out, plot = tmp_path / "kernel.json", tmp_path / "kernel.png"
    lines = run(image, "--out", out, "--plot", plot, "--json").splitlines()
    kernel = denoizarr.NoiseKernel.load(out)
    assert kernel.mask.shape[0] == 1 < kernel.mask.shape[1]
    assert lines[0].startswith(f"kernel 1 x {kernel.mask.shape[1]} (y, x)")
    assert json.loads(lines[-1])["pixels"] == kernel.mask.sum()
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert any(line.startswith("next: denoizarr train ") and f"--kernel {out}" in line for line in lines)
    same = denoizarr.extract_noise_kernel(denoizarr.open_image(image))
    np.testing.assert_array_equal(same.autocorrelation, kernel.autocorrelation)


def test_rings_by_a_setting_of_theirs_beside_another_kernel(image: Path, tmp_path: Path) -> None:
    run(image, "--out", tmp_path / "one.npy")
    np.load(tmp_path / "one.npy", allow_pickle=False)
    text = run(
        image, "--out", tmp_path / "two.json", "--set", "base_percentile=40", "--set", "adapt_autocorr=false",
        "--max-true-pixels", 7, "--compare", tmp_path / "one.npy", "--plot", tmp_path / "both.png",
        "--verbose",
    )  # fmt: skip
    kernel = denoizarr.NoiseKernel.load(tmp_path / "two.json")
    assert kernel.method == "rings"
    assert kernel.settings == {"base_percentile": 40, "adapt_autocorr": False, "max_true_pixels": 7}
    assert "ring 1: percentile 46.0" in text
    assert (tmp_path / "both.png").exists()


def test_with_an_index_and_a_model(image: Path, tmp_path: Path) -> None:
    index = denoizarr.build_index(denoizarr.open_image(image), 32)
    index.save(str(tmp_path / "index.zarr"))
    options = denoizarr.TrainingOptions(patch_size=32, features=4, num_epochs=1, patches_per_epoch=16)
    model = denoizarr.train(str(image), index, options=options, progress=False).save(tmp_path / "m")
    run(image, "--out", tmp_path / "k.json", "--index", tmp_path / "index.zarr", "--mask-source", "stage1",
        "--model", model)  # fmt: skip
    # Which of the two it was, an epoch of training does not decide the same way on every processor.
    assert denoizarr.NoiseKernel.load(tmp_path / "k.json").source in ("stage1", "extractor")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "unknown extractor method"),
        (("--mask-source", "stage1"), "needs the denoiser"),
        (("--mask-source", "file"), "NoiseKernel.load"),
        (("--method", "significance", "--set", "adapt_CB=3"), "adapt_CB"),
        (("--set", "colour=3"), "unknown extractor setting"),
        (("--compare", "none.npy", "--plot", "x.png"), "none.npy"),
    ],
)
def test_bad_requests_are_refused_by_name(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadRequest, match=message):
        run(image, "--out", tmp_path / "k.json", *arguments)
    assert not (tmp_path / "k.json").exists()


@pytest.mark.parametrize("setting", ["floor", "center_size=5", "method=rings"])
def test_a_setting_without_a_value_or_with_its_own_option_is_refused(
    image: Path, tmp_path: Path, setting: str
) -> None:
    arguments = ["extract-mask", str(image), "--out", str(tmp_path / "k.json"), "--set", setting]
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_too_few_windows_are_one_line(tmp_path: Path) -> None:
    denoizarr.save_image(scan_noise((64, 64)), tmp_path / "small.ome.zarr", levels=1)
    with pytest.raises(EmptyIndex, match=r"too few windows .* 20 or more; .*lower minimum_windows") as caught:
        run(tmp_path / "small.ome.zarr", "--out", tmp_path / "k.json")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_the_commands_and_the_code_of_the_guide_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    denoizarr.save_image(scan_noise((3, 256, 256)), "stack.ome.zarr", levels=1)
    guide = (Path(__file__).parents[2] / "docs/noise-kernels.md").read_text()
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    names: dict[str, object] = {}
    for language, block in blocks:
        if language == "python":
            exec(compile(block, "the guide", "exec"), names)  # noqa: S102  # our own document
            continue
        for line in block.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "denoizarr"
            if arguments[0] == "train":
                arguments += ["--epochs", "1", "--patches-per-epoch", "16", "--features", "4"]
            done = CliRunner().invoke(app, arguments, catch_exceptions=False)
            assert done.exit_code == 0, f"{line}\n{done.output}"
    assert len(blocks) == 7
    for picture in ("kernel.png", "rings.png", "compared.png", "both.png"):
        assert Path(picture).stat().st_size, picture
    assert denoizarr.NoiseKernel.load("rings.json").method == "rings"


def test_the_guides_table_names_every_setting_with_its_default() -> None:
    guide = (Path(__file__).parents[2] / "docs/noise-kernels.md").read_text()
    rows = re.findall(r"^\| (`[\w`, ]+) \| ([^|]+) \| ", guide, re.MULTILINE)
    stated = {}
    for names, values in rows:
        keys = re.findall(r"`(\w+)`", names)
        stated |= dict(zip(keys, [values.strip()] * len(keys), strict=True))
    for kind in (SignificanceSettings, RingsSettings):
        for name, value in asdict(kind()).items():
            text = "none" if value is None else str(value).lower().removesuffix(".0")
            assert name in stated
            if name != "center_size" or kind is RingsSettings:
                assert text in re.split(r"[;,] ", stated[name]), name
