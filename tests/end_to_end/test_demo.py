"""The demo improves at both stages for every seed, learning from the noisy data alone."""

from __future__ import annotations

import json

import pytest

from .jobs import run_cli


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_the_demo_improves_at_both_stages(seed, tmp_path):
    result = run_cli("demo", "--out", str(tmp_path), "--seed", str(seed))
    assert result.returncode == 0, result.stderr
    noisy, stage1, stage2 = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert "Against the known truth" in (tmp_path / "run" / "report.html").read_text()
    assert noisy["psnr"] < stage1["psnr"] < stage2["psnr"]
    assert noisy["ssim"] < stage1["ssim"] < stage2["ssim"]
