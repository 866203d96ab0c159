"""Products of many variables with one another: each pair once, by BLAS, without the interpreter's lock.

What scipy itself calls is open to others (``scipy.linalg.cython_blas``); its own ``dsyrk`` holds the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, byref, c_char_p, c_double, c_int, c_void_p
from functools import cache
from typing import Any, TypeVar, cast

import numpy as np
from numba.extending import get_cython_function_address
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Numbers = TypeVar("Numbers", bound=NDArray[Any])


def add_products(rows: Floats, total: Floats) -> None:
    """Add the products of all pairs of rows to ``total``, on and below its diagonal; above it stays as it is.

    Parameters
    ----------
    rows : float64 array (m, v)
        Contiguous, in either order.
    total : float64 array (m, m)
        C-contiguous; is changed.
    """
    m, v = rows.shape
    if not m or not v:
        return
    by_voxel = rows.flags.f_contiguous
    # Fortran's matrices are the transposed ones, so its upper triangle is our lower one.
    _syrk()(
        b"U",
        b"N" if by_voxel else b"T",
        byref(c_int(m)),
        byref(c_int(v)),
        byref(c_double(1)),
        rows.ctypes.data,
        byref(c_int(m if by_voxel else v)),
        byref(c_double(1)),
        total.ctypes.data,
        byref(c_int(m)),
    )


def mirrored(lower: Numbers) -> Numbers:
    """Return the symmetric matrix of which the lower triangle is given."""
    whole = cast("Numbers", np.tril(lower))
    whole += np.tril(lower, -1).T
    return whole


@cache
def _syrk() -> Callable[..., None]:
    integer, number = POINTER(c_int), POINTER(c_double)
    kind = CFUNCTYPE(
        None, c_char_p, c_char_p, integer, integer, number, c_void_p, integer, number, c_void_p, integer
    )
    return cast("Callable[..., None]", kind(get_cython_function_address("scipy.linalg.cython_blas", "dsyrk")))
