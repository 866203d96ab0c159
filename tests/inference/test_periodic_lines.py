"""A model that knows of periodic lines: the same bytes whatever the blocks, and measured once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import denoizarr.inference.predict as predicting
from denoizarr.errors import BadRequest, LedgerMismatch, NonFiniteData, OutputExists
from denoizarr.images.save import save_image
from denoizarr.inference.predict import predict
from denoizarr.inference.prediction import plan_prediction
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.kernels.waves import Wave
from denoizarr.stores.images import as_image, corrected_image, open_image
from denoizarr.stores.periodic import WaveTable
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation

FREQUENCIES = ((0.0, 0.125), (0.061, 0.083))
SHAPE = (2, 150, 200)


def make_denoiser(periodic=FREQUENCIES, ndim=2, precision="float32"):
    torch.manual_seed(0)
    shape = NetworkShape(ndim=ndim, features=4, depth=1, norm="none")
    weights = build_network(shape).state_dict()
    normalisation = Normalisation((500.0,), (50.0,))
    return Denoiser(shape, weights, normalisation, periodic=periodic, precision=precision)


def striped(shape=SHAPE, seed=0, amplitude=40.0):
    random = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    waves = sum(
        amplitude * np.sin(2 * np.pi * (fy * y + (fx + 2e-5) * x) + n)
        for n, (fy, fx) in enumerate(FREQUENCIES)
    )
    return (random.normal(500, 30, shape) + waves).astype("uint16")


def voxel_bytes(url):
    return hashlib.sha256(open_image(url).values.tobytes()).hexdigest()


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same voxels in three layouts."""
    folder = tmp_path_factory.mktemp("sources")
    values = xr.DataArray(striped(), dims=tuple("zyx"))
    urls = []
    for number, chunks in enumerate([(1, 64, 64), (2, 150, 200), (1, 50, 96)]):
        urls.append(str(folder / f"{number}.ome.zarr"))
        save_image(values, urls[-1], chunks=chunks)
    return urls


def test_the_output_is_the_same_for_any_chunks_of_the_input(sources, tmp_path: Path) -> None:
    laid_out = {"chunks": (1, 32, 64), "shards": (1, 64, 128), "dtype": "float32", "progress": False}
    outs = [tmp_path / Path(source).name for source in sources]
    for source, out in zip(sources, outs, strict=True):
        predict(make_denoiser(), source, out, **laid_out)
    assert len({voxel_bytes(out) for out in outs}) == 1
    # Of other tiles and blocks, the network's last bits (P1).
    first = open_image(outs[0]).values
    for number, options in enumerate([{"tile_shape": (32, 32)}, {"shards": (1, 160, 256)}]):
        predict(make_denoiser(), sources[0], tmp_path / f"{number}.zarr", **laid_out | options)
        assert np.abs(open_image(tmp_path / f"{number}.zarr").values - first).max() <= 5e-5 * striped().std()


def test_it_is_what_denoising_in_memory_gives(sources, tmp_path: Path) -> None:
    values = striped()
    for ndim in (2, 3):
        denoiser = make_denoiser(ndim=ndim)
        expected = denoiser.denoise(values)
        predict(denoiser, sources[0], tmp_path / f"{ndim}.ome.zarr", dtype="float32", progress=False)
        written = open_image(tmp_path / f"{ndim}.ome.zarr").values
        assert np.abs(written - expected).max() <= 5e-5 * values.std()
        # The negative control: with the lines in it, it would be another.
        plain = make_denoiser((), ndim=ndim).denoise(values)
        assert np.abs(plain - expected).max() > 0.1


def test_double_precision_agrees_to_rounding(sources, tmp_path: Path) -> None:
    denoiser = make_denoiser(precision="float64")
    whole = denoiser.denoise(striped())
    again = np.stack([denoiser.denoise(plane) for plane in striped()])
    assert np.abs(whole - again).max() <= 1e-12 * striped().std()


def test_the_output_has_the_stored_dtype_and_grey_levels(sources, tmp_path: Path) -> None:
    summary = predict(make_denoiser(), sources[0], tmp_path / "out.ome.zarr", progress=False)
    assert open_image(tmp_path / "out.ome.zarr").dtype == np.uint16
    assert summary.changes == ()


def test_workers_write_the_same(sources, tmp_path: Path, client) -> None:
    for name, options in (("here", {}), ("there", {"client": client})):
        predict(make_denoiser(), sources[0], tmp_path / f"{name}.ome.zarr", progress=False, **options)
    assert voxel_bytes(tmp_path / "here.ome.zarr") == voxel_bytes(tmp_path / "there.ome.zarr")


def test_a_resumed_prediction_does_not_measure_again(
    sources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = tmp_path / "out.ome.zarr", tmp_path / "out.ome.zarr.ledger" / "periodic.json"
    predict(make_denoiser(), sources[0], out, progress=False)
    first = voxel_bytes(out)
    counts = []
    measure = predicting.measure_waves
    monkeypatch.setattr(predicting, "measure_waves", lambda *a, **k: counts.append(1) or measure(*a, **k))
    assert predict(make_denoiser(), sources[0], out, progress=False).blocks_done == 0
    assert counts == []
    record.unlink()  # as after a kill between the claim and the record
    assert predict(make_denoiser(), sources[0], out, progress=False).blocks_done == 0
    assert counts == [1]
    assert record.exists()
    predict(make_denoiser(), sources[0], out, progress=False, overwrite=True)
    assert counts == [1, 1]
    assert voxel_bytes(out) == first


def test_other_amplitudes_are_another_job(sources, tmp_path: Path) -> None:
    out, record = tmp_path / "out.ome.zarr", tmp_path / "out.ome.zarr.ledger" / "periodic.json"
    predict(make_denoiser(), sources[0], out, progress=False)
    data = json.loads(record.read_text())
    data["waves"][2] *= 1.5
    record.write_text(json.dumps(data))
    with pytest.raises(LedgerMismatch):
        predict(make_denoiser(), sources[0], out, progress=False)


def test_an_image_without_the_lines_is_denoised_as_it_is(tmp_path: Path) -> None:
    values = striped(amplitude=0.0)
    outputs = []
    for periodic in (FREQUENCIES, ()):
        predict(
            make_denoiser(periodic), as_image(values), tmp_path / f"{len(periodic)}.ome.zarr", progress=False
        )
        outputs.append(voxel_bytes(tmp_path / f"{len(periodic)}.ome.zarr"))
        assert np.array_equal(make_denoiser(periodic).denoise(values), make_denoiser(()).denoise(values))
    assert outputs[0] == outputs[1]


def test_a_model_without_lines_is_what_it_was(tmp_path: Path) -> None:
    plain = make_denoiser(())
    assert plain.periodic == ()
    assert plain.digest != make_denoiser().digest
    # Neither digest nor file knows of the field where there is nothing to know.
    header = Path(plain.save(tmp_path / "plain")).read_bytes()
    assert b"periodic" not in header
    assert b"periodic" in Path(make_denoiser().save(tmp_path / "lines")).read_bytes()
    for denoiser, name in ((plain, "plain"), (make_denoiser(), "lines")):
        loaded = Denoiser.load(tmp_path / name)
        assert loaded.periodic == denoiser.periodic
        assert loaded.digest == denoiser.digest
        assert loaded.to(precision="float64").periodic == denoiser.periodic


def test_spoilt_voxels_are_named_before_anything_is_written(tmp_path: Path) -> None:
    values = striped().astype("float32")
    values[1, 20, 30] = np.inf
    with pytest.raises(NonFiniteData, match=r"\(1, 20, 30\)"):
        predict(make_denoiser(), as_image(values), tmp_path / "out.ome.zarr", progress=False)
    assert not (tmp_path / "out.ome.zarr").exists()


def test_parts_of_an_image_are_measured_as_they_are(sources, tmp_path: Path) -> None:
    part = open_image(sources[0]).isel(z=1, y=slice(10, 145), x=slice(20, 190))
    predict(make_denoiser(), part, tmp_path / "out.ome.zarr", dtype="float32", progress=False)
    expected = make_denoiser().denoise(striped()[1, 10:145, 20:190])
    assert np.abs(open_image(tmp_path / "out.ome.zarr").values - expected).max() <= 5e-5 * striped().std()


def test_frequencies_are_checked() -> None:
    from denoizarr.errors import ConfigError

    for wrong in ([(0.1,)], [(0.1, 0.7)], [(0.1, float("nan"))], [("a", 0.1)]):
        with pytest.raises(ConfigError, match="periodic"):
            make_denoiser(wrong)


def test_a_destination_that_is_taken_is_refused_before_the_pass(sources, tmp_path: Path, monkeypatch) -> None:
    def measured(*_, **__):
        raise AssertionError("a whole image was read for nothing")

    monkeypatch.setattr(predicting, "measure_waves", measured)
    (tmp_path / "taken.ome.zarr").mkdir()
    (tmp_path / "taken.ome.zarr" / "a file").write_text("of someone")
    with pytest.raises(OutputExists):
        predict(make_denoiser(), sources[0], tmp_path / "taken.ome.zarr", progress=False)
    with pytest.raises(BadRequest, match="overlaps"):
        predict(make_denoiser(), sources[0], Path(sources[0]) / "inside", progress=False)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float64"])
def test_the_plan_counts_what_taking_lines_out_needs(tmp_path: Path, dtype: str) -> None:
    image = as_image(np.zeros((512, 512), dtype))
    plain = plan_prediction(make_denoiser(()), image, tmp_path / "o").bytes_per_worker
    known = plan_prediction(make_denoiser(), image, tmp_path / "o").bytes_per_worker
    waves = [[Wave(frequency, 5.0, 0.0) for frequency in FREQUENCIES]]
    corrected = corrected_image(image, WaveTable.of(FREQUENCIES, (), waves))
    assert plan_prediction(make_denoiser(), corrected, tmp_path / "o").bytes_per_worker == known
    may = plan_prediction(make_denoiser(()), image, tmp_path / "o", may_lose_lines=True)
    assert may.bytes_per_worker == known
    assert (known > plain) == (image.dtype.itemsize < 4)


def test_lines_that_cannot_be_measured_are_said_to_be_left_in(tmp_path: Path, caplog) -> None:
    predict(make_denoiser(), striped((64, 200)), tmp_path / "small.ome.zarr", progress=False)
    assert "lines are left in" in caplog.text
