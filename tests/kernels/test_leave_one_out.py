import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.kernels.leave_one_out import Predictor, leave_one_out
from denoizarr.kernels.scatter import scatter_of


def correlated(n, v, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 3)) @ rng.normal(size=(3, v)) * spread + rng.normal(size=(n, v)) + 20


def one_by_one(rows, p, penalty=0.0):
    n = len(rows) // p
    out = np.empty((n, rows.shape[1]))
    for j in range(n):
        own = np.arange(j * p, (j + 1) * p)
        x = np.delete(rows, own, axis=0)
        y = rows[j * p + p // 2]
        a, b = (x - x.mean(1, keepdims=True)).T, y - y.mean()
        gram = a.T @ a + penalty * np.eye(a.shape[1])
        out[j] = a @ np.linalg.solve(gram, a.T @ b) + y.mean()
    return out


def predictions(rows, p, **how):
    found = leave_one_out(scatter_of(rows), p, **how)
    return Predictor(found.weights, found.intercepts).sums(rows) + found.intercepts[:, None], found


@given(st.integers(3, 9), st.sampled_from([1, 3]), st.integers(0, 50))
def test_one_inverse_gives_every_regression(n, p, seed):
    rows = correlated(n * p, 200, seed)
    found, _ = predictions(rows, p)
    np.testing.assert_allclose(found, one_by_one(rows, p), rtol=0, atol=1e-10)


@pytest.mark.parametrize("p", [1, 3])
def test_ridge_with_its_penalty(p):
    rows = correlated(6 * p, 150)
    found, _ = predictions(rows, p, model="ridge", alpha=25.0)
    np.testing.assert_allclose(found, one_by_one(rows, p, 25.0), rtol=0, atol=1e-10)
    assert np.abs(found - one_by_one(rows, p)).max() > 1e-3


def test_a_volume_never_predicts_itself():
    found = leave_one_out(scatter_of(correlated(12, 100)), 3)
    for j in range(4):
        assert not found.weights[j, 3 * j : 3 * j + 3].any()
        assert found.weights[j].any()


def test_r_squared_is_the_variance_explained():
    rows = correlated(8, 300)
    found, fit = predictions(rows, 1)
    explained = 1 - ((rows - found) ** 2).sum(1) / ((rows - rows.mean(1, keepdims=True)) ** 2).sum(1)
    np.testing.assert_allclose(fit.r_squared, explained, rtol=1e-10)


@pytest.mark.parametrize("model", ["ols", "ridge", "lasso"])
def test_a_constant_becomes_its_mean_and_leaves_the_others_alone(model):
    rows = correlated(6, 200)
    with_constant = np.insert(rows, 2, 7.25, axis=0)
    found, fit = predictions(with_constant, 1, model=model, alpha=0.1)
    assert fit.without_variance == (2,)
    assert np.isnan(fit.r_squared[2])
    np.testing.assert_allclose(found[2], 7.25, rtol=1e-14)
    np.testing.assert_allclose(
        np.delete(found, 2, 0), predictions(rows, 1, model=model, alpha=0.1)[0], atol=1e-9
    )


def test_copies_of_a_volume_do_not_break_the_others():
    rows = correlated(6, 500)
    doubled = np.vstack([rows, rows[1]])
    found, fit = predictions(doubled, 1)
    assert fit.floored >= 1
    assert np.isfinite(found).all()
    # A copy is predicted by its copy, and the others as if there were one.
    np.testing.assert_allclose(found[1], rows[1], atol=1e-4)
    others = [0, 2, 3, 4, 5]
    np.testing.assert_allclose(found[others], predictions(rows, 1)[0][others], atol=1e-4)


def test_volumes_of_any_brightness():
    rows = correlated(6, 400)
    scale = 10.0 ** np.array([-6, -3, 0, 2, 4, 6])[:, None]
    found, _ = predictions(rows * scale, 1, model="ols")
    np.testing.assert_allclose(found / scale, predictions(rows, 1)[0], rtol=1e-9)


def lasso_plainly(rows, j, alpha, rounds, tolerance):
    """Cyclic coordinate descent on the voxels themselves, as scikit-learn words it."""
    x = np.delete(rows, j, axis=0)
    x = x - x.mean(1, keepdims=True)
    y = rows[j] - rows[j].mean()
    penalty, w = alpha * len(y), np.zeros(len(x))
    left = y.copy()
    for k in range(rounds):
        largest = change = 0.0
        for i, row in enumerate(x):
            before = w[i]
            towards = row @ left + before * (row @ row)
            w[i] = np.sign(towards) * max(abs(towards) - penalty, 0) / (row @ row)
            left += (before - w[i]) * row
            largest, change = max(largest, abs(w[i])), max(change, abs(w[i] - before))
        if largest == 0 or change / largest < tolerance or k == rounds - 1:
            steepest = np.abs(x @ left).max()
            scale = min(1.0, penalty / steepest) if steepest else 1.0
            gap = 0.5 * (left @ left) * (1 + scale**2) + penalty * np.abs(w).sum() - scale * (left @ y)
            if gap < tolerance * (y @ y):
                break
    return np.insert(w, j, 0)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 1e6])
def test_lasso_descends_on_the_scatter_as_on_the_voxels(alpha):
    rows = correlated(9, 300)
    found = leave_one_out(scatter_of(rows), 1, model="lasso", alpha=alpha)
    for j in range(9):
        np.testing.assert_allclose(found.weights[j], lasso_plainly(rows, j, alpha, 50, 1e-4), atol=1e-9)
    if alpha == 1e6:
        assert not found.weights.any()
        np.testing.assert_allclose(found.intercepts, rows.mean(1))
