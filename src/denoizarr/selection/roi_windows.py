"""The means of all windows of one image, computed once, kept, and asked for the windows of a selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.geometry.boxes import Box

from .cells import Cells
from .filter_maps import one_channel
from .roi_criteria import Quantile
from .roi_level import check_axes, check_present
from .roi_passes import WindowWork, window_block
from .roi_settings import RoiSettings
from .roi_window_axes import WindowAxis
from .roi_work import RoiWork
from .score_text import sparkline


@dataclass(frozen=True, slots=True, eq=False)
class RoiWindows:
    """The windows of one image and their means.

    Attributes
    ----------
    dims, shape : tuples
        Of the image without c, in voxels.
    axes : tuple of WindowAxis
        One per axis of the patch.
    array : zarr.Array
        The means, float64: leading dims of the image, then windows.
    quantiles : dict
        Values of the quantiles of the level that were asked for, by fraction.
    bound : float
        Largest error of the blur in the image's intensity units; 0 where it is exact.
    url : str or None
        Where they are kept; None for memory.
    """

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[WindowAxis, ...]
    array: Any
    quantiles: dict[float, float]
    bound: float
    url: str | None = None

    @property
    def patch(self) -> tuple[int, ...]:
        """Extent of a window's patch along the axes of the patch, in voxels."""
        return tuple(axis.patch for axis in self.axes)

    @property
    def origins(self) -> tuple[NDArray[np.int64], ...]:
        """Per axis of the patch, the first voxel of the windows' patches."""
        return tuple(axis.origins for axis in self.axes)

    @property
    def means(self) -> NDArray[np.float64]:
        """All means at once: 8 bytes a window."""
        values = np.empty(self.array.shape)
        for box, part in self.pieces():
            values[box.slices] = part
        return values

    def pieces(self) -> Iterator[tuple[Box, NDArray[np.float64]]]:
        """Yield the means of one plane or volume after the other, and their place."""
        lead = len(self.shape) - len(self.axes)
        for index in np.ndindex(tuple(self.array.shape[:lead])):
            box = Box(
                index + (0,) * len(self.axes),
                tuple(i + 1 for i in index) + tuple(self.array.shape[lead:]),
            )
            values = np.asarray(self.array[box.slices], np.float64)
            check_present(values, "means", self.url)
            yield box, values

    def threshold_of(self, roi: RoiSettings) -> float:
        """Return the number that the means are compared with.

        Raises
        ------
        BadRequest
            It is a quantile that these windows were not computed with.
        """
        if not isinstance(roi.threshold, Quantile):
            return float(roi.threshold)
        if roi.threshold.q not in self.quantiles:
            raise BadRequest(
                "a quantile that was not computed with these windows",
                where="threshold",
                got=roi.threshold,
                remedy="call roi_windows with these settings",
            )
        return self.quantiles[roi.threshold.q]

    def selected(self, roi: RoiSettings) -> NDArray[np.bool_]:
        """Tell for every window whether it is selected; shaped as the means."""
        chosen = np.empty(self.array.shape, bool)
        threshold = self.threshold_of(roi)
        for box, part in self.pieces():
            chosen[box.slices] = roi.selects(part, threshold)
        return chosen

    def cells(self, cells: Cells, roi: RoiSettings) -> NDArray[np.bool_]:
        """Tell for every cell whether its centre lies in the patch of a selected window.

        Parameters
        ----------
        cells : Cells
            Of the same image, without c.
        roi : RegionOfInterest

        Returns
        -------
        bool array of ``cells.counts``
        """
        if (cells.dims, cells.shape) != (self.dims, self.shape):
            raise BadRequest(
                "cells of another image",
                got=dict(zip(cells.dims, cells.shape, strict=True)),
                expected=dict(zip(self.dims, self.shape, strict=True)),
            )
        lead = len(self.shape) - len(self.axes)
        counts = cells.counts
        spans = []
        for axis, n, step, size in zip(
            self.axes, counts[lead:], cells.step[lead:], self.shape[lead:], strict=True
        ):
            start = np.arange(n) * step
            spans.append(axis.holding((start + np.minimum(start + step, size)) // 2))
        threshold = self.threshold_of(roi)
        found = np.empty(counts, bool)
        for box, part in self.pieces():
            # The windows that hold a centre are a box of windows: four sums tell how many are selected.
            sums = roi.selects(part[(0,) * lead], threshold).astype(np.int64)
            for k, (first, stop) in enumerate(spans):
                sums = np.cumsum(np.insert(sums, 0, 0, axis=k), axis=k)
                sums = np.take(sums, stop, axis=k) - np.take(sums, first, axis=k)
            found[box.slices[:lead]] = sums > 0
        return found

    def histogram(self, n_bins: int = 40) -> tuple[NDArray[np.int64], float, float]:
        """Return the counts of the means in equal bins, and the smallest and largest mean."""
        low = min(float(part.min()) for _, part in self.pieces())
        high = max(float(part.max()) for _, part in self.pieces())
        limits = (low, high if high > low else low + 1)
        return (
            np.sum(
                [np.histogram(part, n_bins, limits)[0] for _, part in self.pieces()], axis=0, dtype=np.int64
            ),
            low,
            high,
        )


def survey_windows(
    image: xr.DataArray,
    patch: tuple[int, ...],
    roi: RoiSettings,
    *,
    destination: str | None,
    ledger: Ledger | None,
    client: Any,
    threads: int,
    progress: bool,
) -> RoiWindows:
    """Do what :func:`denoizarr.selection.regions_of_interest.roi_windows` says."""
    if destination is None and (client is not None or ledger is not None):
        raise BadRequest("regions of interest on a cluster, or resumable ones, need a destination")
    if destination is not None:
        roi.check_nameable()
    opened = one_channel(image, roi.ref_channel)
    check_axes(tuple(str(d) for d in opened.dims), len(patch))
    shape = tuple(int(n) for n in opened.shape)
    axes = tuple(
        WindowAxis(n, int(p), roi.factor, roi.overlap)
        for n, p in zip(shape[len(shape) - len(patch) :], patch, strict=True)
    )
    work = RoiWork.begin(
        opened,
        roi,
        patch,
        destination=destination,
        ledger=ledger,
        client=client,
        threads=threads,
        progress=progress,
    )
    result = work.result()
    if result is None:
        prepared, bound = work.prepare(roi)
        windows = WindowWork(prepared, axes)
        work.create("means", windows.grid.shape, windows.grid.step, step="roi-windows")
        work.run("roi-windows", window_block, windows, len(windows.grid), None)
        for box in windows.grid:
            kept: Any = work.group["means"]
            check_present(np.asarray(kept[box.slices]), "means", destination)
        result = work.finish(prepared, bound)
    if isinstance(roi.threshold, Quantile) and repr(roi.threshold.q) not in result["quantiles"]:
        result = work.with_quantile(roi, roi.threshold.q, result)
    return RoiWindows(
        work.level.dims,
        shape,
        axes,
        work.group["means"],
        {float(q): value for q, value in result["quantiles"].items()},
        float(result["bound"]),
        destination,
    )


def nothing_selected(windows: RoiWindows, roi: RoiSettings) -> EmptyIndex:
    """Return the error that says how the windows' means are spread, and which threshold would do."""
    counts, low, high = windows.histogram()
    shown = f"from {low:.4g} |{sparkline(counts)}| to {high:.4g}"
    return EmptyIndex(
        "no window is selected",
        where="the regions of interest",
        got=f"threshold {windows.threshold_of(roi):.4g}, and means {shown}",
        expected=f"a threshold below {high:.6g}" if roi.selects_high else f"a threshold above {low:.6g}",
        remedy=f"the middle one, {float(np.median(windows.means)):.4g}, selects half of the windows",
    )
