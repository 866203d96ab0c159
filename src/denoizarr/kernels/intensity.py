"""From the network's floats back to the image's own dtype."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def cast_intensities(values: NDArray[np.floating[Any]], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return ``values`` as ``dtype``: integers are rounded half to even and clipped, never wrapped.

    Parameters
    ----------
    values : ndarray of float
        Finite intensities in the image's own units.
    dtype : numpy.dtype
        An integer or float dtype.
    """
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        if values.dtype == np.float16:
            values = values.astype(np.float32)  # whose range holds every integer's
        # Clip in the float's own precision: 2**32 - 1 is not a float32, and a cast from above it would wrap.
        upper = np.asarray(limits.max, values.dtype)
        if int(upper) > limits.max:
            upper = np.nextafter(upper, np.asarray(0, values.dtype))
        rounded = np.rint(values)
        np.clip(rounded, values.dtype.type(limits.min), upper, out=rounded)
        whole: NDArray[Any] = rounded.astype(dtype)
        return whole
    return values.astype(dtype)
