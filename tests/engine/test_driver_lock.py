from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading

import pytest

from denoizarr.engine.driver_lock import only_driver
from denoizarr.errors import OutputLocked, StoreUnavailable


def note(folder, **holder):
    folder.mkdir(exist_ok=True)
    (folder / "driver.json").write_text(json.dumps(holder))


def test_the_note_is_gone_afterwards_and_the_same_process_may_come_again(tmp_path):
    with only_driver(str(tmp_path / "l")), only_driver(str(tmp_path / "l")):
        assert (tmp_path / "l" / "driver.json").exists()
    assert not (tmp_path / "l" / "driver.json").exists()


def test_a_living_process_is_respected_and_a_dead_one_is_not(tmp_path):
    import socket

    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    note(tmp_path, host=socket.gethostname(), process=process.pid)
    try:
        with pytest.raises(OutputLocked, match=str(process.pid)), only_driver(str(tmp_path)):
            pass
    finally:
        process.communicate(b"\n")
    with only_driver(str(tmp_path)):
        assert json.loads((tmp_path / "driver.json").read_text())["process"] == os.getpid()


def test_another_machines_note_is_taken_over_with_a_warning(tmp_path, caplog, monkeypatch):
    # Whatever ran before in this process: libraries that configure logging may disable loggers that exist.
    monkeypatch.setattr(logging.getLogger("denoizarr.engine.driver_lock"), "disabled", False)
    caplog.set_level("WARNING", logger="denoizarr")
    note(tmp_path, host="elsewhere", process=1)
    with only_driver(str(tmp_path)):
        assert "elsewhere" in caplog.text


def test_a_torn_note_is_taken_over(tmp_path):
    (tmp_path / "driver.json").write_text("")
    with only_driver(str(tmp_path)):
        pass


def test_a_process_that_got_the_number_of_a_dead_driver_is_no_driver(tmp_path):
    """As after a reboot, and in a container, where every driver is process 1."""
    with only_driver(str(tmp_path / "mine")):
        mine = json.loads((tmp_path / "mine" / "driver.json").read_text())
    if mine["life"] is None:
        pytest.skip("nothing tells processes of one number apart here")
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        note(tmp_path / "l", **mine | {"process": process.pid})
        with only_driver(str(tmp_path / "l")):
            pass
    finally:
        process.communicate(b"\n")


def test_a_driver_that_ended_and_was_never_waited_for_is_dead(tmp_path):
    import socket

    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it is a zombie now, and stays one
    try:
        note(tmp_path, host=socket.gethostname(), process=process.pid)
        with only_driver(str(tmp_path)):
            pass
    finally:
        process.wait()


def test_a_note_of_nonsense_is_taken_over(tmp_path):
    import socket

    for process in (0, -1, 2**40, "7", None, True):
        note(tmp_path, host=socket.gethostname(), process=process)
        with only_driver(str(tmp_path)):
            pass


def test_what_failed_is_not_hidden_by_a_store_that_is_gone(tmp_path, monkeypatch):
    def gone(url):
        raise StoreUnavailable("away", where=str(url))

    with pytest.raises(KeyError, match="the cause"), only_driver(str(tmp_path / "l")):  # noqa: PT012
        monkeypatch.setattr("denoizarr.stores.locations.get", gone)
        raise KeyError("the cause")


def test_nothing_is_left_where_nothing_was_begun(tmp_path):
    with only_driver(str(tmp_path / "l")):
        pass
    assert not (tmp_path / "l").exists()


def test_another_thread_of_the_same_process_is_another_driver(tmp_path):
    said = []

    def other():
        try:
            with only_driver(str(tmp_path / "l")):
                said.append("in")
        except OutputLocked as error:
            said.append(str(error))

    for _ in range(2):
        with only_driver(str(tmp_path / "l")):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
            with only_driver(str(tmp_path / "l")):
                pass
            assert (tmp_path / "l" / "driver.json").exists(), "the outer one still holds it"
        other()
    assert [text if text == "in" else "another thread" in text for text in said] == [True, "in", True, "in"]
