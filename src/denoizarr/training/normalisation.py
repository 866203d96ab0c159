"""From raw intensities to units of each channel's standard deviation, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
        They do not pair up, or are not finite, or a standard deviation is not positive.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.mean or len(self.mean) != len(self.std):
            got = f"{len(self.mean)} and {len(self.std)}"
            raise ConfigError("one mean and one std per channel", where="normalisation", got=got)
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(std > 0 for std in self.std):
            got = f"mean {self.mean}, std {self.std}"
            raise ConfigError("not a usable mean and std", where="normalisation", got=got)
