"""Requests and bytes of a whole job, step by step: upper bounds, from metadata alone.

Counted are store operations of one undisturbed run from its beginning. Tests count what a run really asks for
and hold it against these numbers. What is tried again after a failure, and what a killed run had done, come
on top of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from denoizarr.geometry.grids import ceil_div
from denoizarr.inference.prediction import Prediction
from denoizarr.report.planes import LARGEST_NEIGHBOUR, LARGEST_SIDE, NEIGHBOURS
from denoizarr.stores.images import reader_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.options import TrainingOptions

from .array_reads import StoredImage, even_cuts, with_halo
from .blind_spots import planes_of
from .checked_job import CheckedJob, planned_networks
from .looking_requests import (
    INDEX_BEGUN,
    index_made,
    lines_measured,
    lines_sought,
    noise_read,
    scores_found_again,
    scores_kept,
    scores_of_floats,
    scores_read,
)
from .requests import (
    ARRAY_METADATA,
    ASK,
    DELETE,
    GET,
    LIST,
    LIST_NAMES,
    MISS,
    NONE,
    OPEN_ARRAY,
    OPEN_GROUP,
    PUT,
    Requests,
)
from .training_requests import TrainingImage, model_bytes, training_reads, training_writes
from .writing_requests import stored_level, written_image

# Metadata of one image, from its URL to a reader: of the group, the array, and once more for the plan.
_OPENED = 4 * ASK + OPEN_GROUP + 3 * ARRAY_METADATA
# What the run folder is asked before the first step and after the last.
_FOLDER = 9 * ASK + LIST_NAMES + DELETE + 9 * PUT + 4 * GET
# The table of steps before and after each, and the counters.
_STEP = 4 * PUT
_REPORT_OPENED = 5 * ASK + OPEN_GROUP + 2 * ARRAY_METADATA
_FIGURES, _FIGURE_BYTES = 14, 2**20


@dataclass(frozen=True, slots=True)
class StepRequests:
    """What one step of a job asks of its stores.

    Attributes
    ----------
    name : str
        As in the table of steps.
    input : Requests
        Of images, targets and masks.
    output : Requests
        Of the run folder and all in it.
    is_certain : bool
        False for what is done only where the images call for it.
    """

    name: str
    input: Requests = NONE
    output: Requests = NONE
    is_certain: bool = True


def requests_of(
    checked: CheckedJob, training_seconds: dict[str, float], workers: int = 0
) -> list[StepRequests]:
    """Return the steps of a job in order, with what each asks for at most.

    Parameters
    ----------
    checked : CheckedJob
    training_seconds : dict
        By stage: how long its training is thought to last.
    workers : int
        Processes that do blocks of the inference; 0 where nobody knows how many there will be.
    """
    job = checked.job
    images = [_training_image(image) for image in checked.images]
    targets = [_training_image(image) for image in checked.targets]
    n_opened = len(images) + len(targets) + sum(len(look.masks) for look in checked.looks.values())
    steps = [StepRequests("start", n_opened * _OPENED, _FOLDER)]
    if job.periodic != "off":
        steps.append(StepRequests("periodic lines", lines_sought(images), _STEP + PUT + GET))
        steps.append(_lines_found(checked, images))
    networks = planned_networks(checked)
    stages = [(n, o) for n, o in (("stage1", checked.stage1), ("stage2", checked.stage2)) if o is not None]
    for number, (name, options) in enumerate(stages):
        if name == "stage2" and checked.kernel is None:
            steps += _noise(checked, images, options, networks.get("stage1"))
        elif name == "stage2":
            steps.append(StepRequests("noise kernel", NONE, _STEP + _small_put()))
        steps += _stage(checked, images, targets, name, options, training_seconds[name], again=number > 0)
    if job.output.keep_stage1 and len(stages) > 1:
        first = [(networks["stage1"], stages[0][1])]
        steps.append(_inference("inference of stage1", checked, images, first, workers))
    # Where the noise turns out to be of single pixels, it is stage 1's network that has the last word.
    last = [(networks[name], options) for name, options in stages]
    steps.append(_inference("inference", checked, images, last, workers))
    steps.append(_report(checked, images, stages))
    return steps


def _training_image(image: object) -> TrainingImage:
    reader = reader_of(image)  # type: ignore[arg-type]  # of the checked job
    return TrainingImage(reader, StoredImage.of(reader))


def _lines_found(checked: CheckedJob, images: Sequence[TrainingImage]) -> StepRequests:
    """Return what lines cost where there are some: the measurement, and scores of floats in three passes."""
    total = lines_measured(images)
    look = next(iter(checked.looks.values()))
    for image in images:
        total += scores_of_floats(image, look)
    return StepRequests("periodic lines, if found", total, NONE, is_certain=False)


def _stage(
    checked: CheckedJob,
    images: Sequence[TrainingImage],
    targets: Sequence[TrainingImage],
    name: str,
    options: TrainingOptions,
    seconds: float,
    *,
    again: bool,
) -> list[StepRequests]:
    look = checked.looks[name]
    first = next(iter(checked.looks.values()))
    # What both stages want alike is measured once.
    is_shared = again and look.patch == first.patch and look.roi is None
    read, kept, made = NONE, NONE, INDEX_BEGUN
    for number, image in enumerate(images):
        if not is_shared:
            read += scores_read(image, look, number)
        kept += (scores_found_again if is_shared else scores_kept)(image.reader, look)
        made += index_made(image.reader, look)
    return [
        StepRequests(f"where to look for {name}", read, _STEP + kept),
        StepRequests(f"index of {name}", NONE, _STEP + made),
        StepRequests(
            f"training of {name}",
            training_reads(images, targets, options),
            _STEP + training_writes(options, seconds),
        ),
    ]


def _noise(
    checked: CheckedJob,
    images: Sequence[TrainingImage],
    options: TrainingOptions,
    stage1: Denoiser | None,
) -> list[StepRequests]:
    is_asked = stage1 is not None and checked.job.stage2.mask_source in ("auto", "stage1")
    halo = stage1.halo if stage1 is not None and is_asked else None
    read, perhaps = noise_read(images, planes_of(options.patch_shape), options.seed, halo)
    return [
        StepRequests("noise kernel", read, _STEP + _small_put()),
        StepRequests("noise kernel, if it is hard to tell", perhaps, NONE, is_certain=False),
    ]


def _inference(
    name: str,
    checked: CheckedJob,
    images: Sequence[TrainingImage],
    networks: Sequence[tuple[Denoiser, TrainingOptions]],
    workers: int,
) -> StepRequests:
    """Return what denoising all images takes by whichever of some networks takes most."""
    read, written = NONE, _STEP
    kept = max(model_bytes(options) for _, options in networks)
    for planned, image in zip(checked.predictions, images, strict=True):
        per_batch = ceil_div(planned.blocks, planned.batches)
        n_workers = min(workers, planned.batches) if workers else planned.batches
        blocks = [blocks_read(planned, image.stored, network, workers) for network, _ in networks]
        # Each process opens the input and the model once.
        read += n_workers * OPEN_ARRAY + max(blocks, key=lambda one: one.total)
        written += n_workers * Requests(gets=1, bytes_read=kept)
        written += written_image(planned.layout, per_batch, 3, kept)
    return StepRequests(name, read, written)


def blocks_read(planned: Prediction, stored: StoredImage, network: Denoiser, workers: int) -> Requests:
    """Return what all blocks of the finest level read, with their halos."""
    lead = len(planned.reader.shape) - len(network.halo)
    halo = (0,) * lead + tuple(network.halo)
    stride = (1,) * lead + tuple(network.stride)
    units = planned.layout.levels[0].write_units
    cuts = [even_cuts(n, s) for n, s in zip(planned.reader.shape, units.step, strict=True)]
    ends = [with_halo(c, h, s) for c, h, s in zip(cuts, halo, stride, strict=True)]
    # Two of the threads of a process, the one that reads ahead and the first, may look at one shard at once.
    readers = 2 * workers
    return stored.reading([a for a, _ in ends], [b for _, b in ends], readers) + stored.looking_through(cuts)


def _report(
    checked: CheckedJob, images: Sequence[TrainingImage], stages: Sequence[tuple[str, TrainingOptions]]
) -> StepRequests:
    """Return what the report reads, of the first image and its results, and what it writes."""
    reader = images[0].reader
    plane = [1] * (len(reader.shape) - 2) + [LARGEST_SIDE] * 2
    beside = [1] * (len(reader.shape) - 2) + [LARGEST_NEIGHBOUR] * 2
    depth = dict(zip(reader.dims, reader.shape, strict=True)).get("z" if "z" in reader.dims else "t", 1)
    n_beside = min(NEIGHBOURS, (depth - 1) // 2 or depth - 1)
    read = 2 * _REPORT_OPENED + images[0].stored.reading_anywhere(plane, 1)
    read += images[0].stored.reading_anywhere(beside, n_beside)
    layout = checked.predictions[0].layout
    shape = layout.levels[0].shape
    result = stored_level(layout, layout.levels[0])

    def clipped(extents: Sequence[int]) -> list[int]:
        return [min(e, n) for e, n in zip(extents, shape, strict=True)]

    written = _STEP + 10 * ASK + LIST + 12 * GET + 2 * _REPORT_OPENED
    written += result.reading_anywhere(clipped(plane), 1) + result.reading_anywhere(clipped(beside), n_beside)
    if checked.job.output.keep_stage1:
        written += _REPORT_OPENED + result.reading_anywhere(clipped(plane), 1)
    picture = Requests(gets=1, bytes_read=_FIGURE_BYTES)
    # Of each stage its index, its log and two pictures, which go into the page.
    written += len(stages) * (2 * ASK + LIST_NAMES + GET + OPEN_GROUP + 3 * GET + 2 * picture)
    drawn = _FIGURES + 2 * len(stages)
    # The page holds the figures once more, as text, which takes a third more.
    page = Requests(puts=1, bytes_written=3 * drawn * _FIGURE_BYTES // 2)
    return StepRequests(
        "report", read, written + Requests(puts=drawn, bytes_written=drawn * _FIGURE_BYTES) + page
    )


def _small_put() -> Requests:
    return ASK + Requests(puts=1, bytes_written=2**18) + MISS
