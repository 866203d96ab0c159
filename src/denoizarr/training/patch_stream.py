"""Patches for training, streamed from images that do not fit in memory.

Blocks are drawn, not voxels: an epoch visits a seeded subset of blocks, many weighted patches are drawn from
each while it is decoded, interleaved with those of other blocks, and the next blocks are read meanwhile::

    epoch_plan         which blocks, how many patches of each, where, in which order
    portions           read a block, cut its patches: one portion is the patches of a group of blocks
    portion_sources    where that is done: threads of this process, or workers of a cluster
    PatchStream        one portion after the other, in batches
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.geometry.grids import ceil_div
from denoizarr.selection.patch_index import PatchIndex

from .block_layout import BlockWeights
from .epoch_pass import Counts, EpochPass, batches_of
from .epoch_plan import EpochPlan
from .portion_sources import ClusterSource, PortionSource, ThreadSource
from .portions import Images, Portion, PortionRequest, cutter_of, pieces_by_chunk, request_of

Item: TypeAlias = dict[str, torch.Tensor]
_DEFAULT_PATCHES = 4096
# A key of the generator is an unsigned 64-bit integer; states travel through JSON and tensors as signed.
_HIGHEST_SEED = 2**63 - 1


class PatchStream(IterableDataset[Item]):
    """A torch dataset of weighted random patches of one image or several.

    Parameters
    ----------
    image : an image, a glob, or a list of images
    index : PatchIndex
        Of these images; its patches are planes (y, x) or volumes (z, y, x).
    target : an image, a glob, or a list of images, optional
        One of the same extents for each image: every patch comes with the same part of its target, for
        supervised and Noise2Noise training.
    batch_size : int, optional
        Yield batches of this size, the last of an epoch perhaps smaller; single patches without.
    patches_per_epoch : int, optional
        ``min(index.n_patches, 4096)`` unless told.
    seed : int
    resident_blocks : int
        The patches of half as many blocks are interleaved (fewer at the beginning of an epoch) while as many
        blocks are being read.
    num_epochs : int, optional
        How many epochs will be asked for: the beginning of each is then read while the one before it ends.
        Without, nothing is read beyond an epoch.
    client : distributed.Client, optional
        Blocks are decoded and patches cut on the workers of this cluster, which must be able to read the
        images from their stores; they arrive here in the same sequence as without it. No more than one
        portion for each of the cluster's threads, and no more than nine, is under way or waits to be used.
    rank, world_size : int, optional
        This process among those that train together; asked of ``torch.distributed`` where that is set up. All
        ranks get the same number of whole batches, no two the same patch.

    Yields
    ------
    dict
        "patch": float32 tensor (c, [z,] y, x), raw intensities; "origin": int64 tensor, index of the patch's
        first voxel along those of t, z, y, x that the image has; "number": int64, the patch's place in the
        epoch, over all ranks and workers; with several images "image": int64, its number; "target": float32
        tensor like the patch, where there is one. With ``batch_size`` all have a leading batch axis.

    Raises
    ------
    BadRequest
        The index is of another image; the target has another shape; settings that cannot be.
    EmptyIndex
        No cell has a weight.
    MissingChunk, CorruptChunk, ClusterLost, ...
        While iterating, what reading raised.

    Notes
    -----
    What is yielded is a function of (seed, epoch, position) alone, not of threads, workers or timing. Each
    pass of iteration is one epoch; the next pass is the next epoch, unless :meth:`set_epoch` says otherwise.
    Workers of a ``DataLoader`` and ranks take consecutive shares of the epoch: a chunk is decoded about once
    in all of them together. A worker has a copy of this object, which does not tell the original how far it
    has come: call :meth:`set_epoch` before each pass, or every pass is the same epoch; with
    ``persistent_workers`` the copies go on by themselves.

    In memory are the patches of two portions (with a client, up to nine), as float32: of each, those of half
    the resident blocks, or as many as 128 MiB of the images' own dtype hold; and a block for every thread.
    """

    def __init__(
        self,
        image: Images,
        index: PatchIndex,
        *,
        target: Images | None = None,
        batch_size: int | None = None,
        patches_per_epoch: int | None = None,
        seed: int = 0,
        resident_blocks: int = 16,
        num_epochs: int | None = None,
        client: Any = None,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__()
        self._cutter = cutter_of(image, index, target)
        if index.total_weight <= 0:
            raise EmptyIndex("no cell of the index has a weight", remedy="lower the filter's threshold")
        for name, value in (
            ("batch_size", batch_size),
            ("patches_per_epoch", patches_per_epoch),
            ("resident_blocks", resident_blocks),
            ("num_epochs", num_epochs),
        ):
            if value is not None:
                _check_integer(name, value, 1)
        _check_integer("seed", seed, 0, _HIGHEST_SEED)
        self.index, self.batch_size, self.seed = index, batch_size, seed
        self.patches_per_epoch = patches_per_epoch or max(min(index.n_patches, _DEFAULT_PATCHES), 1)
        self.resident_blocks, self.num_epochs = resident_blocks, num_epochs
        self._weights = BlockWeights(index)
        self.rank, self.world_size = _place(rank, world_size)
        if self.world_size > 1 and self.batches_per_epoch < 1:
            raise BadRequest(
                "an epoch has fewer batches than there are ranks",
                where="patches_per_epoch",
                got=self.patches_per_epoch,
                expected=f"at least {(batch_size or 1) * self.world_size}",
            )
        self._client = client
        if client is not None:
            ClusterSource(self._cutter, client).close()  # refused now rather than in the first epoch
        self._process = os.getpid()
        self._epoch = self._position = 0
        self._counts = Counts()
        self._ahead: tuple[tuple[int, ...], EpochPass] | None = None

    # ---- where the stream is

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
        """Continue where :meth:`state_dict` was taken: the next item is the one that would have come next.

        Raises
        ------
        BadRequest
            It is not such a state, or its position lies beyond an epoch of this stream.
        """
        names = ("seed", "epoch", "position")
        if not isinstance(state, dict) or any(type(state.get(name)) is not int for name in names):
            raise BadRequest("not the state of a stream", got=state, expected="integers " + ", ".join(names))
        _check_integer("state_dict position", state["position"], 0, self.patches_per_epoch - 1)
        _check_integer("state_dict seed", state["seed"], 0, _HIGHEST_SEED)
        _check_integer("state_dict epoch", state["epoch"], 0, _HIGHEST_SEED)
        self.seed, self._epoch, self._position = (state[name] for name in names)

    @property
    def batches_per_epoch(self) -> int:
        """Items that one pass yields in this process: batches, or patches without ``batch_size``."""
        size = self.batch_size or 1
        if self.world_size == 1:
            return ceil_div(self.patches_per_epoch, size)
        # Ranks wait for one another at every step: all get equally many batches, and whole ones.
        return self.patches_per_epoch // size // self.world_size

    @property
    def statistics(self) -> dict[str, float]:
        """What has been read since this object was made.

        chunks_read, bytes_read (decoded), patches, read_amplification (bytes decoded per byte of the patches
        in the image's own dtype), seconds_waited (for portions that were not there yet).
        """
        counts = self._counts
        return {
            "chunks_read": counts.read.chunks,
            "bytes_read": counts.read.decoded_bytes,
            "patches": counts.patches,
            "read_amplification": counts.read.decoded_bytes / counts.used_bytes if counts.patches else 0.0,
            "seconds_waited": counts.seconds_waited,
        }

    # ---- iteration

    def close(self) -> None:
        """Give up what of the next epoch has been read ahead."""
        if self._ahead is not None:
            self._ahead[1].close()
            self._ahead = None

    def __iter__(self) -> Iterator[Item]:
        self._check_process()
        epoch = self._epoch
        begin, _, stop = self._share(self._position)
        try:
            with closing(self._begun(epoch, self._position)) as begun:
                for batch in batches_of(begun.portions(self._counts), stop, self.batch_size or 1):
                    if begun.is_all_under_way:
                        self._read_on_after(epoch)
                    done = batch.first + len(batch.origins)
                    self._counts.patches += len(batch.origins)
                    self._counts.used_bytes += int(np.take(self._cutter.patch_bytes, batch.images).sum())
                    # Counted before the item is handed out: a state taken after it names the next one.
                    self._epoch, self._position = (epoch, done - begin) if done < stop else (epoch + 1, 0)
                    yield self._item(batch)
        except BaseException:
            self.close()  # whoever leaves early may not come back
            raise
        self._read_on_after(epoch)

    def _begun(self, epoch: int, position: int) -> EpochPass:
        """Return the pass that is wanted: the one that was begun ahead, if it is that."""
        if self._ahead is not None and self._ahead[0] == (self.seed, epoch, position):
            begun, self._ahead = self._ahead[1], None
            return begun
        self.close()
        return self._begin(epoch, position)

    def _read_on_after(self, epoch: int) -> None:
        """Begin the next epoch, if there will be one."""
        # A DataLoader's worker need not live to see another epoch.
        wanted = self.num_epochs is not None and epoch + 1 < self.num_epochs and get_worker_info() is None
        if wanted and self._ahead is None:
            self._ahead = (self.seed, epoch + 1, 0), self._begin(epoch + 1, 0)

    def _begin(self, epoch: int, position: int) -> EpochPass:
        source: PortionSource = (
            ThreadSource(self._cutter) if self._client is None else ClusterSource(self._cutter, self._client)
        )
        _, first, stop = self._share(position)
        # Bound here: the plan is made in another thread.
        settings = (self.patches_per_epoch, self.seed, epoch, self.resident_blocks)
        return EpochPass(source, self._requests(settings, first, stop))

    def _requests(
        self, settings: tuple[int, int, int, int], first: int, stop: int
    ) -> Iterator[PortionRequest]:
        """Yield what to read for patches ``first`` up to ``stop`` of an epoch."""
        if first >= stop:
            return
        plan = EpochPlan(self.index, self._cutter.grids, *settings, self._weights)
        for group in plan.groups:
            if group.before < stop and group.before + group.size > first:
                yield request_of(plan, group, first, stop)

    def _share(self, position: int) -> tuple[int, int, int]:
        """Return the first patch of this rank, the next one of this process or worker, and where it ends.

        Workers have consecutive parts of their rank's share. A position counts from the share's beginning,
        so that what is left is left to the same worker, however many workers there were before.
        """
        size, n_batches = self.batch_size or 1, self.batches_per_epoch
        worker = get_worker_info()
        number, count = (0, 1) if worker is None else (worker.id, worker.num_workers)
        begin = self.rank * n_batches * size
        first = max(n_batches * number // count * size, position)
        stop = n_batches * (number + 1) // count * size
        return begin, begin + first, min(begin + stop, self.patches_per_epoch)

    def _item(self, batch: Portion) -> Item:
        # Views of the portion: nothing is copied in the thread that trains.
        item = {
            "patch": torch.from_numpy(batch.patches),
            "origin": torch.from_numpy(batch.origins),
            "number": torch.arange(batch.first, batch.first + len(batch.origins)),
        }
        if len(self._cutter.readers) > 1:
            item["image"] = torch.from_numpy(batch.images)
        if batch.targets is not None:
            item["target"] = torch.from_numpy(batch.targets)
        return item if self.batch_size is not None else {k: v[0] for k, v in item.items()}

    # ---- other processes

    def __getstate__(self) -> dict[str, Any]:
        if self._client is not None:
            raise BadRequest(
                "a stream with a client cannot travel to another process",
                where="PatchStream",
                remedy="use num_workers=0: the cluster's workers read ahead already",
            )
        return self.__dict__ | {"_ahead": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._process = os.getpid()

    def _check_process(self) -> None:
        """Refuse to read in a forked worker: the object store's threads are gone there, a read never ends."""
        if os.getpid() == self._process:
            return
        self._ahead = None  # its threads are the parent's
        if self._client is not None or any(r.source is not None for r in self._cutter.every_reader):
            raise BadRequest(
                "a forked DataLoader worker cannot read from a store",
                where="PatchStream",
                remedy='use num_workers=0 (the stream reads ahead itself) or multiprocessing_context="spawn"',
            )


def _check_integer(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < lowest or (highest is not None and value > highest):  # type: ignore[operator]
        expected = f"an integer, {lowest} or more" + ("" if highest is None else f", at most {highest}")
        raise BadRequest("setting out of range", where=name, got=repr(value), expected=expected)


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


def validation_patches(
    image: Images, index: PatchIndex, n: int, seed: int = 0, *, target: Images | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32] | None]:
    """Draw a fixed set of different patches, such as those that every epoch is validated on.

    Parameters
    ----------
    image : an image, a glob, or a list of images
    index : PatchIndex
        The validation part of ``index.split()``: its patches begin exactly on their cells.
    n : int
        Wanted; fewer come back where the index has fewer cells with a weight.
    seed : int
    target : an image, a glob, or a list of images, optional
        One of the same extents for each image.

    Returns
    -------
    (patches, origins, targets)
        float32 (n, c, [z,] y, x), raw intensities; int64 (n, dims) as of ``index.sample``; like the patches,
        or None without a target. Empty where the index is.
    """
    cutter = cutter_of(image, index, target)
    several = len(cutter.readers) > 1
    if index.total_weight > 0:
        drawn = index.sample(8 * n, seed)
        _, first = np.unique(drawn, axis=0, return_index=True)
        drawn = drawn[np.sort(first)[:n]]
    else:
        drawn = np.empty((0, len(index.dims) + several), np.int64)
    numbers = drawn[:, 0] if several else np.zeros(len(drawn), np.int64)
    pieces = pieces_by_chunk(cutter, numbers, drawn[:, int(several) :])
    with closing(ThreadSource(cutter)) as source:
        portion, _ = source.begin(PortionRequest(0, len(drawn), pieces)).result()
    return portion.patches, drawn, portion.targets
