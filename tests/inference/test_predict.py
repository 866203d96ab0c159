"""P1 to P3 of the design: seamless, the same bytes, one writer a unit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.engine.ledger import Ledger
from denoizarr.engine.memory_limits import parse_bytes
from denoizarr.errors import (
    BadRequest,
    IncompleteOutput,
    LedgerMismatch,
    MemoryLimitTooSmall,
    MissingChunk,
    ModelError,
    NonFiniteData,
)
from denoizarr.geometry.boxes import Box
from denoizarr.images.save import save_image
from denoizarr.inference.block import denoise_box
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores.images import as_image, open_image, reader_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation


def make_denoiser(
    depth=2, features=4, seed=0, channels=1, upsampling="nearest", norm="batch", precision="float32"
):
    torch.manual_seed(seed)
    shape = NetworkShape(features=features, depth=depth, upsampling=upsampling, norm=norm)
    weights = build_network(shape).state_dict()
    statistics = Normalisation(
        tuple(100.0 + 50 * c for c in range(channels)), tuple(20.0 + 5 * c for c in range(channels))
    )
    return Denoiser(shape, weights, statistics, precision=precision)


def make_image(shape, seed=0, dtype="uint16"):
    return np.random.default_rng(seed).normal(100, 20, shape).clip(0, 250).astype(dtype)


def whole_image_at_once(denoiser, plane):
    """The definition of P1: one run over the plane, its far end padded with edge values to the stride."""
    padding = [(0, -n % s) for n, s in zip(plane.shape, denoiser.stride, strict=True)]
    result = denoiser.run_tile(np.pad(plane, padding, mode="edge"))
    return result[tuple(slice(0, n) for n in plane.shape)]


def tree_hash(folder):
    digest = hashlib.blake2b()
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("upsampling", ["nearest", "transposed"])
@settings(max_examples=8)
@given(
    height=st.integers(65, 181),
    width=st.integers(65, 181),
    tile=st.sampled_from([8, 16, 40, 64, 128]),
    block=st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 90), st.integers(1, 90)),
)
def test_any_block_and_tile_equals_the_whole_image(depth, upsampling, height, width, tile, block):
    denoiser = make_denoiser(depth, upsampling=upsampling, precision="float64")
    plane = make_image((height, width), dtype="float64")
    box = Box(block[:2], (min(block[0] + block[2], height), min(block[1] + block[3], width)))
    values, _ = denoise_box(denoiser, reader_of(as_image(plane)), box, (tile, tile), np.dtype("float64"))
    expected = whole_image_at_once(denoiser, plane)[box.slices]
    assert np.abs(values - expected).max() <= 1e-12 * plane.std()


def test_in_float32_and_after_the_cast():
    denoiser, plane = make_denoiser(), make_image((300, 217))
    expected = whole_image_at_once(denoiser, plane)
    reader, whole = reader_of(as_image(plane)), Box.whole(plane.shape)
    as_float, _ = denoise_box(denoiser, reader, whole, (64, 64), np.dtype("float32"))
    assert np.abs(as_float - expected).max() <= 5e-5 * plane.std()
    as_integer, _ = denoise_box(denoiser, reader, whole, (64, 64), np.dtype("uint16"))
    difference = np.abs(as_integer.astype(int) - np.rint(expected).clip(0, 65535).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


def test_a_halo_one_stride_short_is_seen():
    """Negative control: the equality above can fail."""
    denoiser, plane = make_denoiser(precision="float64"), make_image((200, 200), dtype="float64")
    denoiser.halo = tuple(h - 2 * s for h, s in zip(denoiser.halo, denoiser.stride, strict=True))
    values, _ = denoise_box(
        denoiser, reader_of(as_image(plane)), Box.whole(plane.shape), (64, 64), np.dtype("float64")
    )
    assert np.abs(values - whole_image_at_once(denoiser, plane)).max() > 1e-12 * plane.std()


def test_tiles_off_the_stride_grid_are_seen():
    """Negative control: a tile whose origin is off the grid gives other voxels, whatever its halo."""
    denoiser, plane = make_denoiser(precision="float64"), make_image((200, 200), dtype="float64")
    whole = whole_image_at_once(denoiser, plane)
    shifted = denoiser.run_tile(plane[2:198, 2:198])
    assert np.abs(shifted[64:128, 64:128] - whole[66:130, 66:130]).max() > 1e-6 * plane.std()


def test_a_stored_image_equals_the_model_in_memory(tmp_path):
    denoiser, stack = make_denoiser(), make_image((3, 150, 201))
    save_image(stack, tmp_path / "in.ome.zarr", chunks=(1, 64, 64))
    summary = predict(denoiser, tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr", progress=False)
    out = open_image(tmp_path / "out.ome.zarr")
    expected = np.rint(np.stack([whole_image_at_once(denoiser, plane) for plane in stack])).clip(0, 65535)
    difference = np.abs(out.values.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3
    assert out.dtype == stack.dtype
    assert summary.blocks_done == summary.blocks_total > 0
    assert summary.changes == ()


@pytest.mark.parametrize("axes", ["yx", "zyx", "czyx", "tczyx"])
def test_every_axis_beside_the_models_is_looped(axes, tmp_path):
    shape = {"t": 2, "c": 2, "z": 2, "y": 80, "x": 72}
    denoiser = make_denoiser(channels=2 if "c" in axes else 1)
    stack = make_image(tuple(shape[a] for a in axes))
    predict(denoiser, as_image(stack, axes), tmp_path / "out.ome.zarr", dtype="float32", progress=False)
    out = open_image(tmp_path / "out.ome.zarr").values
    if "c" in axes:  # Denoiser.denoise wants the channels right before y and x
        out, stack = (np.moveaxis(array, axes.index("c"), -3) for array in (out, stack))
    assert np.abs(out - denoiser.denoise(stack)).max() <= 5e-5 * stack.std()


def test_bytes_do_not_depend_on_who_works(tmp_path, client):
    denoiser = make_denoiser()
    save_image(make_image((2, 300, 200)), tmp_path / "in.ome.zarr", chunks=(1, 64, 64), shards=(1, 128, 128))
    options = {"chunks": (1, 64, 64), "shards": (1, 64, 64), "progress": False, "tile_shape": (32, 32)}
    hashes = set()
    for name, worker in (("threads", None), ("processes", client)):
        predict(denoiser, tmp_path / "in.ome.zarr", tmp_path / f"{name}.ome.zarr", client=worker, **options)
        hashes.add(tree_hash(tmp_path / f"{name}.ome.zarr"))
    assert len(hashes) == 1


def test_a_resumed_run_gives_the_same_bytes_and_redoes_only_what_is_missing(tmp_path):
    denoiser, stack = make_denoiser(), make_image((4, 600, 600))
    whole, parts = tmp_path / "whole.ome.zarr", tmp_path / "parts.ome.zarr"
    save_image(stack, tmp_path / "in.ome.zarr")
    options = {"shards": (1, 512, 512), "chunks": (1, 512, 512), "progress": False}
    predict(denoiser, tmp_path / "in.ome.zarr", whole, **options)
    predict(denoiser, tmp_path / "in.ome.zarr", parts, **options)
    ledger = tmp_path / "parts.ome.zarr.ledger"
    (ledger / "level-0" / "00000001.json").unlink()
    (parts / "zarr.json").write_text((parts / "zarr.json").read_text().replace('"complete"', '"incomplete"'))
    with pytest.raises(IncompleteOutput):
        open_image(parts)
    summary = predict(denoiser, tmp_path / "in.ome.zarr", parts, **options)
    assert 0 < summary.blocks_done < summary.blocks_total
    assert summary.blocks_skipped == summary.blocks_total - summary.blocks_done
    assert tree_hash(parts) == tree_hash(whole)


def test_another_models_output_is_refused_and_untouched(tmp_path):
    save_image(make_image((64, 64)), tmp_path / "in.ome.zarr")
    predict(make_denoiser(seed=0), tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr", progress=False)
    before = tree_hash(tmp_path / "out.ome.zarr")
    with pytest.raises(LedgerMismatch, match="model"):
        predict(make_denoiser(seed=1), tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr", progress=False)
    assert tree_hash(tmp_path / "out.ome.zarr") == before


def test_missing_chunks_are_an_error_or_are_counted(tmp_path):
    save_image(make_image((3, 100, 100)), tmp_path / "in.ome.zarr", levels=1)
    (tmp_path / "in.ome.zarr/0/c/1/0/0").unlink()
    with pytest.raises(MissingChunk, match="c/1/0/0"):
        predict(make_denoiser(), tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr", progress=False)
    with pytest.raises(IncompleteOutput):
        open_image(tmp_path / "out.ome.zarr")
    summary = predict(
        make_denoiser(),
        tmp_path / "in.ome.zarr",
        tmp_path / "filled.ome.zarr",
        missing="fill",
        progress=False,
    )
    assert summary.missing_chunks == 1


def test_nan_is_refused_by_place(tmp_path):
    image = make_image((2, 64, 64), dtype="float32")
    image[1, 5, 7] = np.nan
    with pytest.raises(NonFiniteData, match=r"\(1, 5, 7\)"):
        predict(make_denoiser(), image, tmp_path / "out.ome.zarr", progress=False)


def test_model_and_image_that_do_not_fit(tmp_path):
    with pytest.raises(ModelError, match="channels"):
        predict(
            make_denoiser(channels=3),
            as_image(make_image((2, 64, 64)), "cyx"),
            tmp_path / "o",
            progress=False,
        )
    assert not (tmp_path / "o").exists()


def test_memory_limit_names_the_smallest_that_works(tmp_path):
    image = as_image(make_image((2048, 2048)))
    with pytest.raises(MemoryLimitTooSmall, match="at least") as caught:
        plan_prediction(make_denoiser(features=32), image, tmp_path / "o", memory_limit="100MB")
    smallest = int(str(caught.value).split("at least ")[1].split(" MiB")[0])
    planned = plan_prediction(
        make_denoiser(features=32), image, tmp_path / "o", memory_limit=f"{smallest}MiB"
    )
    assert planned.bytes_per_worker <= smallest * 2**20
    with pytest.raises(MemoryLimitTooSmall):
        plan_prediction(make_denoiser(features=32), image, tmp_path / "o", memory_limit=f"{smallest - 1}MiB")


def test_a_petabyte_is_planned_from_metadata(tmp_path):
    store = zarr.create_array(
        tmp_path / "big", shape=(500_000, 32768, 32768), dtype="u2", chunks=(1, 512, 512)
    )
    planned = plan_prediction(make_denoiser(), as_image(store), tmp_path / "o")
    assert planned.blocks == 125_000 * 16 * 16
    assert planned.bytes_read > 1e15


@pytest.mark.parametrize(
    ("text", "expected"), [("2GiB", 2**31), ("500 MB", 500_000_000), (7, 7), ("64", 64), ("1.5k", 1500)]
)
def test_memory_amounts(text, expected):
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "much", "-1GB", "2XB"])
def test_amounts_that_are_none(text):
    with pytest.raises(BadRequest, match="memory_limit"):
        parse_bytes(text)


def test_shares_without_a_cluster_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr("denoizarr.inference.predict.PREDICTION_BATCH_VOXELS", 64 * 64)  # a block a batch
    save_image(make_image((3, 100, 120)), tmp_path / "in.ome.zarr", levels=1)
    how = {"chunks": (1, 32, 32), "shards": (1, 64, 64), "tile_shape": (32, 32), "progress": False}
    for name in ("whole", "out"):
        (tmp_path / name).mkdir()
    arguments = make_denoiser(), tmp_path / "in.ome.zarr"
    predict(*arguments, tmp_path / "whole" / "a.ome.zarr", **how)
    out = tmp_path / "out" / "a.ome.zarr"
    shares = [predict(*arguments, out, share=(number, 2), **how) for number in (2, 1)]
    assert [s.blocks_done for s in shares] == [6, 6]
    with pytest.raises(IncompleteOutput):
        open_image(out)
    assert predict(*arguments, out, **how).blocks_skipped >= 12
    assert tree_hash(out) == tree_hash(tmp_path / "whole" / "a.ome.zarr")


def test_chunks_that_nobody_asked_for_divide_the_shards_that_someone_did(tmp_path):
    image = as_image(make_image((3, 300, 300)))
    level = plan_prediction(make_denoiser(), image, tmp_path / "o", shards=(1, 150, 100)).layout.levels[0]
    assert (level.chunks, level.shards) == ((1, 150, 100), (1, 150, 100))
    level = plan_prediction(make_denoiser(), image, tmp_path / "o", shards=(2, 1024, 512)).layout.levels[0]
    assert level.chunks[0] == 1
    assert level.shards is not None
    assert all(s % c == 0 for s, c in zip(level.shards, level.chunks, strict=True))


def test_another_memory_limit_goes_on_with_the_blocks_and_tiles_of_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr("denoizarr.inference.predict.PREDICTION_BATCH_VOXELS", 512 * 512)  # a block a batch
    save_image(make_image((1024, 1024)), tmp_path / "in.ome.zarr", chunks=(128, 128), levels=1)
    model, common = make_denoiser(), {"progress": False}
    source, whole, resumed = (str(tmp_path / f"{name}.ome.zarr") for name in ("in", "whole", "resumed"))
    image = open_image(source)
    predict(model, source, whole, memory_limit="1GiB", **common)
    predict(model, source, resumed, memory_limit="1GiB", share=(1, 2), **common)
    alone = plan_prediction(model, image, tmp_path / "elsewhere", memory_limit="780MiB")
    begun = plan_prediction(model, image, resumed, memory_limit="1GiB")
    assert alone.tile_shape != begun.tile_shape
    with pytest.raises(
        MemoryLimitTooSmall, match=r"begun with.*at least 7[89]\d MiB; raise it, or begin anew"
    ):
        predict(model, source, resumed, memory_limit="780MiB", **common)
    smallest = f"{-(-begun.bytes_per_worker // 2**20)}MiB"
    assert plan_prediction(model, image, tmp_path / "elsewhere", memory_limit="3GiB") != begun
    summary = predict(model, source, resumed, memory_limit=smallest, **common)
    assert summary.blocks_skipped == 2
    assert tree_hash(whole) == tree_hash(resumed)
    # Begun anew, nothing is kept.
    assert (
        plan_prediction(model, image, resumed, memory_limit="780MiB", anew=True).tile_shape
        == alone.tile_shape
    )
    with pytest.raises(LedgerMismatch, match="tile_shape"):
        predict(model, source, resumed, tile_shape=alone.tile_shape, **common)


def test_what_another_job_left_is_not_taken_for_a_cut_of_this_one(tmp_path):
    save_image(make_image((256, 256)), tmp_path / "in.ome.zarr", levels=1)
    image = open_image(tmp_path / "in.ome.zarr")
    plain = plan_prediction(make_denoiser(), image, tmp_path / "free")
    output = {"ome_version": "0.5"}
    for name, claim in (
        ("save", {"kind": "save"}),
        ("torn", {"tile_shape": [3, 3], "output": {"levels": [[[256, 256], [64, 64], [], []]]}}),
        ("stride", {"tile_shape": [6, 6], "output": output | {"levels": [[[256, 256], [64, 64], [], []]]}}),
        ("shape", {"tile_shape": [8, 8], "output": output | {"levels": [[[128, 256], [64, 64], [], []]]}}),
    ):
        Ledger.claim(str(tmp_path / f"{name}.ledger"), claim)
        assert plan_prediction(make_denoiser(), image, tmp_path / name).tile_shape == plain.tile_shape
