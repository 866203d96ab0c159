"""How far a network of unknown layers reaches: its stride and halo, measured, then proven.

Along each axis in turn, the others as short as the network takes them:

1. *Support.* A voxel that is not a number makes every output that reads it none either, whatever the weights,
   through convolutions, pooling, norms and activations alike. Where a network lets it vanish (``where`` and
   comparisons do), the gradient of an output, with positive weights, shows what it reads. Both are taken.
2. *Stride.* The smallest shift of the input that shifts the output by as much.
3. *Halo.* For each phase of the stride, how far the support reaches beyond the stride's cell::

       first                    cell of one stride                    last
       |<------ halo ------>|-----------voxel------|<------ halo ------>|

4. *Proof.* Tiles equal the whole in float64, with random weights and with the network's own.

Source: Luo et al. 2016, "Understanding the effective receptive field", for the gradient.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import round_up
from denoizarr.geometry.tiling import tiles_of

# With many divisors, for a network that wants a multiple of 2, 3, 4, 6, 8, 12, 16, 24, 32, 48 or 64; each is
# taken where the one before is filled by the support of a single voxel.
_LENGTHS = (192, 384, 768, 1536)
_EXTENTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_WIDEST_STRIDE = 64
# Of what is run at once: 64 channels in float64 are unrolled into 300 MB.
_VOXELS = {2: 2**16, 3: 2**15}
# Across the axis that is measured.
_WIDEST_SIDE = {2: 16, 3: 8}
# Of the output's standard deviation; off the stride's grid tiles differ by 1e-2 to 1 (measured).
_EQUAL = 1e-9


def measured_reach(module: nn.Module, ndim: int, description: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
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
        It does not map an image to an image, is not repeatable, or sees the whole tile.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the runs are many and small: handing them to threads costs more than it saves
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            given = _copied(module, description).to("cpu", torch.float64).eval()
            network = _Measured(given, ndim, description)
            axes = [network.along(axis) for axis in range(ndim)]
            stride, halo = tuple(s for s, _ in axes), tuple(h for _, h in axes)
            for weights in (network.random, given):
                network.prove(weights, stride, halo)
    finally:
        torch.set_num_threads(threads)
    return stride, halo


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


class _Measured:
    """A network with random weights, and with positive ones, whose gradients do not cancel."""

    def __init__(self, given: nn.Module, ndim: int, description: str) -> None:
        self.ndim, self.description = ndim, description
        self.random, self.positive = _reweighted(given, positive=False), _reweighted(given, positive=True)
        self.shortest = self._shortest_extent()
        tile = _noise((self.shortest,) * ndim)
        answer = self._run(given, tile)
        if not torch.isfinite(answer).all():
            raise BadRequest("the network's answer is not finite", where=description)
        if not torch.equal(answer, self._run(given, tile)):
            raise BadRequest("the network answers otherwise when asked again", where=description)

    def along(self, axis: int) -> tuple[int, int]:
        """Return stride and halo along one axis."""
        for length in _LENGTHS:
            # Narrow, because attention costs the square of what it sees.
            narrow = tuple(length if a == axis else self.shortest for a in range(self.ndim))
            first, last = self._support(narrow, axis, length // 2)
            margin = max(length // 2 - first, last - length // 2) + _WIDEST_STRIDE
            if 2 * margin + _WIDEST_STRIDE <= length:
                break
        else:
            raise self._sees_the_whole_tile()
        shape = self._shape(axis, length)
        stride = self._accepted_stride(axis, self._period(shape, axis, margin))
        start = length // 2 // stride * stride
        halo = 0
        for voxel in range(start, start + stride):
            first, last = self._support(shape, axis, voxel)
            # From the voxel that is read to the border of the cell of stride whose output reads it.
            halo = max(halo, voxel - (first // stride * stride + stride - 1), last // stride * stride - voxel)
            first, last = self._read_by(shape, axis, voxel)
            halo = max(halo, start - first, last - (start + stride - 1))
        return stride, round_up(halo, stride)

    def prove(self, module: nn.Module, stride: tuple[int, ...], halo: tuple[int, ...]) -> None:
        """Compare tiles with the whole: cut along each axis, and along all where that is small enough."""
        full = tuple(2 * h + round_up(max(6 * s, 16), s) for h, s in zip(halo, stride, strict=True))
        shapes = [self._shape(axis, full[axis], stride) for axis in range(self.ndim)]
        if math.prod(full) <= _VOXELS[self.ndim]:
            shapes.append(full)
        for shape in shapes:
            image = _noise(shape)
            whole = self._run(module, image)
            tolerance = _EQUAL * float(whole.std())
            batch = checked_output(module, torch.stack((image, image.flip(-1)))[:, None], self.description)
            if not bool(((batch[0, 0] - whole).abs() <= tolerance).all()):
                raise BadRequest("the network mixes the images of a batch", where=self.description)
            sides = [round_up(n // 3, s) for n, s in zip(shape, stride, strict=True)]
            for tile in tiles_of(Box.whole(shape), sides, shape, halo, stride):
                answer = self._run(module, image[tile.read.slices])[
                    tile.valid.relative_to(tile.read.start).slices
                ]
                if not bool(((answer - whole[tile.valid.slices]).abs() <= tolerance).all()):
                    raise self._sees_the_whole_tile()

    def _run(self, module: nn.Module, image: Tensor) -> Tensor:
        return checked_output(module, image[None, None], self.description)[0, 0]

    def _shape(self, axis: int, length: int, stride: tuple[int, ...] | None = None) -> tuple[int, ...]:
        """Return a shape long along one axis and as wide along the others as memory lets it be."""
        side = min(int((_VOXELS[self.ndim] / length) ** (1 / (self.ndim - 1))), _WIDEST_SIDE[self.ndim])
        steps = stride or (self.shortest,) * self.ndim
        return tuple(length if a == axis else max(side // s, 1) * s for a, s in enumerate(steps))

    def _shortest_extent(self) -> int:
        for extent in _EXTENTS:
            try:
                self._run(self.random, _noise((extent,) * self.ndim))
            except BadRequest as error:
                refused = error
            else:
                return extent
        raise refused

    def _support(self, shape: tuple[int, ...], axis: int, voxel: int) -> tuple[int, int]:
        """Return the first and last output, along the axis, that a voxel of the input reaches."""
        image = _noise(shape)
        image[self._at(shape, axis, voxel)] = math.nan
        reached = _along(self._run(self.random, image).isnan(), axis)
        return (int(reached.min()), int(reached.max())) if len(reached) else (voxel, voxel)

    def _read_by(self, shape: tuple[int, ...], axis: int, voxel: int) -> tuple[int, int]:
        """Return the first and last voxel of the input, along the axis, that an output depends on."""
        with torch.enable_grad():
            image = _noise(shape).abs().requires_grad_()
            answer = self._run(self.positive, image)
            if not answer.requires_grad:
                return voxel, voxel
            (gradient,) = torch.autograd.grad(answer[self._at(shape, axis, voxel)], image)
        read = _along(gradient != 0, axis)
        return (int(read.min()), int(read.max())) if len(read) else (voxel, voxel)

    def _period(self, shape: tuple[int, ...], axis: int, margin: int) -> int:
        """Return the smallest shift of the input that shifts the output by as much."""
        length = shape[axis]
        image = _noise(tuple(n + _WIDEST_STRIDE * (a == axis) for a, n in enumerate(shape)))
        still = self._run(self.random, image.narrow(axis, 0, length))
        spread = float(still.narrow(axis, margin, length - 2 * margin).std())
        if not spread > 0:
            raise BadRequest("the network's output does not depend on its input", where=self.description)
        for shift in range(1, _WIDEST_STRIDE + 1):
            moved = self._run(self.random, image.narrow(axis, shift, length))
            kept = length - 2 * margin - shift
            apart = still.narrow(axis, margin + shift, kept) - moved.narrow(axis, margin, kept)
            if float(apart.abs().max()) <= _EQUAL * spread:
                return shift
        raise self._sees_the_whole_tile()

    def _accepted_stride(self, axis: int, period: int) -> int:
        """Return the smallest multiple of the period all of whose multiples the network takes as extents."""
        for stride in range(period, _WIDEST_STRIDE + 1, period):
            try:
                for times in (1, 2, 3, 5):
                    self._run(self.random, _noise(self._shape(axis, times * stride)))
            except BadRequest:
                continue
            return stride
        raise BadRequest(
            "the network takes images of some extents only",
            where=self.description,
            expected=f"all multiples of a stride of at most {_WIDEST_STRIDE}",
        )

    def _at(self, shape: tuple[int, ...], axis: int, voxel: int) -> tuple[int, ...]:
        return tuple(voxel if a == axis else n // 2 for a, n in enumerate(shape))

    def _sees_the_whole_tile(self) -> BadRequest:
        return BadRequest(
            "the network's output depends on the whole tile, so that tiles cannot equal the whole image",
            where=self.description,
            expected=f"at most {_LENGTHS[-1] // 2 - 2 * _WIDEST_STRIDE} voxels of reach",
            remedy="leave out normalisation per tile (instance, group or layer norm; batch norm is fine), "
            "global pooling, squeeze-and-excitation and attention",
        )


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


def _noise(shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def _along(mask: Tensor, axis: int) -> Tensor:
    others = [a for a in range(mask.ndim) if a != axis]
    return mask.any(dim=tuple(others)).nonzero()
