"""Models of volumes, and of one's own network, from Zarr to Zarr: tiles equal the whole."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from denoizarr.errors import BadRequest, ModelError
from denoizarr.geometry.boxes import Box
from denoizarr.images.save import save_image
from denoizarr.inference.block import denoise_box
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.stores.images import as_image, open_image, reader_of
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.own_network import OwnNetwork, measure_network
from tests.own_networks import AveragePooled, Plain

Array = np.ndarray[Any, Any]


def volume_model(depth: int = 1, channels: int = 1, precision: Any = "float32", **options: Any) -> Denoiser:
    shape = NetworkShape(ndim=3, features=2, depth=depth)
    means = tuple(100.0 + 50 * c for c in range(channels))
    statistics = Normalisation(means, tuple(m / 5 for m in means))
    weights = build_network(shape, seed=0).state_dict()
    return Denoiser(shape, weights, statistics, patch_size=(8, 16, 16), precision=precision, **options)


def own_model(module: nn.Module) -> Denoiser:
    return Denoiser(measure_network(module, 2), module.state_dict(), Normalisation((100.0,), (20.0,)))


def noise(shape: tuple[int, ...], dtype: str = "uint16") -> Array:
    return np.random.default_rng(0).normal(100, 20, shape).clip(0, 250).astype(dtype)


def whole_at_once(denoiser: Denoiser, image: Array, channel: int = 0) -> Array:
    padding = [(0, -n % s) for n, s in zip(image.shape, denoiser.stride, strict=True)]
    result = denoiser.run_tile(np.pad(image, padding, mode="edge"), channel)
    return result[tuple(slice(0, n) for n in image.shape)]


@settings(max_examples=6)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(9, 45), st.integers(9, 45)),
    tile=st.sampled_from([4, 8, 20]),
    start=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0, 0.9)),
    depth=st.sampled_from([1, 2]),
)
def test_any_box_and_tile_of_a_volume_equals_the_whole(
    shape: tuple[int, ...], tile: int, start: tuple[float, ...], depth: int
) -> None:
    denoiser, image = volume_model(depth, precision="float64"), noise(shape, "float64")
    first = tuple(int(f * n) for f, n in zip(start, shape, strict=True))
    box = Box(first, tuple(min(a + 17, n) for a, n in zip(first, shape, strict=True)))
    values, _ = denoise_box(denoiser, reader_of(as_image(image)), box, (tile,) * 3, np.dtype("float64"))
    assert np.abs(values - whole_at_once(denoiser, image)[box.slices]).max() <= 1e-12 * image.std()


def test_a_halo_one_stride_short_is_seen_in_a_volume() -> None:
    denoiser, image = volume_model(precision="float64"), noise((40, 30, 30), "float64")
    denoiser.halo = tuple(h - s for h, s in zip(denoiser.halo, denoiser.stride, strict=True))
    values, _ = denoise_box(
        denoiser, reader_of(as_image(image)), Box.whole(image.shape), (8, 8, 8), np.dtype("float64")
    )
    assert np.abs(values - whole_at_once(denoiser, image)).max() > 1e-12 * image.std()


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        ("zyx", (21, 70, 66)),
        ("zyx", (1, 70, 66)),  # thinner than the stride
        ("zyx", (3, 70, 66)),  # thinner than the halo
        ("czyx", (2, 6, 40, 41)),
        ("tczyx", (2, 2, 5, 40, 41)),
    ],
)
def test_volumes_from_zarr_to_zarr_equal_the_whole(axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    denoiser, stack = volume_model(channels=2 if "c" in axes else 1), noise(shape)
    source, out = tmp_path / "in.ome.zarr", tmp_path / "out.ome.zarr"
    save_image(as_image(stack, axes), source, chunks=(1,) * (len(shape) - 2) + (32, 32), levels=1)
    options: dict[str, Any] = {"chunks": (1,) * (len(shape) - 3) + (2, 16, 16), "tile_shape": (8, 16, 24)}
    shards = (1,) * (len(shape) - 3) + (8, 32, 32)
    predict(denoiser, source, out, dtype="float32", shards=shards, levels=1, progress=False, **options)
    found = open_image(out).values
    for index in np.ndindex(*shape[:-3]):
        channel = index[axes.index("c")] if "c" in axes else 0
        expected = whole_at_once(denoiser, stack[index], channel)
        assert np.abs(found[index] - expected).max() <= 5e-5 * stack.std()
    assert np.abs(found - denoiser.denoise(stack)).max() <= 5e-5 * stack.std()


def test_denoise_cuts_large_volumes_into_tiles_that_equal_the_whole() -> None:
    denoiser, image = volume_model(precision="float64"), noise((70, 20, 80), "float64")
    assert np.abs(denoiser.denoise(image) - whole_at_once(denoiser, image)).max() <= 1e-12 * image.std()


@pytest.mark.parametrize(("axes", "shape"), [("yx", (40, 40)), ("tyx", (3, 40, 40)), ("cyx", (3, 40, 40))])
def test_a_volume_model_refuses_an_image_without_z(axes: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"axes {axes}.*zyx.*2D model"):
        predict(volume_model(), as_image(noise(shape), axes), tmp_path / "o", progress=False)
    assert not (tmp_path / "o").exists()
    with pytest.raises(BadRequest, match="z, y, x"):
        volume_model().denoise(noise((40, 40)))


def test_volumes_are_written_in_deep_units_and_planned_at_any_size(tmp_path: Path) -> None:
    import zarr

    store = zarr.create_array(
        tmp_path / "big", shape=(100_000, 32768, 32768), dtype="u2", chunks=(1, 512, 512)
    )
    planned = plan_prediction(volume_model(depth=2), as_image(store), tmp_path / "o", memory_limit="2GiB")
    level = planned.layout.levels[0]
    # A plane is no chunk for a volume: its blocks would be many planes of few pixels, or too large.
    assert level.chunks == (16, 128, 128)
    assert level.shards is not None
    assert level.shards[0] >= 64
    assert 4 * 2**20 <= np.prod(level.shards) <= 16 * 2**20
    assert planned.bytes_per_worker <= 2 * 2**30
    assert 1 < planned.recompute_factor < 10
    older = plan_prediction(volume_model(), as_image(store), tmp_path / "o", ome_version="0.4")
    assert older.layout.levels[0].chunks == (64, 256, 256)
    thin = plan_prediction(volume_model(), as_image(noise((3, 300, 300))), tmp_path / "o")
    assert thin.layout.levels[0].write_units.box(0).shape[0] == 3


def test_ones_own_network_on_worker_processes_equals_the_whole(tmp_path: Path, client: Any) -> None:
    denoiser, image = own_model(AveragePooled()), noise((150, 131))
    save_image(image, tmp_path / "in.ome.zarr", chunks=(64, 64), levels=1)
    options: dict[str, Any] = {
        "tile_shape": (16, 24), "chunks": (64, 64), "shards": (64, 64), "dtype": "float32", "levels": 1,
        "progress": False,
    }  # fmt: skip
    expected = whole_at_once(denoiser, image)
    found = []
    for name, workers in (("workers", client), ("threads", None)):
        predict(denoiser, tmp_path / "in.ome.zarr", tmp_path / name, client=workers, **options)
        found.append(open_image(tmp_path / name).values)
        assert np.abs(found[-1] - expected).max() <= 5e-5 * image.std()
    np.testing.assert_array_equal(*found)


def test_a_wrong_halo_of_ones_own_network_would_be_seen(tmp_path: Path) -> None:
    module, image = Plain(), noise((80, 80))
    denoiser = Denoiser(
        OwnNetwork(module, 2, (1, 1), (1, 1), "wrong"), module.state_dict(), Normalisation((100.0,), (20.0,))
    )
    values, _ = denoise_box(
        denoiser, reader_of(as_image(image)), Box.whole(image.shape), (16, 16), np.dtype("float32")
    )
    assert np.abs(values - whole_at_once(denoiser, image)).max() > 5e-5 * image.std()


@pytest.mark.parametrize(
    ("trained", "warned"),
    [
        ({"x": {"value": 0.2, "unit": "micrometer"}}, False),
        ({"x": {"value": 208.0, "unit": "nanometer"}}, False),
        ({"x": {"value": 0.25, "unit": "micrometer"}}, True),
        ({"z": {"value": 700.0, "unit": "nanometer"}}, True),
        ({"x": {"value": 7.0, "unit": None}}, False),  # of unknown unit: nothing to compare
        (None, False),
    ],
)
def test_another_pixel_size_is_warned_of(
    trained: Any, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = as_image(noise((2, 32, 32)))
    scale = {"z": 1.0, "y": 0.2, "x": 0.2}
    image = image.assign_coords({d: np.arange(n) * scale[str(d)] for d, n in image.sizes.items()})
    for dim in "zyx":
        image.coords[dim].attrs["units"] = "micrometer"
    with caplog.at_level(logging.WARNING):
        planned = plan_prediction(volume_model(pixel_size=trained), image, tmp_path / "o")
        predict(volume_model(pixel_size=trained), image, tmp_path / "o.ome.zarr", progress=False)
    assert bool(planned.warnings) == warned == ("pixel size" in caplog.text)
