"""What is computed by Patch2Self, and what becomes of it: checked once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np

from denoizarr.errors import BadRequest
from denoizarr.kernels.leave_one_out import Model

_LOG = logging.getLogger(__name__)
_VERSIONS = (1, 3)


@dataclass(frozen=True, slots=True)
class Patch2SelfOptions:
    """The settings of Patch2Self that do not depend on the data.

    Attributes
    ----------
    radius : (int, int, int)
        Of the neighbourhood that predicts a voxel, in voxels along the data's spatial axes.
    model : {"ols", "ridge", "lasso"}
    alpha : float
        Penalty of ridge and lasso.
    clip_negative : bool
        Negative predictions become zero.
    shift : bool
        Every volume is shifted until its minimum is that of its input.
    """

    radius: tuple[int, int, int]
    model: Model
    alpha: float
    clip_negative: bool
    shift: bool

    def identity(self) -> dict[str, Any]:
        """Return what of them decides the output's bytes."""
        return asdict(self) | {"radius": list(self.radius)}


def options_of(
    patch_radius: int | Sequence[int],
    model: str,
    alpha: float,
    *,
    clip_negative_vals: bool,
    shift_intensity: bool,
    version: int,
) -> Patch2SelfOptions:
    """Check the settings.

    Raises
    ------
    BadRequest
    """
    if version not in _VERSIONS:
        raise BadRequest("no such version of Patch2Self", where="version", got=version, expected="1 or 3")
    if version == 3:
        _LOG.info("version 3 sketches the voxels to fit faster; all of them are used here, as by version 1")
    if model not in get_args(Model):
        raise BadRequest("no such model", where="model", got=repr(model), expected="ols, ridge or lasso")
    if not np.isfinite(alpha) or alpha < 0:
        raise BadRequest("a penalty is not negative", where="alpha", got=alpha)
    if clip_negative_vals and shift_intensity:
        # As in DIPY, where clipping goes before; without a word it would be a surprise.
        _LOG.warning(
            "clip_negative_vals and shift_intensity: negative values are clipped, nothing is shifted"
        )
        shift_intensity = False
    radius = _radius(patch_radius)
    return Patch2SelfOptions(radius, model, float(alpha), clip_negative_vals, shift_intensity)  # type: ignore[arg-type]


def _radius(given: int | Sequence[int]) -> tuple[int, int, int]:
    values = np.asarray(given)
    each = np.broadcast_to(values, (3,)) if values.ndim == 0 else values
    if each.shape != (3,) or each.dtype.kind not in "iu" or (each < 0).any():
        raise BadRequest(
            "a patch radius is a number of voxels, or one along each spatial axis",
            where="patch_radius",
            got=given,
            expected="such as 0, 1 or (1, 1, 0)",
        )
    return int(each[0]), int(each[1]), int(each[2])
