"""Named moments of a job at which a test has this process killed, to see that nothing is lost or done twice.

::

    DENOIZARR_FAIL_AT=recorded           SIGKILL, the first time that this process gets there
    DENOIZARR_FAIL_AT=recorded:3         the third time
    DENOIZARR_FAIL_AT=recorded:3:TERM    SIGTERM in place of it: an orderly stop at a known moment

The variable is read once, when this module is imported. Without it a point costs a call that does nothing. A
point can signal the process that reaches it and do nothing else; worker processes inherit the variable from
the process that starts them, and each of them counts for itself.
"""

from __future__ import annotations

import os
import re
import signal
import threading

from denoizarr.errors import BadRequest

VARIABLE = "DENOIZARR_FAIL_AT"
_SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM}
# In the order in which a job comes by them. What is done at that moment, and what is not:
POINTS = {
    "saved": "a checkpoint of a training is stored",
    "held": "the driver's note lies beside the output",
    "claimed": "the ledger is this job's; of the output there is nothing",
    "named": "the output has its attributes, state incomplete, and no array",
    "laid-out": "the output has all its arrays, and no voxel",
    "prepared": "what workers need beside the spec, such as the model, is stored",
    "begun": "a step's partition into batches is on record, and no batch of it was handed out",
    "read": "the voxels of a block and its halo are in memory",
    "computed": "the block's result is in memory",
    "pooled": "a block of a coarser level is in memory",
    "written": "the block is stored; it was not read back",
    "read-back": "the block was read back and is as it was written; it is on no record",
    "recorded": "the batch is on record; the driver does not know",
    "gathered": "the records of a group of batches lie in one object, and all of them on their own as well",
    "level-done": "all batches of a coarser level are on record",
    "marked": "the output is marked complete; the driver's note still lies there",
}


class _Armed:
    """The one point at which this process is to die, and how often it has come by."""

    def __init__(self, point: str, times: int, number: signal.Signals) -> None:
        self._point, self._left, self._signal = point, times, number
        self._lock = threading.Lock()

    def passed(self, point: str) -> None:
        if point != self._point:
            return
        with self._lock:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), self._signal)


def parse(text: str) -> tuple[str, int, signal.Signals]:
    """Return point, number and signal of a text such as "recorded", "recorded:3" or "recorded:3:TERM".

    Raises
    ------
    BadRequest
        There is no such point.
    """
    match = re.fullmatch(r"([a-z-]+)(?::([1-9]\d{0,8}))?(?::(KILL|TERM))?", text)
    if match is None or match[1] not in POINTS:
        raise BadRequest(
            "no such failpoint",
            where=VARIABLE,
            got=repr(text),
            expected=f"NAME, NAME:N or NAME:N:TERM, the name one of {', '.join(POINTS)}",
        )
    return match[1], int(match[2] or 1), _SIGNALS[match[3] or "KILL"]


def arm(text: str | None) -> None:
    """Choose where this process dies, in place of what the variable said; None or empty: nowhere."""
    global _armed
    _armed = _Armed(*parse(text)) if text else None


def reach(point: str) -> None:
    """Come by a point: this process may end here."""
    if _armed is not None:
        _armed.passed(point)


_armed: _Armed | None = None
arm(os.environ.get(VARIABLE))
