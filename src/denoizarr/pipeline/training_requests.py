"""What training reads of its images and writes into the run folder: at most, before anything is drawn.

An epoch visits blocks of a few chunks, as many as its patches need, none twice; the patches of one are cut
from the smallest box that holds them, which is no larger than the block. Patches that are held out, and those
on which a voxel's own value is measured, are read together where they begin in one chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from denoizarr.geometry.grids import ceil_div
from denoizarr.kernels.unet import build_network
from denoizarr.stores.sources import ImageReader
from denoizarr.training.block_layout import block_extent
from denoizarr.training.centre_measurement import measured_patches
from denoizarr.training.checkpoints import KEPT
from denoizarr.training.epoch_plan import patches_per_visit
from denoizarr.training.held_out import STATISTICS_PATCHES
from denoizarr.training.options import TrainingOptions
from denoizarr.training.portion_sources import READING_THREADS
from denoizarr.training.portions import are_read_together, channels_of

from .array_reads import StoredImage
from .requests import ASK, DELETE, LIST_NAMES, NONE, PUT, Requests

# Of a checkpoint: the weights, their running average, those of the best epoch, two moments; one to spare.
_STATES, _HEADER_BYTES = 6, 2**18
# A picture of a few patches.
_SAMPLE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TrainingImage:
    """An image that is trained on, and how it lies in its store."""

    reader: ImageReader
    stored: StoredImage


def model_bytes(options: TrainingOptions) -> int:
    """Return the size of a model's file, at most."""
    state = build_network(options.network_shape).state_dict()
    return sum(4 * int(tensor.numel()) for tensor in state.values()) + _HEADER_BYTES


def training_reads(
    images: Sequence[TrainingImage], targets: Sequence[TrainingImage], options: TrainingOptions
) -> Requests:
    """Return the most that the training of one stage reads of its images and their targets."""
    if any(image.stored.array is None for image in (*images, *targets)):
        images, targets = (
            [image for image in some if image.stored.array is not None] for some in (images, targets)
        )
    total = NONE
    for some in (images, targets):
        if not some:
            continue
        total += _epochs(some, options)
        # The held-out patches begin on cells; those of the measurement, and of a normalisation, anywhere.
        anywhere = (STATISTICS_PATCHES if targets else 0) + (
            measured_patches(options) if options.use_centre and not targets else 0
        )
        held_out = options.validation_patches if options.validation_fraction > 0 else 0
        total += _patches(some, options, held_out, on_cells=True, have_targets=bool(targets))
        total += _patches(some, options, anywhere, on_cells=False, have_targets=bool(targets))
    return total


def training_writes(options: TrainingOptions, seconds: float) -> Requests:
    """Return the most that the training of one stage asks of the run folder.

    Parameters
    ----------
    options : TrainingOptions
    seconds : float
        That it is thought to last: checkpoints are written by the clock, too.
    """
    model = model_bytes(options)
    by_clock = int(seconds / (60 * options.checkpoint_minutes))
    checkpoints = options.num_epochs + by_clock
    put = Requests(puts=1, bytes_written=_STATES * model)
    written = checkpoints * (put + LIST_NAMES) + max(checkpoints - KEPT, 0) * DELETE
    log = (options.num_epochs + 1) * PUT
    pictures = options.num_epochs * Requests(puts=1, bytes_written=_SAMPLE_BYTES)
    return written + log + pictures + Requests(puts=1, bytes_written=model) + 2 * ASK


def training_kept_bytes(options: TrainingOptions) -> int:
    """Return what is left of it in the end: the last checkpoints, the model, the pictures."""
    return (KEPT * _STATES + 1) * model_bytes(options) + options.num_epochs * _SAMPLE_BYTES


def _epochs(images: Sequence[TrainingImage], options: TrainingOptions) -> Requests:
    """Return the most that all epochs read: visits of the dearest kind, but no more than there is."""
    kinds = [_visits_of(image, options) for image in images]
    n_blocks = sum(kind.blocks for kind in kinds)
    n_cells = sum(kind.cells for kind in kinds)
    n_patches = options.epoch_size(n_cells)
    visits = ceil_div(n_patches, patches_per_visit(n_cells, n_blocks, n_patches))
    # An epoch that is long enough for all blocks shares its patches out one by one.
    if n_blocks * patches_per_visit(n_cells, n_blocks, n_patches) <= n_patches:
        visits = n_blocks
    visits = min(visits, n_blocks)
    chunks = min(visits * max(k.chunks for k in kinds), sum(k.all_chunks for k in kinds))
    shards = min(visits * max(k.shards for k in kinds), sum(k.all_shards for k in kinds))
    dearest = max(
        images, key=lambda image: 0 if image.stored.array is None else image.stored.array.chunk_bytes
    )
    array = dearest.stored.array
    assert array is not None, "files are left out"
    epochs = options.num_epochs
    return array.at_most(epochs * chunks, epochs * shards, len(images) * READING_THREADS)


@dataclass(frozen=True, slots=True)
class _Visits:
    """The blocks of one image, and what one visit, and a visit to each of them, touches at most."""

    blocks: int
    cells: int
    chunks: int
    shards: int
    all_chunks: int
    all_shards: int


def _visits_of(image: TrainingImage, options: TrainingOptions) -> _Visits:
    reader, array = image.reader, image.stored.array
    assert array is not None, "files are left out"
    patch = options.patch_shape
    kept = [axis for axis, dim in enumerate(reader.dims) if dim != "c"]
    shape = [reader.shape[a] for a in kept]
    chunks = [min(reader.chunks[a], reader.shape[a]) for a in kept]
    thickness, wide = block_extent(shape, chunks, patch, channels_of(reader) * reader.dtype.itemsize)
    lead = len(shape) - len(patch)
    cells = prod(shape[:lead]) * prod(ceil_div(n, p) for n, p in zip(shape[lead:], patch, strict=True))
    found = _Visits(1, cells, 1, 1, 1, 1)
    for axis, stored in enumerate(array.axes):
        n_chunks, n_shards = ceil_div(stored.size, stored.chunk), ceil_div(stored.size, stored.shard)
        if axis >= len(reader.dims):  # one voxel of an axis that the image does not have
            continue
        if axis not in kept:  # a block holds all channels
            blocks, touched, shards, all_chunks, all_shards = 1, n_chunks, n_shards, n_chunks, n_shards
        elif (at := kept.index(axis)) < lead:
            # Part of one chunk, which is read again for each of its parts.
            parts = ceil_div(chunks[at], thickness[at])
            blocks, touched, shards = n_chunks * parts, 1, 1
            all_chunks = all_shards = blocks
        else:
            # Whole chunks, cut anywhere between them; a single one is cut in its middle.
            width = wide[at - lead]
            blocks = min(ceil_div(n_chunks, width) + (width > 1), n_chunks)
            touched = min(max(width, 2), n_chunks)
            in_shard = stored.shard // stored.chunk
            shards = min((touched - 2) // in_shard + 2 if touched > 1 else 1, n_shards)
            all_chunks = n_chunks if width > 1 else 2 * n_chunks
            all_shards = min(blocks + n_shards - 1, blocks * shards)
        found = _Visits(
            found.blocks * blocks,
            found.cells,
            found.chunks * touched,
            found.shards * shards,
            found.all_chunks * all_chunks,
            found.all_shards * all_shards,
        )
    return found


def _patches(
    images: Sequence[TrainingImage],
    options: TrainingOptions,
    times: int,
    *,
    on_cells: bool,
    have_targets: bool,
) -> Requests:
    """Return the most that so many patches take: one by one of the dearest image, or all chunk by chunk."""
    patch, found, together = options.patch_shape, [], NONE
    # An image and its target may be cut otherwise, and what begins in one chunk of both is read together.
    is_by_chunk = not have_targets
    for image in images:
        reader, stored = image.reader, image.stored
        sizes = dict(zip(("z", "y", "x")[-len(patch) :], patch, strict=True))
        extents = [
            n if dim == "c" else sizes.get(dim, 1) for dim, n in zip(reader.dims, reader.shape, strict=True)
        ]
        if on_cells:
            found.append(stored.reading_of_cells(extents, times, READING_THREADS))
        else:
            # In volumes, three that are each cut by one border are read in six chunks, their box in eight.
            factor = 4 / 3 if len(patch) == 3 else 1.0
            found.append(stored.reading_of_draws(extents, times, READING_THREADS, factor))
        together += stored.reading_by_chunk(extents, READING_THREADS)
        is_by_chunk &= are_read_together(reader, [d for d in reader.dims if d != "c"], patch)
    one_by_one = max(found, key=lambda one: one.total, default=NONE)
    return min(one_by_one, together, key=lambda one: one.total) if is_by_chunk else one_by_one
