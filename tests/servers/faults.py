"""What can go wrong between a client and an object store, and when: a pure function of a seed.

A fault is drawn from (seed, method, key, query, range, how often exactly this was asked before), so that two
runs that ask for the same things meet the same faults, in whatever order their threads come.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl

# What a store answers instead of doing anything: status, code, message. Statuses are those that S3 documents;
# "expired_forbidden" is what other stores of its kind say of an expired token.
ANSWERS: dict[str, tuple[int, str, str]] = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "too_many": (429, "TooManyRequests", "Please reduce your request rate."),
    "access_denied": (403, "AccessDenied", "Access Denied"),
    "expired_token": (400, "ExpiredToken", "The provided token has expired."),
    "expired_forbidden": (403, "ExpiredToken", "The provided token has expired."),
    "wrong_signature": (403, "SignatureDoesNotMatch", "The signature we calculated does not match yours."),
    "unauthorized": (401, "InvalidAccessKeyId", "The key that you provided does not exist in our records."),
}
# What happens to an answer of the store, or to its way back.
INJURIES = (
    "reset",  # half of a body, then the connection is reset
    "cut",  # half of a body under the right Content-Length, then an orderly end of the connection
    "short_range",  # a 206 with fewer bytes than were asked for, its headers in keeping with them
    "lost_request",  # the store never hears of it; the client sees a reset
    "lost_response",  # the store has done what was asked; the client sees a reset, the same
    "hang",  # no answer, until the client goes away
    "list_drops",  # a listing without some of its entries
    "list_stale",  # a listing as it was when it was first asked for
)
FAULTS = (*ANSWERS, *INJURIES)
# These differ from run to run for the same request.
_VOLATILE = re.compile(r"uploadid|continuation-token|marker|x-amz-.*|sig|se|st|x-id", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for: all that faults may depend on."""

    method: str
    bucket: str
    key: str
    query: str = ""
    range: str | None = None
    # Of the body, where the path does not tell what is asked: many objects are deleted by one request.
    digest: str = ""

    @property
    def is_listing(self) -> bool:
        """Whether the answer names objects."""
        names = dict(parse_qsl(self.query, keep_blank_values=True))
        return self.method == "GET" and (names.get("list-type") == "2" or names.get("comp") == "list")

    @property
    def writes(self) -> bool:
        """Whether the store is another one afterwards."""
        return self.method in {"PUT", "POST", "DELETE", "PATCH"}

    @property
    def identity(self) -> str:
        """The request without what differs between runs: bucket (tests make new ones), upload, signature."""
        query = sorted(
            f"{name}={value}"
            for name, value in parse_qsl(self.query, keep_blank_values=True)
            if not _VOLATILE.fullmatch(name)
        )
        return "\n".join([self.method, self.key, "&".join(query), self.range or "", self.digest])

    def suits(self, fault: str) -> bool:
        """Tell whether the fault can be done to this request."""
        if fault in {"list_drops", "list_stale"}:
            return self.is_listing
        if fault in {"reset", "cut"}:
            return self.method == "GET"
        if fault == "short_range":
            return self.method == "GET" and self.range is not None
        if fault == "lost_response":
            return self.writes
        return True


@dataclass(frozen=True, slots=True)
class Weather:
    """How often each fault comes and how slow the way is; the proxy's, until another is set.

    Parameters
    ----------
    probabilities : mapping
        Of each fault, out of 1; together at most 1, and a request meets at most one. A fault that does not
        suit the request (a short range of a put) does not come, and no other comes for it.
    latency_seconds, jitter_seconds : float
        What every request waits before it is passed on, all in flight side by side: the first, plus a seeded
        share of the second.
    bandwidth_bytes_per_second : float, optional
        What all bodies together get, each way.
    """

    probabilities: Mapping[str, float] = field(default_factory=dict)
    latency_seconds: float = 0.0
    jitter_seconds: float = 0.0
    bandwidth_bytes_per_second: float | None = None

    def __post_init__(self) -> None:
        unknown = set(self.probabilities) - set(FAULTS)
        if unknown:
            raise ValueError(f"no such fault: {sorted(unknown)}, there are {FAULTS}")
        if min(self.probabilities.values(), default=0) < 0 or sum(self.probabilities.values()) > 1 + 1e-9:
            raise ValueError(f"probabilities {dict(self.probabilities)}: each at least 0, together at most 1")
        if any(getattr(self, f.name) < 0 for f in fields(self) if f.name.endswith("_seconds")):
            raise ValueError("no request arrives before it is sent")

    @classmethod
    def mixed(cls, total: float, *names: str, **rest: float) -> Weather:
        """Return one in which the named faults come equally often, together in ``total`` of the requests."""
        return cls(dict.fromkeys(names, total / len(names)), **rest)


@dataclass(slots=True)
class _Plan:
    fault: str
    method: str
    key: str
    after: int
    times: int | None
    seen: int = 0


class FaultSource:
    """Decides what happens to each request. Not safe between threads: the proxy asks from one."""

    def __init__(self, seed: int, weather: Weather) -> None:
        self.seed, self.weather = seed, weather
        self._asked: Counter[str] = Counter()
        self._plans: list[_Plan] = []

    def plan(
        self, fault: str, method: str = "*", key: str = "*", after: int = 0, times: int | None = 1
    ) -> None:
        """Let a fault come for certain: ``after`` so many that match, to the next ``times`` (None: all)."""
        if fault not in FAULTS:
            raise ValueError(f"no such fault: {fault!r}, there are {FAULTS}")
        self._plans.append(_Plan(fault, method, key, after, times))

    def clear_plans(self) -> None:
        """Forget what was planned."""
        self._plans.clear()

    def draw(self, asked: Asked) -> tuple[str | None, float]:
        """Return the fault of this request, if any, and how long it waits in seconds."""
        ordinal = self._asked[asked.identity]
        self._asked[asked.identity] += 1
        waits = self.weather.latency_seconds
        waits += self.weather.jitter_seconds * self.uniform("jitter", asked.identity, ordinal)
        planned = self._planned(asked)
        if planned is not None:
            return planned, waits
        left = self.uniform("fault", asked.identity, ordinal)
        for fault in FAULTS:
            left -= self.weather.probabilities.get(fault, 0.0)
            if left < 0:
                return (fault if asked.suits(fault) else None), waits
        return None, waits

    def _planned(self, asked: Asked) -> str | None:
        found = None
        for plan in self._plans:
            if not (
                asked.suits(plan.fault)
                and plan.method in {"*", asked.method}
                and fnmatchcase(asked.key, plan.key)
            ):
                continue
            plan.seen += 1
            ends = None if plan.times is None else plan.after + plan.times
            if found is None and plan.after < plan.seen and (ends is None or plan.seen <= ends):
                found = plan.fault
        return found

    def uniform(self, *parts: object) -> float:
        """Return a number in [0, 1) that the seed and the parts decide."""
        text = repr((self.seed, *parts)).encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=7).digest(), "big") / 2**56
