"""Patch filters: where is signal, and where only background that is worth a look now and then.

The names and meanings are those of CAREamics' patch filtering. A class gives lazy maps to look at; an
instance holds the settings and goes into ``build_index``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.errors import BadRequest
from denoizarr.kernels.patch_scores import default_coverage
from denoizarr.stores.images import ImageLike

from .cells import PatchSize
from .filter_maps import expanded, lazy_map, pieces_of
from .map_plots import plot_plane
from .scores import Score, check_coverage
from .thresholds import Suggestion, check_threshold, suggest_threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LOG = logging.getLogger(__name__)


# A lazy map is looked at several times; up to here it is computed once and kept meanwhile.
_KEPT_BYTES = 2**30


def _once(filter_map: xr.DataArray) -> xr.DataArray:
    return filter_map.compute() if filter_map.nbytes <= _KEPT_BYTES else filter_map


class _PatchFilter:
    """What the filters share."""

    __slots__ = ()

    score_name: ClassVar[str]
    label: ClassVar[str]
    threshold_name: ClassVar[str] = "threshold"

    @classmethod
    def filter_map(
        cls,
        image: ImageLike,
        patch_size: PatchSize,
        *,
        ref_channel: int | None = None,
        coverage: float | None = None,
    ) -> xr.DataArray:
        """Return the score of every cell, lazily.

        Parameters
        ----------
        image : URL, path, zarr.Array, DataArray, Dask or numpy array
            2D arrays are (y, x), 3D (z, y, x). For ``MaskPatchFilter`` the mask: any number but 0 counts.
        patch_size : int, (y, x) or (z, y, x)
            In voxels; an int or a pair is applied plane by plane.
        ref_channel : int, optional
            Score this channel only.
        coverage : float, optional
            Of the max filter: the fraction of a region that must reach the threshold; a quarter in 2D and an
            eighth in 3D unless told.

        Returns
        -------
        float64 DataArray, one value per cell
            Dims t, c and (with 2D patches) z of the image stay; coordinates lie at the cell centres, in the
            image's units. ``MeanStdPatchFilter`` has a leading dim "statistic": mean, std.

        Raises
        ------
        BadRequest
            For an unknown channel, a z in the patch that the image lacks, or ``coverage`` for another filter
            than max.
        NonFiniteData
            When computed, if the image holds NaN or infinity.

        Notes
        -----
        An axis has ceil(size / patch) cells and, between them, regions of two neighbouring cells, cropped at
        the border; the value of a cell is the largest over the regions that cover it. The values do not
        depend on how the image is cut into chunks.
        """
        if coverage is not None and cls.score_name != "max":
            raise BadRequest(
                "coverage of a map is a setting of MaxPatchFilter",
                where=cls.__name__,
                got=f"coverage={coverage}",
            )
        score = Score(cls.score_name, None if coverage is None else float(coverage))
        return lazy_map(image, patch_size, score, ref_channel=ref_channel)

    @staticmethod
    def expand_to(filter_map: xr.DataArray, image: ImageLike) -> xr.DataArray:
        """Return the map at the image's size, lazily: every voxel has its cell's value."""
        return expanded(filter_map, image)

    @classmethod
    def suggest_threshold(cls, filter_map: xr.DataArray) -> float:
        """Return a threshold between background and signal, from the map's own histogram.

        For ``MeanStdPatchFilter`` it is that of the mean. Where the map shows no background apart from the
        rest it is the smallest value: all is kept. How it is chosen: :mod:`denoizarr.selection.thresholds`.
        """
        return cls.suggestion(filter_map).threshold

    @classmethod
    def suggestion(cls, *filter_maps: xr.DataArray) -> Suggestion:
        """Return the threshold suggested for several maps together, and why."""
        mains = [_once(cls._main_values(m)) for m in filter_maps]
        return suggest_threshold(lambda: (values for m in mains for values in pieces_of(m)))

    @classmethod
    def plot_filter_map(
        cls,
        image: ImageLike,
        filter_map: xr.DataArray,
        *,
        threshold: float | None = None,
        std_threshold: float | None = None,
        t_idx: int | None = None,
        z_idx: int | None = None,
    ) -> Figure:
        """Show one plane, its scores, what a threshold keeps, and the histogram of the scores.

        Parameters
        ----------
        image, filter_map
            As given to and returned by :meth:`filter_map`.
        threshold : float, optional
            Draws the cells that it keeps; on the mean for ``MeanStdPatchFilter``.
        std_threshold : float, optional
            On the standard deviation, of ``MeanStdPatchFilter`` alone.
        t_idx, z_idx : int, optional
            The plane shown; the first time point and the middle plane unless told.

        Returns
        -------
        matplotlib.figure.Figure
        """
        return plot_plane(cls.panels(), image, filter_map, threshold, std_threshold, t_idx=t_idx, z_idx=z_idx)

    @classmethod
    def panels(cls) -> dict[str | None, str]:
        """Return the label of each of the map's values, by its name along "statistic", if there is one."""
        return {None: cls.label}

    @classmethod
    def _main_values(cls, filter_map: xr.DataArray) -> xr.DataArray:
        return filter_map

    def main_threshold(self) -> float:
        """Return the threshold on the map's main value.

        Raises
        ------
        BadRequest
            None is set.
        """
        value = getattr(self, self.threshold_name)
        if value is None:
            raise BadRequest(
                "no threshold is set",
                where=type(self).__name__,
                remedy="give one, or build an index, which chooses it",
            )
        return float(value)

    def resolved(self, *filter_maps: xr.DataArray) -> Self:
        """Return the filter with its threshold chosen, where it has none: one for all the maps together."""
        if getattr(self, self.threshold_name) is not None:
            return self
        found = self.suggestion(*filter_maps)
        _LOG.info("%s: %s", type(self).__name__, found.sentence())
        return replace(self, **{self.threshold_name: found.threshold})  # type: ignore[type-var]

    def settings(self) -> dict[str, Any]:
        """Return what an index records of this filter: its name and settings, JSON-able."""
        return {"name": self.score_name, **asdict(self)}  # type: ignore[call-overload]

    @property
    def score(self) -> Score:
        """The score that this filter's map shows."""
        return Score(self.score_name, getattr(self, "coverage", None) if self.score_name == "max" else None)

    @staticmethod
    def keeps(scores: NDArray[np.float64], thresholds: Sequence[float | None]) -> NDArray[np.bool_]:
        """Return True where every threshold is reached; several have one leading axis for their values."""
        parts = scores[np.newaxis] if len(thresholds) == 1 else scores
        keep = np.ones(parts.shape[1:], bool)
        for values, threshold in zip(parts, thresholds, strict=True):
            if threshold is not None:
                keep &= values >= threshold
        return keep

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The thresholds of the map's values, in their order."""
        return (self.main_threshold(),)


class _OneThreshold(_PatchFilter):
    """A filter whose map has one value per cell."""

    __slots__ = ()

    @staticmethod
    def apply_filter(filter_map: xr.DataArray, threshold: float) -> xr.DataArray:
        """Return True for the cells to keep: value >= threshold."""
        return filter_map >= threshold


@dataclass(frozen=True, slots=True)
class MaxPatchFilter(_OneThreshold):
    """Keep cells where enough of a region has bright voxels nearby.

    Attributes
    ----------
    threshold : float or None
        In intensity units; None is chosen from the map when an index is built.
    ref_channel : int
    coverage : float or None
        Fraction of a region whose running maximum must reach the threshold; None is a quarter in 2D and an
        eighth in 3D.
    """

    score_name: ClassVar[str] = "max"
    label: ClassVar[str] = "maximum (intensity)"

    threshold: float | None = None
    ref_channel: int = 0
    coverage: float | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold, "threshold")
        check_coverage(self.coverage)


@dataclass(frozen=True, slots=True)
class ShannonPatchFilter(_OneThreshold):
    """Keep cells whose intensities are spread: base-2 Shannon entropy.

    Attributes
    ----------
    threshold : float or None
        In bits; None is chosen from the map when an index is built.
    ref_channel : int
    """

    score_name: ClassVar[str] = "shannon"
    label: ClassVar[str] = "Shannon entropy (bit)"

    threshold: float | None = None
    ref_channel: int = 0

    def __post_init__(self) -> None:
        check_threshold(self.threshold, "threshold")


@dataclass(frozen=True, slots=True)
class MeanStdPatchFilter(_PatchFilter):
    """Keep cells that are bright, and where asked also varied.

    Attributes
    ----------
    mean_threshold : float or None
        In intensity units; None is chosen from the map when an index is built.
    std_threshold : float or None
        In intensity units; None does not look at the standard deviation.
    ref_channel : int
    """

    score_name: ClassVar[str] = "mean_std"
    label: ClassVar[str] = "mean (intensity)"
    threshold_name: ClassVar[str] = "mean_threshold"

    mean_threshold: float | None = None
    std_threshold: float | None = None
    ref_channel: int = 0

    def __post_init__(self) -> None:
        check_threshold(self.mean_threshold, "mean_threshold")
        check_threshold(self.std_threshold, "std_threshold")

    @staticmethod
    def apply_filter(
        filter_map: xr.DataArray, mean_threshold: float, std_threshold: float | None = None
    ) -> xr.DataArray:
        """Return True for the cells to keep: by the mean and, where a threshold is given, by std as well."""
        keep = filter_map.sel(statistic="mean", drop=True) >= mean_threshold
        if std_threshold is not None:
            keep = keep & (filter_map.sel(statistic="std", drop=True) >= std_threshold)
        return keep

    @classmethod
    def _main_values(cls, filter_map: xr.DataArray) -> xr.DataArray:
        return filter_map.sel(statistic="mean", drop=True)

    @classmethod
    def panels(cls) -> dict[str | None, str]:
        """Return the label of each of the map's two values."""
        return {"mean": cls.label, "std": "standard deviation (intensity)"}

    @property
    def thresholds(self) -> tuple[float | None, ...]:
        """The thresholds of mean and standard deviation."""
        return self.main_threshold(), self.std_threshold


@dataclass(frozen=True, slots=True)
class MaskPatchFilter(_OneThreshold):
    """Keep cells that a precomputed mask covers enough.

    Attributes
    ----------
    coverage : float or None
        Fraction of a region that must not be zero in the mask; None is a quarter in 2D and an eighth in 3D.
    ref_channel : int
        Of a mask with several channels.
    missing : {"error", "fill"}
        A chunk that the mask's Zarr store lacks is an error, or reads as the fill value: many writers leave
        chunks of zeros out.
    """

    score_name: ClassVar[str] = "mask"
    label: ClassVar[str] = "fraction in the mask"
    threshold_name: ClassVar[str] = "coverage"

    coverage: float | None = None
    ref_channel: int = 0
    missing: Literal["error", "fill"] = "error"

    def __post_init__(self) -> None:
        check_coverage(self.coverage)

    @classmethod
    def suggest_threshold(cls, filter_map: xr.DataArray) -> float:
        """Return the default coverage for these patches: a mask has been judged already."""
        return default_coverage(len(filter_map.attrs["patch_size"]))

    def resolved(self, *filter_maps: xr.DataArray) -> Self:
        """Return the filter with its coverage chosen, where it has none."""
        if self.coverage is not None:
            return self
        return replace(self, coverage=self.suggest_threshold(filter_maps[0]))


ScoreFilter = MaxPatchFilter | MeanStdPatchFilter | ShannonPatchFilter
PatchFilter = ScoreFilter | MaskPatchFilter


def filter_of(
    name: str,
    *,
    threshold: float | None = None,
    std_threshold: float | None = None,
    ref_channel: int = 0,
    coverage: float | None = None,
    missing: Any = "error",
) -> PatchFilter | None:
    """Return the filter of this name, None for "none"; a setting of another filter is refused.

    Raises
    ------
    BadRequest
    """
    names = [
        *(f.score_name for f in (MaxPatchFilter, MeanStdPatchFilter, ShannonPatchFilter)),
        "mask",
        "none",
    ]
    if name not in names:
        raise BadRequest("unknown patch filter", got=name, expected=", ".join(names))
    for setting, value, owners in (
        ("std_threshold", std_threshold, ("mean_std",)),
        ("coverage", coverage, ("max", "mask")),
        ("threshold", threshold, ("max", "mean_std", "shannon")),
    ):
        if value is not None and name not in owners:
            raise BadRequest(
                f"{setting} does not apply to this filter",
                where=setting,
                got=f"filter {name}",
                expected=" or ".join(owners),
            )
    if name == "shannon":
        return ShannonPatchFilter(threshold, ref_channel)
    if name == "max":
        return MaxPatchFilter(threshold, ref_channel, coverage)
    if name == "mean_std":
        return MeanStdPatchFilter(threshold, std_threshold, ref_channel)
    return MaskPatchFilter(coverage, ref_channel, missing) if name == "mask" else None
