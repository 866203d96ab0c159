"""One pass over the voxels, in parts that merge: extremes, moments and a histogram of 65,536 bins.

Exactness: for integers of 8 and 16 bits everything is *exact* and independent of the order of merging, since
the histogram has a bin for every value. For other dtypes extremes and counts are *exact*, mean and standard
deviation are *order-rounded* (merge in block order), and quantiles are *bounded*: the histogram's bins are
the top 16 bits of an order-preserving key of the float32 value, so a quantile is right within 1/128 relative.
:func:`refined_histogram` makes it exact for float32 with one more pass.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .compiled import compiled

N_BINS = 1 << 16


def ordered_key(values: NDArray[Any]) -> NDArray[Any]:
    """Return unsigned integers of the same size that sort as the values do.

    Integers are shifted by their type's minimum. Floats are taken by their bits: those of negative numbers
    inverted, those of positive ones with the sign bit set (Herf 2001, "Radix tricks"); float16 goes through
    float32. Finite values only.
    """
    values = np.asarray(values, values.dtype.newbyteorder("="))
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind in "bu":
        return np.asarray(values.view(f"u{size}"))
    if kind == "f" and size == 2:
        return ordered_key(values.astype(np.float32))
    unsigned: np.dtype[Any] = np.dtype(f"u{size}")
    sign = unsigned.type(1 << (8 * size - 1))
    bits = np.ascontiguousarray(values).view(unsigned)
    if kind == "i":
        return np.asarray(bits ^ sign)
    # -0.0 and 0.0 are one value, and so one key.
    bits = np.where(bits == sign, unsigned.type(0), bits)
    return np.asarray(np.where(bits & sign, ~bits, bits | sign))


def from_ordered_key(keys: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """Return the values whose :func:`ordered_key` these are; float16 comes back as float32."""
    dtype = np.dtype(dtype).newbyteorder("=")
    if dtype.kind in "bu":
        return keys
    sign = keys.dtype.type(1 << (8 * keys.dtype.itemsize - 1))
    if dtype.kind == "i":
        return np.asarray((keys ^ sign).view(dtype))
    bits = np.where(keys & sign, keys ^ sign, ~keys)
    return np.asarray(bits.view(np.dtype(f"f{keys.dtype.itemsize}")))


def has_exact_histogram(dtype: DTypeLike) -> bool:
    """Tell whether every value of this dtype has its own bin: integers of 8 and 16 bits."""
    dtype = np.dtype(dtype)
    return dtype.kind in "biu" and dtype.itemsize <= 2


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """What one pass over some voxels yields.

    Attributes
    ----------
    dtype : str
        Of the voxels; decides what a bin of the histogram means.
    count, non_finite : int
        Finite voxels, and NaN or infinite ones; all else is over the finite ones.
    minimum, maximum : float
        In intensity units; inf and -inf where there is no voxel.
    mean, scatter : float
        Mean, and sum of squared deviations from it.
    histogram : int64 array (65536,)
        By value minus the dtype's minimum for integers of 8 and 16 bits, else by the top 16 bits of the key.
    """

    dtype: str
    count: int
    non_finite: int
    minimum: float
    maximum: float
    mean: float
    scatter: float
    histogram: NDArray[np.int64]

    @property
    def std(self) -> float:
        """Population standard deviation."""
        return sqrt(self.scatter / self.count) if self.count else 0.0

    def quantile(self, q: float) -> float:
        """Return the smallest value that at least a fraction ``q`` of the voxels does not exceed.

        This is numpy's ``method="inverted_cdf"``. Exact for integers of 8 and 16 bits; for other dtypes the
        middle of the value's bin, within 1/128 relative.
        """
        if not self.count:
            return float("nan")
        bin_number, _ = locate_quantile(self.histogram, q)
        if has_exact_histogram(self.dtype):
            return float(bin_number + _offset(self.dtype))
        keys = np.array([bin_number << 16, (bin_number << 16) | 0xFFFF], np.uint32)
        low, high = (float(v) for v in from_ordered_key(keys, np.float32))
        middle = low / 2 + high / 2
        return min(max(middle if np.isfinite(middle) else low, self.minimum), self.maximum)

    def merge(self, other: Moments) -> Moments:
        """Return the moments of both sets of voxels (Chan, Golub and LeVeque 1979, eq. 2.1)."""
        assert self.dtype == other.dtype, f"moments of {self.dtype} and {other.dtype} do not merge"
        histogram = self.histogram + other.histogram
        if has_exact_histogram(self.dtype):
            return _from_histogram(self.dtype, histogram)
        count = self.count + other.count
        if count == 0:
            mean = scatter = 0.0
        else:
            difference = other.mean - self.mean
            mean = self.mean + difference * (other.count / count)
            scatter = self.scatter + other.scatter + difference**2 * (self.count * (other.count / count))
        return Moments(
            self.dtype,
            count,
            self.non_finite + other.non_finite,
            min(self.minimum, other.minimum),
            max(self.maximum, other.maximum),
            mean,
            scatter,
            histogram,
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON-able fields; the histogram as its non-zero span, deflated, in base 64."""
        filled = np.flatnonzero(self.histogram)
        first, stop = (int(filled[0]), int(filled[-1]) + 1) if filled.size else (0, 0)
        span = self.histogram[first:stop]
        width = np.min_scalar_type(int(span.max())) if span.size else np.dtype(np.uint8)
        packed = zlib.compress(span.astype(width.newbyteorder("<")).tobytes(), 6)
        return {
            "dtype": self.dtype,
            "count": self.count,
            "non_finite": self.non_finite,
            "minimum": self.minimum if self.count else None,
            "maximum": self.maximum if self.count else None,
            "mean": self.mean,
            "scatter": self.scatter,
            "histogram": {
                "first": first,
                "dtype": width.newbyteorder("<").str,
                "data": base64.b64encode(packed).decode("ascii"),
            },
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Return what :meth:`to_json` wrote."""
        packed = record["histogram"]
        # Bounded: a damaged record must not expand without end.
        data = zlib.decompressobj().decompress(base64.b64decode(packed["data"]), 8 * N_BINS)
        span = np.frombuffer(data, np.dtype(packed["dtype"]))
        histogram = np.zeros(N_BINS, np.int64)
        histogram[packed["first"] : packed["first"] + span.size] = span
        empty = record["minimum"] is None
        return cls(
            str(record["dtype"]),
            int(record["count"]),
            int(record["non_finite"]),
            inf if empty else float(record["minimum"]),
            -inf if empty else float(record["maximum"]),
            float(record["mean"]),
            float(record["scatter"]),
            histogram,
        )


def moments_of(values: NDArray[Any]) -> Moments:
    """Return the moments of an array of any shape and real dtype; NaN and infinity are only counted."""
    dtype = np.dtype(values.dtype).newbyteorder("=").str
    if has_exact_histogram(values.dtype):
        keys = ordered_key(values)
        histogram = _count_keys(np.ascontiguousarray(keys).reshape(-1), 0)
        return _from_histogram(dtype, histogram)
    flat = np.ascontiguousarray(values).reshape(-1)
    wide = flat.astype(np.float32) if values.dtype.kind == "f" and values.dtype.itemsize == 2 else flat
    histogram = np.zeros(N_BINS, np.int64)
    count, low, high, mean, scatter = _float_pass(
        wide.astype(wide.dtype.newbyteorder("="), copy=False), histogram
    )
    return Moments(dtype, int(count), values.size - int(count), low, high, mean, scatter, histogram)


@compiled
def _float_pass(values: NDArray[Any], histogram: NDArray[np.int64]) -> tuple[int, float, float, float, float]:
    """Count, smallest, largest, mean and scatter of the finite values; fill in the histogram of their keys.

    In pieces that stay in the first-level cache, merged pairwise with what came before (Chan et al. 1979).
    """
    piece = 2048
    finite = np.empty(piece, np.float64)
    narrow = np.empty(piece, np.float32)
    bits = narrow.view(np.uint32)
    limit = np.float64(np.finfo(np.float32).max)
    count, low, high, mean, scatter = 0, np.inf, -np.inf, 0.0, 0.0
    for first in range(0, values.size, piece):
        n = 0
        for i in range(first, min(first + piece, values.size)):
            value = np.float64(values[i])
            # A NaN or an infinity stays where the next value overwrites it.
            finite[n] = value
            n += np.isfinite(value)
        total = 0.0
        for i in range(n):
            low = min(low, finite[i])
            high = max(high, finite[i])
            total += finite[i] - finite[0]
        if n == 0:
            continue
        here = finite[0] + total / n
        squares, remainder = 0.0, 0.0
        for i in range(n):
            deviation = finite[i] - here
            squares += deviation * deviation
            # The mean is rounded; what is left of it would enter the scatter squared.
            remainder += deviation
            # Beyond float32's range a float64 would become infinite and leave the histogram's order.
            narrow[i] = np.float32(min(max(finite[i], -limit), limit)) + np.float32(0.0)
        here += remainder / n
        squares = max(squares - remainder * (remainder / n), 0.0)
        for i in range(n):
            key = bits[i]
            # Negative zero is zero: the sum above has made it so.
            key = ~key if key >> np.uint32(31) else key | np.uint32(0x80000000)
            histogram[key >> np.uint32(16)] += 1
        difference = here - mean
        whole = count + n
        scatter += squares + difference * difference * (count * (n / whole))
        mean += difference * (n / whole)
        count = whole
    return count, low, high, mean, scatter


def _float_keys(finite: NDArray[Any]) -> NDArray[np.uint32]:
    # A float64 beyond float32's range would become infinite and leave the histogram's order.
    limit = np.finfo(np.float32).max
    narrow = np.clip(finite, -limit, limit) if finite.dtype.itemsize > 4 else finite
    keys: NDArray[np.uint32] = ordered_key(narrow.astype(np.float32, copy=False)).reshape(-1)
    return keys


def _offset(dtype: DTypeLike) -> int:
    dtype = np.dtype(dtype)
    return int(np.iinfo(dtype).min) if dtype.kind in "iu" else 0


def _from_histogram(dtype: str, histogram: NDArray[np.int64]) -> Moments:
    """Return the moments of integers from their histogram: exact integers, one rounding at the end."""
    filled = np.flatnonzero(histogram)
    count = int(histogram.sum())
    if count == 0:
        return Moments(dtype, 0, 0, inf, -inf, 0.0, 0.0, histogram)
    low, high = int(filled[0]), int(filled[-1])
    values = filled.astype(np.int64)
    total = _exact_dot(values, histogram[filled])
    squares = _exact_dot(values * values, histogram[filled])
    offset = _offset(dtype)
    return Moments(
        dtype,
        count,
        0,
        float(low + offset),
        float(high + offset),
        (total + offset * count) / count,
        (count * squares - total * total) / count,
        histogram,
    )


def _exact_dot(weights: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Return sum(weights * counts), weights below 2**32, without overflow at any number of voxels."""
    low, high = counts & 0xFFFF, counts >> 16
    starts = np.arange(0, weights.size, 1024)  # 2**10 terms of 2**32 * 2**16 stay below 2**63
    halves = [sum(int(p) for p in np.add.reduceat(weights * part, starts)) for part in (low, high)]
    return halves[0] + (halves[1] << 16)


@compiled
def _count_keys(keys: NDArray[Any], shift: int) -> NDArray[np.int64]:
    """Count ``key >> shift``; four histograms in turn, since equal neighbours would wait for one another."""
    histograms = np.zeros((4, 65536), np.int64)
    whole = keys.size - keys.size % 4
    for i in range(0, whole, 4):
        histograms[0, keys[i] >> shift] += 1
        histograms[1, keys[i + 1] >> shift] += 1
        histograms[2, keys[i + 2] >> shift] += 1
        histograms[3, keys[i + 3] >> shift] += 1
    for i in range(whole, keys.size):
        histograms[0, keys[i] >> shift] += 1
    total: NDArray[np.int64] = histograms.sum(axis=0)
    return total


def locate_quantile(histogram: NDArray[np.int64], q: float) -> tuple[int, int]:
    """Return the bin that holds the quantile, and its rank inside the bin (1 for the bin's smallest).

    Parameters
    ----------
    histogram : int64 array (n,)
    q : float
        Between 0 and 1. The quantile is the value of rank ``ceil(q * count)``, at least 1.
    """
    count = int(histogram.sum())
    rank = min(max(ceil(q * count - 1e-9 * min(q * count, 1.0)), 1), count)
    return locate_rank(histogram, rank)


def locate_rank(histogram: NDArray[np.int64], rank: int) -> tuple[int, int]:
    """Return the bin that holds the value of this rank, and the rank inside the bin; ranks count from 1."""
    below = np.cumsum(histogram)
    bin_number = int(np.searchsorted(below, rank))
    return bin_number, rank - int(below[bin_number] - histogram[bin_number])


def refined_histogram(values: NDArray[Any], bin_number: int) -> NDArray[np.int64]:
    """Count the low 16 bits of the float32 keys whose top 16 bits are ``bin_number``, of finite voxels.

    Summed over the image, ``locate_rank`` in it gives the exact float32 value; see :func:`refined_value`.
    """
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    keys = _float_keys(finite)
    return _count_keys(keys[(keys >> 16) == bin_number] & np.uint32(0xFFFF), 0)


def refined_value(bin_number: int, low_bits: int) -> float:
    """Return the float32 value whose key has these top and low 16 bits."""
    return float(from_ordered_key(np.array([(bin_number << 16) | low_bits], np.uint32), np.float32)[0])
