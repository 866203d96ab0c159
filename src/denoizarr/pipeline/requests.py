"""What is asked of a store: numbers of requests by kind, and bytes. Integers only.

The kinds are those that providers of object stores charge by. What a disk answers with a look at its folder
costs a bucket up to four requests: whether an object lies there, or metadata below it, or anything.
"""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Requests:
    """Requests and bytes; added, and multiplied by how often.

    Attributes
    ----------
    gets, heads, puts, lists, deletes : int
        A range of an object is a get of its own; one that finds nothing counts too.
    bytes_read, bytes_written : int
        Of objects. Voxels count uncompressed, with what a codec may add: no store holds more of them.
    """

    gets: int = 0
    heads: int = 0
    puts: int = 0
    lists: int = 0
    deletes: int = 0
    bytes_read: int = 0
    bytes_written: int = 0

    def __add__(self, other: Requests) -> Requests:
        return Requests(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Requests:
        return Requests(*(getattr(self, f.name) * times for f in fields(self)))

    __rmul__ = __mul__

    @property
    def total(self) -> int:
        """Requests of all kinds."""
        return self.gets + self.heads + self.puts + self.lists + self.deletes


NONE = Requests()
# What metadata, records and pictures of a few kilobytes take; larger ones are said by their own size.
SMALL_BYTES = 16 * 2**10

GET = Requests(gets=1, bytes_read=SMALL_BYTES)
# One that finds nothing.
MISS = Requests(gets=1)
PUT = Requests(puts=1, bytes_written=SMALL_BYTES)
# Whether an object or a folder lies somewhere.
ASK = Requests(heads=3, lists=1)
LIST = Requests(lists=1)
LIST_NAMES = ASK + LIST
DELETE = ASK + Requests(deletes=1)
# Of either Zarr format, which zarr finds out by asking for the metadata of both.
OPEN_GROUP = ASK + 2 * GET + 2 * MISS
ARRAY_METADATA = 2 * GET + MISS
OPEN_ARRAY = ASK + ARRAY_METADATA
