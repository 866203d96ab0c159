"""A noise kernel and its file: our own JSON, or a mask from elsewhere. Nothing in a file is executed."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from denoizarr.errors import BadRequest, MetadataError
from denoizarr.kernels.predictable_noise import enclosing_kernel
from denoizarr.stores import locations, records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = np.ndarray[Any, np.dtype[np.float64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

FORMAT = "denoizarr.noise_kernel"
# Version 2 adds 3D masks, the axes, the extractor's settings and how many windows were drawn.
VERSION, VERSIONS = 2, (1, 2)


@dataclass(frozen=True, slots=True, eq=False)
class NoiseKernel:
    """Which pixels around a pixel share its noise, and how that was measured.

    Attributes
    ----------
    mask : bool array of odd sides, (y, x) or (z, y, x)
        True is hidden; centred; ``[[True]]`` where noise is not correlated.
    autocorrelation, z_scores : float64 array of as many axes, odd sides
        At all lags measured, centred, usually larger than the mask: correlation (1 at lag zero), and its
        ratio to its standard error (0 at lag zero; 0 everywhere where nothing was tested).
    periods : tuple of float
        Periods in pixels of patterns that repeat: no kernel hides those.
    windows, windows_drawn, window_size : int
        Windows used, of how many that were looked at, and their side in pixels; 0 for a mask from a file.
    method, source : str
        The extractor's method; "extractor", "plane differences", "stage1" or "file".
    settings : mapping
        Of the extractor, those that differ from its method's defaults.
    spread : float
        Variance of near lags between windows over what sampling gives; about 1 where they show noise alone,
        0 where it was not measured.
    z_threshold : float
        What a z-score had to exceed.
    outside : float
        Largest correlation that the mask leaves out, with its sign.
    note : str
        Why there is no kernel, where structure stood in the way; else empty.

    Raises
    ------
    BadRequest
        When the mask has an even side, its centre is not hidden, or an array has other axes than the mask.
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
    windows_drawn: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_mask(self.mask)
        for name in ("autocorrelation", "z_scores"):
            shape = getattr(self, name).shape
            if len(shape) != self.mask.ndim or any(n % 2 == 0 for n in shape):
                expected = f"{self.mask.ndim} odd sides"
                raise BadRequest(f"the {name} of a noise kernel is centred", got=shape, expected=expected)

    @property
    def is_single_pixel(self) -> bool:
        """Whether noise is uncorrelated as far as is known: Noise2Void's kernel, and no need of stage 2."""
        return int(self.mask.sum()) == 1

    @property
    def hidden(self) -> Mask:
        """What training must hide: the mask, grown where what it leaves out still tells of a pixel's noise.

        Correlations that are not significant count as none; a mask from a file stands as it is.
        """
        if self.is_single_pixel:
            return self.mask
        tested = np.where(np.abs(self.z_scores) >= self.z_threshold, self.autocorrelation, 0.0)
        tested[tuple(n // 2 for n in tested.shape)] = 1.0
        return enclosing_kernel(self.mask, tested)

    @classmethod
    def from_mask(cls, mask: Any) -> NoiseKernel:
        """Return a mask that was not measured here as a kernel; raises ``BadRequest`` where it is none."""
        hidden = as_mask(mask)
        unknown = np.zeros(hidden.shape)
        correlation = unknown.copy()
        correlation[tuple(n // 2 for n in hidden.shape)] = 1.0
        return cls(hidden, correlation, unknown, method="file", source="file")

    def plot(self, title: str = "The shape of the noise") -> Figure:
        """Return the heat map of the autocorrelation with the kernel drawn on it."""
        from denoizarr.figures.noise_kernel import noise_kernel_figure

        measured = self.source != "file"
        return noise_kernel_figure(
            self.mask,
            self.autocorrelation if measured else np.ones((1,) * self.mask.ndim),
            self.z_scores if measured else None,
            z_threshold=self.z_threshold,
            title=title,
        )

    def in_words(self) -> str:
        """Return what was found, in lines for people."""
        axes = ", ".join("zyx"[-self.mask.ndim :])
        size = " x ".join(map(str, self.mask.shape))
        count = int(self.mask.sum())
        lines = [f"kernel {size} ({axes}), {count} pixel{'s' if count != 1 else ''} hidden"]
        hidden = self.hidden
        if hidden is not self.mask:
            grown = " x ".join(map(str, hidden.shape))
            lines.append(f"training hides {grown}, {int(hidden.sum())} pixels: the others tell of its noise")
        if self.windows:
            lines.append(
                f"measured by {self.method} ({self.source}) in {self.windows} of {self.windows_drawn} "
                f"windows of {self.window_size} pixels; largest correlation left out {self.outside:.3f}"
            )
        if self.periods:
            lines.append(f"repeats every {', '.join(f'{period:.4g}' for period in self.periods)} pixels")
        return "\n".join([*lines, *([f"note: {self.note}"] if self.note else [])])

    def facts(self) -> dict[str, Any]:
        """Return what was found but for the arrays, as JSON takes it."""
        plain = {name: getattr(self, name) for name in (*_PLAIN, *_NEW)}
        shape = {"shape": list(self.mask.shape), "pixels": int(self.mask.sum())}
        return {**shape, **plain, "periods": list(self.periods), "settings": dict(self.settings)}

    def save(self, url: str | Path) -> None:
        """Write everything as JSON, replacing the file whole; of a ``.npy`` the mask alone."""
        if str(url).endswith(".npy"):
            buffer = io.BytesIO()
            np.save(buffer, self.mask)
            locations.put(url, buffer.getvalue())
            return
        records.write_json(
            url,
            {
                "format": FORMAT,
                "version": VERSION,
                "axes": ["z", "y", "x"][-self.mask.ndim :],
                "mask": self.mask.astype(int).tolist(),
                "autocorrelation": self.autocorrelation.tolist(),
                "z_scores": self.z_scores.tolist(),
                "periods": list(self.periods),
                **{name: getattr(self, name) for name in (*_PLAIN, *_NEW)},
                "settings": dict(self.settings),
            },
        )

    @classmethod
    def load(cls, url: str | Path) -> NoiseKernel:
        """Read a kernel that ``save`` wrote, or a mask from elsewhere: ``.npy``, or lists in JSON.

        Raises
        ------
        ImageNotFound
            There is no such file.
        BadRequest
            It is no kernel, or not one that a blind spot can use. Nothing in it is executed.
        """
        data, mask = read_kernel_file(url)
        if data is None:
            return cls.from_mask(mask)
        where = locations.redact(str(url))
        try:
            return cls(
                mask=mask,
                autocorrelation=np.array(data["autocorrelation"], dtype=np.float64),
                z_scores=np.array(data["z_scores"], dtype=np.float64),
                periods=tuple(float(period) for period in data["periods"]),
                settings=dict(data.get("settings", {})),
                **{name: kind(data[name]) for name, kind in _PLAIN.items()},
                **{name: kind(data.get(name, 0)) for name, kind in _NEW.items()},
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            got = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise BadRequest("the noise kernel's file is not valid", where=where, got=got) from error


# The fields that are neither arrays nor lists, with their types; the second, new in version 2.
_PLAIN: dict[str, Any] = {
    "windows": int, "window_size": int, "method": str, "source": str, "spread": float, "z_threshold": float,
    "outside": float, "note": str,
}  # fmt: skip
_NEW: dict[str, Any] = {"windows_drawn": int}


def read_kernel_file(url: str | Path) -> tuple[dict[str, Any] | None, Mask]:
    """Return a file's fields, None for a bare mask from elsewhere, and its mask.

    Parameters
    ----------
    url : URL or path
        ``.npy``, or JSON: an object that ``NoiseKernel.save`` wrote, any object with a key "mask", or a list
        of lists of 0 and 1 (false and true).

    Raises
    ------
    ImageNotFound
        There is no such file.
    BadRequest
        It is no kernel, or not one that a blind spot can use.
    """
    where = locations.redact(str(url))
    if str(url).endswith(".npy"):
        return None, as_mask(_read_npy(url, where), where)
    text = locations.get(url)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MetadataError("not readable as JSON", where=where, got=str(error)) from error
    if isinstance(data, list):
        return None, as_mask(data, where)
    if not isinstance(data, dict) or "mask" not in data:
        expected = "a .npy mask, a list of lists, or a kernel that denoizarr saved"
        raise BadRequest("not a noise kernel", where=where, got="no mask in it", expected=expected)
    if "format" not in data:
        return None, as_mask(data["mask"], where)
    if data["format"] != FORMAT or data.get("version") not in VERSIONS:
        got = f"format {data['format']!r}, version {data.get('version')!r}"
        versions = " or ".join(map(str, VERSIONS))
        raise BadRequest(
            "not a noise kernel", where=where, got=got, expected=f"{FORMAT!r}, version {versions}"
        )
    return data, as_mask(data["mask"], where)


def as_mask(values: Any, where: str | None = None) -> Mask:
    """Return a mask of 0 and 1 as booleans.

    Raises
    ------
    BadRequest
        There is something else in it, a side is even, or the centre is not hidden.
    """
    try:
        array = np.array(values)
    except ValueError as error:
        raise BadRequest("the rows of a noise kernel differ in length", where=where) from error
    if array.dtype.kind not in "buif" or not np.isin(array, (0, 1)).all():
        raise BadRequest("a noise kernel holds 0 and 1", where=where, got=array.dtype)
    mask: Mask = array.astype(np.bool_)
    check_mask(mask, where)
    return mask


def check_mask(mask: np.ndarray[Any, Any], where: str | None = None) -> None:
    """Refuse what is no blind-spot kernel: odd sides, the centre True, of bool, (y, x) or (z, y, x).

    Raises
    ------
    BadRequest
    """
    if mask.ndim not in (2, 3) or mask.dtype != np.bool_:
        raise BadRequest(
            "a noise kernel is a 2D or 3D mask",
            where=where,
            got=f"{mask.dtype} {mask.shape}",
            expected="0 and 1 over (y, x) or (z, y, x)",
        )
    if any(n % 2 == 0 for n in mask.shape):
        raise BadRequest(
            "a noise kernel has no centre",
            where=where,
            got=" x ".join(map(str, mask.shape)),
            expected="odd sides",
            remedy="pad it with a row or column of zeros, or cut one",
        )
    if not mask[tuple(n // 2 for n in mask.shape)]:
        raise BadRequest(
            "a noise kernel hides its own centre",
            where=where,
            got="False in the centre",
            expected="True",
            remedy="turn it around if True is visible in it",
        )


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
