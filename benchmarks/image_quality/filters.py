"""What needs no training: the noisy array itself, and a Gaussian."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]
SIGMAS = tuple(float(s) for s in np.round(np.geomspace(0.4, 6.0, 40), 3))


def raw(settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    """Return the noisy array."""
    return np.load(settings["noisy"]), {"cpu_seconds": 0.0}


def gaussian(settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    """Blur with the sigma that is best by the truth: an upper bound, nobody can choose it so.

    Best is the smallest squared error after gain and offset. Without a truth sigma is 1.
    """
    from scipy.ndimage import gaussian_filter

    from .metrics import best_affine, psnr

    noisy = np.load(settings["noisy"]).astype(np.float64)
    started = time.process_time()
    if settings["truth"] is None:
        blurred = np.stack([gaussian_filter(plane, 1.0) for plane in noisy])
        return blurred.astype(np.float32), {"cpu_seconds": time.process_time() - started, "sigma": 1.0}
    truth = np.load(settings["truth"])
    best = max(SIGMAS, key=lambda sigma: psnr(truth, best_affine(truth, gaussian_filter(noisy, sigma))))
    started = time.process_time()
    blurred = gaussian_filter(noisy, best)
    return blurred.astype(np.float32), {"cpu_seconds": time.process_time() - started, "sigma": best}
