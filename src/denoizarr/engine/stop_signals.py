"""SIGTERM and Ctrl-C, put off until what is under way is safe."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

_LOG = logging.getLogger(__name__)


class StopSignals:
    """Puts off SIGTERM and Ctrl-C inside the block until the state is saved, then lets them do what they did.

    Only where a handler can be set: in the main thread. A second signal is not put off.

    Parameters
    ----------
    wanted : bool
        Whether to do so at all: there is somewhere to save to, and no other process waits for this one.
    says : str
        What the log says at the first signal: what happens before it is obeyed.
    """

    def __init__(self, wanted: bool, says: str) -> None:
        self._says = says
        self._wanted = wanted and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int] = {}
        self._put_off: tuple[int, FrameType | None] | None = None

    @property
    def are_pending(self) -> bool:
        """Whether one has come."""
        return self._put_off is not None

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT) if self._wanted else ():
            handler = signal.getsignal(number)
            if callable(handler) or handler == signal.SIG_DFL:
                self._before[number] = handler
                signal.signal(number, self._put_it_off)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if kind is None:
            self.obey()

    def obey(self) -> None:
        """Do what the signal that has come would have done, if one has."""
        if self._put_off is not None:
            (number, frame), self._put_off = self._put_off, None
            before = self._restore()[number]
            if callable(before):
                before(number, frame)
            else:
                os.kill(os.getpid(), number)

    def _put_it_off(self, number: int, frame: FrameType | None) -> None:
        is_second, self._put_off = self.are_pending, (number, frame)
        if is_second:
            self.obey()
        else:
            name = signal.Signals(number).name
            _LOG.info("%s: %s; once more stops it now", name, self._says)

    def _restore(self) -> dict[int, Callable[[int, FrameType | None], Any] | int]:
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._put_it_off:
                signal.signal(number, handler)
        return self._before
