"""The one way in which kernels are compiled: cached on disk, without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile ``function`` at its first call with each set of dtypes.

    The machine code is kept beside the module, or in the user's cache folder, so only the first process
    pays the second or two that a kernel takes. Where neither folder can be written (a read-only container
    without a home) it is compiled anew in every process instead of failing at import.
    """
    try:
        return cast("Function", numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast("Function", numba.njit(nogil=True)(function))
