from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import BadRequest
from denoizarr.kernels import autocorrelation as lags


def boxed(random: np.random.Generator, count: int, side: int, length: int) -> np.ndarray:
    white = random.standard_normal((count, side, side + length - 1))
    return np.asarray(sum(white[:, :, i : i + side] for i in range(length)) / np.sqrt(length))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 4), st.integers(3, 11), st.integers(3, 11)),
    reach=st.integers(0, 2),
)
def test_lag_products_are_the_sums_over_pairs(seed: int, shape: tuple[int, int, int], reach: int) -> None:
    windows = np.random.default_rng(seed).normal(size=shape)
    found = lags.lag_products(windows, reach)
    _, height, width = shape
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            a = windows[:, max(0, -dy) : height - max(0, dy), max(0, -dx) : width - max(0, dx)]
            b = windows[:, max(0, dy) : height + min(0, dy), max(0, dx) : width + min(0, dx)]
            expected = (a * b).sum(axis=(1, 2))
            np.testing.assert_allclose(found.products[:, reach + dy, reach + dx], expected, atol=1e-11)
            assert found.pairs[reach + dy, reach + dx] == a[0].size


def test_products_keep_their_sign() -> None:
    stripes = np.where(np.arange(32) % 2, 1.0, -1.0)[None, None, :] * np.ones((1, 32, 1))
    correlation = lags.lag_products(stripes, 2).autocorrelation()[0]
    np.testing.assert_allclose(correlation[2], [1, -1, 1, -1, 1], atol=1e-12)


def test_merging_parts_equals_the_whole_bit_for_bit() -> None:
    windows = np.random.default_rng(0).normal(size=(300, 24, 24))
    whole = lags.lag_products(windows, 5)
    merged = lags.LagProducts.merged([lags.lag_products(windows[a:b], 5) for a, b in ((0, 256), (256, 300))])
    assert np.array_equal(merged.products, whole.products)
    assert np.array_equal(whole.take(np.arange(10)).products, whole.products[:10])


def test_detrending_removes_polynomials_whatever_the_offset() -> None:
    y, x = np.mgrid[0:32, 0:32]
    quadric = (30000 + 3 * y - 2 * x + 0.1 * x * y + 0.05 * y**2)[None]
    assert np.abs(lags.detrend(quadric)).max() < 1e-8
    noise = np.random.default_rng(1).normal(size=(1, 32, 32))
    np.testing.assert_allclose(lags.detrend(noise + quadric), lags.detrend(noise), atol=1e-8)


def test_what_detrending_takes_is_at_the_lowest_frequencies() -> None:
    noise = boxed(np.random.default_rng(2), 400, 64, 9)
    before, after = (np.abs(np.fft.fft2(windows)) ** 2 for windows in (noise, lags.detrend(noise)))
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(64), np.fft.fftfreq(64), indexing="ij"))
    kept = (after.mean(axis=0) / before.mean(axis=0))[frequency > 0.08]
    assert abs(kept.mean() - 1) < 0.01


def pairwise(image: np.ndarray, reach: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The plain definition: every pair of one image, summed at its lag."""
    products = np.zeros([2 * r + 1 for r in reach])
    pairs = np.zeros(products.shape, dtype=int)
    for lag in itertools.product(*(range(-r, r + 1) for r in reach)):
        first = image[tuple(slice(max(0, -d), n - max(0, d)) for d, n in zip(lag, image.shape, strict=True))]
        second = image[tuple(slice(max(0, d), n + min(0, d)) for d, n in zip(lag, image.shape, strict=True))]
        place = tuple(d + r for d, r in zip(lag, reach, strict=True))
        products[place], pairs[place] = (first * second).sum(), first.size
    return products, pairs


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    shape=st.lists(st.integers(3, 9), min_size=2, max_size=3),
    reach=st.integers(0, 2),
    parts=st.integers(1, 3),
)
def test_sums_over_windows_are_those_of_all_pairs(
    seed: int, shape: list[int], reach: int, parts: int
) -> None:
    windows = np.random.default_rng(seed).normal(size=(4, *shape))
    reaches = (reach,) * len(shape)
    batches = (lags.window_sums(batch, reaches) for batch in np.array_split(windows, parts))
    found = lags.LagSums.merged(batches)
    expected = [pairwise(window, reaches) for window in windows]
    np.testing.assert_allclose(found.products, sum(products for products, _ in expected), atol=1e-10)
    np.testing.assert_array_equal(found.pairs, sum(pairs for _, pairs in expected))
    assert found.windows == 4


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**16),
    shape=st.lists(st.integers(4, 14), min_size=2, max_size=3),
    chunk=st.integers(3, 6),
    reach=st.integers(0, 4),
)
def test_blocks_with_halos_give_the_whole_image(seed: int, shape: list[int], chunk: int, reach: int) -> None:
    image = np.random.default_rng(seed).normal(size=shape)
    reaches = tuple(min(reach, n - 1) for n in shape)
    sums = []
    for start in itertools.product(*(range(0, n, chunk) for n in shape)):
        stop = [min(a + chunk, n) for a, n in zip(start, shape, strict=True)]
        low = [max(a - r, 0) for a, r in zip(start, reaches, strict=True)]
        high = [min(b + r, n) for b, r, n in zip(stop, reaches, shape, strict=True)]
        around = image[tuple(slice(a, b) for a, b in zip(low, high, strict=True))]
        inside = tuple(slice(a - o, b - o) for a, b, o in zip(start, stop, low, strict=True))
        sums.append(lags.block_sums(around, inside, reaches))
    found = lags.LagSums.merged(sums)
    products, pairs = pairwise(image, reaches)
    np.testing.assert_allclose(found.products, products, atol=1e-9)
    np.testing.assert_array_equal(found.pairs, pairs)


def test_sums_do_not_grow_and_are_normalised_once() -> None:
    random = np.random.default_rng(5)
    few, many = (lags.window_sums(boxed(random, n, 32, 3) + 0.0, (0, 4)) for n in (50, 500))
    assert few.products.shape == many.products.shape == (1, 9)
    expected = [0, 0, 1 / 3, 2 / 3, 1, 2 / 3, 1 / 3, 0, 0]
    np.testing.assert_allclose(many.autocorrelation()[0], expected, atol=0.03)
    assert not lags.window_sums(np.zeros((2, 8, 8)), (1, 1)).autocorrelation().any()
    with pytest.raises(BadRequest, match="no windows"):
        lags.LagSums.merged([])
    with pytest.raises(BadRequest, match="lags do not fit"):
        lags.window_sums(np.zeros((1, 8, 8)), (1, 8))


def test_coarse_share_tells_structure_from_noise_at_any_level() -> None:
    random = np.random.default_rng(4)
    white = random.normal(size=(200, 64, 64))
    y, x = np.mgrid[0:64, 0:64]
    blobs = np.exp(-(((y - 20) ** 2 + (x - 40) ** 2) / 60.0))
    quiet, loud, busy = (lags.coarse_share(lags.detrend(w)) for w in (white, 100 * white, white + 3 * blobs))
    np.testing.assert_allclose(quiet, loud, rtol=1e-9)
    assert abs(quiet.mean() - 1 / 64) < 0.002
    assert busy.min() > quiet.max()
    assert lags.coarse_share(np.zeros((1, 64, 64)))[0] == 0


def test_a_window_without_variance_gives_zeros() -> None:
    correlation = lags.lag_products(np.zeros((1, 24, 24)), 2).autocorrelation()[0]
    assert correlation[2, 2] == 1
    assert correlation.sum() == 1


def test_lags_beyond_the_window_are_refused() -> None:
    with pytest.raises(BadRequest, match="lags do not fit"):
        lags.lag_products(np.zeros((1, 8, 8)), 8)
