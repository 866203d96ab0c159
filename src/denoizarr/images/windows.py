"""Display windows from the data: what a viewer shows before anybody has touched its sliders."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from denoizarr.geometry.boxes import Box
from denoizarr.stores.sources import Array, ImageSource, open_array, reader_of_array

from .layout import OutputLayout

# Of the voxels of the coarsest level: a few bright ones would leave the rest dark.
_LOW, _HIGH = 1.0, 99.8
MOST_PLANES, MOST_VOXELS, LARGEST_SIDE = 64, 4 * 2**20, 2048
_COLORS = ("0000FF", "00FF00", "FF0000", "FF00FF", "00FFFF", "FFFF00")


def with_windows(layout: OutputLayout) -> dict[str, Any]:
    """Return the rendering hints of a written image, with a window for every channel that has none.

    A window goes from the 1st to the 99.8th percentile of the coarsest level, of planes spread over it where
    they are many; its limits are those of the dtype, or the extremes that were seen of floats.
    """
    dims, level = layout.dims, layout.levels[-1]
    n_channels = level.shape[dims.index("c")] if "c" in dims else 1
    known = list(layout.omero.get("channels", [])) or [{} for _ in range(n_channels)]
    channels = []
    for number, channel in enumerate(known):
        if "window" in channel:
            channels.append(dict(channel))
            continue
        color = "FFFFFF" if n_channels == 1 else _COLORS[number % len(_COLORS)]
        window = _window(_sample(layout, number), np.dtype(layout.dtype))
        channels.append({"active": True, "color": color, **channel, "window": window})
    return {**layout.omero, "channels": channels}


def _sample(layout: OutputLayout, channel: int) -> Array:
    """Return voxels of one channel of the coarsest level: whole planes, or the middle of large ones."""
    level = layout.levels[-1]
    source = ImageSource(layout.url, level.path, layout.dims)
    reader = reader_of_array(open_array(source.url, source.path), source)
    *lead, height, width = level.shape
    side = [min(n, LARGEST_SIDE) for n in (height, width)]
    corner = [(n - s) // 2 for n, s in zip((height, width), side, strict=True)]
    indices = [[channel] if d == "c" else range(n) for d, n in zip(layout.dims, lead, strict=False)]
    counts = [len(options) for options in indices]
    number = max(min(prod(counts), MOST_PLANES, MOST_VOXELS // prod(side)), 1)
    parts = []
    for part in range(number):
        place = np.unravel_index((2 * part + 1) * prod(counts) // (2 * number), counts) if counts else ()
        at = [options[int(p)] for options, p in zip(indices, place, strict=True)]
        stop = [i + 1 for i in at] + [a + s for a, s in zip(corner, side, strict=True)]
        parts.append(reader.read(Box((*at, *corner), tuple(stop))).ravel())
    return np.concatenate(parts)


def _window(values: Array, dtype: np.dtype[Any]) -> dict[str, float]:
    if dtype.kind == "f":
        values = values[np.isfinite(values)]
    if dtype.kind in "ui":
        least, most = (float(v) for v in (np.iinfo(dtype).min, np.iinfo(dtype).max))
    elif dtype.kind == "b" or values.size == 0:
        least, most = 0.0, 1.0
    else:
        least, most = float(values.min()), float(values.max())
    low, high = least, most
    if values.size:
        low, high = (float(v) for v in np.percentile(values.astype(np.float64), (_LOW, _HIGH)))
    if low >= high:  # a window of no width shows nothing
        low, high = least, most if most > least else least + 1
    return {"start": low, "end": high, "min": least, "max": max(most, high)}
