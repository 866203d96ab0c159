"""One request on its way through the fault proxy, and its answer on the way back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from .faults import ANSWERS
from .http_messages import (
    PIECE_BYTES,
    BadMessageError,
    Head,
    arrive,
    body_length,
    read_body,
    read_head,
    reset_connection,
)

if TYPE_CHECKING:
    from .fault_proxy import FaultProxy

_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class Exchange:
    """One request on its way through the proxy, and its answer on the way back."""

    def __init__(
        self,
        proxy: FaultProxy,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        head: Head,
    ) -> None:
        self.proxy, self.reader, self.writer, self.head = proxy, reader, writer, head
        self.asked = proxy.asked_by(head)
        self.number = proxy.log.begin(self.asked, dict(head.headers))

    def note(self, **what: Any) -> None:
        self.proxy.log.note(self.number, **what)

    async def run(self) -> bool:
        """Answer the request; tell whether the client's connection goes on."""
        fault, waits = self.proxy.draw(self.asked)
        if fault is not None and (fault in ANSWERS or fault in {"hang", "lost_request"}):
            self.note(fault=fault)
        if waits:
            await asyncio.sleep(waits)
        if (self.head.get("expect") or "").lower() == "100-continue":
            self.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault == "hang":
            async for _ in read_body(self.reader, Head("", ()), None):
                pass
            return False
        if fault in ANSWERS:
            return await self.refuse(*ANSWERS[fault])
        if fault == "lost_request":
            async for _ in self.request_body():
                pass
            reset_connection(self.writer)
            return False
        return await self.pass_on(fault)

    async def request_body(self) -> AsyncIterator[bytes]:
        async for piece in read_body(self.reader, self.head, body_length(self.head)):
            self.note(came=len(piece))
            await self.proxy.pace(len(piece))
            yield piece

    async def refuse(self, status: int, code: str, message: str) -> bool:
        """Answer in the store's place, with an error in its words."""
        async for _ in self.request_body():
            pass
        body = (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            f"<Resource>/{self.asked.bucket}</Resource><RequestId>{self.number:016X}</RequestId></Error>"
        ).encode()
        head = Head(f"HTTP/1.1 {status} {code}", (("Content-Type", "application/xml"),))
        return await self.answer(head, body)

    async def answer(self, head: Head, body: bytes) -> bool:
        """Send a whole answer."""
        sent = b"" if self.asked.method == "HEAD" else body
        head = head.having(content_length=str(len(body)))
        self.note(status=head.status, went=len(sent))
        self.proxy.log.end(self.number)
        self.writer.write(head.encoded() + sent)
        await self.writer.drain()
        return not self.head.closes

    async def pass_on(self, fault: str | None) -> bool:
        """Ask the store, and do to its answer what the fault says."""
        try:
            from_store, to_store = await self.proxy.connect()
        except OSError:
            return await self.refuse(502, "BadGateway", "The store behind the proxy is not there.")
        try:
            request = self.head.passed_on().having(expect=None, connection="close")
            if self.proxy.speaks_gcs:
                request = _in_s3s_words(request)
            if self.head.is_chunked:
                request = request.having(transfer_encoding="chunked")
            to_store.write(request.encoded())
            async for piece in self.request_body():
                to_store.write(b"%x\r\n%b\r\n" % (len(piece), piece) if self.head.is_chunked else piece)
                await to_store.drain()
            if self.head.is_chunked:
                to_store.write(b"0\r\n\r\n")
            while (head := await read_head(from_store)) is not None and head.status == 100:
                pass
            if head is None:
                raise BadMessageError("the store gave no answer")
            return await self.give_back(fault, head, from_store)
        finally:
            # Not in order: all that is wanted has been read, and who still sends shall not hold us up.
            to_store.transport.abort()

    async def give_back(self, fault: str | None, head: Head, from_store: asyncio.StreamReader) -> bool:
        """Pass the store's answer on, or what is left of it."""
        length = body_length(head, method=self.asked.method)
        body = read_body(from_store, head, length)
        if fault == "lost_response":
            async for _ in body:
                pass
            self.note(fault=fault)
            reset_connection(self.writer)
            return False
        if self.asked.is_listing and head.status == 200:
            whole = b"".join([piece async for piece in body])
            self.proxy.remember(self.asked, whole)
            if fault in {"list_drops", "list_stale"}:
                self.note(fault=fault)
                whole = self.proxy.lie(fault, self.asked, whole)
            if fault not in {"reset", "cut"}:
                return await self.answer(head.passed_on(), whole)
            length, body = len(whole), _pieces(whole)
        if fault in {"reset", "cut"} and length and head.status in {200, 206}:
            return await self.break_off(fault, head, length, body)
        if fault == "short_range" and head.status == 206 and length and length > 1:
            self.note(fault=fault)
            head, length = _shortened(head, length)
            body = _first(body, length)
        return await self.stream(head, length, body)

    async def break_off(self, fault: str, head: Head, length: int, body: AsyncIterator[bytes]) -> bool:
        """Send half of the body, then end the connection."""
        self.note(fault=fault, status=head.status)
        self.writer.write(head.passed_on().having(content_length=str(length)).encoded())
        async for piece in _first(body, length // 2):
            await self.send(piece)
        if fault == "reset":
            await arrive(self.writer)
            reset_connection(self.writer)
        return False

    async def stream(self, head: Head, length: int | None, body: AsyncIterator[bytes]) -> bool:
        """Send an answer as it comes."""
        chunked = length is None
        sent = head.passed_on()
        if chunked:
            sent = sent.having(transfer_encoding="chunked", content_length=None)
        elif self.asked.method != "HEAD":
            sent = sent.having(content_length=None if head.status == 204 else str(length))
        self.note(status=head.status)
        if not length and not chunked:
            self.proxy.log.end(self.number)
        self.writer.write(sent.encoded())
        went = 0
        async for piece in body:
            went += len(piece)
            if went == length:
                self.proxy.log.end(self.number)
            await self.send(piece, chunked=chunked)
        if chunked:
            self.proxy.log.end(self.number)
            self.writer.write(b"0\r\n\r\n")
        await self.writer.drain()
        return not self.head.closes

    async def send(self, piece: bytes, *, chunked: bool = False) -> None:
        self.note(went=len(piece))
        await self.proxy.pace(len(piece))
        self.writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        await self.writer.drain()


def _in_s3s_words(head: Head) -> Head:
    """Return a request of Google's dialect as S3 has it: path less escaped, put-if-absent renamed."""
    method, target, version = head.first.split(" ", 2)
    path, mark, query = target.partition("?")
    head = replace(head, first=f"{method} {quote(unquote(path))}{mark}{query} {version}")
    if head.get("x-goog-if-generation-match") == "0":
        head = head.having(x_goog_if_generation_match=None, if_none_match="*")
    return head


async def _pieces(whole: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(whole), PIECE_BYTES):
        yield whole[start : start + PIECE_BYTES]


async def _first(body: AsyncIterator[bytes], n_bytes: int) -> AsyncIterator[bytes]:
    """Yield the first bytes of a body, and no more of it."""
    left = n_bytes
    async for piece in body:
        yield piece[:left]
        left -= len(piece)
        if left <= 0:
            return


def _shortened(head: Head, length: int) -> tuple[Head, int]:
    """Return the head of a 206 that tells of half as many bytes, and how many that is."""
    left = length // 2
    span = _CONTENT_RANGE.fullmatch(head.get("content-range") or "")
    if span is None:
        raise BadMessageError("a 206 without a range")
    start = int(span[1])
    return head.having(content_range=f"bytes {start}-{start + left - 1}/{span[3]}"), left
