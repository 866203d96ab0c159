"""Every volume regressed on all the others, from one scatter matrix and one inverse (Patch2Self).

Legend: ``n`` volumes, ``p`` variables (voxels of a neighbourhood) of each, ``C`` the centred scatter of all
``n p`` variables, ``a`` the ridge penalty, ``P`` the inverse of ``C + a I``, ``J`` the variables of volume
``j``, ``R`` all others, ``c`` the voxel itself among J.

The regression of J on R has the weights ``C_JR (C_RR + a I)^-1``, which is ``-P_JJ^-1 P_JR`` by the inverse
of a partitioned matrix: no other inverse is needed. With ``p = 1`` it is ``-P_jR / P_jj``.

Fadnavis, Batson and Garyfallidis 2020, "Patch2Self: Denoising diffusion MRI with self-supervised learning";
that all regressions share one Gram matrix is also in DIPY (pull request 4005).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from .compiled import compiled
from .scatter import Floats, Scatter
from .voxel_rows import AnyFloats, deviations

Model = Literal["ols", "ridge", "lasso"]

# Below it, beside the largest, an eigenvalue is rounding: of two equal volumes, say.
EIGENVALUE_FLOOR = 5e-13
# As DIPY has them.
_LASSO_ROUNDS, _LASSO_TOLERANCE = 50, 1e-4


@dataclass(frozen=True, slots=True, eq=False)
class LeaveOneOut:
    """The regressions of some volumes, each on all the others.

    Attributes
    ----------
    weights : float64 array (n, n * p)
        Row ``j`` predicts volume ``j``; zero where the variables are its own.
    intercepts : float64 array (n,)
    r_squared : float64 array (n,)
        Share of each volume's variance that the others predict; NaN for a volume without any.
    without_variance : tuple of int
        Volumes that are constant: their prediction is their mean.
    floored : int
        Eigenvalues that were raised to the floor; 0 where the matrix is well conditioned.
    """

    weights: Floats
    intercepts: Floats
    r_squared: Floats
    without_variance: tuple[int, ...]
    floored: int


def leave_one_out(total: Scatter, p: int = 1, *, model: Model = "ols", alpha: float = 1.0) -> LeaveOneOut:
    """Return the regression of every volume on all the others.

    Parameters
    ----------
    total : Scatter
        Of ``n * p`` variables, those of a volume in a row; the middle one is the voxel itself.
    p : int
        Odd.
    model : {"ols", "ridge", "lasso"}
        Least squares, or with the penalty ``alpha * |w|^2``, or ``alpha * count * |w|_1`` beside half the
        squares, as scikit-learn words them.
    alpha : float
        Not used by "ols".
    """
    n = len(total.mean) // p
    assert n * p == len(total.mean), f"{len(total.mean)} variables of {p} each"
    scatter = total.scatter
    variance = np.diagonal(scatter) / max(total.count, 1)
    # What is left of a constant once its mean was taken away is rounding.
    varies = variance > (8 * np.finfo(float).eps * np.abs(total.mean)) ** 2
    centres = np.arange(n) * p + p // 2
    targets = np.flatnonzero(varies[centres])
    floored = 0
    if model == "lasso":
        weights = np.zeros((n, n * p))
        _lasso(scatter, varies, targets, p, alpha * total.count, weights)
    else:
        penalty = 0.0 if model == "ols" else alpha
        weights, floored = _least_squares(scatter, varies, targets, p, penalty)
    own = np.diagonal(scatter)[centres]
    left = (
        own
        - 2 * np.einsum("jk,jk->j", weights, scatter[centres])
        + np.einsum("jk,jk->j", weights @ scatter, weights)
    )
    r_squared = np.full(n, np.nan)
    r_squared[targets] = 1 - left[targets] / own[targets]
    intercepts = total.mean[centres] - weights @ total.mean
    constant = tuple(int(j) for j in np.flatnonzero(~varies[centres]))
    return LeaveOneOut(weights, intercepts, r_squared, constant, floored)


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """What makes predictions of voxels: ``sums + intercepts``, the sums in the dtype of the weights.

    Attributes
    ----------
    weights : float32 or float64 array (n, n * p)
    intercepts : float64 array (n,)
    centre : array (n * p,) or None
        Taken from every variable first: float32 sums of deviations keep what those of large means would lose.
    """

    weights: AnyFloats
    intercepts: Floats
    centre: AnyFloats | None = None

    def sums(self, rows: NDArray[np.generic], out: AnyFloats | None = None) -> AnyFloats:
        """Return the predictions of some voxels less their intercepts.

        Parameters
        ----------
        rows : array (n * p, v)
            Of any real dtype and memory order.
        out : array (n, v), optional
            Of the weights' dtype; takes them as well, at once where its order in memory is that of ``rows``.

        Returns
        -------
        array (n, v)
            In the memory order of ``rows``.
        """
        wide: NDArray[Any]
        if self.centre is None:
            wide = rows.astype(self.weights.dtype, order="K")
        else:
            wide = deviations(rows, self.centre)
        # The same product with and without ``out``: its last bits depend on the order.
        if wide.flags.f_contiguous:
            direct = out.T if out is not None and out.flags.f_contiguous else None
            found = np.matmul(wide.T, self.weights.T, out=direct).T
        else:
            direct = out if out is not None and out.flags.c_contiguous else None
            found = np.matmul(self.weights, wide, out=direct)
        if out is not None and direct is None:
            out[...] = found
        return found


def _least_squares(
    scatter: Floats, varies: NDArray[np.bool_], targets: NDArray[np.intp], p: int, penalty: float
) -> tuple[Floats, int]:
    kept = np.flatnonzero(varies)
    place = np.full(len(varies), -1)
    place[kept] = np.arange(len(kept))
    size = np.sqrt(np.diagonal(scatter)[kept])
    # Scaled by its diagonal (Jacobi): volumes of other brightness leave the condition alone.
    scaled = scatter[np.ix_(kept, kept)] if len(kept) < len(varies) else scatter.copy()
    scaled /= size
    scaled /= size[:, None]
    scaled[np.diag_indices_from(scaled)] = 1 + penalty / size**2
    inverse, floored = _inverse(scaled)
    weights = np.zeros((len(varies) // p, len(varies)))
    if p == 1:
        alone = -inverse / np.diagonal(inverse)[:, None] * (size[:, None] / size)
        np.fill_diagonal(alone, 0)
        weights[np.ix_(kept, kept)] = alone
        return weights, floored
    for j in targets:
        own = place[j * p : (j + 1) * p]
        own = own[own >= 0]
        centre = int(np.flatnonzero(own == place[j * p + p // 2])[0])
        # One row of P_JJ^-1 P_JR: of the transposed system, P_JJ being symmetric.
        unit = np.zeros(len(own))
        unit[centre] = 1
        row = -np.linalg.solve(inverse[np.ix_(own, own)], unit) @ inverse[own]
        row *= size[own[centre]] / size
        row[own] = 0
        weights[j, kept] = row
    return weights, floored


def _inverse(scaled: Floats) -> tuple[Floats, int]:
    """Return the inverse of a symmetric matrix, and how many eigenvalues had to be raised for it."""
    norm = float(np.abs(scaled).sum(axis=0).max(initial=0.0))
    factor, failed = lapack.dpotrf(scaled, lower=1)
    if not failed and len(scaled):
        well, _ = lapack.dpocon(factor, norm, uplo="L")
        if well > EIGENVALUE_FLOOR:
            inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
            lower = np.tril(inverse, -1)
            return lower + lower.T + np.diag(np.diagonal(inverse)), 0
    values, vectors = np.linalg.eigh(scaled)
    floor = EIGENVALUE_FLOOR * values[-1] if len(values) else 0.0
    raised = values < floor
    return (vectors / np.where(raised, floor, values)) @ vectors.T, int(raised.sum())


@compiled
def _lasso(
    scatter: Floats,
    varies: NDArray[np.bool_],
    targets: NDArray[np.intp],
    p: int,
    penalty: float,
    weights: Floats,
) -> None:
    """Fill in the rows of ``weights``: cyclic coordinate descent on the scatter (Friedman et al. 2010).

    A round visits every variable. It ends where scikit-learn's ends: after at most so many rounds, or once
    the weights hardly change and the duality gap is a small part of the volume's own scatter.
    """
    m = scatter.shape[0]
    fitted = np.empty(m)
    for j in targets:
        first, centre = j * p, j * p + p // 2
        w = weights[j]
        fitted[:] = 0.0  # scatter @ w
        own = scatter[centre, centre]
        for _round in range(_LASSO_ROUNDS):
            largest, change = 0.0, 0.0
            for k in range(m):
                if not varies[k] or first <= k < first + p:
                    continue
                before = w[k]
                towards = scatter[centre, k] - fitted[k] + before * scatter[k, k]
                after = np.sign(towards) * max(abs(towards) - penalty, 0.0) / scatter[k, k]
                if after != before:
                    w[k] = after
                    for i in range(m):
                        fitted[i] += (after - before) * scatter[k, i]
                change = max(change, abs(after - before))
                largest = max(largest, abs(after))
            if largest > 0.0 and change / largest >= _LASSO_TOLERANCE:
                continue
            # The duality gap of the problem with this penalty.
            steepest, total, explained, squared = 0.0, 0.0, 0.0, 0.0
            for k in range(m):
                if not varies[k] or first <= k < first + p:
                    continue
                steepest = max(steepest, abs(scatter[centre, k] - fitted[k]))
                total += abs(w[k])
                explained += w[k] * scatter[centre, k]
                squared += w[k] * fitted[k]
            left = own - 2 * explained + squared
            scale = penalty / steepest if steepest > penalty else 1.0
            gap = 0.5 * left * (1 + scale * scale) + penalty * total - scale * (own - explained)
            if gap < _LASSO_TOLERANCE * own:
                break
