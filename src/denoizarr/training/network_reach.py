"""How far a network of unknown layers reaches: its stride and halo, measured, then proven.

Along each axis in turn, the others as short as the network takes them:

1. *Support.* A voxel that is not a number makes every output that reads it none either, whatever the weights,
   through convolutions, pooling, norms and activations alike. Where a network lets it vanish (``where`` and
   comparisons do), the gradient of an output, with positive weights, shows what it reads. Both are taken.
2. *Stride.* The smallest shift of the input that shifts the output by as much.
3. *Halo.* How many cells of the stride away what a whole cell reaches, or reads, lies::

       first                    cell of one stride                    last
       |<------ halo ------>|----- not a number ------|<------ halo ------>|

4. *Proof.* Tiles equal the whole in float64, with random weights and with the network's own.

The search runs in float32, several times as fast; where its proof fails, it is repeated in float64.

Source: Luo et al. 2016, "Understanding the effective receptive field", for the gradient.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import round_up
from denoizarr.geometry.tiling import tile_for

WIDEST_STRIDE, WIDEST_HALO = 64, 768

# With many divisors, for a network that wants a multiple of 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 or 64.
_LENGTH, _LONGEST = 192, 1536
_EXTENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
# Across the axis that is measured.
_WIDEST_SIDE = {2: 16, 3: 8}
# Of the output's standard deviation; off the stride's grid tiles differ by 1e-2 to 1 (measured).
_EQUAL = {torch.float32: 1e-4, torch.float64: 1e-9}

# The proof. Where tiles can be cut along all axes at once:
_VOXELS = {2: 2**14, 3: 2**15}
# As long as the tiles that predictions are made of, and longer where that costs little.
_TILE, _LONG_TILE, _LONG_VOXELS = {2: 512, 3: 64}, 2048, 2**13
# The quiet tile between two spikes exceeds no threshold that the whole image does not exceed.
_QUIET, _SPIKES = 0.5, (1e3, -5e2)
# Of float64 sums, as a part of the largest answer.
_ROUNDING = 2.0**-48

Lengths = tuple[int, ...]


def measured_reach(module: nn.Module, ndim: int, description: str) -> tuple[Lengths, Lengths]:
    """Return stride and halo per axis, in voxels; the halo is a multiple of the stride.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (n, 1, [z,] y, x) to the same shape; is not changed.
    ndim : int
    description : str
        For messages.

    Raises
    ------
    BadRequest
        It does not map an image to an image, is not repeatable, does not depend on its weights, or sees the
        whole tile.
    """
    with _measuring():
        given = _copied(module, description).to("cpu", torch.float64).eval()
        random = _reweighted(given, positive=False)
        for dtype in (torch.float32, torch.float64):
            search = _Search(given, random, dtype, description, ndim)
            if dtype == torch.float32:
                _check_answers(given, _noise((search.shortest,) * ndim), description)
            axes = [search.along(axis) for axis in range(ndim)]
            stride, halo = tuple(s for s, _ in axes), tuple(h for _, h in axes)
            if _is_local(random, stride, halo, description, long=True) and _is_local(
                given, stride, halo, description, long=False
            ):
                _check_batch(
                    random, _noise((2, *(round_up(_WIDEST_SIDE[ndim], s) for s in stride))), description
                )
                return stride, halo
        raise search.sees_the_whole_tile()


def reach_holds(module: nn.Module, description: str, stride: Lengths, halo: Lengths) -> bool:
    """Tell whether tiles with this stride and halo equal the whole: the proof without the search.

    Raises
    ------
    BadRequest
        It does not map an image to an image.
    """
    with _measuring():
        given = _copied(module, description).to("cpu", torch.float64).eval()
        random = _reweighted(given, positive=False)
        checked_output(copy.deepcopy(random).float(), _noise(stride).float()[None, None], description)
        return _is_local(random, stride, halo, description, long=True)


@contextmanager
def _measuring() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the runs are many and small: handing them to threads costs more than it saves
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)


def checked_output(module: nn.Module, tile: Tensor, description: str) -> Tensor:
    """Run a network over a tile and return what it answers, if that is an image of the same shape and type.

    Raises
    ------
    BadRequest
        It fails, or the answer is of another kind, shape or type.
    """
    expected = f"{tile.dtype} {tuple(tile.shape)}"
    try:
        answer = module(tile.clone())  # a network may work in the place of its input
    except Exception as error:
        reason = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        raise BadRequest(
            "the network does not take an image of one channel",
            where=description,
            got=reason[:300],
            expected=f"(n, 1, {'z, ' * (tile.ndim == 5)}y, x) mapped to the same shape, here {expected}",
        ) from error
    if not isinstance(answer, Tensor):
        got = type(answer).__name__
        raise BadRequest("the network does not answer with a tensor", where=description, got=got)
    if answer.shape != tile.shape or answer.dtype != tile.dtype:
        got = f"{answer.dtype} {tuple(answer.shape)}"
        raise BadRequest(
            "the network changes an image's shape or type", where=description, got=got, expected=expected
        )
    return answer


class _Search:
    """Finds stride and halo, with random weights and positive ones, whose gradients do not cancel."""

    def __init__(
        self, given: nn.Module, random: nn.Module, dtype: torch.dtype, description: str, ndim: int
    ) -> None:
        self.dtype, self.description, self.ndim = dtype, description, ndim
        self.random = copy.deepcopy(random).to(dtype)
        self.positive = _reweighted(given, positive=True).to(dtype)
        self.shortest = self._shortest_extent()
        self._check_weights()

    def along(self, axis: int) -> tuple[int, int]:
        """Return stride and halo along one axis."""
        # Most networks take multiples of their stride alone, so that the shortest extent is the stride.
        for widest in (self.shortest, WIDEST_STRIDE):
            length, margin = self._room(axis, widest)
            period = self._period(self._shape(axis, length), axis, margin, widest)
            if period is not None:
                break
        else:
            raise self.sees_the_whole_tile()
        stride = self._accepted_stride(axis, period)
        if stride > widest:
            length, _ = self._room(axis, stride)
        shape, start = self._shape(axis, length), length // 2 // stride * stride
        ends = (*self._support(shape, axis, start, stride), *self._read_by(shape, axis, start, stride))
        return stride, stride * max(abs(end // stride - start // stride) for end in ends)

    def _room(self, axis: int, slack: int) -> tuple[int, int]:
        """Return a length, and how far from its ends no border is felt, for strides of at most ``slack``."""
        length = _LENGTH
        while length <= _LONGEST:
            # Narrow, because attention costs the square of what it sees.
            narrow = tuple(length if a == axis else self.shortest for a in range(self.ndim))
            middle = length // 2
            first, last = self._support(narrow, axis, middle, 1)
            if first > 0 and last < length - 1:
                reach = max(middle - first, last - middle)
                length = max(round_up(2 * (reach + 2 * slack), _LENGTH), _LENGTH)
                if length > _LONGEST:
                    break
                return length, reach + slack
            length *= 2
        raise self.sees_the_whole_tile()

    def _shape(self, axis: int, length: int) -> tuple[int, ...]:
        return _shape(axis, length, (self.shortest,) * self.ndim)

    def _run(self, module: nn.Module, image: Tensor) -> Tensor:
        return checked_output(module, image[None, None], self.description)[0, 0]

    def _shortest_extent(self) -> int:
        for extent in _EXTENTS:
            try:
                self._run(self.random, _noise((extent,) * self.ndim).to(self.dtype))
            except BadRequest as error:
                refused = error
            else:
                return extent
        raise refused

    def _check_weights(self) -> None:
        weights = [p.requires_grad_() for p in self.positive.parameters() if p.is_floating_point()]
        with torch.enable_grad():
            answer = self._run(self.positive, _noise((self.shortest,) * self.ndim).to(self.dtype))
            gradients = (
                torch.autograd.grad(answer.sum(), weights, allow_unused=True) if answer.requires_grad else ()
            )
        if all(gradient is None for gradient in gradients):
            raise BadRequest(
                "the network's output does not depend on its weights, or no gradient reaches them: "
                "it cannot be trained",
                where=self.description,
            )
        self.positive.requires_grad_(False)

    def _support(self, shape: tuple[int, ...], axis: int, start: int, width: int) -> tuple[int, int]:
        """Return the first and last output, along the axis, that some voxels of the input reach."""
        image = _noise(shape).to(self.dtype)
        image.narrow(axis, start, width).fill_(math.nan)
        return _ends(self._run(self.random, image).isnan(), axis, start)

    def _read_by(self, shape: tuple[int, ...], axis: int, start: int, width: int) -> tuple[int, int]:
        """Return the first and last voxel of the input, along the axis, that some outputs depend on."""
        with torch.enable_grad():
            image = _noise(shape).to(self.dtype).abs().requires_grad_()
            answer = self._run(self.positive, image)
            if not answer.requires_grad:
                return start, start
            (gradient,) = torch.autograd.grad(answer.narrow(axis, start, width).sum(), image)
        return _ends(gradient != 0, axis, start)

    def _period(self, shape: tuple[int, ...], axis: int, margin: int, widest: int) -> int | None:
        """Return the smallest shift of the input that the output follows; None beyond ``widest``."""
        length = shape[axis]
        image = _noise(tuple(n + widest * (a == axis) for a, n in enumerate(shape))).to(self.dtype)
        still = self._run(self.random, image.narrow(axis, 0, length))
        spread = float(still.narrow(axis, margin, length - 2 * margin).std())
        if not spread > 0:
            raise BadRequest("the network's output does not depend on its input", where=self.description)

        def moves_along(shift: int) -> bool:
            moved = self._run(self.random, image.narrow(axis, shift, length))
            kept = length - 2 * margin - shift
            apart = still.narrow(axis, margin + shift, kept) - moved.narrow(axis, margin, kept)
            return float(apart.abs().max()) <= _EQUAL[self.dtype] * spread

        if not moves_along(widest):
            shorter = range(1, widest) if widest == WIDEST_STRIDE else ()
            return next(filter(moves_along, shorter), None)
        # All such shifts are the multiples of the smallest.
        period = widest
        for factor in (2, 3):
            while period % factor == 0 and moves_along(period // factor):
                period //= factor
        return period

    def _accepted_stride(self, axis: int, period: int) -> int:
        """Return the smallest multiple of the period all of whose multiples the network takes as extents."""
        for stride in range(period, WIDEST_STRIDE + 1, period):
            try:
                for times in (1, 2, 3, 5):
                    self._run(self.random, _noise(self._shape(axis, times * stride)).to(self.dtype))
            except BadRequest:
                continue
            return stride
        raise BadRequest(
            "the network takes images of some extents only",
            where=self.description,
            expected=f"all multiples of a stride of at most {WIDEST_STRIDE}",
        )

    def sees_the_whole_tile(self) -> BadRequest:
        """Return the error of a network that no tiles fit."""
        return BadRequest(
            "the network's output depends on the whole tile, so that tiles cannot equal the whole image",
            where=self.description,
            expected=f"at most {_LONGEST // 2 - 2 * WIDEST_STRIDE} voxels of reach",
            remedy="leave out normalisation per tile (instance, group or layer norm; batch norm is fine), "
            "global pooling, squeeze-and-excitation and attention, and whatever asks for the tile's extent",
        )


def _check_answers(module: nn.Module, image: Tensor, description: str) -> None:
    answer = checked_output(module, image[None, None], description)
    if not torch.isfinite(answer).all():
        raise BadRequest("the network's answer is not finite", where=description)
    if not torch.equal(answer, checked_output(module, image[None, None], description)):
        raise BadRequest("the network answers otherwise when asked again", where=description)


def _check_batch(module: nn.Module, images: Tensor, description: str) -> None:
    alone = checked_output(module, images[:1, None], description)
    both = checked_output(module, images[:, None], description)
    if not _agree(both[:1], alone, float(alone.std())):
        raise BadRequest("the network mixes the images of a batch", where=description)


def _is_local(module: nn.Module, stride: Lengths, halo: Lengths, description: str, *, long: bool) -> bool:
    """Tell whether tiles equal the whole, in float64; ``long``: of a long whole too."""
    ndim = len(stride)
    valid = tuple(round_up(8, s) for s in stride)
    full = tuple(2 * h + v + 2 * s for h, v, s in zip(halo, valid, stride, strict=True))
    if math.prod(full) <= _VOXELS[ndim]:
        wholes: list[tuple[tuple[int, ...], Sequence[int]]] = [(full, range(ndim))]
    else:
        wholes = [(_shape(axis, full[axis], stride), (axis,)) for axis in range(ndim)]
    for axis in range(ndim) if long else ():
        affordable = min(_LONG_TILE, _LONG_VOXELS * stride[axis] // math.prod(stride))
        length = round_up(max(_TILE[ndim] + 2 * halo[axis], affordable, full[axis]), stride[axis])
        wholes.append((tuple(length if a == axis else s for a, s in enumerate(stride)), (axis,)))
    return all(
        _tiles_agree(module, shape, _parts(shape, cut, valid, stride, halo), stride, halo, description)
        for shape, cut in wholes
    )


def _parts(
    shape: tuple[int, ...], cut: Sequence[int], valid: Lengths, stride: Lengths, halo: Lengths
) -> list[Box]:
    """Return what three tiles compute: between the ends, at an odd multiple of the stride, and both ends."""

    def part(starts: dict[int, int]) -> Box:
        ranges = [(starts[a], starts[a] + valid[a]) if a in starts else (0, n) for a, n in enumerate(shape)]
        return Box(tuple(first for first, _ in ranges), tuple(stop for _, stop in ranges))

    between = {a: (shape[a] - 2 * halo[a] - valid[a]) // 2 // stride[a] | 1 for a in cut}
    return [
        part({a: halo[a] + steps * stride[a] for a, steps in between.items()}),
        part(dict.fromkeys(cut, 0)),
        part({a: shape[a] - valid[a] for a in cut}),
    ]


def _tiles_agree(
    module: nn.Module,
    shape: tuple[int, ...],
    parts: list[Box],
    stride: Lengths,
    halo: Lengths,
    description: str,
) -> bool:
    image = _QUIET * _noise(shape)
    # A network that asks for the greatest, the least or the mean of its tile answers a quiet one otherwise.
    image.flatten()[0], image.flatten()[-1] = _SPIKES
    whole = checked_output(module, image[None, None], description)[0, 0]
    # A network may answer a quiet tile with a constant; what a spike's sums are rounded by is no dependence.
    rounding = _ROUNDING * float(whole.nan_to_num(posinf=0.0, neginf=0.0).abs().max())
    quiet = max(float(whole[parts[0].slices].std()), rounding / _EQUAL[torch.float64])
    for part in parts:
        tile = tile_for(part, shape, halo, stride)
        answer = checked_output(module, image[tile.read.slices][None, None], description)[0, 0]
        if not _agree(answer[part.relative_to(tile.read.start).slices], whole[part.slices], quiet):
            return False
    return True


def _agree(one: Tensor, other: Tensor, spread: float) -> bool:
    return torch.allclose(one, other, rtol=0.0, atol=_EQUAL[torch.float64] * spread, equal_nan=True)


def _copied(module: nn.Module, description: str) -> nn.Module:
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:
        got = str(error).splitlines()[0][:300]
        raise BadRequest("the network cannot be copied", where=description, got=got) from error


def _reweighted(module: nn.Module, *, positive: bool) -> nn.Module:
    """Return a copy with random weights that keep the scale of what they multiply.

    What is not trained, such as the fixed kernel of a blur, stays as it is.
    """
    generator = torch.Generator().manual_seed(0)
    module = copy.deepcopy(module)
    for value in module.parameters():
        if not value.requires_grad:
            continue
        inputs = max(math.prod(value.shape[1:]), 1)
        uniform = torch.rand(value.shape, generator=generator, dtype=value.dtype) + 0.5
        if value.ndim < 2:
            drawn = uniform
        elif positive:
            drawn = uniform / inputs
        else:
            drawn = torch.randn(value.shape, generator=generator, dtype=value.dtype) * math.sqrt(2 / inputs)
        value.copy_(drawn)
    return module


def _noise(shape: Sequence[int]) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _shape(axis: int, length: int, steps: Lengths) -> tuple[int, ...]:
    """Return a shape long along one axis and some multiples of the steps wide along the others."""
    side = _WIDEST_SIDE[len(steps)]
    return tuple(length if a == axis else max(side // s, 1) * s for a, s in enumerate(steps))


def _ends(mask: Tensor, axis: int, otherwise: int) -> tuple[int, int]:
    """Return the first and last index along an axis at which a mask holds."""
    others = [a for a in range(mask.ndim) if a != axis]
    held = mask.any(dim=tuple(others)).nonzero()
    return (int(held.min()), int(held.max())) if len(held) else (otherwise, otherwise)
