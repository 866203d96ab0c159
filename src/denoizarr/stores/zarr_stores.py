"""Places as Zarr stores: a folder of a disk, or a prefix of a bucket."""

from __future__ import annotations

import errno
import re
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import obstore
import zarr
from obstore.store import AzureStore, LocalStore
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from .attempts import attempt_async
from .backends import open_store
from .buckets import WHOLE_BYTES
from .store_errors import ShortAnswerError, is_no_bucket
from .store_options import options_of
from .urls import join, split_remote

# What file systems without hard links say: exFAT, many network shares, buckets that are mounted.
_NO_LINK = re.compile(r"Unable to rename file: .*\(os error (\d+)\)")
_NO_LINKS_HERE = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


def lacks_links(error: obstore.exceptions.BaseError) -> bool:
    """Tell whether a put-if-absent failed because the file system has no hard links."""
    found = _NO_LINK.search(str(error))
    return found is not None and int(found[1]) in _NO_LINKS_HERE


class DiskStore(ObjectStore[LocalStore]):
    """Zarr's own, which can begin a group where there are no hard links too."""

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object if it is absent."""
        try:
            await super().set_if_not_exists(key, value)
        except obstore.exceptions.GenericError as error:
            if not lacks_links(error):
                raise
            if not await self.exists(key):
                await self.set(key, value)


class BucketStore(ObjectStore[Any]):
    """Zarr's own below a prefix, with our tries, errors and checks of what came.

    All prefixes of a bucket share its connections.
    """

    def __init__(self, url: str, *, read_only: bool = False) -> None:
        self.url = join(url)
        root, self.prefix = split_remote(self.url)
        self.options = options_of(root)
        super().__init__(open_store(root, self.options), read_only=read_only)
        # Zarr's own bound of ten is that of disks.
        if (zarr.config.get("async.concurrency") or self.options.concurrency) < self.options.concurrency:
            zarr.config.set({"async.concurrency": self.options.concurrency})

    def with_read_only(self, read_only: bool = False) -> BucketStore:
        """Return the same to be read only, or to be written."""
        return BucketStore(self.url, read_only=read_only)

    def __reduce__(self) -> tuple[Any, ...]:
        return _bucket_store, (self.url, self.read_only)

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketStore) and (self.url, self.read_only) == (other.url, other.read_only)

    def __hash__(self) -> int:
        return hash((self.url, self.read_only))

    def _key(self, key: str) -> str:
        return f"{self.prefix}/{key}".strip("/")

    async def _ask(self, key: str, call: Any) -> Any:
        return await attempt_async(f"{self.url}/{key}", self.options, call)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return an object's bytes, or a range of them; None where there is none."""

        async def once() -> Buffer | None:
            try:
                return await self._some(self._key(key), prototype, byte_range)
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise
                return None

        found: Buffer | None = await self._ask(key, once)
        return found

    async def _some(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer:
        if isinstance(byte_range, SuffixByteRequest) and isinstance(self.store, AzureStore):
            size = int((await obstore.head_async(self.store, key))["size"])
            byte_range = RangeByteRequest(max(size - byte_range.suffix, 0), size)
        options: Any = {}
        if isinstance(byte_range, RangeByteRequest):
            if byte_range.end <= byte_range.start:
                return prototype.buffer.from_bytes(b"")
            options = {"range": (byte_range.start, byte_range.end)}
        elif isinstance(byte_range, OffsetByteRequest):
            options = {"range": {"offset": byte_range.offset}}
        elif isinstance(byte_range, SuffixByteRequest):
            options = {"range": {"suffix": byte_range.suffix}}
        answer = await obstore.get_async(self.store, key, options=options)
        data = await answer.bytes_async()
        size = int(answer.meta["size"])
        wanted = _wanted(byte_range, size)
        if len(data) != wanted:
            raise ShortAnswerError(f"{len(data)} of {wanted} bytes")
        return prototype.buffer.from_bytes(data)  # type: ignore[arg-type]  # bytes-like is enough

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several ranges, one request each."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Tell whether an object is there."""

        async def once() -> bool:
            try:
                await obstore.head_async(self.store, self._key(key))
            except FileNotFoundError:
                return False
            return True

        return bool(await self._ask(key, once))

    async def set(self, key: str, value: Buffer) -> None:
        """Write an object, replacing it whole."""
        self._check_writable()
        data = value.as_buffer_like()
        parts = None if len(value) > WHOLE_BYTES else False
        await self._ask(key, lambda: obstore.put_async(self.store, self._key(key), data, use_multipart=parts))

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Write an object if it is absent."""
        self._check_writable()
        data = value.as_buffer_like()

        async def once() -> None:
            try:
                await obstore.put_async(self.store, self._key(key), data, mode="create", use_multipart=False)
            except (FileExistsError, obstore.exceptions.AlreadyExistsError):
                return

        await self._ask(key, once)

    async def delete(self, key: str) -> None:
        """Delete an object; nothing happens where there is none."""
        self._check_writable()

        async def once() -> None:
            try:
                await obstore.delete_async(self.store, self._key(key))
            except FileNotFoundError as error:
                if is_no_bucket(error):
                    raise

        await self._ask(key, once)

    async def delete_dir(self, prefix: str) -> None:
        """Delete all objects below a prefix."""
        async for key in self.list_prefix(prefix.rstrip("/") + "/" if prefix else ""):
            await self.delete(key)

    async def getsize(self, key: str) -> int:
        """Return an object's size in bytes."""
        found = await self._ask(key, lambda: obstore.head_async(self.store, self._key(key)))
        return int(found["size"])

    def list(self) -> AsyncGenerator[str, None]:
        """Yield the keys of all objects."""
        return self.list_prefix("")

    async def list_prefix(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the keys of the objects that begin with a prefix."""
        cut = len(self.prefix) + 1 if self.prefix else 0
        folder = self._key(prefix.rpartition("/")[0])

        async def once() -> list[str]:
            batches = obstore.list(self.store, f"{folder}/" if folder else None)
            return [entry["path"][cut:] async for batch in batches for entry in batch]

        for key in await self._ask(prefix, once):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncGenerator[str, None]:
        """Yield the names right below a prefix."""
        folder = self._key(prefix)
        found = await self._ask(
            prefix,
            lambda: obstore.list_with_delimiter_async(self.store, f"{folder}/" if folder else None),
        )
        cut = len(folder) + 1 if folder else 0
        for name in found["common_prefixes"]:
            yield name[cut:].rstrip("/")
        for entry in found["objects"]:
            yield entry["path"][cut:]


def _bucket_store(url: str, read_only: bool) -> BucketStore:
    return BucketStore(url, read_only=read_only)


def _wanted(byte_range: ByteRequest | None, size: int) -> int:
    """Return how many bytes a range has of an object of this size."""
    if byte_range is None:
        return size
    if isinstance(byte_range, RangeByteRequest):
        return max(min(byte_range.end, size) - byte_range.start, 0)
    if isinstance(byte_range, OffsetByteRequest):
        return max(size - byte_range.offset, 0)
    return min(byte_range.suffix, size)
