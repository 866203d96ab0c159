"""Counts what a piece of work asks of its stores, as a bucket would see it, whatever kind of store it is.

Below everything of ours and of zarr's: the functions of obstore, and the few questions that
``stores.locations`` puts to a disk directly, each as what a bucket would be asked in its place.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import obstore
import pytest

from denoizarr.pipeline.requests import Requests
from denoizarr.stores import locations

_GETS = ("get", "get_range", "get_async", "get_range_async")


@dataclass(frozen=True)
class Call:
    """One request: its kind as a field of ``Requests``, and the object."""

    kind: str
    key: str
    n_bytes: int = 0
    step: str = ""


@dataclass
class StoreCalls:
    """What was asked for, in order; ``step`` is noted with every call."""

    calls: list[Call] = field(default_factory=list)
    step: str = ""
    _lock: Any = field(default_factory=threading.Lock)

    def add(self, kind: str, key: str, n_bytes: int = 0) -> None:
        with self._lock:
            self.calls.append(Call(kind, key, n_bytes, self.step))

    def requests(self, holding: str = "", step: str | None = None) -> Requests:
        """Add up the calls whose key holds some text, of one step or of all."""
        total = Requests()
        for call in self.calls:
            if holding in call.key and step in (None, call.step):
                total += Requests(**{call.kind: 1}) + _moved(call)
        return total


def _moved(call: Call) -> Requests:
    if call.kind == "gets":
        return Requests(bytes_read=call.n_bytes)
    return Requests(bytes_written=call.n_bytes) if call.kind == "puts" else Requests()


@contextmanager
def counted_calls() -> Iterator[StoreCalls]:
    """Count everything that is asked of a store in this process."""
    found = StoreCalls()
    with pytest.MonkeyPatch.context() as patch:
        for name in _GETS:
            patch.setattr(obstore, name, _counting_get(found, getattr(obstore, name), name))
        for name, kind in (("put", "puts"), ("head", "heads"), ("delete", "deletes")):
            for suffix in ("", "_async"):
                old = getattr(obstore, name + suffix)
                patch.setattr(obstore, name + suffix, _counting(found, old, kind))
        for name in ("list", "list_with_delimiter", "list_with_delimiter_async"):
            patch.setattr(obstore, name, _counting(found, getattr(obstore, name), "lists"))
        for name in ("exists", "is_file"):
            patch.setattr(locations, name, _asking(found, getattr(locations, name)))
        sizes_of = locations.sizes_of

        def sizes(url: str, names: list[str]) -> list[int]:
            for name in names:
                found.add("heads", f"{url}/{name}")
            return sizes_of(url, names)

        patch.setattr(locations, "sizes_of", sizes)
        yield found


def _key_of(store: Any, where: Any) -> str:
    return f"{getattr(store, 'prefix', '')}/{where}"


def _counting(found: StoreCalls, old: Callable[..., Any], kind: str) -> Callable[..., Any]:
    def call(store: Any, where: Any = "", *more: Any, **named: Any) -> Any:
        data = more[0] if kind == "puts" else b""
        found.add(kind, _key_of(store, where or named.get("prefix", "")), memoryview(data).nbytes)
        if kind == "lists" and not where:
            return old(store, *more, **named)
        return old(store, where, *more, **named)

    return call


def _counting_get(found: StoreCalls, old: Callable[..., Any], name: str) -> Callable[..., Any]:
    def get(store: Any, where: str, *more: Any, **named: Any) -> Any:
        try:
            answer = old(store, where, *more, **named)
        except Exception:
            found.add("gets", _key_of(store, where))
            raise
        found.add("gets", _key_of(store, where), _length(answer))
        return answer

    async def get_async(store: Any, where: str, *more: Any, **named: Any) -> Any:
        try:
            answer = await old(store, where, *more, **named)
        except Exception:
            found.add("gets", _key_of(store, where))
            raise
        found.add("gets", _key_of(store, where), _length(answer))
        return answer

    return get_async if name.endswith("_async") else get


def _length(answer: Any) -> int:
    if hasattr(answer, "range"):
        first, stop = answer.range
        return int(stop - first)
    return len(answer)


def _asking(found: StoreCalls, old: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def ask(url: Any) -> bool:
        # As of a bucket: an object of this name, metadata below it in either format, or anything below it.
        for _ in range(3):
            found.add("heads", str(url))
        found.add("lists", str(url))
        return old(url)

    return ask
