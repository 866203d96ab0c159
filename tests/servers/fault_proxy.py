"""A reverse proxy between a client and an object store, on loopback, in which seeded things go wrong.

It runs in a thread with an event loop of its own. Host and signed headers pass unchanged: signatures hold.
"""

from __future__ import annotations

import asyncio
import threading
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from .exchange import Exchange
from .faults import Asked, FaultSource, Weather
from .http_messages import PIECE_BYTES, Head, close_connection, read_head, reset_connection
from .listings import without
from .request_log import RequestLog

_STOP_SECONDS = 30


class FaultProxy:
    """``with FaultProxy(upstream, seed=3) as proxy:`` ... ``proxy.endpoint``.

    Parameters
    ----------
    upstream : str
        ``http://host:port`` of the store.
    seed : int
        Decides every fault and every delay; see ``faults``.
    weather : Weather, optional
        What goes wrong how often; none by default. ``proxy.weather = ...`` changes it at any time.
    bucket_parts : int
        How many parts of a path come before the key: 1 for S3 and GCS, 2 for an Azure emulator.
    speaks_gcs : bool
        Translate put-if-absent from Google's XML dialect into S3's, the rest being alike, so that a client of
        the one can be run on a server of the other.

    Attributes
    ----------
    log : RequestLog
        Every request: method, key, range, status, bytes, fault; ``count``, ``peak_in_flight``.
    """

    def __init__(
        self,
        upstream: str,
        *,
        seed: int = 0,
        weather: Weather | None = None,
        bucket_parts: int = 1,
        speaks_gcs: bool = False,
    ) -> None:
        found = urlsplit(upstream)
        self._upstream = (found.hostname or "", found.port or 80)
        self._bucket_parts, self.speaks_gcs = bucket_parts, speaks_gcs
        self._source = FaultSource(seed, weather or Weather())
        self._lock = threading.Lock()
        self._listings: dict[str, bytes] = {}
        self._link_free_at = 0.0
        self._serving: set[asyncio.Task[None]] = set()
        self.log = RequestLog()
        self._thread: threading.Thread | None = None
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._port = 0

    # What tests use.

    @property
    def endpoint(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def weather(self) -> Weather:
        """What goes wrong how often."""
        return self._source.weather

    @weather.setter
    def weather(self, weather: Weather) -> None:
        with self._lock:
            self._source.weather = weather

    def plan(
        self, fault: str, method: str = "*", key: str = "*", *, after: int = 0, times: int | None = 1
    ) -> None:
        """Let a fault come for certain: to ``times`` requests that match, once ``after`` of them have passed.

        ``times=None`` is for good: ``plan("expired_token", after=40, times=None)``.
        """
        with self._lock:
            self._source.plan(fault, method, key, after, times)

    def calm(self) -> None:
        """Let nothing go wrong any more; the log and the counts behind the seed stay."""
        with self._lock:
            self._source.clear_plans()
            self._source.weather = Weather()

    def restart(self, seed: int, weather: Weather | None = None) -> None:
        """Begin anew with another seed, as a new proxy on the same port would."""
        with self._lock:
            self._source = FaultSource(seed, weather or Weather())
            self._listings.clear()
        self.log.clear()

    # Its life.

    def start(self) -> Self:
        """Begin to listen on a free port of loopback."""
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()
        self._started.wait(_STOP_SECONDS)
        if self._failure is not None:
            raise self._failure
        assert self._port, "the proxy did not start"
        return self

    def stop(self) -> None:
        """End all connections and the thread."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(_STOP_SECONDS)
        assert not self._thread.is_alive(), "the proxy did not stop"
        self._thread = None
        if self._failure is not None:
            raise self._failure

    __enter__ = start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self) -> None:
        try:
            asyncio.run(self._listen())
        except BaseException as error:  # noqa: BLE001  # told by start(), in the thread that asked
            self._failure = error
        finally:
            self._started.set()

    async def _listen(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=PIECE_BYTES, backlog=1024)
        self._port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stop.wait()
        server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await server.wait_closed()

    # One connection of a client.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Nothing is left in a buffer: what was written is on its way when the connection is reset.
        writer.transport.set_write_buffer_limits(high=0)
        task = self._loop.create_task(self._serve(reader, writer))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (head := await read_head(reader)) is not None:
                exchange = Exchange(self, reader, writer, head)
                number = exchange.number
                try:
                    goes_on = await exchange.run()
                finally:
                    self.log.end(number)
                if not goes_on:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            reset_connection(writer)
        except asyncio.CancelledError:
            # The proxy stops, and a client that does not read shall not keep it.
            reset_connection(writer)
            raise
        except Exception as error:  # noqa: BLE001  # our own mistake: told by stop(), not taken for the store's
            self._failure = self._failure or error
            reset_connection(writer)
        finally:
            await close_connection(writer)

    def asked_by(self, head: Head) -> Asked:
        """Return what the head of a request asks for."""
        method, target, _ = head.first.split(" ", 2)
        found = urlsplit(target)
        parts = found.path.lstrip("/").split("/", self._bucket_parts)
        key = parts[self._bucket_parts] if len(parts) > self._bucket_parts else ""
        bucket = "/".join(parts[: self._bucket_parts])
        # Other stores have headers of their own beside the standard one.
        span = head.get("range") or head.get("x-ms-range")
        digest = "" if key or method != "POST" else head.get("x-amz-content-sha256")
        return Asked(method, unquote(bucket), unquote(key), found.query, span, digest or "")

    def draw(self, asked: Asked) -> tuple[str | None, float]:
        """Return the fault of a request and how long it waits, in seconds."""
        with self._lock:
            return self._source.draw(asked)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a connection to the store, one for each request: none is ever reused, none is found dead."""
        return await asyncio.open_connection(*self._upstream, limit=PIECE_BYTES)

    async def pace(self, n_bytes: int) -> None:
        """Wait until the link, which all connections share, has carried so many bytes."""
        rate = self._source.weather.bandwidth_bytes_per_second
        if rate is not None:
            self._link_free_at = max(self._loop.time(), self._link_free_at) + n_bytes / rate
            await asyncio.sleep(self._link_free_at - self._loop.time())

    def lie(self, fault: str, asked: Asked, body: bytes) -> bytes:
        """Return a listing as the fault would have it."""
        if fault == "list_stale":
            return self._listings.get(f"{asked.bucket}?{asked.query}", body)
        return without(body, lambda name: self._source.uniform("listing", name))

    def remember(self, asked: Asked, body: bytes) -> None:
        """Keep a listing, the first of its kind, to be told again when it is stale."""
        self._listings.setdefault(f"{asked.bucket}?{asked.query}", body)
