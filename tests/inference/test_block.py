"""What a block does with its tiles: side by side, smaller where memory is short, in bfloat16 if asked."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import denoizarr.inference.block as blocks
from denoizarr.cli.app import told
from denoizarr.engine.summary import RunSummary, added
from denoizarr.errors import BadRequest, LedgerMismatch, MemoryLimitTooSmall
from denoizarr.geometry.boxes import Box
from denoizarr.inference.block import compute_box, halved, is_out_of_memory, read_box
from denoizarr.inference.predict import predict
from denoizarr.inference.tile_threads import cores_of_process, run_side_by_side
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores.images import as_image, open_image, reader_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.own_network import OwnNetwork


def model(ndim: int = 2, features: int = 8, norm: str = "batch", precision: str = "float32") -> Denoiser:
    shape = NetworkShape(ndim=ndim, features=features, depth=2, norm=norm)  # type: ignore[arg-type]
    weights = build_network(shape, seed=0).state_dict()
    for name, value in weights.items():  # as training would: a norm that does nothing folds into nothing
        if "running" in name:
            weights[name] = value + torch.rand(value.shape, generator=torch.Generator().manual_seed(1))
    return Denoiser(shape, weights, Normalisation((100.0,), (20.0,)), precision=precision)  # type: ignore[arg-type]


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> Any:
    return np.random.default_rng(0).normal(100, 20, shape).clip(0, 250).astype(dtype)


def computed(denoiser: Denoiser, image: Any, tile: tuple[int, ...], dtype: str = "float32") -> Any:
    raw = read_box(denoiser, reader_of(as_image(image)), Box.whole(image.shape))
    return compute_box(denoiser, raw, tile, np.dtype(dtype), "block 0")


# ---- side by side


@pytest.mark.parametrize(
    ("ndim", "shape", "tile"), [(2, (2, 150, 131), (32, 48)), (3, (8, 40, 36), (8, 16, 24))]
)
def test_tiles_side_by_side_have_the_bits_of_tiles_in_turn(
    ndim: int, shape: tuple[int, ...], tile: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    denoiser, image = model(ndim, features=2), noise(shape)
    found = []
    for cores in (1, 2, 5):
        monkeypatch.setattr(blocks, "cores_of_process", lambda n=cores: n)
        values, used = computed(denoiser, image, tile)
        assert used == tile
        found.append(values.tobytes())
    assert len(set(found)) == 1


def test_a_block_alone_has_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, meeting, seen = model(features=2), threading.Barrier(3, timeout=20), set()
    run = denoiser.run_tile

    def run_tile(tile: Any, channel: int = 0) -> Any:
        seen.add(torch.get_num_threads())
        meeting.wait()  # passed by three at once, or by none
        return run(tile, channel)

    monkeypatch.setattr(denoiser, "run_tile", run_tile)
    monkeypatch.setattr(blocks, "cores_of_process", lambda: 3)
    computed(denoiser, noise((24, 24)), (8, 8))
    assert seen == {1}, "and each tile a thread"


@given(failing=st.sets(st.integers(0, 19), min_size=1), at_once=st.integers(1, 4))
@settings(max_examples=20)
def test_the_first_tile_that_fails_is_the_one_that_is_told_of(failing: set[int], at_once: int) -> None:
    done = []

    def work(number: int) -> None:
        if number in failing:
            raise ValueError(f"tile {number}")
        done.append(number)

    with pytest.raises(ValueError, match="tile"):
        run_side_by_side(work, 20, at_once)
    before = len(done)
    run_side_by_side(done.append, 3, at_once)
    assert len(done) == before + 3, "the threads go on, and nothing is left of the failed block"


def test_a_worker_has_the_threads_that_its_cluster_gave_it(client: Any) -> None:
    (threads,) = set(client.run(cores_of_process).values())
    assert client.submit(cores_of_process, pure=False).result() == 1
    assert threads in (1, cores_of_process())  # outside a task a process is one like any other


# ---- copies that are not made


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32", "float64"])
def test_what_a_tile_is_made_of_is_left_as_it_was(dtype: str) -> None:
    denoiser, tile = model(features=2), noise((16, 16), dtype)
    before = tile.copy()
    first = denoiser.run_tile(tile)
    assert np.array_equal(tile, before)
    assert np.array_equal(denoiser.run_tile(tile), first)


class _InPlace(torch.nn.Module):
    """Works in the place of its input and hands it back."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(self.weight)


@pytest.mark.parametrize("precision", ["float32", "float64", "bfloat16"])
def test_ones_own_network_may_work_in_its_place(precision: str) -> None:
    module, tile = _InPlace(), noise((8, 8), "float32")
    network = OwnNetwork(module, 2, (0, 0), (1, 1), "in place")
    normalisation = Normalisation((0.0,), (1.0,))
    denoiser = Denoiser(network, module.state_dict(), normalisation, precision=precision)  # type: ignore[arg-type]
    before = tile.copy()
    assert np.allclose(denoiser.run_tile(tile), 2 * before, rtol=1e-2)
    assert np.array_equal(tile, before)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_network_runs_folded_in_channels_last_and_equals_the_plain_one(ndim: int) -> None:
    shape, extents = NetworkShape(ndim=ndim, features=8, norm="batch"), (32,) * ndim
    denoiser = model(ndim)
    layout = torch.channels_last if ndim == 2 else torch.channels_last_3d
    names = [name for name, _ in denoiser.module.named_parameters()]
    assert not any("norm" in name for name in names)
    wide = [p for p in denoiser.module.parameters() if p.ndim == ndim + 2 and min(p.shape[:2]) > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=layout) for p in wide)
    plain = build_network(shape)
    plain.load_state_dict(denoiser._weights)
    plain.eval()
    tile = noise(extents, "float32")
    with torch.no_grad():
        expected = plain(torch.from_numpy((tile - 100) / 20)[None, None])[0, 0].numpy() * 20 + 100
    assert np.abs(denoiser.run_tile(tile) - expected).max() <= 5e-5 * tile.std()


# ---- bfloat16


@pytest.mark.parametrize("ndim", [2, 3])
def test_bfloat16_is_near_float32_and_its_tiles_near_its_whole(ndim: int) -> None:
    image = noise((96, 90) if ndim == 2 else (16, 48, 44), "float32")
    exact, fast = model(ndim), model(ndim, precision="bfloat16")
    tile, whole = (16,) * ndim, tuple(-(-n // 4) * 4 for n in image.shape)
    expected, _ = computed(exact, image, whole)
    once, _ = computed(fast, image, whole)
    tiled, _ = computed(fast, image, tile)
    assert 0 < np.abs(once - expected).max() <= 0.15 * image.std(), "it is another precision, and near"
    assert (once - expected).std() <= 0.03 * image.std()
    # P1 as it holds in bfloat16: of the rounding of the numbers, not of the place of the tile.
    assert np.abs(tiled - once).max() <= 0.05 * image.std()
    assert once.dtype == tiled.dtype == np.float32


def test_bfloat16_is_asked_for_and_another_job(tmp_path: Path) -> None:
    image, out = noise((64, 64)), tmp_path / "out.ome.zarr"
    predict(model(), image, out, progress=False)
    with pytest.raises(LedgerMismatch, match="precision"):
        predict(model(), image, out, precision="bfloat16", progress=False)
    exact = predict(model(precision="bfloat16"), image, tmp_path / "again", progress=False)
    assert exact.blocks_done == 1
    assert np.array_equal(open_image(tmp_path / "again").values, open_image(out).values), "not by the way"
    with pytest.raises(BadRequest, match="float32 or float64 or bfloat16"):
        predict(model(), image, tmp_path / "no", precision="half", progress=False)  # type: ignore[arg-type]


def test_bfloat16_needs_less_memory() -> None:
    assert model(precision="bfloat16").bytes_per_voxel < 0.7 * model().bytes_per_voxel


# ---- out of memory


def test_errors_that_say_so_are_known() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(2**60, np.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("out of memory"))


@given(st.tuples(st.integers(1, 99), st.integers(1, 99)), st.integers(1, 300), st.sampled_from([1, 2, 4, 8]))
def test_half_a_tile_is_smaller_and_on_the_grid(block: tuple[int, int], side: int, stride: int) -> None:
    tile = -(-side // stride) * stride
    half = halved((tile, tile), block, (stride, stride))
    for found, extent in zip(half, block, strict=True):
        used = min(tile, extent)
        assert found % stride == 0
        assert found <= max(used // 2 + stride - 1, stride)


def _short_of_memory(monkeypatch: pytest.MonkeyPatch, most_voxels: int, error: Exception) -> list[int]:
    """Let a tile of more voxels fail for want of memory, and return the sizes that were tried."""
    tried: list[int] = []
    run = Denoiser.run_tile

    def run_tile(self: Denoiser, tile: Any, channel: int = 0) -> Any:
        tried.append(tile.size)
        if tile.size > most_voxels:
            raise error
        return run(self, tile, channel)

    monkeypatch.setattr(Denoiser, "run_tile", run_tile)
    return tried


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("can't allocate memory")],
)
def test_a_block_that_does_not_fit_is_computed_in_smaller_tiles(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = noise((2, 200, 200))
    how = {"tile_shape": (128, 128), "shards": (1, 256, 256), "chunks": (1, 256, 256), "progress": False}
    expected = predict(model(), image, tmp_path / "plenty", dtype="float32", **how)
    tried = _short_of_memory(monkeypatch, 120 * 120, error)
    with caplog.at_level(logging.WARNING):
        short = predict(model(), image, tmp_path / "short", dtype="float32", **how)
    assert "once more in tiles of (64, 64)" in caplog.text
    assert (expected.blocks_in_smaller_tiles, short.blocks_in_smaller_tiles) == (0, 2)
    difference = np.abs(open_image(tmp_path / "short").values - open_image(tmp_path / "plenty").values)
    assert difference.max() <= 5e-5 * image.std()
    assert 32 <= sum(size <= 120 * 120 for size in tried) <= 34, "16 small tiles of each, corners aside"
    records = [json.loads(p.read_text()) for p in (tmp_path / "short.ledger" / "level-0").glob("0*.json")]
    assert [r["tile_shape"] for record in records for r in record["results"]] == [[64, 64]] * 2


def test_it_is_said_to_who_ran_it() -> None:
    counts = {"destination": "o", "blocks_total": 9, "blocks_done": 9, "blocks_skipped": 0}
    short, plenty = RunSummary(**counts, blocks_in_smaller_tiles=2), RunSummary(**counts)
    assert "too short for 2 of 9 blocks" in told(short)
    assert "too short" not in told(plenty)
    assert added("o", [short, plenty, short]).blocks_in_smaller_tiles == 4


def test_memory_that_is_too_short_for_half_a_tile_ends_the_block_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = _short_of_memory(monkeypatch, 0, MemoryError())
    with pytest.raises(MemoryLimitTooSmall, match=r"block 0: got tiles of \(128, 128\), then of \(32, 32\)"):
        predict(model(), noise((64, 64)), tmp_path / "o", tile_shape=(128, 128), progress=False)
    assert len(set(tried)) <= 2, "it backs off once"


def test_other_errors_are_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = _short_of_memory(monkeypatch, 0, ValueError("a mistake"))
    with pytest.raises(Exception, match="a mistake"):
        predict(model(), noise((64, 64)), tmp_path / "o", tile_shape=(64, 64), progress=False)
    assert len(tried) == 1
