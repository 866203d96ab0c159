"""An exported package is opened by bioimageio.core, an independent program, and gives our results."""

from __future__ import annotations

import socket
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from denoizarr.errors import BadRequest
from denoizarr.geometry.grids import round_up
from denoizarr.kernels.unet import NetworkShape, build_network
from denoizarr.training.centre_weights import CentreWeights
from denoizarr.training.denoiser import Denoiser
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.own_network import measure_network
from tests.own_networks import AveragePooled, InPlace, Plain

# torch calls TorchScript old; bioimageio.core leaves the zip open.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """bioimageio.core without a network."""
    monkeypatch.setenv("BIOIMAGEIO_CACHE_PATH", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("bioimageio.core", reason="the extra bioimageio is not installed")

    def refused(*_: object) -> None:
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    return module


def ours(ndim: int, channels: int = 1, **options: Any) -> Denoiser:
    shape = NetworkShape(ndim=ndim, features=4, depth=1, n2v2=options.pop("n2v2", False))
    weights = build_network(shape, seed=0).state_dict()
    normalisation = Normalisation((100.0, 300.0)[:channels], (20.0, 7.0)[:channels])
    return Denoiser(shape, weights, normalisation, patch_size=(16,) * ndim, **options)


def own(module: nn.Module) -> Denoiser:
    return Denoiser(measure_network(module, 2), module.state_dict(), Normalisation((3e-3,), (1e-3,)))


CURVE = CentreWeights((60.0, 100.0, 160.0), (0.1, 0.3, 0.6), (80.0, 120.0), (2.0, -3.0))
MODELS = {
    "2D": lambda: ours(2, pixel_size={a: {"value": 0.2, "unit": "micrometer"} for a in "yx"}),
    "3D": lambda: ours(
        3, pixel_size={"z": {"value": 0.7, "unit": None}, "x": {"value": 0.1, "unit": "nanometer"}}
    ),
    "two channels": lambda: ours(2, 2),
    "footprint": lambda: ours(2, centre=[CURVE], footprint=np.ones((3, 5), bool)),
    "N2V2": lambda: ours(2, n2v2=True),
    "target": lambda: ours(2, target_normalisation=Normalisation((5.0,), (2.0,))),
    "own": lambda: own(AveragePooled()),
}


@pytest.mark.parametrize("name", MODELS)
def test_it_loads_and_its_test_passes(name: str, tmp_path: Path, core: Any) -> None:
    denoiser = MODELS[name]()
    path = denoiser.export_bioimageio(tmp_path / "package")
    assert path == str(tmp_path / "package.zip")
    description = core.load_description(path)
    assert type(description).__name__ == "ModelDescr", description.validation_summary
    summary = core.test_model(description)
    assert summary.status == "passed", [(d.name, d.errors) for d in summary.details if d.status != "passed"]
    assert any("Reproduce test outputs" in detail.name for detail in summary.details)
    axes = {axis.id: axis for axis in description.outputs[0].axes}
    aligned = [round_up(h, s) for h, s in zip(denoiser.halo, denoiser.stride, strict=True)]
    assert [axes[a].halo for a in denoiser.axes] == aligned
    assert [axis.size.step for axis in description.inputs[0].axes[2:]] == list(denoiser.stride)
    for axis, size in (denoiser.pixel_size or {}).items():
        expected = (size["unit"], pytest.approx(size["value"])) if size["unit"] else (None, 1.0)
        assert (axes[axis].unit, axes[axis].scale) == expected


@pytest.mark.parametrize("name", MODELS)
def test_raw_in_gives_what_denoise_gives(name: str, tmp_path: Path, core: Any) -> None:
    denoiser = MODELS[name]()
    description = core.load_description(denoiser.export_bioimageio(tmp_path / "package.zip"))
    shape = tuple(2 * h + 5 * 16 for h in denoiser.halo)
    mean, std = denoiser.normalisation.mean[0], denoiser.normalisation.std[0]
    raw = np.random.default_rng(1).normal(mean, std, (denoiser.channels, *shape)).astype(np.float32)
    expected = denoiser.denoise(raw if denoiser.channels > 1 else raw[0]).reshape(raw.shape)

    def sample() -> Any:
        return core.digest_spec.create_sample_for_model(description, inputs={"raw": raw[None]})

    with core.create_prediction_pipeline(description, devices=["cpu"]) as pipeline:
        tile = pipeline.predict_sample_without_blocking(
            sample(), skip_input_padding=True, skip_output_cropping=True
        )
        blocks = pipeline.predict_sample_with_blocking(sample())
    found, blocked = (s.members["denoised"].data.values[0] for s in (tile, blocks))
    assert np.abs(found - expected).max() <= 1e-4 * expected.std()
    # bioimageio.core pads the whole image by the halo, with values of its choice: compared inside of that.
    inside = (slice(None), *(slice(h, n - h) for h, n in zip(denoiser.halo, shape, strict=True)))
    assert np.abs(blocked[inside] - expected[inside]).max() <= 1e-4 * expected.std()


def test_the_package_says_that_it_leaves_periodic_lines_in(tmp_path: Path) -> None:
    for periodic in ((), ((0.0, 0.125),)):
        with zipfile.ZipFile(ours(2, periodic=periodic).export_bioimageio(tmp_path / "a")) as package:
            text = package.read("README.md").decode()
        assert ("(0, 0.125) cycles per pixel" in text) == bool(periodic)


def test_the_package_holds_no_code_of_ours_and_is_the_same_each_time(tmp_path: Path) -> None:
    denoiser = ours(2)
    with zipfile.ZipFile(denoiser.export_bioimageio(tmp_path / "a")) as package:
        names = set(package.namelist())
        description = yaml.safe_load(package.read("rdf.yaml"))
    assert names == {"rdf.yaml", "weights.pt", "test_input.npy", "test_output.npy", "README.md"}
    assert list(description["weights"]) == ["torchscript"]
    assert description["config"]["denoizarr"]["digest"] == denoiser.digest
    again = denoiser.to(precision="float64").export_bioimageio(tmp_path / "b")
    with zipfile.ZipFile(again) as package:
        assert yaml.safe_load(package.read("rdf.yaml"))["outputs"] == description["outputs"]


def test_a_network_that_is_no_torchscript_is_refused(tmp_path: Path) -> None:
    class Fixed(Plain):
        def forward(self, x: Any) -> Any:
            # A number taken out of the shape is frozen by a trace.
            return super().forward(x) * (1.0 if int(x.shape[-1]) < 39 else 2.0)

    module = Plain()
    denoiser = own(module)
    fixed = Fixed()
    fixed.load_state_dict(module.state_dict())
    denoiser.network.module.__class__ = Fixed  # type: ignore[union-attr]
    with pytest.raises(BadRequest, match="another size"):
        denoiser.export_bioimageio(tmp_path / "package")
    assert not (tmp_path / "package.zip").exists()


def test_a_network_that_works_in_place_is_written(tmp_path: Path) -> None:
    assert Path(own(InPlace()).export_bioimageio(tmp_path / "package")).exists()


@pytest.mark.parametrize("error", [TypeError("no"), KeyError(), IndexError("one\ntwo")])
def test_whatever_a_trace_raises_is_an_error_of_ours(error: Exception, tmp_path: Path) -> None:
    class Untraceable(Plain):
        def forward(self, x: Any) -> Any:
            if torch.jit.is_tracing():
                raise error
            return super().forward(x)

    with pytest.raises(BadRequest, match=f"TorchScript.*{type(error).__name__}"):
        own(Untraceable()).export_bioimageio(tmp_path / "package")
