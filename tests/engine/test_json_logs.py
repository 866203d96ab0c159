"""Logs for machines: one object a line, with its place in the job and without secrets."""

from __future__ import annotations

import json
import logging
import sys
from io import StringIO

import pytest

from denoizarr.engine import json_logs
from denoizarr.engine.counters import Counters, counting
from denoizarr.engine.progress import Progress
from denoizarr.errors import MissingChunk, StoreUnavailable

SECRET = "s3cr3t-canary"  # noqa: S105  # what must not come out


@pytest.fixture
def log(monkeypatch):
    """Switch JSON logs on for one test, and return what reads them."""
    root, ours = logging.getLogger(), logging.getLogger("denoizarr")
    before = (root.handlers[:], root.level, ours.level, sys.excepthook)
    text = StringIO()
    monkeypatch.setattr(sys, "stderr", text)
    monkeypatch.setenv(json_logs.VARIABLE, "text")
    json_logs.begin()
    yield lambda: [json.loads(line) for line in text.getvalue().splitlines()]
    logging.captureWarnings(capture=False)
    root.handlers[:], root.level, ours.level, sys.excepthook = before


def raised(error):
    """Return an error with a traceback."""
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_line_is_an_object_with_time_level_and_place(log):
    counters = Counters("abc")
    counters.begin_step("inference")
    with counting(counters):
        logging.getLogger("denoizarr.pipeline").info("two\nlines, %d of %d", 1, 2)
    (found,) = log()
    assert found["message"] == "two\nlines, 1 of 2"
    assert (found["level"], found["logger"]) == ("INFO", "denoizarr.pipeline")
    assert (found["job"], found["step"]) == ("abc", "inference")
    assert found["time"].endswith("Z")
    assert len(found["time"]) == len("2026-01-31T12:00:00.123Z")


def test_others_speak_from_warnings_on(log):
    logging.getLogger("elsewhere").info("chatter")
    logging.getLogger("elsewhere").warning("trouble")
    assert [found["message"] for found in log()] == ["trouble"]


def test_progress_is_numbers_not_a_bar(log, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("blocks", 4) as bar:
        bar.advance(4, "the last")
    found = log()
    assert [line["progress"]["done"] for line in found] == [0, 4]
    assert found[-1]["progress"] == {"label": "blocks", "done": 4, "total": 4, "note": "the last"}


def test_an_error_comes_in_parts(log):
    error = MissingChunk(
        "the store lacks a chunk", where=f"s3://me:{SECRET}@bucket/a?sig={SECRET}", got="nothing",
        expected="a chunk", remedy="restore it",
    )  # fmt: skip
    json_logs.log_error(error)
    (found,) = log()
    assert found["level"] == "ERROR"
    assert found["error"] == {
        "class": "MissingChunk",
        "what": "the store lacks a chunk",
        "where": "s3://bucket/a",
        "got": "nothing",
        "expected": "a chunk",
        "remedy": "restore it",
        "exit_status": 2,
    }
    assert SECRET not in json.dumps(found)


def test_no_secret_in_message_progress_error_or_traceback(log):
    url = f"https://me:{SECRET}@host/bucket/a.zarr?X-Amz-Signature={SECRET}"
    logger = logging.getLogger("denoizarr.stores")
    logger.warning("%s failed, then %s", url, {"url": url})
    with Progress(f"reading {url}", 1):
        pass
    error = raised(StoreUnavailable("the store failed", where=url, got=f"GET {url}: 403"))
    json_logs.log_error(error, with_traceback=True)
    sys.excepthook(type(error), error, error.__traceback__)
    found = log()
    assert len(found) == 4
    assert "traceback" in found[-1]
    text = json.dumps(found)
    assert SECRET not in text
    assert "https://host/bucket/a.zarr" in text


def test_negative_control_the_secret_was_there():
    url = f"https://me:{SECRET}@host/a"
    record = logging.LogRecord("a", logging.INFO, "f", 1, "read %s", (url,), None)
    assert SECRET in logging.Formatter().format(record)
    assert SECRET not in json_logs.JsonFormatter().format(record)


def test_a_mistake_of_ours_is_one_line_too(log):
    error = raised(ZeroDivisionError("by mistake"))
    sys.excepthook(type(error), error, error.__traceback__)
    (found,) = log()
    assert found["level"] == "CRITICAL"
    assert found["error"] == {"class": "ZeroDivisionError", "what": "by mistake"}
    assert "by mistake" in found["traceback"]


@pytest.mark.usefixtures("log")
def test_loggers_with_handlers_of_their_own_speak_alike():
    text = StringIO()
    theirs, handler = logging.getLogger("a.library.of.others"), logging.StreamHandler(text)
    theirs.addHandler(handler)
    theirs.propagate = False
    try:
        json_logs.begin()
        theirs.warning("hello")
    finally:
        theirs.removeHandler(handler)
    assert json.loads(text.getvalue())["message"] == "hello"
