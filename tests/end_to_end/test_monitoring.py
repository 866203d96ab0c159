"""A job as a cluster's monitoring sees it: JSON from every process, counters that agree with the summary."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.end_to_end.jobs import environment, run_cli, scan_noise, write_job

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")
STAGE = {
    "features": 4,
    "num_layers": 1,
    "num_epochs": 1,
    "patches_per_epoch": 32,
    "patch_size": 32,
    "use_centre": False,
}


def counters(path):
    families = parser.text_string_to_metric_families(path.read_text())
    return [(s.name.removeprefix("denoizarr_"), s.labels, s.value) for f in families for s in f.samples]


def total(found, name, step):
    return sum(value for n, labels, value in found if n == name and labels.get("step") == step)


def test_a_job_with_workers_speaks_json_and_counts_what_it_does(tmp_path, monkeypatch):
    job = write_job(
        tmp_path, scan_noise((2, 512, 512)), run_stage2=False, stage1=STAGE, cost={"max_cost": 10}
    )
    elsewhere = tmp_path / "collected" / "denoizarr.prom"
    elsewhere.parent.mkdir()
    done = run_cli("--log-format", "json", "run", str(job), "--metrics-file", str(elsewhere), "--json")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["step"] for line in lines if "step" in line} >= {"training of stage1", "inference", "report"}
    assert any(line["progress"]["done"] == line["progress"]["total"] for line in lines if "progress" in line)
    assert len({line["job"] for line in lines if "job" in line}) == 1

    summary = json.loads(done.stdout.splitlines()[-1])
    found = counters(tmp_path / "run" / "metrics.prom")
    assert (tmp_path / "run" / "metrics.prom").read_text() == elsewhere.read_text()
    assert total(found, "blocks", "inference") == summary["blocks_total"]
    assert total(found, "blocks_done_total", "inference") == summary["blocks_done"]
    assert total(found, "blocks_skipped_total", "inference") == summary["blocks_skipped"] == 0
    assert total(found, "blocks_failed_total", "inference") == summary["blocks_failed"] == 0
    peaks = [v for n, labels, v in found if n == "peak_bytes" and labels["step"] == "inference"]
    assert max(peaks) == summary["peak_bytes"]
    stored = sum(path.stat().st_size for path in (tmp_path / "run" / "denoised.ome.zarr").rglob("c/*/*/*"))
    assert total(found, "written_bytes_total", "inference") == stored > 0
    assert total(found, "read_bytes_total", "inference") >= 2 * 2 * 512 * 512
    planned = sum(value for name, _, value in found if name == "requests_planned")
    assert planned > 100
    assert 0 < sum(value for name, _, value in found if name == "cost_planned") < 10
    table = yaml.safe_load((tmp_path / "run" / "summary.json").read_text())["steps"]
    seconds = {labels["step"]: value for name, labels, value in found if name == "step_seconds_total"}
    for step in table:
        assert seconds[step["name"]] == pytest.approx(step["seconds"], abs=0.5), step["name"]

    # Once more: nothing is done, and nothing is counted as if it were.
    monkeypatch.setenv("DENOIZARR_LOG_FORMAT", "json")
    assert "DENOIZARR_LOG_FORMAT" in environment()
    again = run_cli("run", str(job), "--json")
    assert again.returncode == 0, again.stderr
    assert all(json.loads(line)["level"] == "INFO" for line in again.stderr.splitlines())
    found = counters(tmp_path / "run" / "metrics.prom")
    assert total(found, "blocks_done_total", "inference") == 0
    assert total(found, "blocks_skipped_total", "inference") == summary["blocks_total"]
    assert total(found, "written_bytes_total", "inference") == 0


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("run", "nothing.yaml"), "ConfigError"),
        (("info", "nothing.ome.zarr"), "ImageNotFound"),
        (("rum",), "UsageError"),
        (("run", "job.yaml", "--max-cost", "dear"), "UsageError"),
        (("run", "job.yaml", "--max-cost", "-1"), "UsageError"),
    ],
)
def test_an_error_is_one_object_and_the_status_is_the_same(arguments, kind, monkeypatch):
    monkeypatch.setenv("DENOIZARR_LOG_FORMAT", "json")
    spoken = run_cli(*arguments)
    (line,) = spoken.stderr.splitlines()
    found = json.loads(line)["error"]
    assert (found["class"], found["exit_status"]) == (kind, 2)
    assert found["what"]
    monkeypatch.delenv("DENOIZARR_LOG_FORMAT")
    plain = run_cli(*arguments)
    assert plain.returncode == spoken.returncode == 2
    assert not plain.stderr.startswith("{")


def test_an_unknown_format_is_refused_and_help_is_still_help():
    wrong = run_cli("--log-format", "xml", "info", "a")
    assert wrong.returncode == 2
    assert "xml" in wrong.stderr
    shown = run_cli("--log-format", "json", "run", "--help")
    assert shown.returncode == 0
    assert "--metrics-file" in shown.stdout
    assert shown.stderr == ""
