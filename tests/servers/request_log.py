"""What a proxy saw, request by request: written by its thread, read by any."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from .faults import Asked


@dataclass(frozen=True, slots=True)
class Request:
    """One request and what became of it; ``status`` None: the client was given no answer (yet)."""

    number: int
    asked: Asked
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    fault: str | None = None
    # By their names in lower case; of the authorization only its first word.
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def method(self) -> str:
        """GET, PUT, ..."""
        return self.asked.method

    @property
    def key(self) -> str:
        """What follows the bucket in the path, decoded; empty for a request about the bucket."""
        return self.asked.key

    @property
    def range(self) -> str | None:
        """The range header."""
        return self.asked.range

    def matches(
        self,
        method: str | None = None,
        key: str = "*",
        *,
        status: int | None = None,
        fault: str | None = None,
        query: str = "*",
    ) -> bool:
        """Tell whether it is one of those; ``key`` and ``query`` are shell patterns, ``*`` crosses slashes.

        ``fault="any"`` is every request that met one.
        """
        return (
            method in {None, self.asked.method}
            and fnmatchcase(self.asked.key, key)
            and fnmatchcase(self.asked.query, query)
            and status in {None, self.status}
            and (fault is None or self.fault == fault or (fault == "any" and self.fault is not None))
        )


class RequestLog:
    """All requests since the last ``clear``, and how many were under way at once.

    What a client can know of its own request is noted before it can: before the bytes are sent.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[int, Request] = {}
        self._in_flight: set[int] = set()
        self._number = self._peak = 0

    def begin(self, asked: Asked, headers: Mapping[str, str]) -> int:
        """Note a request; return its number, by which the rest is noted."""
        kept = {name.lower(): value for name, value in headers.items()}
        if "authorization" in kept:
            kept["authorization"] = kept["authorization"].partition(" ")[0]
        with self._lock:
            self._number += 1
            self._requests[self._number] = Request(self._number, asked, headers=kept)
            self._in_flight.add(self._number)
            self._peak = max(self._peak, len(self._in_flight))
            return self._number

    def note(
        self,
        number: int,
        *,
        status: int | None = None,
        fault: str | None = None,
        came: int = 0,
        went: int = 0,
    ) -> None:
        """Add to what is known of a request; nothing where the log was cleared meanwhile."""
        with self._lock:
            found = self._requests.get(number)
            if found is not None:
                self._requests[number] = replace(
                    found,
                    status=found.status if status is None else status,
                    fault=found.fault if fault is None else fault,
                    bytes_in=found.bytes_in + came,
                    bytes_out=found.bytes_out + went,
                )

    def end(self, number: int) -> None:
        """Note that a request is no longer under way."""
        with self._lock:
            self._in_flight.discard(number)

    def clear(self) -> None:
        """Forget all requests; those under way count as under way."""
        with self._lock:
            self._requests.clear()
            self._peak = len(self._in_flight)

    @property
    def requests(self) -> tuple[Request, ...]:
        """All requests, in the order in which they came."""
        with self._lock:
            return tuple(self._requests.values())

    @property
    def in_flight(self) -> int:
        """How many requests are under way."""
        with self._lock:
            return len(self._in_flight)

    @property
    def peak_in_flight(self) -> int:
        """The most requests that were under way at once."""
        with self._lock:
            return self._peak

    def matching(self, method: str | None = None, key: str = "*", **rest: str | int) -> list[Request]:
        """Return those requests; see ``Request.matches``."""
        return [r for r in self.requests if r.matches(method, key, **rest)]  # type: ignore[arg-type]

    def count(self, method: str | None = None, key: str = "*", **rest: str | int) -> int:
        """Return how many requests those are."""
        return len(self.matching(method, key, **rest))

    def by_method(self) -> Counter[str]:
        """Return the number of requests of each method."""
        return Counter(r.method for r in self.requests)

    def faults(self) -> Counter[str]:
        """Return how often each fault was done."""
        return Counter(r.fault for r in self.requests if r.fault is not None)
