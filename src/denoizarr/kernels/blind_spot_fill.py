"""What stands in the place of hidden pixels: values of visible pixels nearby, or of the same patch."""

from __future__ import annotations

import torch
from torch import Tensor

from . import nearby_pixels
from .blind_spot_layout import Hidden, Layout
from .hashed_draws import mix, on_host

_TRIES = 4
# Entries (hidden pixel, window offset) of a table that are made at once: about 100 MB.
_MOST_TABLE_ENTRIES = 4_000_000
# Types of pixels that the host's loops are compiled for; others take the way of the other devices.
_COMPILED = (torch.float32, torch.float64)


def values_for(
    hidden: Hidden, row: Tensor, patches: Tensor, layout: Layout, keys: Tensor, strategy: str
) -> Tensor:
    """Return the value of every hidden pixel, (c, m); it depends on visible pixels alone.

    Parameters
    ----------
    row : Tensor of shape (c, n * (pixels + 1))
        The row of pixels, all channels of it.
    patches : Tensor of shape (n, c, [z,] y, x)
        The same pixels.
    keys : Tensor of int64, shape (n,)
    strategy : {"uniform", "median", "mean", "random"}
        See :func:`~denoizarr.kernels.blindspot.draw_blind_spots`.
    """
    if strategy in ("uniform", "random"):
        hashes = mix(keys[hidden.patch] ^ layout.hash_of[hidden.pixel])
    if strategy == "random":
        return row[:, _draw_visible(hidden, layout, hashes)]
    if strategy == "uniform":
        chosen = _choose_nearby(hidden, layout, hashes)
        found = chosen >= 0
        values = row[:, hidden.source + layout.window_in_row[chosen.clamp_(min=0)]]
    else:
        values = _summarise_nearby(hidden, row, layout, strategy)
        found = torch.isfinite(values).all(0)
    if on_host(row) and bool(found.all()):
        return values
    visible = ~layout.crop(hidden.map).unsqueeze(1)
    mean = (patches.flatten(2) * visible).sum(2) / visible.sum(2).clamp(min=1)
    return torch.where(found, values, mean.T[:, hidden.patch])


def _draw_visible(hidden: Hidden, layout: Layout, hashes: Tensor) -> Tensor:
    """Return, for every hidden pixel, where in the row a visible one of its patch lies, or the spare one."""
    visible = ~layout.crop(hidden.map)
    count = visible.sum(1)
    # Visible pixels of all patches one after another; those that are not go to a last place, unread.
    rank = torch.cumsum(visible.view(-1), 0)
    place = torch.where(visible.view(-1), rank - 1, rank.numel())
    n_patches = len(visible)
    spare = torch.arange(n_patches, device=visible.device) * (layout.pixels + 1)
    where = (spare[:, None] + torch.arange(layout.pixels, device=visible.device)).view(-1)
    listed = torch.zeros(rank.numel() + 1, dtype=torch.int64, device=visible.device).scatter_(0, place, where)
    begin = torch.cumsum(count, 0) - count
    own = count[hidden.patch]
    chosen = listed[begin[hidden.patch] + hashes % own.clamp(min=1)]
    return torch.where(own > 0, chosen, spare[hidden.patch] + layout.pixels)


def _choose_nearby(hidden: Hidden, layout: Layout, hashes: Tensor) -> Tensor:
    """Return, for every hidden pixel, a visible offset of its window, uniform among those; -1 for none."""
    window = layout.window_in_map
    if on_host(hashes):
        chosen = torch.empty_like(hashes)
        where = (hidden.map.numpy(), hidden.place.numpy(), hashes.numpy(), window.numpy())
        nearby_pixels.choose_nearby(*where, _TRIES, chosen.numpy())
        return chosen
    chosen = torch.full_like(hashes, -1)
    for attempt in range(_TRIES):
        drawn = mix(hashes ^ attempt) % len(window)
        usable = (chosen < 0) & ~hidden.map[hidden.place + window[drawn]]
        chosen = torch.where(usable, drawn, chosen)
    ranked = [
        _ranked(hidden.map, place, window, mix(part ^ _TRIES))
        for place, part in zip(_parts(hidden.place, window), _parts(hashes, window), strict=True)
    ]
    return torch.where(chosen < 0, torch.cat(ranked), chosen)


def _parts(values: Tensor, window: Tensor) -> tuple[Tensor, ...]:
    return torch.split(values, max(_MOST_TABLE_ENTRIES // max(len(window), 1), 1))


def _ranked(hidden_map: Tensor, place: Tensor, window: Tensor, hashes: Tensor) -> Tensor:
    """Return the visible offset of the window whose rank is drawn, or -1 where none is visible."""
    counted = torch.cumsum(~hidden_map[place[:, None] + window], 1)
    rank = hashes % counted[:, -1].clamp(min=1)
    first = torch.searchsorted(counted, rank[:, None], right=True)[:, 0]
    return torch.where(counted[:, -1] > 0, first, -1)


def _summarise_nearby(hidden: Hidden, row: Tensor, layout: Layout, strategy: str) -> Tensor:
    """Return the mean or median of every hidden pixel's usable window, (c, m); NaN where it is empty."""
    # The host's loops know no gradients: whoever asks for one takes the way of the other devices.
    compiled = on_host(row) and row.dtype in _COMPILED and not row.requires_grad
    summarise = _summary_on_host if compiled else _summary
    window = (layout.window_in_map, layout.window_in_row)
    parts = [
        torch.stack([summarise(hidden.map, place, source, window, channel, strategy) for channel in row])
        for place, source in zip(
            _parts(hidden.place, window[0]), _parts(hidden.source, window[0]), strict=True
        )
    ]
    return torch.cat(parts, 1)


def _summary(
    hidden_map: Tensor,
    place: Tensor,
    source: Tensor,
    window: tuple[Tensor, Tensor],
    pixels: Tensor,
    strategy: str,
) -> Tensor:
    usable = ~hidden_map[place[:, None] + window[0]]
    near = pixels[torch.where(usable, source[:, None] + window[1], 0)]
    if strategy == "median":
        return torch.where(usable, near, torch.nan).nanmedian(1).values
    return torch.where(usable, near, 0).sum(1) / usable.sum(1).to(near.dtype)


def _summary_on_host(
    hidden_map: Tensor,
    place: Tensor,
    source: Tensor,
    window: tuple[Tensor, Tensor],
    pixels: Tensor,
    strategy: str,
) -> Tensor:
    offsets = (window[0].numpy(), window[1].numpy())
    where = (hidden_map.numpy(), place.numpy(), source.numpy(), offsets, pixels.numpy())
    if strategy == "median":
        median = pixels.new_empty(len(place))
        nearby_pixels.medians_nearby(*where, median.numpy())
        return median
    near, count = pixels.new_empty(len(place), len(offsets[0])), torch.empty_like(place)
    nearby_pixels.gather_nearby(*where, near.numpy(), count.numpy())
    # Summed by torch as everywhere else: the order of a sum decides its last bits.
    return near.sum(1) / count.to(near.dtype)
