"""Patch filters: where is signal, and where only background that is worth a look now and then.

The names and meanings are those of CAREamics' patch filtering. A class gives lazy maps to look at; an
instance holds the settings and goes into ``build_index``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import xarray as xr

from denoizarr.errors import BadRequest
from denoizarr.kernels.patch_scores import DEFAULT_COVERAGE
from denoizarr.stores.images import ImageLike, as_image

from .cells import PatchSize
from .filter_maps import expanded, lazy_map
from .scores import Score
from .thresholds import check_threshold, otsu_threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# A plot shows no more; larger planes are thinned.
_PLOT_VOXELS = 2048


class _PatchFilter:
    """What the three filters share."""

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
            2D arrays are (y, x), 3D (z, y, x).
        patch_size : int or (y, x)
            In voxels, applied plane by plane.
        ref_channel : int, optional
            Score this channel only.
        coverage : float, optional
            Of the max filter: the fraction of a region that must reach the threshold, 0.25 unless told.

        Returns
        -------
        float32 DataArray, one value per cell
            Dims t, c and z of the image stay; coordinates lie at the cell centres, in the image's units.
            ``MeanStdPatchFilter`` has a leading dim "statistic": mean, std.

        Raises
        ------
        BadRequest
            For a triple ``patch_size``, an unknown channel, or ``coverage`` for another filter than max.
        NonFiniteData
            When computed, if the image holds NaN or infinity.

        Notes
        -----
        An axis has ceil(size / patch) cells and, between them, regions of two neighbouring cells, cropped at
        the border; the value of a cell is the largest over the regions that cover it.
        """
        if coverage is not None and cls.score_name != "max":
            raise BadRequest(
                "coverage is a setting of MaxPatchFilter", where=cls.__name__, got=f"coverage={coverage}"
            )
        score = Score(cls.score_name, DEFAULT_COVERAGE if coverage is None else float(coverage))
        return lazy_map(image, patch_size, score, ref_channel=ref_channel)

    @staticmethod
    def expand_to(filter_map: xr.DataArray, image: ImageLike) -> xr.DataArray:
        """Return the map at the image's size, lazily: every voxel has its cell's value."""
        return expanded(filter_map, image)

    @classmethod
    def suggest_threshold(cls, filter_map: xr.DataArray) -> float:
        """Return the threshold that separates the map's own values best into two groups (Otsu 1979).

        For ``MeanStdPatchFilter`` it is that of the mean. In a map of one value, that value: all is kept.
        """
        return otsu_threshold(np.asarray(cls._main_values(filter_map)))

    @classmethod
    def plot_filter_map(
        cls,
        image: ImageLike,
        filter_map: xr.DataArray,
        *,
        threshold: float | None = None,
        t_idx: int | None = None,
        z_idx: int | None = None,
    ) -> Figure:
        """Show one plane, its scores, and what a threshold keeps.

        Parameters
        ----------
        image, filter_map
            As given to and returned by :meth:`filter_map`.
        threshold : float, optional
            Draws the cells that it keeps; on the mean for ``MeanStdPatchFilter``.
        t_idx, z_idx : int, optional
            The plane shown; the first time point and the middle plane unless told.

        Returns
        -------
        matplotlib.figure.Figure
        """
        from denoizarr.figures.filter_maps import filter_map_figure

        opened = as_image(image)
        index: dict[str, int] = {}
        if "t" in opened.dims:
            index["t"] = 0 if t_idx is None else t_idx
        if "z" in opened.dims:
            index["z"] = opened.sizes["z"] // 2 if z_idx is None else z_idx
        if "c" in opened.dims:
            index["c"] = int(filter_map.attrs.get("ref_channel", 0))
        for dim, chosen in index.items():
            if not -opened.sizes[dim] <= chosen < opened.sizes[dim]:
                raise BadRequest(
                    "no such plane", where=dim, got=chosen, expected=f"0 to {opened.sizes[dim] - 1}"
                )
        plane = opened.isel(index)
        scores = (
            cls._main_values(filter_map)
            .isel({d: i for d, i in index.items() if d in filter_map.dims})
            .compute()
        )
        keep = None if threshold is None else np.asarray(scores >= threshold)
        patch = filter_map.attrs["patch_size"]
        thin = max(1, min(-(-max(plane.shape) // _PLOT_VOXELS), min(patch)))
        # A cell must stay a whole number of drawn pixels.
        while patch[0] % thin or patch[1] % thin:
            thin -= 1
        return filter_map_figure(
            np.asarray(plane[::thin, ::thin]),
            np.asarray(scores),
            keep,
            threshold=threshold,
            label=cls.label,
            cell_shape=(patch[0] // thin, patch[1] // thin),
        )

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
        chosen = otsu_threshold(*(np.asarray(self._main_values(m)) for m in filter_maps))
        return replace(self, **{self.threshold_name: chosen})  # type: ignore[type-var]

    def settings(self) -> dict[str, Any]:
        """Return what an index records of this filter: its name and settings, JSON-able."""
        return {"name": self.score_name, **asdict(self)}  # type: ignore[call-overload]

    @property
    def score(self) -> Score:
        """The score that this filter's map shows."""
        return Score(self.score_name, getattr(self, "coverage", DEFAULT_COVERAGE))


class _OneThreshold(_PatchFilter):
    """A filter whose map has one value per cell."""

    __slots__ = ()

    @staticmethod
    def apply_filter(filter_map: xr.DataArray, threshold: float) -> xr.DataArray:
        """Return True for the cells to keep: value >= threshold."""
        return filter_map >= threshold

    def keep(self, filter_map: xr.DataArray) -> xr.DataArray:
        """Apply this instance's threshold."""
        return self.apply_filter(filter_map, self.main_threshold())


@dataclass(frozen=True, slots=True)
class MaxPatchFilter(_OneThreshold):
    """Keep cells where enough of a region has bright voxels nearby.

    Attributes
    ----------
    threshold : float or None
        In intensity units; None is chosen from the map when an index is built.
    ref_channel : int
    coverage : float
        Fraction of a region whose running maximum must reach the threshold.
    """

    score_name: ClassVar[str] = "max"
    label: ClassVar[str] = "maximum (intensity)"

    threshold: float | None = None
    ref_channel: int = 0
    coverage: float = DEFAULT_COVERAGE

    def __post_init__(self) -> None:
        check_threshold(self.threshold, "threshold")


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

    def keep(self, filter_map: xr.DataArray) -> xr.DataArray:
        """Apply this instance's thresholds."""
        return self.apply_filter(filter_map, self.main_threshold(), self.std_threshold)


PatchFilter = MaxPatchFilter | MeanStdPatchFilter | ShannonPatchFilter
