"""Patch2Self from one OME-Zarr to another: a pass that measures, a pass that writes.

::

    pass 1   spans of blocks -> scatter of each span, one small file each -> merged in order -> regressions
    pass 2   block -> read with halo, predict, cast -> write, read back, record

Where each volume is shifted until its minimum is its input's, the smallest prediction has to be known before
the first voxel is written: pass 1 then has a second half that predicts and keeps the minima alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Record
from denoizarr.engine.stages import Stages
from denoizarr.errors import BlockFailed, ImageNotFound, MetadataError
from denoizarr.geometry.boxes import Box
from denoizarr.images.block_levels import write_with_levels
from denoizarr.images.layout import OutputLayout
from denoizarr.images.write import Survey
from denoizarr.kernels.scatter import merged
from denoizarr.stores import locations
from denoizarr.stores.records import digest
from denoizarr.stores.sources import Array, ImageReader

from .blas_threads import one_blas_thread
from .kept_boxes import box_of
from .options import Patch2SelfOptions
from .regressions import (
    Regressions,
    read_regressions,
    read_scatter,
    regress,
    write_regressions,
    write_scatter,
)
from .volume_groups import VolumeGroups
from .voxel_boxes import VoxelBox, read_voxels

_LOG = logging.getLogger(__name__)
_MEASURED, _SHIFTED = "regressions.safetensors", "regressions-shifted.safetensors"


@dataclass(frozen=True, slots=True)
class DiffusionSpec:
    """What a task needs: the readers travel as their sources.

    Attributes
    ----------
    reader : ImageReader
        Of the input, its first axis the volumes.
    mask : ImageReader or None
        Of the voxels that count, along the other axes.
    layout : OutputLayout
        Its write units have all volumes.
    options : Patch2SelfOptions
    groups : VolumeGroups
    folder : str
        Beside the output, for what the passes find.
    blocks_per_span : int
    regressions : (str, str)
        URL and checksum of the file that the next pass uses.
    """

    reader: ImageReader
    mask: ImageReader | None
    layout: OutputLayout
    options: Patch2SelfOptions
    groups: VolumeGroups
    folder: str
    blocks_per_span: int
    regressions: tuple[str, str] = ("", "")

    @property
    def n_blocks(self) -> int:
        """Blocks of the finest level."""
        return len(self.layout.levels[0].write_units)

    @property
    def n_spans(self) -> int:
        """Spans of blocks, in the first pass."""
        return -(-self.n_blocks // self.blocks_per_span)

    def read(self, block: int, *, last: bool = False) -> VoxelBox:
        """Return all volumes of a block with its halo; ``last`` where no other pass will ask for them."""
        return box_of(self.boxes, block, partial(self._read, block), last=last)

    def boxes(self) -> str:
        """Return what tells its boxes from those of other jobs."""
        mask = None if self.mask is None else self.mask.identity
        return digest([self.folder, self.reader.identity, mask, list(self.options.radius)])

    def _read(self, block: int) -> VoxelBox:
        box = self.layout.levels[0].write_units.box(block)
        space = Box(box.start[1:], box.stop[1:])
        n = self.reader.shape[0]
        return read_voxels(
            lambda part: self.reader.read(Box((0, *part.start), (n, *part.stop))),
            space,
            self.reader.shape[1:],
            self.options.radius,
            None if self.mask is None else _read_mask(self.mask),
            self.reader.name,
        )

    def blocks_of(self, span: int) -> range:
        """Return the blocks of a span."""
        first = span * self.blocks_per_span
        return range(first, min(first + self.blocks_per_span, self.n_blocks))


def _read_mask(reader: ImageReader) -> Callable[[Box], NDArray[np.bool_]]:
    return lambda box: reader.read(box) != 0


# ---- the first pass


def surveys_of(spec: DiffusionSpec) -> tuple[Survey, ...]:
    """Return the passes before the first voxel is written."""
    found = [Survey("scatter", measure_scatter, spec.n_spans, conclude_scatter)]
    if spec.options.shift:
        found.append(Survey("minima", measure_minima, spec.n_spans, conclude_minima))
    return tuple(found)


def measure_scatter(spec: DiffusionSpec, span: int) -> Record:
    """Write down the scatter of a span of blocks."""
    outside = 0

    def parts() -> Any:
        nonlocal outside
        for block in spec.blocks_of(span):
            voxels = spec.read(block)
            outside += voxels.outside_non_finite
            yield voxels.scatter()

    with one_blas_thread():
        found = merged(parts())
    record: Record = {"checksum": write_scatter(_scatter_url(spec, span), found)}
    return record | ({"not_finite_outside": outside} if outside else {})


def conclude_scatter(ledger: Ledger, spec: DiffusionSpec) -> DiffusionSpec:
    """Merge the spans in order, and put the regressions beside the output.

    Raises
    ------
    BlockFailed
        What a span left is damaged, or gone: it is redone when the job is run again.
    """
    checksums = _results(ledger, "scatter", spec.n_spans)

    def parts() -> Any:
        for span, results in enumerate(checksums):
            try:
                yield read_scatter(_scatter_url(spec, span), results[0]["checksum"])
            except (ImageNotFound, MetadataError) as error:
                ledger.discard("scatter", span)
                raise BlockFailed(
                    "what the first pass left is damaged or gone",
                    where=_scatter_url(spec, span),
                    remedy="run the same job again: that part is redone",
                ) from error

    with one_blas_thread():
        found = regress(merged(parts()), spec.groups, spec.options)
    if outside := sum(int(results[0].get("not_finite_outside", 0)) for results in checksums):
        _LOG.info("%d values outside the mask are not finite, and stay as they are", outside)
    return _with_regressions(spec, _MEASURED, found)


def measure_minima(spec: DiffusionSpec, span: int) -> Record:
    """Return the smallest value and prediction of every volume in a span of blocks."""
    known = _regressions(*spec.regressions)
    predictor = known.predictor(np.dtype(spec.layout.dtype))
    lowest = np.full((2, len(known.weights)), np.inf)
    with one_blas_thread():
        for block in spec.blocks_of(span):
            lowest = np.minimum(lowest, spec.read(block).minima(predictor))
    # None where a span has no voxel that counts: JSON knows no infinity.
    return {"minima": [[float(v) if np.isfinite(v) else None for v in row] for row in lowest]}


def conclude_minima(ledger: Ledger, spec: DiffusionSpec) -> DiffusionSpec:
    """Shift every volume's predictions until their minimum is that of the input."""
    known = read_regressions(*spec.regressions)
    lowest = np.full((2, len(known.weights)), np.inf)
    for results in _results(ledger, "minima", spec.n_spans):
        here = [[np.inf if v is None else v for v in row] for row in results[0]["minima"]]
        lowest = np.minimum(lowest, here)
    return _with_regressions(spec, _SHIFTED, known.shifted(lowest[0] - lowest[1]))


def _with_regressions(spec: DiffusionSpec, name: str, found: Regressions) -> DiffusionSpec:
    # Under a name of their own: shares of a job array conclude at different times.
    url = locations.join(spec.folder, name)
    return replace(spec, regressions=(url, write_regressions(url, found)))


def _results(ledger: Ledger, step: str, n: int) -> list[list[Record]]:
    found = []
    for batch, record in enumerate(ledger.records(step, n)):
        if record is None:
            raise BlockFailed(
                "a record was lost or is damaged",
                where=f"{step}, batch {batch}",
                remedy="run the same job again: that batch is redone",
            )
        found.append(record["results"])
    return found


def regressions_url(folder: str) -> str:
    """Return where the regressions of a job lie, of its ledger's folder: those that its output came from."""
    shifted = locations.join(folder, _SHIFTED)
    return shifted if locations.exists(shifted) else measured_url(folder)


def measured_url(folder: str) -> str:
    """Return where the regressions lie as they were measured, before any volume was shifted."""
    return locations.join(folder, _MEASURED)


def _scatter_url(spec: DiffusionSpec, span: int) -> str:
    return locations.join(spec.folder, "scatter-parts", f"{span:08d}.safetensors")


# ---- the second pass


@lru_cache(maxsize=2)
def _regressions(url: str, checksum: str) -> Regressions:
    return read_regressions(url, checksum)


def read_block(spec: DiffusionSpec, block: int) -> VoxelBox:
    """Read all volumes of one write unit with its halo."""
    return spec.read(block, last=True)


def predict_block(spec: DiffusionSpec, _block: int, voxels: VoxelBox) -> Array:
    """Predict every volume of it from the others."""
    known = _regressions(*spec.regressions)
    out = np.empty(voxels.kept.shape, np.dtype(spec.layout.dtype))
    with one_blas_thread():
        voxels.predict(known.predictor(out.dtype), out, clip_negative=spec.options.clip_negative)
    return out


def write_block(spec: DiffusionSpec, block: int, values: Array) -> Record:
    """Write it, and what lies above it."""
    return write_with_levels(spec.layout, block, values)


denoise_block = Stages(read_block, predict_block, write_block)
