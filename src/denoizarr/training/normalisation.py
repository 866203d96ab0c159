"""From raw intensities to units of each channel's standard deviation, and back."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from denoizarr.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Normalisation:
    """The mean and standard deviation, in raw intensities, that every channel is normalised by.

    Attributes
    ----------
    mean, std : tuple of float
        One per channel; an image without channels has one.

    Raises
    ------
    ConfigError
        They do not pair up, or are not finite in float32, or a standard deviation is not positive in it.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            got = f"{len(self.mean)} and {len(self.std)}"
            raise ConfigError("one mean and one std per channel", where="normalisation", got=got)
        # As networks are run: a std of 1e-50 is 0 there.
        with np.errstate(over="ignore"):
            mean, std = (np.array(values, np.float64).astype(np.float32) for values in (self.mean, self.std))
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            got, expected = f"mean {self.mean}, std {self.std}", "finite, and std above 0, in float32"
            raise ConfigError("not a usable mean and std", where="normalisation", got=got, expected=expected)
