"""What is done, written down outside the output: one immutable record per batch of blocks.

::

    <destination>.ledger/
        job.json                       the job's identity, put if absent: whose ledger this is
        <step>/step.json               how many blocks and batches: the partition is fixed
        <step>/<batch, 8 digits>.json  written after the batch's bytes are stored and read back
        <step>/group-<6 digits>.json   the records of 1,024 batches in place of theirs, once all are there

Keys are deterministic, so no listing is ever trusted; records are put if absent, so two writers of one batch
(a retry and its twin) agree. An object in the output is never taken for a done block; a record is.
There are no locks. Who reads while a group is gathered may find a batch in neither place, takes it for undone
and does it once more: the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from denoizarr.errors import ImageNotFound, LedgerMismatch, MetadataError, UnsupportedStore
from denoizarr.stores import locations, records

from . import failpoints

_NOTHING = object()
GROUP = 1024  # batches whose records are gathered in one object
# Records of several kilobytes each (histograms) are those of few batches; a group of them would not be small.
_GROUP_BYTES = 8 * 2**20
_PARTITION, _BEGUN = "step.json", "begun"
_FEW, _READERS = 32, 16
FORMAT = 1  # of the ledger and of what its identity covers; part of every job's identity


@dataclass(frozen=True, slots=True)
class Ledger:
    """The ledger of one job.

    Attributes
    ----------
    url : str
        Its folder.
    job : str
        Digest of the job's identity, repeated in every record.
    """

    url: str
    job: str

    @classmethod
    def claim(cls, url: str, identity: dict[str, Any], *, anew: bool = False) -> Ledger:
        """Open the ledger at ``url`` for the job of this identity, beginning it where there is none.

        Begun ``anew``, over an output that was deleted, it is no earlier ledger of the same job: a record
        that a listing left out, and that was not deleted with the rest, vouches for nothing.

        Raises
        ------
        LedgerMismatch
            It belongs to another job; the message names what differs.
        """
        body = _body(identity) | ({_BEGUN: uuid4().hex} if anew else {})
        key = locations.join(url, "job.json")
        if records.create_json(key, body):
            if not locations.keeps_first(key):
                locations.delete(key)
                raise UnsupportedStore(
                    "this store overwrites what is to be put only where nothing is",
                    where=locations.redact(url),
                    expected="conditional puts (If-None-Match)",
                    remedy="choose another store, or a newer version of its server",
                )
            # Without it no record vouches for anything.
            locations.make_durable(key)
        else:
            body = cls.check(url, identity)
        return cls(url, records.digest(body))

    @staticmethod
    def check(url: str, identity: dict[str, Any]) -> dict[str, Any]:
        """Make sure that the ledger at ``url`` was claimed for this identity; return the claim.

        Raises
        ------
        LedgerMismatch
            It belongs to another job; the message names what differs.
        """
        key = locations.join(url, "job.json")
        try:
            found = records.read_json(key)
        except MetadataError as error:
            raise LedgerMismatch(
                "a ledger that does not say any more whose it is",
                where=key,
                got=error.got,
                remedy="choose another output, or delete this one and its ledger",
            ) from error
        claimed = {name: value for name, value in found.items() if name != _BEGUN}
        differences = sorted(_differences(claimed, _body(identity)))
        if differences:
            raise LedgerMismatch(
                "this output was begun by another job",
                where=url,
                got=f"differences in {', '.join(differences[:4])}",
                remedy="choose another output, or delete this one and its ledger",
            )
        return found

    @staticmethod
    def is_begun(url: str) -> bool:
        """Tell whether a job has claimed the ledger at ``url``."""
        return locations.exists(locations.join(url, "job.json"))

    @staticmethod
    def identity_on_record(url: str) -> dict[str, Any]:
        """Return the identity of the job that claimed the ledger at ``url``; empty where none did."""
        try:
            found = records.read_json(locations.join(url, "job.json")).get("identity")
        except (ImageNotFound, MetadataError):
            return {}
        return found if isinstance(found, dict) else {}

    def check_claim(self) -> None:
        """Make sure that the ledger is still this job's: asked where a batch is done, before it writes.

        A worker that hung, or a share of a job array, may go on long after its output was given to another.

        Raises
        ------
        LedgerMismatch
            It is another's by now, or gone.
        """
        key = locations.join(self.url, "job.json")
        try:
            holder = records.digest(records.read_json(key))
        except ImageNotFound:
            holder = "nobody"
        if holder != self.job:
            raise LedgerMismatch(
                "this output has been given to another job",
                where=key,
                got=f"job {holder}",
                expected=f"job {self.job}",
                remedy="let that job end",
            )

    def _key(self, step: str, batch: int) -> str:
        return locations.join(self.url, step, record_name(batch))

    def begin_step(self, step: str, n_blocks: int, blocks_per_batch: int) -> int:
        """Write down a step's partition into batches, or find it as it was; return the blocks in a batch.

        Those on record count: whoever goes on may have another opinion of how long a batch should last.

        Raises
        ------
        LedgerMismatch
            The step was begun with other blocks.
        """
        key = locations.join(self.url, step, _PARTITION)
        mine = {"job": self.job, "blocks": n_blocks, "blocks_per_batch": blocks_per_batch}
        if records.create_json(key, mine):
            return blocks_per_batch
        recorded = self.blocks_per_batch(step, n_blocks)
        if recorded is None:  # what a power cut left
            records.write_json(key, mine)
        return recorded or blocks_per_batch

    def blocks_per_batch(self, step: str, n_blocks: int) -> int | None:
        """Return how many blocks a batch of a step has, as it was begun; None where that is not on record.

        Raises
        ------
        LedgerMismatch
            The step was begun with other blocks.
        """
        found = self._read(locations.join(self.url, step, _PARTITION))
        size = None if found is None else found.get("blocks_per_batch")
        if found is None or not isinstance(size, int) or size < 1:
            return None
        if found.get("blocks") != n_blocks:
            raise LedgerMismatch(
                "a step that was begun with other blocks",
                where=locations.join(self.url, step, _PARTITION),
                got=f"{found.get('blocks')} blocks",
                expected=f"{n_blocks} blocks",
                remedy="delete the ledger and the output",
            )
        return size

    def get(self, step: str, batch: int) -> dict[str, Any] | None:
        """Return the record of a batch, or None where it is not done by this job."""
        record = self._read(self._key(step, batch))
        if record is None and (group := self._group(step, batch // GROUP)) is not None:
            record = group[batch % GROUP]
        return record

    def _read(self, key: str) -> dict[str, Any] | None:
        try:
            record = records.read_json(key)
        except ImageNotFound:
            return None
        except MetadataError:
            # What a power cut left, or what another machine is just writing, seen through a network disk:
            # it vouches for nothing, and is not ours to delete.
            return None
        if "job" not in record:
            return None
        if record["job"] != self.job:
            raise LedgerMismatch(
                "a record of another job", where=key, remedy="delete the ledger and the output"
            )
        return record

    def _group(self, step: str, group: int) -> list[dict[str, Any]] | None:
        found = self._read(locations.join(self.url, step, group_name(group)))
        members = None if found is None else _members(found)
        return None if members is None else [{"job": self.job, **record} for record in members]

    def done(self, step: str, n_batches: int) -> bytearray:
        """Return a one for every batch of a step that is done, a zero for the others. Reads no record."""
        folder = locations.join(self.url, step)
        done = bytearray(n_batches)
        if not locations.exists(folder):
            return done
        whole = locations.sizes_of(folder, [group_name(g) for g in range(n_batches // GROUP)])
        for group, size in enumerate(whole):
            if size:
                done[group * GROUP : (group + 1) * GROUP] = bytes([1]) * GROUP
        single = [batch for batch in range(n_batches) if not done[batch]]
        sizes = locations.sizes_of(folder, [record_name(batch) for batch in single])
        for batch, size in zip(single, sizes, strict=True):
            done[batch] = size > 0
        return done

    def records(self, step: str, n_batches: int) -> Iterator[dict[str, Any] | None]:
        """Yield the record of every batch of a step in order, None where there is none.

        Holds those of one group at a time.
        """
        for first in range(0, n_batches, GROUP):
            batches = range(first, min(first + GROUP, n_batches))
            gathered = self._group(step, first // GROUP) if len(batches) == GROUP else None
            if gathered is not None:
                yield from gathered
            elif len(batches) <= _FEW:
                yield from (self.get(step, batch) for batch in batches)
            else:
                yield from self._singles(step, batches)

    def _singles(self, step: str, batches: range) -> Iterator[dict[str, Any] | None]:
        """Yield records, each read ahead of its turn but no more of them than there are readers."""
        with ThreadPoolExecutor(_READERS) as pool:
            for k in range(batches.start, batches.stop, _READERS):
                some = range(k, min(k + _READERS, batches.stop))
                yield from pool.map(lambda batch: self.get(step, batch), some)

    def gather(self, step: str, group: int) -> bool:
        """Put the records of a whole group of batches into one object, in place of theirs.

        Nothing happens where one of them is absent, or where they are large: then they are few.

        Returns
        -------
        bool
            Whether the group is gathered now.
        """
        folder = locations.join(self.url, step)
        batches = range(group * GROUP, (group + 1) * GROUP)
        names = [record_name(batch) for batch in batches]
        sizes = locations.sizes_of(folder, names)
        if not any(sizes):
            return bool(locations.sizes_of(folder, [group_name(group)])[0])
        if self._group(step, group) is None:
            if not all(sizes) or sum(sizes) > _GROUP_BYTES:
                return False
            found = list(self._singles(step, batches))
            if any(record is None for record in found):
                return False
            bodies = [{k: v for k, v in (record or {}).items() if k != "job"} for record in found]
            self._put_group(step, group, {"job": self.job, "records": bodies})
            failpoints.reach("gathered")
        spare = [locations.join(folder, name) for name, size in zip(names, sizes, strict=True) if size]
        with ThreadPoolExecutor(_READERS) as pool:
            list(pool.map(locations.delete, spare))
        return True

    def _put_group(self, step: str, group: int, body: dict[str, Any]) -> None:
        key = locations.join(self.url, step, group_name(group))
        if not records.create_compact_json(key, body) and self._group(step, group) is None:
            locations.delete(key)  # torn
            records.create_compact_json(key, body)
        # Before its members go: what a power cut leaves of it must not be all that is left of them.
        locations.make_durable(key)

    def holds(self, step: str, n_batches: int) -> bool:
        """Tell whether every batch of a step has its record."""
        return all(self.done(step, n_batches))

    def forget(self, ending: str = "") -> None:
        """Delete the records of steps whose names end so: what they vouch for is gone. The claim stays."""
        for name in locations.list_names(self.url):
            if name.endswith(ending) and not locations.is_file(locations.join(self.url, name)):
                locations.delete_prefix(locations.join(self.url, name))

    def put(self, step: str, batch: int, record: dict[str, Any]) -> None:
        """Record a batch as done; the first record of a batch stays, unless it is torn."""
        key, body = self._key(step, batch), {"job": self.job, **record}
        if not records.create_json(key, body) and self._read(key) is None:
            records.write_json(key, body)

    def discard(self, step: str, batch: int) -> None:
        """Delete the record of a batch whose result turned out to be damaged, so that it counts as undone."""
        locations.delete(self._key(step, batch))

    def discard_torn(self, step: str, batch: int) -> None:
        """Delete what lies in place of a batch's record and is none, so that the batch counts as undone.

        For the driver, and once all is done: a record that is just being written would go as well.
        """
        for name in (record_name(batch), group_name(batch // GROUP)):
            key = locations.join(self.url, step, name)
            try:
                found = records.read_json(key)
            except ImageNotFound:
                continue
            except MetadataError:
                found = {}
            is_whole = name == record_name(batch) or _members(found) is not None
            if "job" not in found or not is_whole:
                locations.delete(key)


def record_name(batch: int) -> str:
    """Return the name of a batch's record in the folder of its step."""
    return f"{batch:08d}.json"


def group_name(group: int) -> str:
    """Return the name of the records of batches ``group * GROUP`` and up, in the folder of their step."""
    return f"group-{group:06d}.json"


def _members(group: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Return the records of a group, without their job; None where it does not have them all."""
    members = group.get("records")
    whole = isinstance(members, list) and len(members) == GROUP
    return members if whole and all(isinstance(member, dict) for member in members or ()) else None


def _body(identity: dict[str, Any]) -> dict[str, Any]:
    """Return what job.json holds, as it comes back: tuples are lists there, and keys are text."""
    body: dict[str, Any] = json.loads(records.canonical({"format": FORMAT, "identity": identity}))
    return body


def _differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Return the dotted names of the leaves in which two JSON trees differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            name
            for key in a.keys() | b.keys()
            for name in _differences(
                a.get(key, _NOTHING),
                b.get(key, _NOTHING),
                f"{path}.{key}".removeprefix(".identity").strip("."),
            )
        ]
    return [] if a == b else [path or "identity"]
