"""What one pass tells about an image, channel by channel: extremes, mean, standard deviation, quantiles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

from denoizarr.kernels.statistics import Moments, has_exact_histogram

QUANTILES = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)


@dataclass(frozen=True, slots=True, eq=False)
class ChannelStatistics:
    """Statistics of one channel, over its finite voxels, in intensity units.

    Attributes
    ----------
    moments : Moments
        With the histogram that quantiles come from.
    """

    moments: Moments

    @property
    def count(self) -> int:
        """Number of finite voxels."""
        return self.moments.count

    @property
    def non_finite(self) -> int:
        """Number of voxels that are NaN or infinite."""
        return self.moments.non_finite

    @property
    def minimum(self) -> float:
        """Smallest value; exact."""
        return self.moments.minimum

    @property
    def maximum(self) -> float:
        """Largest value; exact."""
        return self.moments.maximum

    @property
    def mean(self) -> float:
        """Mean; exact for integers of 8 and 16 bits, else order-rounded."""
        return self.moments.mean

    @property
    def std(self) -> float:
        """Population standard deviation; exact for integers of 8 and 16 bits, else order-rounded."""
        return self.moments.std

    def quantile(self, q: float) -> float:
        """Return a quantile: exact for integers of 8 and 16 bits, else within 1/128 relative."""
        return self.moments.quantile(q)

    @property
    def quantiles(self) -> dict[float, float]:
        """The usual quantiles."""
        return {q: self.quantile(q) for q in QUANTILES}


@dataclass(frozen=True, slots=True, eq=False)
class ImageStatistics:
    """Statistics of an image.

    Attributes
    ----------
    channels : tuple of ChannelStatistics
        One per index along c; one for an image without c.
    """

    channels: tuple[ChannelStatistics, ...]

    def quantile(self, q: float, channel: int = 0) -> float:
        """Return a quantile of one channel, in intensity units."""
        return self.channels[channel].quantile(q)

    @classmethod
    def merged(cls, parts: Iterable[ImageStatistics]) -> Self:
        """Return the statistics of several images, or parts of one, together: merged in the order given."""
        columns = zip(*([c.moments for c in part.channels] for part in parts), strict=True)
        return cls(tuple(ChannelStatistics(reduce(Moments.merge, column)) for column in columns))

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able fields, those for reading first, the histogram last."""
        channels = []
        for channel in self.channels:
            record = channel.moments.to_json()
            histogram = record.pop("histogram")
            channels.append(
                {
                    **record,
                    "std": channel.std,
                    "quantiles": {str(q): value for q, value in channel.quantiles.items()}
                    if channel.count
                    else {},
                    "quantiles_are": "exact"
                    if has_exact_histogram(channel.moments.dtype)
                    else "within 1/128 relative",
                    "histogram": histogram,
                }
            )
        return {"version": 1, "channels": channels}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` wrote."""
        return cls(tuple(ChannelStatistics(Moments.from_json(channel)) for channel in record["channels"]))
