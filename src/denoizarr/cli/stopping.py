"""SIGTERM and Ctrl-C as an error of ours, raised wherever the program is, and again if it was lost there.

An error that a signal raises in a weak reference's callback, in ``__del__`` or while garbage is collected is
printed and forgotten by Python, and much foreign code takes any error for a reason to go on. A job that was
asked to stop would run to its end.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from denoizarr.errors import Stopped

# How soon it is looked whether the error is on its way out.
_LOOK_SECONDS = 1.0


def obey_signals() -> None:
    """From now on SIGTERM and Ctrl-C raise :class:`Stopped` in the main thread."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)


def has_ended() -> None:
    """Raise nothing more: the error has arrived, or nothing is left to be stopped."""
    signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, _: FrameType | None) -> None:
    text = f"stopped by {signal.Signals(number).name}"

    def say_so() -> Stopped:
        return Stopped(text, remedy="run the same command again to resume")

    def look(_: int, __: FrameType | None) -> None:
        if not _is_on_its_way(sys.exc_info()[1]):
            raise say_so()

    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
    raise say_so()


def _is_on_its_way(error: BaseException | None) -> bool:
    """Tell whether what is being handled, such as while a cluster is closed, comes of the signal."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, Stopped):
            return True
        seen.add(id(error))
        error = error.__context__
    return False
