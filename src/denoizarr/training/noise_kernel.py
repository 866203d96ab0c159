"""The noise kernel of an image: found in windows spread over all of it, kept as a small JSON file."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoizarr.errors import BadRequest, EmptyIndex
from denoizarr.stores import locations, records
from denoizarr.stores.images import ImageLike, as_images, reader_of

from .noise_sample import SMALLEST_SIDE
from .noise_windows import WINDOW, draw_sites, read_denoised, read_differences, read_windows
from .structure import Floats, Mask, StructuralNoise, StructuralNoiseExtractor

if TYPE_CHECKING:
    from denoizarr.selection.patch_index import PatchIndex

    from .denoiser import Denoiser

_LOG = logging.getLogger(__name__)

_FORMAT, _VERSION = "denoizarr.noise_kernel", 1


@dataclass(frozen=True, slots=True, eq=False)
class NoiseKernel:
    """Which pixels around a pixel share its noise, and how that was measured.

    Attributes
    ----------
    mask : (odd, odd) bool array
        True is hidden; (y, x), centred; ``[[True]]`` where noise is not correlated.
    autocorrelation, z_scores : (odd, odd) float64 array
        At all lags measured, centred, usually larger than the mask: correlation (1 at lag zero), and its
        ratio to its standard error (0 at lag zero).
    periods : tuple of float
        Periods of line noise in pixels; always empty in this version.
    windows, window_size : int
        Windows used and their side in pixels; 0 for a mask from a file.
    method, source : str
        The extractor's method; "extractor", "plane differences", "stage1" or "file".
    spread : float
        Variance of near lags between windows over what sampling gives; about 1 where they show noise alone.
    z_threshold : float
        What a z-score had to exceed.
    outside : float
        Largest correlation that the mask leaves out, with its sign.
    note : str
        Why there is no kernel, where structure stood in the way; else empty.

    Raises
    ------
    BadRequest
        When the mask has an even side or its centre is not hidden.
    """

    mask: Mask
    autocorrelation: Floats
    z_scores: Floats
    periods: tuple[float, ...] = ()
    windows: int = 0
    window_size: int = 0
    method: str = "significance"
    source: str = "extractor"
    spread: float = 1.0
    z_threshold: float = 4.0
    outside: float = 0.0
    note: str = ""

    def __post_init__(self) -> None:
        _check_mask(self.mask)

    @property
    def is_single_pixel(self) -> bool:
        """Whether noise is uncorrelated as far as is known: Noise2Void's kernel, and no need of stage 2."""
        return int(self.mask.sum()) == 1

    def save(self, url: str | Path) -> None:
        """Write everything as JSON, replacing the file whole."""
        records.write_json(
            url,
            {
                "format": _FORMAT,
                "version": _VERSION,
                "mask": self.mask.astype(int).tolist(),
                "autocorrelation": self.autocorrelation.tolist(),
                "z_scores": self.z_scores.tolist(),
                "periods": list(self.periods),
                **{name: getattr(self, name) for name in _PLAIN},
            },
        )

    @classmethod
    def load(cls, url: str | Path) -> NoiseKernel:
        """Read a kernel that ``save`` wrote, or a boolean mask from a ``.npy`` file.

        Raises
        ------
        ImageNotFound
            There is no such file.
        BadRequest
            It is no kernel, or not one that a blind spot can use. Nothing in it is executed.
        """
        where = locations.redact(str(url))
        if str(url).endswith(".npy"):
            return _from_mask(_read_npy(url, where), where)
        data = records.read_json(url)
        if data.get("format") != _FORMAT or data.get("version") != _VERSION:
            got = f"format {data.get('format')!r}, version {data.get('version')!r}"
            raise BadRequest(
                "not a noise kernel", where=where, got=got, expected=f"{_FORMAT!r}, version {_VERSION}"
            )
        try:
            return cls(
                mask=_as_mask(data["mask"], where),
                autocorrelation=np.array(data["autocorrelation"], dtype=np.float64),
                z_scores=np.array(data["z_scores"], dtype=np.float64),
                periods=tuple(float(period) for period in data["periods"]),
                **{name: kind(data[name]) for name, kind in _PLAIN.items()},
            )
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadRequest):
                raise
            got = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BadRequest("the noise kernel's file is not valid", where=where, got=got) from error


# The fields that are neither arrays nor lists, with their types.
_PLAIN: dict[str, Any] = {
    "windows": int, "window_size": int, "method": str, "source": str, "spread": float, "z_threshold": float,
    "outside": float, "note": str,
}  # fmt: skip


def extract_noise_kernel(
    image: ImageLike | Sequence[ImageLike],
    index: PatchIndex | None = None,
    *,
    mask_source: str = "auto",
    denoiser: Denoiser | None = None,
    extractor: StructuralNoiseExtractor | None = None,
    seed: int = 0,
) -> NoiseKernel:
    """Measure how far the noise of an image is correlated.

    Windows are drawn over the whole image (one site from each of 256 equal parts, by ``seed``), and the
    extractor keeps the flattest that agree. Where structure is everywhere, the differences of neighbouring
    planes are tried: structure changes little from plane to plane, noise is drawn anew.

    Parameters
    ----------
    image : URL, path, array, DataArray or a list of them
        Raw intensities; several images together give one kernel. Channels, planes and times are pooled.
    index : PatchIndex, optional
        Made of the same images: cells of low weight (background) are preferred.
    mask_source : {"auto", "extractor", "stage1"}
        "extractor" measures the raw image, and "auto" does the same; "stage1" measures what ``denoiser``
        makes of it, where uncorrelated noise is gone.
    denoiser : Denoiser, optional
        Trained in stage 1; needed for "stage1".
    extractor : StructuralNoiseExtractor, optional
        By default one with its default settings.
    seed : int
        Draws the sites.

    Returns
    -------
    NoiseKernel
        A single pixel, with a note, where noise cannot be told from structure.

    Raises
    ------
    EmptyIndex
        There are fewer than 20 windows that vary.
    BadRequest
        The source is unknown or lacks its denoiser, or the index is of another image.
    """
    if mask_source not in ("auto", "extractor", "stage1"):
        remedy = "read a mask file with NoiseKernel.load" if mask_source == "file" else None
        expected = '"auto", "extractor" or "stage1"'
        raise BadRequest("unknown mask_source", got=repr(mask_source), expected=expected, remedy=remedy)
    if mask_source == "stage1" and denoiser is None:
        raise BadRequest('mask_source "stage1" needs the denoiser of stage 1', remedy="pass denoiser=")
    images = as_images(image)
    if index is not None:
        index.check_image(images)
    readers = [reader_of(one) for one in images]
    extractor = extractor or StructuralNoiseExtractor()
    side = min(min(reader.shape[-2:]) for reader in readers)
    if side < SMALLEST_SIDE:
        raise EmptyIndex(
            "the image is too small to measure noise in",
            where=readers[0].name,
            got=f"{side} pixels",
            expected=f"{SMALLEST_SIDE} or more along y and x",
            remedy="give a mask file, or run stage 1 only",
        )
    side = min(side, WINDOW)
    sites = draw_sites(readers, side, index, seed)
    if denoiser is not None and mask_source == "stage1":
        found = extractor.analyse(read_denoised(readers, sites, side, denoiser))
        return _kernel_of(found, extractor.method, "stage1")
    found = extractor.analyse(read_windows(readers, sites, side))
    if found.note:
        differences = read_differences(readers, sites, side)
        if len(differences):
            second = extractor.analyse(differences)
            if not second.note:
                return _kernel_of(second, extractor.method, "plane differences")
        _LOG.warning("no noise kernel: %s", found.note)
    return _kernel_of(found, extractor.method, "extractor")


def _kernel_of(found: StructuralNoise, method: str, source: str) -> NoiseKernel:
    return NoiseKernel(
        mask=found.mask,
        # Six digits are far below the standard error, and keep the file small and exactly readable.
        autocorrelation=np.round(found.autocorrelation, 6),
        z_scores=np.round(found.z_scores, 3),
        windows=found.windows,
        window_size=found.window_size,
        method=method,
        source=source,
        spread=round(found.spread, 4),
        z_threshold=round(found.z_threshold, 4),
        outside=round(found.outside, 6),
        note=found.note,
    )


def _check_mask(mask: np.ndarray[Any, Any], where: str | None = None) -> None:
    if mask.ndim != 2 or mask.dtype != np.bool_ or any(n % 2 == 0 for n in mask.shape):
        expected = "two odd sides"
        raise BadRequest(
            "a noise kernel has no centre", where=where, got=f"{mask.dtype} {mask.shape}", expected=expected
        )
    if not mask[mask.shape[0] // 2, mask.shape[1] // 2]:
        raise BadRequest("a noise kernel hides its own centre", where=where, got="False", expected="True")


def _as_mask(values: Any, where: str) -> Mask:
    array = np.array(values)
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise BadRequest("a noise kernel holds 0 and 1", where=where, got=array.dtype)
    mask: Mask = array.astype(np.bool_)
    _check_mask(mask, where)
    return mask


def _read_npy(url: str | Path, where: str) -> np.ndarray[Any, Any]:
    try:
        loaded = np.load(io.BytesIO(locations.get(url)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        if isinstance(error, BadRequest):
            raise
        raise BadRequest("not an array of numbers in .npy format", where=where, got=str(error)) from error
    if not isinstance(loaded, np.ndarray):
        raise BadRequest("not a single array", where=where, got=type(loaded).__name__)
    return loaded


def _from_mask(values: np.ndarray[Any, Any], where: str) -> NoiseKernel:
    mask = _as_mask(values, where)
    unknown = np.zeros(mask.shape)
    correlation = unknown.copy()
    correlation[mask.shape[0] // 2, mask.shape[1] // 2] = 1.0
    return NoiseKernel(mask, correlation, unknown, method="file", source="file")
