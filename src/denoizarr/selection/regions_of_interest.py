"""Regions of interest: windows of background or of structure, found on a blurred, equalised, coarse level.

Source of the algorithm: the ROI selection page of autoStructN2V, read as in the docstrings below.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadRequest
from denoizarr.stores.images import ImageLike, as_image

from .cells import patch_extents
from .filter_maps import one_channel
from .roi_criteria import Criterion, Quantile
from .roi_preview import lazy_level, suggested_threshold
from .roi_settings import RoiSettings
from .roi_windows import RoiWindows, nothing_selected, survey_windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class RegionOfInterest(RoiSettings):
    """Which windows of an image are background, or structure.

    The image is reduced by box means, blurred, and equalised to 0..1; a window is selected by its mean.

    Attributes
    ----------
    threshold : float or Quantile
        On the window's mean, 0 to 1. ``Quantile(q)`` is that of all pixels of the equalised or scored level.
    select_background : bool
        False takes the windows above the threshold, True those below it.
    background : {"dark", "bright"}
        "bright" turns both around.
    scale_factor : float
        Size of the coarse level over that of the image: one over a whole number. Along y and x, and z where
        the patch is 3D.
    sigma : float
        Of the Gaussian, in full-resolution pixels along y and x (along z as far in physical units), cut off
        at 4 sigma and normalised at the image's border. A large one is computed on fewer pixels: *bounded*,
        by 1 % of the coarse level's range at most; the bound is logged.
    equalize : {"global", "adaptive", "none"}
        One histogram over all planes and time points (*exact*; equals ``skimage.exposure.equalize_hist``
        with 65,536 bins); ``skimage.exposure.equalize_adapthist`` of every plane, or of every volume for 3D
        patches; or only a scaling by the level's extremes.
    overlap : float
        Of neighbouring windows.
    score : callable, Criterion, or a sequence of them, optional
        Instead of blur and equalisation: a score per pixel of the coarse level scaled to 0..1, whose mean
        over the window is compared with ``threshold``; with bounds, or several combined, the fraction of the
        window's pixels that count. All of a sequence must be met. A plain function sees 32 coarse pixels
        around its part; a :class:`Criterion` says how many.
    ref_channel : int
        The channel looked at, where the image has c.
    """

    def preprocess(self, image: ImageLike, *, volumetric: bool = False) -> xr.DataArray:
        """Return the level that windows are compared on: blurred and equalised, or scored.

        Parameters
        ----------
        image : URL, path, zarr.Array, DataArray, Dask or numpy array
        volumetric : bool
            As for 3D patches, instead of plane by plane.

        Returns
        -------
        float64 DataArray
            Dims of the image without c, at 1 / factor of its size, coordinates in physical units. The image
            is read at once; the level is interpolated when it is asked for. ``attrs["bound"]`` is the largest
            error of the blur in intensity units.
        """
        return lazy_level(as_image(image), self, 3 if volumetric else 2)

    def suggest_threshold(self, image: ImageLike, *, volumetric: bool = False) -> float:
        """Return a threshold for this image.

        Where the blurred level (for ``adaptive`` and for scores: what :meth:`preprocess` returns) falls into
        two clear groups, the threshold between them (Otsu 1979), taken through the equalisation: at a
        global one that is the fraction of the image that is darker, 0.9 for bright structures on a tenth of
        it. Where it does not fall into two, the median, as the page's "adaptive approach" has it; after a
        global equalisation the median is 0.5 whatever the image. Two groups are clear where they explain more
        than 80 % of the variance (an even spread of values: 75 %).

        Parameters
        ----------
        image : URL, path, zarr.Array, DataArray, Dask or numpy array
        volumetric : bool
            As for 3D patches, instead of plane by plane.
        """
        return suggested_threshold(as_image(image), self, 3 if volumetric else 2)


def roi_windows(
    image: xr.DataArray,
    patch: tuple[int, ...],
    roi: RegionOfInterest,
    *,
    destination: str | None = None,
    ledger: Ledger | None = None,
    client: Any = None,
    threads: int = 1,
    progress: bool = True,
) -> RoiWindows:
    """Compute the means of all windows of an image, in resumable steps, or reopen them.

    The means depend neither on the image's chunks, nor on threads, kills or resumes, nor on ``threshold``,
    ``select_background`` and ``background``: selections of structure and of background share them.

    Parameters
    ----------
    image : DataArray
    patch : (y, x) or (z, y, x)
        In voxels.
    roi : RegionOfInterest
    destination : path or URL, optional
        Of the Zarr group that keeps them; memory without. A finished one of the same image and settings is
        reopened without computing; that of others is replaced.
    ledger : Ledger, optional
        Makes the steps resumable; needs a ``destination``.
    client : distributed.Client, optional
        Runs the tasks; needs a ``destination``, an image with a URL, and scores at the top of a module.
    threads : int
        Of this process, without a client.
    progress : bool

    Returns
    -------
    RoiWindows

    Raises
    ------
    PatchTooLarge, BadRequest
        The patch does not fit the image, or is less than two coarse pixels.
    NonFiniteData
        The image holds NaN or infinity; the first voxel found is named.
    DegenerateData
        The coarse level is constant.
    OutputExists
        Something else lies at ``destination``.

    Notes
    -----
    Each thread or worker holds up to about 300 MB, at any image size: 32 MiB of voxels and working arrays.
    """
    return survey_windows(
        image,
        tuple(int(p) for p in patch),
        roi,
        destination=None if destination is None else str(destination),
        ledger=ledger,
        client=client,
        threads=threads,
        progress=progress,
    )


def find_roi_patches(
    image: ImageLike,
    patch_size: int | tuple[int, ...],
    roi: RegionOfInterest,
    *,
    max_patches: int | None = None,
    seed: int = 0,
) -> NDArray[np.int64]:
    """Return the patches of an image that lie in regions of interest.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
    patch_size : int, (y, x) or (z, y, x)
    roi : RegionOfInterest
    max_patches : int, optional
        At most this many: those with the lowest hash of ``seed`` and their position in the image.
    seed : int

    Returns
    -------
    int64 array (n, dims)
        First voxel of every patch along the image's dims without c (t first where there is one), at full
        resolution, in raster order.

    Raises
    ------
    EmptyIndex
        No window is on the side of the threshold asked for.
    """
    opened = as_image(image)
    if max_patches is not None and max_patches < 1:
        raise BadRequest(
            "not a number of patches", where="max_patches", got=max_patches, expected="1 or more"
        )
    windows = roi_windows(opened, _patch_of(patch_size), roi, progress=False)
    threshold = windows.threshold_of(roi)
    found = np.zeros(0, np.int64)
    for box, means in windows.pieces():
        index = np.nonzero(roi.selects(means, threshold))
        lead = len(windows.shape) - len(windows.axes)
        places = [*(i + a for i, a in zip(index[:lead], box.start[:lead], strict=True))]
        places += [axis[i] for axis, i in zip(windows.origins, index[lead:], strict=True)]
        # Two windows at the end may be clipped to one and the same patch.
        found = np.union1d(found, np.ravel_multi_index(places, windows.shape))
        if max_patches is not None and found.size > max_patches:
            order = np.lexsort((found, hash_positions(found, seed)))[:max_patches]
            found = np.sort(found[order])
    if not found.size:
        raise nothing_selected(windows, roi)
    return np.stack(np.unravel_index(found, windows.shape), axis=1).astype(np.int64)


def plot_roi_patches(
    image: ImageLike, origins: Any, patch_size: int | tuple[int, ...], *, title: str = "ROI patches"
) -> Figure:
    """Draw the plane of an image that has the most patches, plain and with their outlines.

    Parameters
    ----------
    image : URL, path, zarr.Array, DataArray, Dask or numpy array
        Of one with c, its channel 0 is drawn.
    origins : (n, dims) array
        As :func:`find_roi_patches` returns them.
    patch_size : int, (y, x) or (z, y, x)
    title : str

    Returns
    -------
    matplotlib.figure.Figure
    """
    from denoizarr.figures.regions import roi_patches_figure

    opened = one_channel(as_image(image), 0)
    patch, places = _patch_of(patch_size), np.asarray(origins)
    if places.ndim != 2 or places.shape[1] != opened.ndim or len(patch) > opened.ndim:
        raise BadRequest(
            "patch origins do not fit the image",
            got=f"shape {places.shape}",
            expected=f"(n, {opened.ndim}): one column for each of {', '.join(map(str, opened.dims))}",
        )
    planes = places[:, :-2].copy()
    if len(patch) == 3:
        planes[:, -1] += patch[0] // 2
    kinds, counts = np.unique(planes, axis=0, return_counts=True)
    if counts.size:
        shown = kinds[int(np.argmax(counts))]
    else:
        shown = np.array(
            [n // 2 if d == "z" else 0 for d, n in zip(opened.dims, opened.shape[:-2], strict=False)], int
        )
    inside = np.all(planes == shown, axis=1)
    if len(patch) == 3:
        first = places[:, -3]
        inside = (
            np.all(places[:, :-3] == shown[:-1], axis=1)
            & (first <= shown[-1])
            & (shown[-1] < first + patch[0])
        )
    names = [str(d) for d in opened.dims[:-2]]
    where = ", ".join(f"{d} = {int(i)}" for d, i in zip(names, shown, strict=True))
    return roi_patches_figure(
        np.asarray(opened.isel({d: int(i) for d, i in zip(names, shown, strict=True)})),
        places[inside][:, -2:],
        patch[-2:],
        n_all=len(places),
        where=where,
        title=title,
    )


def hash_positions(positions: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """Return a well-mixed number per position (splitmix64: Steele, Lea and Flood 2014, fig. 17)."""
    golden = np.uint64(0x9E3779B97F4A7C15)

    def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        values = values + golden
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.asarray(values ^ (values >> np.uint64(31)))

    start = mixed(np.array([seed % 2**64], np.uint64))
    return mixed(positions.astype(np.uint64) ^ start)


def _patch_of(patch_size: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(patch_extents(patch_size))


__all__ = [
    "Criterion",
    "Quantile",
    "RegionOfInterest",
    "RoiWindows",
    "find_roi_patches",
    "plot_roi_patches",
    "roi_windows",
]
