"""Which volumes are predicted from which: by their b-values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import BadRequest, ImageNotFound
from denoizarr.stores import locations

# A scanner's b-values of one shell differ by some tens of s/mm2; shells by hundreds.
_SHELL_GAP = 100.0
FEWEST = 3


@dataclass(frozen=True, slots=True)
class VolumeGroups:
    """Groups of volumes, each regressed within itself, and volumes that stay as they are.

    Attributes
    ----------
    groups : tuple of tuple of int
        Numbers of volumes, ascending.
    copied : tuple of int
        Volumes that are kept as they are: a lone b0, or all b0 without ``b0_denoising``.
    """

    groups: tuple[tuple[int, ...], ...]
    copied: tuple[int, ...]

    @property
    def largest(self) -> int:
        """Volumes of the largest group."""
        return max((len(group) for group in self.groups), default=0)


def read_bvals(source: Any) -> NDArray[np.float64]:
    """Return b-values from a sequence of numbers, or from a text file with them in a row or in a column.

    Raises
    ------
    ImageNotFound, BadRequest
    """
    if source is None:
        raise BadRequest(
            "b-values are needed, and the data carry none",
            where="bvals",
            expected="one for each volume, or a text file of them",
        )
    if isinstance(source, str | Path):
        where = locations.join(source)
        try:
            text = locations.get(where).decode()
            values = [float(word) for word in text.replace(",", " ").split()]
        except ImageNotFound as error:
            raise ImageNotFound("no file of b-values", where=locations.redact(where)) from error
        except (UnicodeDecodeError, ValueError) as error:
            raise BadRequest(
                "not a file of b-values",
                where=locations.redact(where),
                got=str(error),
                expected="numbers in a row or a column",
            ) from error
        return np.asarray(values, np.float64)
    try:
        found = np.asarray(source, np.float64)
    except (TypeError, ValueError) as error:
        raise BadRequest("b-values are numbers", where="bvals", got=type(source).__name__) from error
    return found.reshape(-1) if found.ndim == 2 and 1 in found.shape else found


def group_volumes(
    bvals: Sequence[float] | NDArray[np.float64],
    n_volumes: int,
    *,
    b0_threshold: float = 50,
    b0_denoising: bool = True,
    by_shell: bool = False,
) -> VolumeGroups:
    """Sort volumes into those without diffusion weighting and those with it.

    Parameters
    ----------
    bvals : sequence of float
        In s/mm2, one for each volume.
    n_volumes : int
    b0_threshold : float
        At most this is b0.
    b0_denoising : bool
        Without, b0 volumes are kept as they are. A lone one always is: there is nothing to predict it from.
    by_shell : bool
        Predict the volumes of a shell from those of that shell only. Another begins where b-values, in
        order, are more than 100 s/mm2 apart.

    Raises
    ------
    BadRequest
        The b-values are not one finite number for each volume, or a group has too few volumes.
    """
    values = np.asarray(bvals, np.float64)
    if values.ndim != 1 or len(values) != n_volumes:
        raise BadRequest(
            "b-values and volumes differ in number",
            where="bvals",
            got=f"{values.shape[0]} b-values" if values.ndim == 1 else f"an array of shape {values.shape}",
            expected=f"{n_volumes}, one for each volume",
        )
    if not np.isfinite(values).all() or (values < 0).any():
        odd = int(np.flatnonzero(~np.isfinite(values) | (values < 0))[0])
        raise BadRequest(
            "b-values are finite and not negative", where=f"bvals, volume {odd}", got=float(values[odd])
        )
    b0 = np.flatnonzero(values <= b0_threshold)
    weighted = np.flatnonzero(values > b0_threshold)
    copied = tuple(map(int, b0)) if len(b0) == 1 or not b0_denoising else ()
    groups = [] if copied or not len(b0) else [("b0", b0)]
    if by_shell and len(weighted):
        ordered = weighted[np.argsort(values[weighted], kind="stable")]
        cuts = np.flatnonzero(np.diff(values[ordered]) > _SHELL_GAP) + 1
        shells = [np.sort(part) for part in np.split(ordered, cuts)]
        groups += [(f"shell of b = {values[part].mean():.0f}", part) for part in shells]
    elif len(weighted):
        groups.append(("diffusion-weighted", weighted))
    for name, part in groups:
        if len(part) < FEWEST:
            raise BadRequest(
                f"too few {name} volumes to predict one from the others",
                where="bvals",
                got=len(part),
                expected=f"{FEWEST} with b {'at most' if name == 'b0' else 'above'} {b0_threshold:g}",
                remedy="pass b0_denoising=False" if name == "b0" else _remedy(by_shell),
            )
    if not groups:
        raise BadRequest(
            "no volumes to denoise: all are b0, and b0_denoising is off",
            where="bvals",
            got=f"{len(values)} b-values of at most {b0_threshold:g}",
        )
    return VolumeGroups(tuple(tuple(map(int, part)) for _, part in groups), copied)


def _remedy(by_shell: bool) -> str:
    return "leave group_by_shell out" if by_shell else "see that b-values and b0_threshold are in s/mm2"
