from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import pytest

from denoizarr.engine.driver_lock import only_driver
from denoizarr.errors import OutputLocked


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
