"""Hidden pixels of a batch of patches, laid out flat: where they lie, and what lies around them.

All patches of a batch are looked at as one row of pixels, each patch followed by one spare pixel that takes
what is written nowhere and lends zeros. Beside it lies the map of what is hidden, where every patch has a
margin that counts as hidden, so that nothing has to test for the border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .hashed_draws import mix

# As many pixels as Noise2Void's window of 11 x 11 has around its centre, and one of 5 x 5 x 5.
_WINDOW_PIXELS = {2: 120, 3: 124}


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the kernel and the window around a hidden pixel lie in the row of pixels and in the map.

    Attributes
    ----------
    size, margin : tuple of int
        Of a patch and of the map's margin, ([z,] y, x) in pixels.
    map_strides, first_place
        Steps of the flattened map of one patch, and where its first pixel lies.
    centre : int
        Number of the kernel's centre among its pixels.
    kernel_in_map, window_in_map, window_in_row : Tensor of int64
        Offsets.
    pixel_of : Tensor of int64
        Which pixel of the patch lies at each place of its flattened map; the spare one in the margin.
    hash_of : Tensor of int64
        A hash of every pixel's number within its patch.
    margins : Tensor of bool
        The flattened map of a patch of which nothing is hidden.
    """

    size: tuple[int, ...]
    margin: tuple[int, ...]
    map_strides: tuple[int, ...]
    first_place: int
    centre: int
    kernel_in_map: Tensor
    window_in_map: Tensor
    window_in_row: Tensor
    pixel_of: Tensor
    hash_of: Tensor
    margins: Tensor

    @property
    def pixels(self) -> int:
        """Pixels of a patch."""
        return math.prod(self.size)

    @property
    def places(self) -> int:
        """Places in the map of one patch, its margin among them."""
        return len(self.pixel_of)

    def crop(self, hidden: Tensor) -> Tensor:
        """Return the map without margins, bool (n, pixels), contiguous."""
        extents = [n + 2 * m for n, m in zip(self.size, self.margin, strict=True)]
        inner = tuple(slice(m, m + n) for n, m in zip(self.size, self.margin, strict=True))
        return hidden.view(-1, *extents)[(slice(None), *inner)].flatten(1)


def layout_of(kernel: NDArray[np.bool_], size: tuple[int, ...], device: torch.device) -> Layout:
    """Return the layout of patches of this size for blind spots of this kernel, on a device."""
    return _layout_of(kernel.tobytes(), kernel.shape, size, device)


@lru_cache(maxsize=16)
def _layout_of(
    kernel_bytes: bytes, extents: tuple[int, ...], size: tuple[int, ...], device: torch.device
) -> Layout:
    kernel = np.frombuffer(kernel_bytes, np.bool_).reshape(extents)
    half = np.array(extents) // 2
    window = _window_around(kernel)
    margin = tuple(int(m) for m in np.maximum(half, np.abs(window).max(0)))
    wide = [n + 2 * m for n, m in zip(size, margin, strict=True)]
    in_map = [math.prod(wide[axis + 1 :]) for axis in range(len(size))]
    in_row = [math.prod(size[axis + 1 :]) for axis in range(len(size))]
    pixels = np.arange(math.prod(size)).reshape(size)
    pixel_of = np.pad(pixels, [(m, m) for m in margin], constant_values=pixels.size)
    pixel_of = pixel_of.reshape(-1)

    def there(offsets: NDArray[Any]) -> Tensor:
        return torch.from_numpy(offsets).to(device)

    return Layout(
        size=size,
        margin=margin,
        map_strides=tuple(in_map),
        first_place=sum(m * stride for m, stride in zip(margin, in_map, strict=True)),
        centre=int(np.flatnonzero((np.argwhere(kernel) == half).all(1))[0]),
        kernel_in_map=there((np.argwhere(kernel) - half) @ in_map),
        window_in_map=there(window @ in_map),
        window_in_row=there(window @ in_row),
        pixel_of=there(pixel_of),
        hash_of=mix(torch.arange(pixels.size + 1, device=device)),
        margins=there(pixel_of == pixels.size),
    )


def _window_around(kernel: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the offsets ([z,] y, x) of the nearest pixels outside the kernel, in square rings."""
    half = np.array(kernel.shape) // 2
    # Correlation knows no direction: what the kernel spares on one side is the same noise on the other.
    correlated = np.pad(kernel | np.flip(kernel), 6)
    free = np.argwhere(~correlated) - half - 6
    order = (*free.T[::-1], (free**2).sum(1), np.abs(free).max(1))
    nearest: NDArray[np.int64] = free[np.lexsort(order)]
    return nearest[: _WINDOW_PIXELS[kernel.ndim]]


@dataclass(frozen=True, slots=True)
class Hidden:
    """The hidden pixels of a batch; one comes as often as kernels cover it, with one value.

    What lies beyond the border is among them, so that their number is known without a look at the device: it
    reads where the patch's first pixel does, and is written to the spare one.

    Attributes
    ----------
    map : Tensor of bool, shape (n * places,)
        What is hidden, with margins.
    patch, pixel : Tensor of int64, shape (m,)
        Number in the batch, and number within the patch.
    place, source, target : Tensor of int64, shape (m,)
        Where the pixel lies in ``map`` and in the row of pixels, and where its new value goes there.
    """

    map: Tensor
    patch: Tensor
    pixel: Tensor
    place: Tensor
    source: Tensor
    target: Tensor


def hide(patch: Tensor, centre: Tensor, exists: Tensor | None, layout: Layout, n_patches: int) -> Hidden:
    """Hide the kernel around every centre.

    Parameters
    ----------
    patch, centre : Tensor of int64, shape (m,)
        Number in the batch, and place in that patch's map.
    exists : Tensor of bool, shape (m,), optional
        Which of the centres are there; None: all are.
    """
    place = centre[:, None] + layout.kernel_in_map
    if exists is not None:
        place = torch.where(exists[:, None], place, 0)  # the corner of the margin
    pixel = layout.pixel_of[place].reshape(-1)
    patch = patch[:, None].expand_as(place).reshape(-1)
    map_start, row_start = patch * layout.places, patch * (layout.pixels + 1)
    place = place.reshape(-1) + map_start
    hidden = layout.margins.repeat(n_patches).index_fill_(0, place, True)
    beyond = pixel == layout.pixels
    return Hidden(
        map=hidden,
        patch=patch,
        pixel=pixel,
        place=torch.where(beyond, map_start + layout.first_place, place),
        source=torch.where(beyond, row_start, row_start + pixel),
        target=row_start + pixel,
    )
