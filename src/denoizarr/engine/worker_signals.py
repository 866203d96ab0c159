"""Imported by each worker process of a local cluster as it starts: Ctrl-C is the driver's to obey.

A terminal sends it to the driver and to all its workers. Workers that died of it could not finish what the
driver waits for. And where the driver's logs are JSON, so are theirs: they write to the same place.
"""

from __future__ import annotations

import signal
import threading

from . import json_logs

if json_logs.are_on():
    json_logs.begin()
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
