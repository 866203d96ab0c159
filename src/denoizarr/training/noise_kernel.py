"""The noise kernel of an image: found in windows spread over all of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from denoizarr.errors import BadRequest, EmptyIndex, ModelError
from denoizarr.stores.images import ImageLike, as_images, reader_of

from .kernel_file import NoiseKernel
from .noise_sample import SMALLEST_SIDE, quarters
from .noise_windows import WINDOW, draw_sites, read_differences, read_windows, refine_periods
from .stage1_windows import read_denoised
from .structure import StructuralNoise, StructuralNoiseExtractor, Windows, settings_given
from .volume_windows import read_volumes

if TYPE_CHECKING:
    from denoizarr.selection.patch_index import PatchIndex
    from denoizarr.stores.sources import ImageReader

    from .denoiser import Denoiser
    from .noise_windows import Site

__all__ = ["NoiseKernel", "extract_noise_kernel"]

_LOG = logging.getLogger(__name__)

SOURCES = ("auto", "extractor", "stage1")
# Of two planes, the one lag along z could as well be a drift.
_FEWEST_PLANES = 3


def extract_noise_kernel(
    image: ImageLike | Sequence[ImageLike],
    index: PatchIndex | None = None,
    *,
    mask_source: str = "auto",
    denoiser: Denoiser | None = None,
    extractor: StructuralNoiseExtractor | None = None,
    planes: int = 1,
    seed: int = 0,
    verbose: bool = False,
) -> NoiseKernel:
    """Measure how far the noise of an image is correlated.

    Windows are drawn over the whole image (one site from each of 256 equal parts, by ``seed``), and the
    extractor takes those, and the frequencies, that agree on noise. Where structure is everywhere, the
    differences of neighbouring planes are tried: structure changes little from plane to plane, noise is
    drawn anew.

    Parameters
    ----------
    image : URL, path, array, DataArray or a list of them
        Raw intensities; several images together give one kernel. Channels, planes and times are pooled.
    index : PatchIndex, optional
        Made of the same images: cells of low weight (background) are preferred.
    mask_source : {"auto", "extractor", "stage1"}
        "extractor" measures the raw image; "stage1" measures what ``denoiser`` makes of it, unaugmented and
        unmasked, where uncorrelated noise is gone, and, where that cannot tell noise from structure, the raw
        image (the kernel's ``source`` says which it was); "auto" measures the raw image and, where that
        cannot tell noise from structure and there is a ``denoiser``, what that makes of it.
    denoiser : Denoiser, optional
        Trained in stage 1; needed for "stage1". What it computes is bounded: a network of volumes is asked
        for fewer sites.
    extractor : StructuralNoiseExtractor, optional
        By default one with its default settings.
    planes : int
        Of a window along z. From 3 on the raw image is first measured in volumes, lags along z included, as a
        network of volumes needs it, which gives a kernel over (z, y, x); where that cannot tell noise from
        structure, in the plane.
    seed : int
        Draws the sites.
    verbose : bool
        Say what was measured, as :meth:`StructuralNoiseExtractor.extract_mask` does.

    Returns
    -------
    NoiseKernel
        A single pixel, with a note, where noise cannot be told from structure.

    Raises
    ------
    EmptyIndex
        There are fewer windows that vary than the extractor needs, 20 by default.
    BadRequest
        The source is unknown or lacks its denoiser, or the index is of another image.
    ModelError
        The denoiser is for other axes or channels than an image has.
    """
    _check_source(mask_source, denoiser)
    images = as_images(image)
    if index is not None:
        index.check_image(images)
    readers = [reader_of(one) for one in images]
    if denoiser is not None and mask_source != "extractor":
        _check_denoiser(denoiser, readers)
    extractor = extractor or StructuralNoiseExtractor()
    side = _side_of(readers)
    sites = draw_sites(readers, side, index, seed)
    if mask_source == "stage1":
        left = _of_stage1(readers, sites, side, denoiser, extractor, verbose)
        if not left.note:
            return left
        # A network smooths noise by what it takes for structure around it, so that windows may differ in
        # their noise where those of the raw image agree.
        _LOG.warning("what stage 1 makes of the image does not tell its noise: the raw image is measured")
    kernel = _of_volumes(readers, sites, side, planes, extractor, verbose)
    if kernel is None:
        kernel = _of_raw_image(readers, sites, side, extractor, verbose)
    if kernel.note and mask_source == "auto" and denoiser is not None:
        left = _of_stage1(readers, sites, side, denoiser, extractor, verbose)
        kernel = kernel if left.note else left
    return _noted(kernel)


def _of_stage1(
    readers: Sequence[ImageReader],
    sites: Sequence[Site],
    side: int,
    denoiser: Denoiser | None,
    extractor: StructuralNoiseExtractor,
    verbose: bool,
) -> NoiseKernel:
    assert denoiser is not None, "checked before"
    return _found(read_denoised(readers, sites, side, denoiser), extractor, "stage1", verbose)


def _of_volumes(
    readers: Sequence[ImageReader],
    sites: Sequence[Site],
    side: int,
    planes: int,
    extractor: StructuralNoiseExtractor,
    verbose: bool,
) -> NoiseKernel | None:
    """Return the kernel over (z, y, x), or None where it is not asked for, or volumes do not tell it."""
    if planes < _FEWEST_PLANES or extractor.method != "significance":
        return None
    depths = [reader.shape[reader.dims.index("z")] if "z" in reader.dims else 1 for reader in readers]
    planes = min(planes, *depths)
    if planes < _FEWEST_PLANES:
        return None
    try:
        kernel = _found(read_volumes(readers, sites, side, planes), extractor, "extractor", verbose)
    except EmptyIndex:  # a plane has more windows than columns
        return None
    return None if kernel.note else kernel


def _of_raw_image(
    readers: Sequence[ImageReader],
    sites: Sequence[Site],
    side: int,
    extractor: StructuralNoiseExtractor,
    verbose: bool,
) -> NoiseKernel:
    kernel = _found(read_windows(readers, sites, side), extractor, "extractor", verbose)
    kernel = replace(kernel, periods=refine_periods(readers, sites, kernel.periods))
    if kernel.note:
        differences = read_differences(readers, sites, side)
        if len(differences):
            second = _found(differences, extractor, "plane differences", verbose)
            return kernel if second.note else second
    return kernel


def _found(windows: Windows, extractor: StructuralNoiseExtractor, source: str, verbose: bool) -> NoiseKernel:
    fewest = extractor.settings.minimum_windows
    if extractor.method == "rings" and isinstance(windows, np.ndarray) and len(windows) < fewest:
        windows = quarters(windows)  # as "significance" does: a small image has few large windows
    drawn = 0

    def counted() -> Iterator[np.ndarray[Any, Any]]:
        nonlocal drawn
        for batch in [windows] if isinstance(windows, np.ndarray) else windows:
            # Windows may be cut in four where there are few.
            drawn += len(batch) * batch.shape[-1] ** 2
            yield batch

    found: StructuralNoise = extractor.analyse(counted(), verbose)
    return NoiseKernel(
        mask=found.mask,
        # Six digits are far below the standard error, and keep the file small and exactly readable.
        autocorrelation=np.round(found.autocorrelation, 6),
        z_scores=np.round(found.z_scores, 3),
        periods=tuple(round(float(period), 4) for period in getattr(found, "periods", ())),
        windows=found.windows,
        windows_drawn=drawn // max(found.window_size, 1) ** 2,
        window_size=found.window_size,
        method=extractor.method,
        source=source,
        settings=settings_given(extractor),
        spread=round(found.spread, 4),
        z_threshold=round(found.z_threshold, 4),
        outside=round(found.outside, 6),
        note=found.note,
    )


def _noted(kernel: NoiseKernel) -> NoiseKernel:
    if kernel.note:
        _LOG.warning("no noise kernel: %s", kernel.note)
    return kernel


def _check_source(mask_source: str, denoiser: Denoiser | None) -> None:
    if mask_source not in SOURCES:
        remedy = "read a mask file with NoiseKernel.load" if mask_source == "file" else None
        expected = '"auto", "extractor" or "stage1"'
        raise BadRequest("unknown mask_source", got=repr(mask_source), expected=expected, remedy=remedy)
    if mask_source == "stage1" and denoiser is None:
        raise BadRequest('mask_source "stage1" needs the denoiser of stage 1', remedy="pass denoiser=")


def _check_denoiser(denoiser: Denoiser, readers: Sequence[ImageReader]) -> None:
    for reader in readers:
        if "".join(reader.dims[-len(denoiser.axes) :]) != denoiser.axes:
            raise ModelError(
                "the model needs axes that the image does not have",
                where=reader.name,
                got=f"an image of axes {''.join(reader.dims)}",
                expected=f"one that ends in {denoiser.axes}",
            )
        channels = reader.shape[reader.dims.index("c")] if "c" in reader.dims else 1
        if denoiser.channels not in (1, channels):
            raise ModelError(
                "model and image differ in channels",
                where=reader.name,
                got=channels,
                expected=denoiser.channels,
            )


def _side_of(readers: Sequence[ImageReader]) -> int:
    """Return the side of the windows that all images hold."""
    side = min(min(reader.shape[-2:]) for reader in readers)
    if side < SMALLEST_SIDE:
        raise EmptyIndex(
            "the image is too small to measure noise in",
            where=readers[0].name,
            got=f"{side} pixels",
            expected=f"{SMALLEST_SIDE} or more along y and x",
            remedy="give a mask file, or run stage 1 only",
        )
    return min(side, WINDOW)
