"""The file for a cluster's monitoring, read by Prometheus' own parser."""

from __future__ import annotations

import logging
import threading

import pytest

from denoizarr.engine.counters import Counters
from denoizarr.engine.metrics_file import MetricsFile, metrics_text
from denoizarr.errors import BadRequest, Stopped
from denoizarr.stores import locations

parser = pytest.importorskip("prometheus_client.parser", reason="prometheus_client is not installed")


def samples(text):
    """What Prometheus makes of a text: {(name, labels): value}, and {family: kind}."""
    families = list(parser.text_string_to_metric_families(text))
    found = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}
    return found, {family.name: family.type for family in families}


def value(text, name, **labels):
    found, _ = samples(text)
    return found[f"denoizarr_{name}", tuple(sorted(labels.items()))]


@pytest.fixture
def counters():
    found = Counters("abc", requests_planned={"gets": 12345678901, "puts": 2}, cost_planned=(1.25, "USD"))
    found.begin_step("inference")
    found.begin_part("level 0", 10, 3)
    found.batch_ended("level 0", 4, 2)
    found.batch_ended("level 0", 1, 1, failed=True)
    found.add_record("level 0", {"read_bytes": 2**40, "written_bytes": 7, "retries": 2, "peak_bytes": 99})
    return found


def test_every_counter_is_there_with_its_kind(counters):
    text = metrics_text(counters.counted(), now=1.5)
    _, kinds = samples(text)
    assert kinds == {
        "denoizarr_run_state": "gauge",
        "denoizarr_blocks": "gauge",
        "denoizarr_blocks_done": "counter",
        "denoizarr_blocks_failed": "counter",
        "denoizarr_blocks_skipped": "counter",
        "denoizarr_read_bytes": "counter",
        "denoizarr_written_bytes": "counter",
        "denoizarr_retries": "counter",
        "denoizarr_batches_in_flight": "gauge",
        "denoizarr_peak_bytes": "gauge",
        "denoizarr_step_seconds": "counter",
        "denoizarr_requests_planned": "gauge",
        "denoizarr_cost_planned": "gauge",
        "denoizarr_updated_timestamp_seconds": "gauge",
    }
    of = {"job": "abc", "step": "inference", "part": "level 0"}
    assert value(text, "blocks", **of) == 10
    assert value(text, "blocks_done_total", **of) == 4
    assert value(text, "blocks_failed_total", **of) == 1
    assert value(text, "blocks_skipped_total", **of) == 3
    assert value(text, "read_bytes_total", **of) == 2**40
    assert value(text, "retries_total", **of) == 2
    assert value(text, "peak_bytes", **of) == 99
    assert value(text, "batches_in_flight", job="abc") == 1
    assert value(text, "requests_planned", job="abc", kind="gets") == 12345678901
    assert value(text, "cost_planned", job="abc", currency="USD") == 1.25
    assert value(text, "run_state", job="abc", state="running") == 1
    assert value(text, "updated_timestamp_seconds", job="abc") == 1.5


@pytest.mark.parametrize("name", ['a "quoted" part', "back\\slash", "two\nlines", "µm × {braces}, =, #"])
def test_names_survive_whatever_they_hold(name):
    counters = Counters("abc")
    counters.begin_part(name, 1, 0)
    assert value(metrics_text(counters.counted()), "blocks", job="abc", step="", part=name) == 1


def test_the_parser_would_refuse_what_is_not_the_format(counters):
    """Negative control: the independent reader does read."""
    text = metrics_text(counters.counted())
    with pytest.raises(ValueError, match="could not convert"):
        samples(text.replace('job="abc"', 'job=abc"', 1))


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (None, "done"),
        (BadRequest("no"), "failed"),
        (Stopped("asked to"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_the_last_word_is_how_it_ended(tmp_path, counters, error, state):
    place = tmp_path / "metrics.prom"

    def run():
        with MetricsFile(counters, [place]):
            assert value(place.read_text(), "run_state", job="abc", state="running") == 1
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    text = place.read_text()
    states = [
        s for s in ("running", "done", "failed", "stopped") if value(text, "run_state", job="abc", state=s)
    ]
    assert states == [state]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.prom"]


def test_it_is_written_again_and_again_and_whole(tmp_path, counters, monkeypatch):
    place, written, enough = tmp_path / "metrics.prom", [], threading.Event()
    put = locations.put

    def counted_put(url, data):
        put(url, data)
        written.append(str(url))
        if len(written) >= 5:
            enough.set()

    monkeypatch.setattr(locations, "put", counted_put)
    other = tmp_path / "seldom.prom"
    with MetricsFile(counters, [place, other], [place], seconds=0.001):
        assert enough.wait(timeout=60)
        # Atomically: whoever reads it at any moment has a whole file.
        for _ in range(20):
            samples(place.read_text())
    assert written.count(str(other)) == 2
    assert not [thread for thread in threading.enumerate() if thread.name == "metrics"]


def test_a_place_that_cannot_be_written_is_refused_at_once(tmp_path, counters):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(BadRequest, match="the counters cannot be written"),
        MetricsFile(counters, [tmp_path / "file" / "metrics.prom"]),
    ):
        pytest.fail("it began all the same")


def test_a_disk_that_fills_up_later_ends_no_run(tmp_path, counters, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING), MetricsFile(counters, [tmp_path / "metrics.prom"]) as metrics:

        def full(url, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(locations, "put", full)
        metrics.write()
        metrics.write()
    assert sum("the counters are not written" in record.getMessage() for record in caplog.records) == 1
