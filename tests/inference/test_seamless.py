"""P1: whatever the tiles, blocks, chunks and shards, the output is the network run over the whole image.

Each property has a control that breaks one rule of the geometry, and must be seen.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from denoizarr.geometry.boxes import Box
from denoizarr.geometry.tiling import tiles_of
from denoizarr.images.save import save_image
from denoizarr.inference.block import denoise_box
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.kernels.waves import Wave
from denoizarr.stores.images import as_image, corrected_image, open_image, reader_of
from denoizarr.stores.periodic import WaveTable
from denoizarr.training.centre_weights import CentreWeights
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

Array = np.ndarray[Any, Any]
LIMITS = {"float64": 1e-12, "float32": 5e-5}
KINDS = [(ndim, depth, up) for ndim in (2, 3) for depth in (2, 3, 4) for up in ("nearest", "transposed")]
# A voxel keeps between none and half of the mean of what the network leaves around it.
FOOTPRINT = {
    "centre": (CentreWeights((60.0, 100.0, 140.0), (0.0, 0.5, 0.2), (80.0, 120.0), (1.0, -1.0)),),
    "footprint": np.hypot(*np.mgrid[-3:4, -2:3]) < 3.2,
}
QUICK = settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])


@lru_cache(maxsize=64)
def model(
    ndim: int = 2, depth: int = 2, upsampling: Any = "nearest", precision: Any = "float64", foot: bool = False
) -> Denoiser:
    shape = NetworkShape(ndim=ndim, features=2, depth=depth, upsampling=upsampling)
    weights = build_network(shape, seed=depth).state_dict()
    about = Normalisation((100.0,), (20.0,))
    return Denoiser(shape, weights, about, precision=precision, **(FOOTPRINT if foot else {}))  # type: ignore[arg-type]


def whole_at_once(denoiser: Denoiser, image: Array) -> Array:
    """The definition of P1: one run, the far end padded once with edge values to the stride."""
    padding = [(0, -n % s) for n, s in zip(image.shape, denoiser.stride, strict=True)]
    result = denoiser.run_tile(np.pad(image, padding, mode="edge"))
    return result[tuple(slice(0, n) for n in image.shape)]


def noise(shape: tuple[int, ...], dtype: str = "float64", seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(100, 20, shape).clip(0, 250).astype(dtype)


def in_blocks(denoiser: Denoiser, image: Array, block: tuple[int, ...], tile: tuple[int, ...]) -> Array:
    """Denoise an image block by block as a worker does."""
    from denoizarr.geometry.grids import Grid

    result = np.empty(image.shape, denoiser.run_tile(np.zeros(denoiser.stride)).dtype)
    for box in Grid(image.shape, block):
        result[box.slices] = denoise_box(denoiser, reader_of(as_image(image)), box, tile, result.dtype)[0]
    return result


@st.composite
def cuts(draw: st.DrawFn, ndim: int, stride: int) -> tuple[tuple[int, ...], ...]:
    """A shape, a block and a tile: odd and uneven sizes, one axis longer than any halo here."""
    long = draw(st.integers(0, ndim - 1))
    most = 97 if ndim == 2 else 25
    shape = [draw(st.integers(1, most)) for _ in range(ndim)]
    shape[long] = draw(st.integers(*((120, 150) if ndim == 3 else (150, 181))))
    block = [draw(st.integers(max(n // 3, 1), n)) for n in shape]
    tile = [stride * draw(st.integers(n // (2 * stride) + 1, n // stride + 1)) for n in block]
    return tuple(shape), tuple(block), tuple(tile)


@pytest.mark.parametrize(("ndim", "depth", "upsampling"), KINDS)
@QUICK
@given(data=st.data())
def test_any_cut_equals_the_whole(ndim: int, depth: int, upsampling: Any, data: st.DataObject) -> None:
    shape, block, tile = data.draw(cuts(ndim, 2**depth))
    precision = data.draw(st.sampled_from(["float64", "float32"]))
    denoiser, image = model(ndim, depth, upsampling, precision), noise(shape)
    found = in_blocks(denoiser, image, block, tile)
    assert np.abs(found - whole_at_once(denoiser, image)).max() <= LIMITS[precision] * image.std()


@QUICK
@given(cut=cuts(2, 4), precision=st.sampled_from(["float64", "float32"]))
def test_a_footprints_reach_is_part_of_the_halo(cut: tuple[tuple[int, ...], ...], precision: str) -> None:
    shape, block, tile = cut
    denoiser, image = model(precision=precision, foot=True), noise(shape)
    assert denoiser.halo == (24 + 3, 24 + 2)
    found = in_blocks(denoiser, image, block, tile)
    assert np.abs(found - whole_at_once(denoiser, image)).max() <= LIMITS[precision] * image.std()
    plain = whole_at_once(model(precision=precision), image)
    assert np.abs(found - plain).max() > 0.1, "the footprint does something"


@QUICK
@given(cut=cuts(2, 4))
def test_lines_are_taken_out_alike_in_every_block(cut: tuple[tuple[int, ...], ...]) -> None:
    shape, block, tile = cut
    waves = [[Wave((0.061, 0.083), 15.0, 1.0)]]
    corrected = corrected_image(as_image(noise(shape)), WaveTable.of(((0.061, 0.083),), (), waves))
    denoiser, reader = model(), reader_of(corrected)
    expected = whole_at_once(denoiser, reader.read(Box.whole(shape)))
    first = Box((0, 0), block)
    for box in (first, Box(tuple(n - b for n, b in zip(shape, block, strict=True)), shape)):
        found, _ = denoise_box(denoiser, reader, box, tile, np.dtype("float64"))
        assert np.abs(found - expected[box.slices]).max() <= LIMITS["float64"] * noise(shape).std()


# ---- from Zarr to Zarr, chunks and shards as they come, before the cast and after it


@st.composite
def stored(draw: st.DrawFn, ndim: int) -> dict[str, Any]:
    shape = tuple(draw(st.integers(1, 97 if ndim == 2 else 25)) for _ in range(ndim))
    chunks = tuple(draw(st.integers(max(n // 3, 3), max(n, 3))) for n in shape)
    shards = tuple(c * draw(st.integers(1, 3)) for c in chunks)
    tile = tuple(4 * draw(st.integers(max(n // 12, 1), 1 + n // 4)) for n in shape)
    source = tuple(draw(st.integers(max(n // 3, 3), max(n, 3))) for n in shape)
    return {"shape": shape, "source": source, "chunks": chunks, "shards": shards, "tile_shape": tile}


@pytest.mark.parametrize("ndim", [2, 3])
@QUICK
@given(data=st.data())
def test_any_layout_equals_the_whole_before_and_after_the_cast(ndim: int, data: st.DataObject) -> None:
    how = data.draw(stored(ndim))
    image = noise(how.pop("shape"), "uint8")
    expected = whole_at_once(model(ndim, precision="float32"), image)
    with TemporaryDirectory() as folder:
        save_image(image, Path(folder, "in"), chunks=how.pop("source"), levels=1)
        for dtype in ("float32", "uint8"):
            out = Path(folder, dtype)
            predict(
                model(ndim, precision="float32"), Path(folder, "in"), out, dtype=dtype, levels=1,
                progress=False, **how,
            )  # fmt: skip
            found = open_image(out).values
            if dtype == "float32":
                assert np.abs(found - expected).max() <= 5e-5 * image.std()
                continue
            steps = np.abs(found.astype(int) - np.rint(expected).clip(0, 255).astype(int))
            assert steps.max() <= 1
            assert (steps > 0).mean() <= 1e-3 or (steps > 0).sum() <= 1


def test_in_a_thousand_voxels_at_most_one_is_rounded_otherwise() -> None:
    denoiser, image = model(precision="float32"), noise((301, 217), "uint16")
    expected = np.rint(whole_at_once(denoiser, image)).clip(0, 65535)
    found, _ = denoise_box(
        denoiser, reader_of(as_image(image)), Box.whole(image.shape), (40, 24), np.dtype("uint16")
    )
    steps = np.abs(found.astype(int) - expected.astype(int))
    assert steps.max() <= 1
    assert (steps > 0).mean() <= 1e-3


# ---- controls


@pytest.mark.parametrize(("ndim", "depth"), [(2, 2), (2, 3), (3, 2)])
def test_a_halo_one_stride_short_is_seen(ndim: int, depth: int) -> None:
    denoiser = model(ndim, depth).to()  # one that may be broken
    image = noise((90, 231) if ndim == 2 else (16, 20, 110))
    halo, tile = denoiser.halo, (8 * 2**depth,) * ndim
    expected = whole_at_once(denoiser, image)
    whole = Box.whole(image.shape)

    def error() -> float:
        found, _ = denoise_box(denoiser, reader_of(as_image(image)), whole, tile, np.dtype("float64"))
        return float(np.abs(found - expected).max() / image.std())

    assert error() <= LIMITS["float64"]
    denoiser.halo = tuple(h - s for h, s in zip(halo, denoiser.stride, strict=True))
    assert error() > LIMITS["float64"]


def test_a_footprint_left_out_of_the_halo_is_seen() -> None:
    denoiser, image = model(foot=True).with_centre(**FOOTPRINT), noise((97, 181))  # type: ignore[arg-type]
    # Far below the network's own halo: tiles are widened to the stride's grid, which may hide a few voxels.
    denoiser.halo = tuple(h - f // 2 - 4 for h, f in zip(denoiser.halo, (7, 5), strict=True))
    found = in_blocks(denoiser, image, (97, 60), (32, 32))
    assert np.abs(found - whole_at_once(denoiser, image)).max() > LIMITS["float64"] * image.std()


@pytest.mark.parametrize(("ndim", "offset"), [(2, 1), (2, 2), (3, 2)])
def test_an_origin_off_the_grid_is_seen(ndim: int, offset: int) -> None:
    denoiser, image = model(ndim), noise((120,) * 2 if ndim == 2 else (68, 68, 68))
    expected = whole_at_once(denoiser, image)
    shifted = (slice(offset, offset + 64),) * ndim
    inner = (slice(26, 38),) * ndim  # its halo lies inside
    found = denoiser.run_tile(image[shifted])[inner]
    assert np.abs(found - expected[shifted][inner]).max() > 1e-3 * image.std()


def test_normalising_each_tile_is_seen() -> None:
    image, denoiser = noise((150, 181)), model()
    image += np.linspace(0, 100, 181)  # brighter to the right, as images are
    result = np.empty(image.shape)
    for tile in tiles_of(Box.whole(image.shape), (64, 64), image.shape, denoiser.halo, denoiser.stride):
        voxels = np.pad(image[tile.inside(image.shape).slices], tile.padding(image.shape), mode="edge")
        own = Denoiser(
            denoiser.network, build_network(denoiser.network, seed=2).state_dict(),
            Normalisation((float(voxels.mean()),), (float(voxels.std()),)), precision="float64",
        )  # fmt: skip
        kept = own.run_tile(voxels)[tile.valid.relative_to(tile.read.start).slices]
        result[tile.valid.slices] = kept
    assert np.abs(result - whole_at_once(denoiser, image)).max() > 1e-2 * image.std()


# ---- what a plan says is a disjoint cover of whole write units


@settings(max_examples=20)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 97), st.integers(1, 97)),
    chunks=st.tuples(st.integers(1, 3), st.integers(9, 60), st.integers(9, 60)),
    units=st.none() | st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)),
    depth=st.integers(1, 4),
    version=st.sampled_from(["0.5", "0.4"]),
)
def test_blocks_and_tiles_of_a_plan_cover_every_voxel_once(
    shape: tuple[int, ...], chunks: tuple[int, ...], units: Any, depth: int, version: str
) -> None:
    sharded = units is not None and version == "0.5"
    denoiser = model(2, depth)
    planned = plan_prediction(
        denoiser,
        as_image(np.zeros(shape, np.uint8)),
        "out",
        chunks=chunks,
        shards=tuple(c * u for c, u in zip(chunks, units, strict=True)) if sharded else None,
        ome_version=version,
    )
    level = planned.layout.levels[0]
    unit = level.shards or level.chunks
    seen, tiled = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for block in level.write_units:
        assert all(a % u == 0 for a, u in zip(block.start, unit, strict=True))
        assert all(b % u == 0 or b == n for b, u, n in zip(block.stop, unit, shape, strict=True))
        seen[block.slices] += 1
        valid = Box(block.start[1:], block.stop[1:])
        for tile in tiles_of(valid, planned.tile_shape, shape[1:], denoiser.halo, denoiser.stride):
            tiled[(slice(block.start[0], block.stop[0]), *tile.valid.slices)] += 1
            assert all(a % s == 0 for a, s in zip(tile.read.start, denoiser.stride, strict=True))
    assert (seen == 1).all()
    assert (tiled == 1).all()
    assert planned.blocks == len(level.write_units)
