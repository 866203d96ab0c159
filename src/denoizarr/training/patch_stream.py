"""Patches for training, streamed from images that do not fit in memory.

Blocks are drawn, not voxels: an epoch visits a seeded subset of blocks, a few are kept decoded, many weighted
patches are drawn from each while it is in memory, interleaved, and the next blocks are read meanwhile.
``block_plan`` decides what is drawn; here it is read and cut.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.selection.patch_index import PatchIndex
from denoizarr.stores.images import ImageLike, as_images, reader_of
from denoizarr.stores.sources import ImageReader

from .block_plan import Draws, EpochPlan

Item: TypeAlias = dict[str, torch.Tensor]
_DEFAULT_PATCHES = 4096
_READING_THREADS = 4


@dataclass(frozen=True, slots=True)
class _Block:
    """The decoded voxels that hold one visit's patches."""

    voxels: NDArray[Any]
    start: tuple[int, ...]  # along the index's dims
    chunks: int
    decoded_bytes: int


_Begun: TypeAlias = tuple[Draws, range, dict[int, Future[_Block]]]
_Cut: TypeAlias = tuple[NDArray[np.float32], NDArray[np.int64], int]


class PatchStream(IterableDataset[Item]):
    """A torch dataset of weighted random patches of one image or several.

    Parameters
    ----------
    image : an image, a glob, or a list of images
    index : PatchIndex
        Of these images.
    batch_size : int, optional
        Yield batches of this size, the last of an epoch perhaps smaller; single patches without.
    patches_per_epoch : int, optional
        ``min(index.n_patches, 4096)`` unless told.
    seed : int
    resident_blocks : int
        How many decoded blocks are kept: half to draw from, half being read.
    rank, world_size : int, optional
        This process among those that train together; asked of ``torch.distributed`` where that is set up. All
        ranks get the same number of whole batches, no two the same patch.

    Yields
    ------
    dict
        "patch": float32 tensor (c, y, x), raw intensities; "origin": int64 tensor, index of the patch's first
        voxel along those of t, z, y, x that the image has; with several images "image": int64, its number.
        With ``batch_size`` all have a leading batch axis.

    Raises
    ------
    BadRequest
        The index is of another image; settings that cannot be.
    EmptyIndex
        No cell has a weight.

    Notes
    -----
    What is yielded is a function of (seed, epoch, position) alone, not of threads or of timing. Each pass of
    iteration is one epoch; the next pass is the next epoch, unless :meth:`set_epoch` says otherwise. Workers
    of a ``DataLoader`` and ranks take consecutive shares of the epoch: a chunk is decoded about once in
    all of them together; a worker's copy of this object does not tell the original how far it has come.
    """

    def __init__(
        self,
        image: ImageLike | Sequence[ImageLike],
        index: PatchIndex,
        *,
        batch_size: int | None = None,
        patches_per_epoch: int | None = None,
        seed: int = 0,
        resident_blocks: int = 16,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        images = as_images(image)
        index.check_image(images)
        _ = index.plane_patch
        if index.total_weight <= 0:
            raise EmptyIndex("no cell of the index has a weight", remedy="lower the filter's threshold")
        for name, value in (
            ("batch_size", batch_size),
            ("patches_per_epoch", patches_per_epoch),
            ("resident_blocks", resident_blocks),
        ):
            if value is not None and value < 1:
                raise BadRequest("not a positive number", where=name, got=value)
        self.index, self.batch_size, self.seed = index, batch_size, int(seed)
        self.patches_per_epoch = patches_per_epoch or max(min(index.n_patches, _DEFAULT_PATCHES), 1)
        self.resident_blocks = resident_blocks
        self.rank, self.world_size = _place(rank, world_size)
        if self.world_size > 1 and self._n_batches() < 1:
            raise BadRequest(
                "an epoch has fewer batches than there are ranks",
                where="patches_per_epoch",
                got=self.patches_per_epoch,
                expected=f"at least {(batch_size or 1) * self.world_size}",
            )
        self._readers = [reader_of(i) for i in images]
        self._process = os.getpid()
        self._epoch = self._position = 0
        self._chunks_read = self._bytes_read = self._patches = 0
        self._seconds_waited = 0.0

    # What is drawn

    @property
    def epoch(self) -> int:
        """The epoch that the next pass of iteration yields."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its start; the position stays where it is this epoch."""
        if epoch != self._epoch:
            self._epoch, self._position = int(epoch), 0

    def state_dict(self) -> dict[str, int]:
        """Return where the stream is: seed, epoch, and patches yielded in it. Three integers."""
        return {"seed": self.seed, "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue where :meth:`state_dict` was taken: the next item is the one that would have come next."""
        self.seed, self._epoch, self._position = (
            int(state["seed"]),
            int(state["epoch"]),
            int(state["position"]),
        )

    @property
    def batches_per_epoch(self) -> int:
        """Items that one pass yields in this process: batches, or patches without ``batch_size``."""
        return self._n_batches()

    @property
    def statistics(self) -> dict[str, float]:
        """What has been read since this object was made.

        chunks_read, bytes_read (decoded), patches, read_amplification (bytes decoded per byte of the patches
        in the image's own dtype), seconds_waited (for blocks that were not there yet).
        """
        reader = self._readers[0]
        channels = dict(zip(reader.dims, reader.shape, strict=True)).get("c", 1)
        used = self._patches * prod(self.index.plane_patch) * channels * reader.dtype.itemsize
        return {
            "chunks_read": self._chunks_read,
            "bytes_read": self._bytes_read,
            "patches": self._patches,
            "read_amplification": self._bytes_read / used if used else 0.0,
            "seconds_waited": self._seconds_waited,
        }

    def _n_batches(self) -> int:
        size = self.batch_size or 1
        if self.world_size == 1:
            return ceil_div(self.patches_per_epoch, size)
        # Ranks wait for one another at every step: all get equally many batches, and whole ones.
        return self.patches_per_epoch // size // self.world_size

    def _share(self) -> tuple[int, int]:
        """Return the epoch's first patch that is this process's or worker's, and the first that is not."""
        size, n_batches = self.batch_size or 1, self._n_batches()
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        first = self.rank * n_batches + n_batches * number // count
        stop = self.rank * n_batches + n_batches * (number + 1) // count
        return first * size, min(stop * size, self.patches_per_epoch)

    # Iteration

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()

    def _check_process(self) -> None:
        """Refuse to read in a forked worker: the object store's threads are gone there, a read never ends."""
        if os.getpid() != self._process and any(r.source is not None for r in self._readers):
            raise BadRequest(
                "a forked DataLoader worker cannot read from a store",
                where="PatchStream",
                remedy='use num_workers=0 (the stream reads ahead itself) or multiprocessing_context="spawn"',
            )

    def __iter__(self) -> Iterator[Item]:
        self._check_process()
        first, stop = self._share()
        epoch, done, size = self._epoch, self._position, self.batch_size or 1
        held: list[_Cut] = []
        for cut in self._cuts(epoch, first + done, stop):
            held.append(cut)
            if len(held) == size or first + done + len(held) == stop:
                done += len(held)
                self._patches += len(held)
                # Counted before the item is handed out: a state taken after it names the next one.
                self._epoch, self._position = (epoch, done) if first + done < stop else (epoch + 1, 0)
                yield self._item(held)
                held = []

    def _item(self, held: list[_Cut]) -> Item:
        patches = torch.from_numpy(np.stack([h[0] for h in held]))
        origins = torch.from_numpy(np.stack([h[1] for h in held]))
        item = {"patch": patches, "origin": origins}
        if len(self._readers) > 1:
            item["image"] = torch.tensor([h[2] for h in held], dtype=torch.int64)
        return item if self.batch_size is not None else {k: v[0] for k, v in item.items()}

    def _cuts(self, epoch: int, first: int, stop: int) -> Iterator[_Cut]:
        """Yield patches ``first`` up to ``stop`` of the epoch; a group is read while one is drawn from."""
        plan = EpochPlan(
            self.index, self._readers, self.patches_per_epoch, self.seed, epoch, self.resident_blocks
        )
        ends = [*(before for _, _, before in plan.groups[1:]), plan.n_patches]
        mine = [g for g, (_, _, before) in enumerate(plan.groups) if before < stop and ends[g] > first]
        if not mine:
            return
        with _Reading() as threads:
            ahead: _Begun | None = self._begin(threads, plan, mine[0], first, stop)
            for following in [*mine[1:], None]:
                assert ahead is not None
                draws, chosen, futures = ahead
                ahead = None
                if following is not None:
                    ahead = self._begin(threads, plan, following, first, stop)
                blocks = self._received(futures)
                for k in chosen:
                    visit = int(draws.visit[k])
                    yield (
                        _cut(
                            self._readers[draws.visits[visit].image],
                            blocks[visit],
                            draws.origin[k],
                            self.index.plane_patch,
                        ),
                        draws.origin[k],
                        draws.visits[visit].image,
                    )

    def _begin(
        self, threads: ThreadPoolExecutor, plan: EpochPlan, group: int, first: int, stop: int
    ) -> _Begun:
        """Draw a group and start to read those of its blocks that ``first`` up to ``stop`` need."""
        draws, before = plan.draws(group), plan.groups[group][2]
        chosen = range(max(first - before, 0), min(stop - before, draws.visit.size))
        futures = {}
        for visit in np.unique(draws.visit[chosen.start : chosen.stop]):
            origins = draws.origin[draws.visit == visit]
            reader = self._readers[draws.visits[visit].image]
            futures[int(visit)] = threads.submit(_read_block, reader, self.index, origins)
        return draws, chosen, futures

    def _received(self, futures: dict[int, Future[_Block]]) -> dict[int, _Block]:
        started = time.monotonic()
        blocks = {visit: future.result() for visit, future in futures.items()}
        self._seconds_waited += time.monotonic() - started
        self._chunks_read += sum(b.chunks for b in blocks.values())
        self._bytes_read += sum(b.decoded_bytes for b in blocks.values())
        return blocks


class _Reading(ThreadPoolExecutor):
    """Threads that read ahead; an iteration that is left early does not wait for what it no longer needs."""

    def __init__(self) -> None:
        super().__init__(min(_READING_THREADS, os.cpu_count() or 1), thread_name_prefix="patch-stream")

    def __exit__(self, *details: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return this process's rank and their number."""
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
    if rank is None or world_size is None or not 0 <= rank < world_size:
        raise BadRequest(
            "rank and world_size go together",
            got=f"rank={rank}, world_size={world_size}",
            expected="0 <= rank < world_size",
        )
    return rank, world_size


def _box_of(reader: ImageReader, dims: Sequence[str], start: Sequence[int], stop: Sequence[int]) -> Box:
    """Return a box along the index's dims as one along the reader's: all of c."""
    ends = {d: (a, b) for d, a, b in zip(dims, start, stop, strict=True)}
    pairs = [ends.get(d, (0, n)) for d, n in zip(reader.dims, reader.shape, strict=True)]
    return Box(tuple(int(a) for a, _ in pairs), tuple(int(b) for _, b in pairs))


def _read_block(reader: ImageReader, index: PatchIndex, origins: NDArray[np.int64]) -> _Block:
    """Read the smallest box that holds the patches; they lie in one block, so its chunks are decoded once."""
    extent = np.array([1] * (origins.shape[1] - 2) + list(index.patch_size))
    start, stop = origins.min(axis=0), origins.max(axis=0) + extent
    box = _box_of(reader, index.dims, start, stop)
    chunks = [min(c, n) for c, n in zip(reader.chunks, reader.shape, strict=True)]
    touched = [ceil_div(b, c) - a // c for a, b, c in zip(box.start, box.stop, chunks, strict=True)]
    return _Block(
        reader.read(box),
        tuple(int(a) for a in start),
        prod(touched),
        prod(touched) * prod(chunks) * reader.dtype.itemsize,
    )


def _cut(
    reader: ImageReader, block: _Block, origin: NDArray[np.int64], patch: tuple[int, int]
) -> NDArray[np.float32]:
    """Copy one patch out of a block: float32 (c, y, x), raw intensities."""
    *lead, y, x = (int(o) - s for o, s in zip(origin, block.start, strict=True))
    places = iter(lead)
    index: list[Any] = [slice(None) if d == "c" else next(places) for d in reader.dims[:-2]]
    voxels = block.voxels[(*index, slice(y, y + patch[0]), slice(x, x + patch[1]))]
    return np.array(voxels if "c" in reader.dims else voxels[None], np.float32, order="C")


def validation_patches(
    image: ImageLike | Sequence[ImageLike], index: PatchIndex, n: int, seed: int = 0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Draw a fixed set of different patches, such as those that every epoch is validated on.

    Parameters
    ----------
    image : an image, a glob, or a list of images
    index : PatchIndex
        The validation part of ``index.split()``: its patches begin exactly on their cells.
    n : int
        Wanted; fewer come back where the index has fewer cells with a weight.
    seed : int

    Returns
    -------
    (patches, origins)
        float32 (n, c, y, x), raw intensities; int64 (n, dims) as of ``index.sample``. Empty where it is.
    """
    images = as_images(image)
    index.check_image(images)
    readers = [reader_of(i) for i in images]
    several = len(readers) > 1
    if index.total_weight > 0:
        drawn = index.sample(8 * n, seed)
        _, first = np.unique(drawn, axis=0, return_index=True)
        drawn = drawn[np.sort(first)[:n]]
    else:
        drawn = np.empty((0, len(index.dims) + several), np.int64)
    channels = dict(zip(readers[0].dims, readers[0].shape, strict=True)).get("c", 1)
    patches = np.empty((len(drawn), channels, *index.patch_size), np.float32)
    for k, row in enumerate(drawn):
        reader, origin = (readers[int(row[0])], row[1:]) if several else (readers[0], row)
        patches[k] = _cut(reader, _read_block(reader, index, origin[None]), origin, index.plane_patch)
    return patches, drawn
