"""The work on one image's regions of interest: its group in a store, and the resumable steps that fill it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Record, Step, run_step
from denoizarr.errors import DegenerateData, OutputExists
from denoizarr.kernels import equalize as kernel
from denoizarr.stores import locations
from denoizarr.stores.images import reader_of
from denoizarr.stores.records import digest

from . import own_groups, roi_passes
from .roi_criteria import Criterion
from .roi_level import Level, box_blocks, level_of, make_boxes, make_knots
from .roi_passes import Prepared, exact_quantiles
from .roi_settings import RoiSettings

_LOG = logging.getLogger(__name__)
_KEY, _RESULT = "denoizarr.regions", "denoizarr.regions.result"
_ARRAYS = ("boxes", "knots", "planes", "counts", "maps", "brightness", "means")
# A block of the level takes tens of milliseconds.
_BLOCKS_PER_BATCH = 8
_LABELS = {
    "roi-boxes": "Averaging boxes of voxels",
    "roi-knots": "Blurring for regions of interest",
    "roi-counts": "Equalising for regions of interest",
    "roi-windows": "Averaging windows",
}


@dataclass(frozen=True, slots=True, eq=False)
class RoiWork:
    """The group of one image's regions, and the steps that fill it."""

    level: Level
    group: zarr.Group
    tag: str
    ledger: Ledger | None
    how: Callable[..., list[Record]]

    @classmethod
    def begin(
        cls,
        image: xr.DataArray,
        roi: RoiSettings,
        patch: tuple[int, ...],
        *,
        destination: str | None = None,
        ledger: Ledger | None = None,
        **how: Any,
    ) -> RoiWork:
        """Open or begin the group at ``destination``, or in memory.

        Parameters
        ----------
        image : DataArray
            Without c.
        roi : RegionOfInterest
        patch : tuple of int
            Its length says what an axis of the patch is.
        destination, ledger, **how
            As ``roi_windows`` takes them.
        """
        reader = reader_of(image)
        key = digest(
            [reader.identity, list(image.dims), list(image.shape), list(patch), roi.level_identity()]
        )
        if destination is None:
            group = zarr.open_group(MemoryStore(), mode="w")
        else:
            group = _open(destination, key, owned=ledger is not None)
        sigma = float(roi.sigma) if roi.expression is None else 0.0
        where = group if destination is None else destination
        level = level_of(image, reader, len(patch), roi.factor, sigma, where)
        return cls(level, group, key[:12], ledger, partial(run_step, ledger=ledger, **how))

    def run(
        self,
        name: str,
        task: Callable[[Any, int], Record],
        spec: Any,
        n_blocks: int,
        merge: Callable[[list[Record]], Record] | None,
        per_batch: int | None = None,
    ) -> list[Any]:
        """Run a step; return the results of its batches, or of its blocks where nothing merges them."""
        step = Step(f"{name}-{self.tag}", task, spec, n_blocks, per_batch or _BLOCKS_PER_BATCH, merge)
        label = _LABELS.get(name, "Finding regions of interest")
        records = self.how(step, label=label)
        if merge is not None:
            return [record["results"] for record in records]
        return [result for record in records for result in record["results"]]

    def create(
        self,
        name: str,
        shape: tuple[int, ...],
        chunks: tuple[int, ...],
        dtype: str = "float64",
        step: str = "",
    ) -> None:
        """Make an array that is not there yet, one chunk a block: no two tasks write the same object.

        ``step`` fills it: where the array is gone, what a ledger says is done of that step is not.
        """
        if name not in self.group:
            if step and self.ledger is not None:
                self.ledger.forget(ending=f"{step}-{self.tag}")
            self.group.create_array(
                name,
                shape=shape,
                chunks=chunks,
                dtype=dtype,
                fill_value=float("nan") if dtype == "float64" else 0,
                compressors=[ZstdCodec(level=3), Crc32cCodec()],
                config={"write_empty_chunks": True},
            )

    def result(self) -> dict[str, Any] | None:
        """Return what :meth:`finish` wrote, or None where the work is not done."""
        found: Any = self.group.attrs.get(_RESULT)
        return dict(found) if found is not None and "means" in self.group else None

    def finish(self, prepared: Prepared, bound: float) -> dict[str, Any]:
        """Write, last of all, what is needed to go on without computing anything again."""
        result: dict[str, Any] = {
            "low": prepared.low,
            "high": prepared.high,
            "bound": bound,
            "score_quantiles": [value for _, value in prepared.quantiles],
            "quantiles": {},
        }
        self.group.attrs[_RESULT] = result
        return result

    def prepared(self, roi: RoiSettings, result: dict[str, Any]) -> Prepared:
        """Return the level as windows see it, from what was kept."""
        known = zip(_score_quantiles(roi), result["score_quantiles"], strict=True)
        return Prepared(self.level, roi.equalize, roi.expression, result["low"], result["high"], tuple(known))

    def with_quantile(self, roi: RoiSettings, q: float, result: dict[str, Any]) -> dict[str, Any]:
        """Compute and keep one more quantile of the level as windows see it."""
        (value,) = exact_quantiles(self.prepared(roi, result), [(None, q)], self.run, f"roi-threshold-{q!r}")
        found = {**result["quantiles"], repr(q): value}
        result = {**result, "quantiles": {k: found[k] for k in sorted(found)}}
        self.group.attrs[_RESULT] = result
        return result

    def prepare(self, roi: RoiSettings) -> tuple[Prepared, float]:
        """Run every pass before the windows: the image, the blur, the equalisation or the scores' quantiles.

        Returns
        -------
        prepared : Prepared
        bound : float
            Of the blur's error, in intensity units.
        """
        planes, span = self._make_level()
        level, low, high = self.level, float(planes[..., 0].min()), float(planes[..., 1].max())
        # A range that 65,536 bins could not divide is rounding, not an image.
        if not high - low > 2 * kernel.N_BINS * np.spacing(max(abs(low), abs(high))):
            raise DegenerateData(
                "the image is constant at the scale of its regions of interest",
                where=level.reader.name,
                got=f"{low:g} to {high:g}",
                remedy="select no regions of interest here, or use a smaller sigma",
            )
        bound = level.bound * span
        if bound:
            _LOG.info(
                "Regions of interest: the blur of sigma %g on a coarse level is within %.3g of the true one "
                "(%.2f %% of the level's range)",
                roi.sigma,
                bound,
                100 * level.bound,
            )
        prepared = Prepared(level, roi.equalize, roi.expression, low, high)
        if roi.expression is not None:
            wanted = _score_quantiles(roi)
            values = exact_quantiles(prepared, wanted, self.run, "roi-scores") if wanted else []
            return replace(prepared, quantiles=tuple(zip(wanted, values, strict=True))), bound
        if roi.equalize == "global":
            self._equalise(prepared)
        elif roi.equalize == "adaptive":
            self._equalise_adaptively(prepared, planes)
        return prepared, bound

    def _make_level(self) -> tuple[roi_passes.Extremes, float]:
        """Read the image; return the extremes of every plane of the level, and the range before the blur."""
        level, grid, blocks = self.level, self.level.stored_grid("boxes"), box_blocks(self.level)
        self.create("boxes", grid.shape, grid.step, step="roi-boxes")
        found = self.run("roi-boxes", make_boxes, level, len(blocks), None, 1)
        span = max(r["range"][1] for r in found) - min(r["range"][0] for r in found)
        if level.is_blurred:
            blocks = level.stored_grid("knots")
            self.create("knots", blocks.shape, blocks.step, step="roi-knots")
            found = self.run("roi-knots", make_knots, level, len(blocks), None)
        return roi_passes.plane_extremes(level, blocks, found), span

    def _equalise(self, prepared: Prepared) -> None:
        n_blocks = len(self.level.blocks())
        parts = self.run("roi-counts", roi_passes.count_block, prepared, n_blocks, roi_passes.add_counts)
        self._keep("counts", roi_passes.total_of(parts))

    def _equalise_adaptively(self, prepared: Prepared, planes: roi_passes.Extremes) -> None:
        level, lead, n_blocks = self.level, len(self.level.leading), len(self.level.blocks())
        self._keep("planes", planes)
        inner = (*kernel.tile_counts_shape(level.coarse_shape[lead:]), kernel.TILE_BINS)
        self.create("maps", level.leading + inner, (1,) * lead + inner, "uint16")
        roi_passes.store_maps(level, self.run("roi-tiles", roi_passes.tile_block, prepared, n_blocks, None))
        bright = self.run("roi-brightness", roi_passes.brightness_block, prepared, n_blocks, None)
        self._keep("brightness", roi_passes.plane_extremes(level, level.blocks(), bright))

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        self.create(name, values.shape, values.shape, str(values.dtype))
        self.level.array(name)[...] = values


def _score_quantiles(roi: RoiSettings) -> list[tuple[Criterion, float]]:
    criteria = () if roi.expression is None else tuple(roi.expression.criteria())
    return [(c, q) for c in dict.fromkeys(criteria) for q in c.quantiles()]


def _open(destination: str, key: str, *, owned: bool) -> zarr.Group:
    """Open the group of this work, or begin it; that of another image or other settings is replaced.

    ``owned``: the destination is the job's own, so what a kill left there is replaced as well.
    """
    begun = locations.exists(destination) and locations.list_names(destination)
    found = (own_groups.attributes_at(destination) or {}).get(_KEY) if begun else None
    if begun and found is None and not (owned and own_groups.is_remains(destination, _ARRAYS.__contains__)):
        raise OutputExists(
            "something else than regions of interest lies here",
            where=destination,
            remedy="choose another name",
        )
    if found == key:
        return locations.open_group(destination, "a")
    if begun:
        own_groups.delete(destination)
    return own_groups.begin(destination, {_KEY: key})
