"""A diffusion phantom with known truth, and Patch2Self as it is defined: one regression after another."""

from __future__ import annotations

import numpy as np


def phantom(shape=(12, 11, 10), n=14, *, n_b0=2, noise=3.0, seed=0):
    """Return noisy data (x, y, z, n), the truth, and b-values: tensors whose directions turn smoothly."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, s) for s in shape), indexing="ij")
    inside = x**2 + y**2 + z**2 < 0.9
    s0 = 100 + 40 * np.sin(2 * x) * np.cos(3 * y)
    angle = np.arctan2(y, x) + z
    main = np.stack([np.cos(angle), np.sin(angle), 0.3 * z], -1)
    main /= np.linalg.norm(main, axis=-1, keepdims=True)
    directions = rng.normal(size=(n, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    bvals = np.where(np.arange(n) < n_b0, 0.0, 1000.0)
    attenuation = 0.4 + 1.3 * (main @ directions.T) ** 2
    truth = np.where(inside[..., None], s0[..., None] * np.exp(-bvals / 1000 * attenuation), 5.0)
    return truth + rng.normal(0, noise, truth.shape), truth, bvals


def defined(data, groups, *, radius=(0, 0, 0), penalty=0.0, copied=(), mask=None):
    """Return float64 predictions, each volume fitted by least squares on all others of its group."""
    data = data.astype(np.float64)
    counts = np.ones(data.shape[:3], bool) if mask is None else mask
    values = np.where(counts[..., None], data, 0)
    padded = np.pad(values, [(r, r) for r in radius] + [(0, 0)])
    views = [
        padded[i : i + data.shape[0], j : j + data.shape[1], k : k + data.shape[2]]
        for i in range(2 * radius[0] + 1)
        for j in range(2 * radius[1] + 1)
        for k in range(2 * radius[2] + 1)
    ]
    neighbours = np.stack(views, -1)  # x, y, z, volume, offset
    out = data.copy()
    for group in groups:
        for j in group:
            others = [i for i in group if i != j]
            features = neighbours[..., others, :].reshape(*data.shape[:3], -1)
            x, y = features[counts], data[counts][:, j]
            mean_x, mean_y = x.mean(0), y.mean()
            a, b = x - mean_x, y - mean_y
            if penalty:
                a = np.vstack([a, np.sqrt(penalty) * np.eye(a.shape[1])])
                b = np.concatenate([b, np.zeros(a.shape[1])])
            weights = np.linalg.lstsq(a, b, rcond=None)[0]
            out[counts, j] = (x - mean_x) @ weights + mean_y
    for j in copied:
        out[..., j] = data[..., j]
    return out


def psnr(found, truth):
    """Return the peak signal-to-noise ratio, in dB."""
    return 10 * np.log10((truth.max() - truth.min()) ** 2 / ((found - truth) ** 2).mean())
