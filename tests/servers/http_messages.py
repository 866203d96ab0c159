"""HTTP/1.1 as a proxy needs it: heads read and written as they stand, bodies piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

PIECE_BYTES = 2**16
_POLL_SECONDS = 0.001
# Of one connection, and of its sender's own making: not passed on.
_HOP_BY_HOP = {
    "connection",
    "keep-alive",
    "proxy-connection",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
}


class BadMessageError(ConnectionError):
    """What arrived is no HTTP/1.1."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first line and the headers of a request or a response, in their order and case."""

    first: str
    headers: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str | None:
        """Return a header's value, its name in any case."""
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)

    def having(self, **values: str | None) -> Head:
        """Return the head with these headers set, underscores as hyphens; None takes one away."""
        names = {name.replace("_", "-").lower(): value for name, value in values.items()}
        kept = [(key, value) for key, value in self.headers if key.lower() not in names]
        return replace(
            self, headers=(*kept, *((key, value) for key, value in names.items() if value is not None))
        )

    def passed_on(self) -> Head:
        """Return the head without what concerns one connection alone."""
        kept = tuple((key, value) for key, value in self.headers if key.lower() not in _HOP_BY_HOP)
        return replace(self, headers=kept)

    def encoded(self) -> bytes:
        """Return the head as it goes over the wire."""
        lines = [self.first, *(f"{key}: {value}" for key, value in self.headers)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @property
    def status(self) -> int:
        """The status of a response."""
        return int(self.first.split(" ", 2)[1])

    @property
    def closes(self) -> bool:
        """Whether the sender ends the connection behind this message."""
        said = (self.get("connection") or "").lower()
        return said == "close" or ("HTTP/1.0" in self.first and said != "keep-alive")

    @property
    def is_chunked(self) -> bool:
        """Whether the body comes in chunks that tell their lengths."""
        return "chunked" in (self.get("transfer-encoding") or "").lower()


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """Read a head; None where the connection ends before it."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise BadMessageError("the connection ended in a head") from error
        return None
    except asyncio.LimitOverrunError as error:
        raise BadMessageError("a head of more than 64 KiB") from error
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    headers = []
    for line in lines:
        key, colon, value = line.partition(":")
        if not colon:
            raise BadMessageError("a header without a colon")
        headers.append((key, value.strip()))
    return Head(first, tuple(headers))


def body_length(head: Head, *, method: str | None = None) -> int | None:
    """Return the body's length, None where only its end tells; ``method``: of the request answered."""
    if method == "HEAD" or (method is not None and (head.status in {204, 304} or head.status < 200)):
        return 0
    if head.is_chunked:
        return None
    length = head.get("content-length")
    if length is not None:
        return int(length)
    return 0 if method is None else None


async def read_body(reader: asyncio.StreamReader, head: Head, length: int | None) -> AsyncIterator[bytes]:
    """Yield the body's pieces as they arrive."""
    if length is not None:
        left = length
        while left:
            piece = await reader.read(min(PIECE_BYTES, left))
            if not piece:
                raise BadMessageError(f"a body ended {left} bytes early")
            left -= len(piece)
            yield piece
    elif head.is_chunked:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            async for piece in read_body(reader, head, size):
                yield piece
            await reader.readexactly(2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass  # trailers
    else:
        while piece := await reader.read(PIECE_BYTES):
            yield piece


async def arrive(writer: asyncio.StreamWriter) -> None:
    """Wait until all that was written lies with the other end's kernel, where a reset does not take it back.

    Where a client goes on after a reset would otherwise depend on how fast it had read.
    """
    found: socket.socket = writer.get_extra_info("socket")
    await writer.drain()
    # Linux alone tells.
    with contextlib.suppress(OSError):
        while any(fcntl.ioctl(found.fileno(), termios.TIOCOUTQ, bytes(4))):
            await asyncio.sleep(_POLL_SECONDS)


def reset_connection(writer: asyncio.StreamWriter) -> None:
    """End the connection with a reset: its other end sees an error, not an end."""
    found: socket.socket | None = writer.get_extra_info("socket")
    if found is not None:
        with contextlib.suppress(OSError):
            found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def close_connection(writer: asyncio.StreamWriter) -> None:
    """End the connection in order, whatever its other end has done by then."""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
