"""Scores at the top of a module: what a worker can import."""

import numpy as np


def texture(level):
    """High-texture regions, as the seed page's custom function finds them."""
    from scipy.ndimage import gaussian_filter
    from skimage.feature import local_binary_pattern

    # Of integers, as it is meant to be used: neighbours of nearly equal floats are noise.
    pattern = local_binary_pattern(np.round(level * 255).astype(np.uint8), 8, 1)
    return gaussian_filter(pattern, sigma=5)


def gradient(level):
    from scipy.ndimage import sobel

    return np.hypot(sobel(level, axis=0), sobel(level, axis=1))


def shadows(level):
    return level < 0.5


def wrong_shape(level):
    return level[1:]


def undefined(level):
    return np.full(level.shape, np.nan)
