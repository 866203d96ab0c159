"""Display windows: from the data where the input has none, written with the finished mark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from denoizarr.errors import IncompleteOutput
from denoizarr.images import write
from denoizarr.images.save import save_image
from denoizarr.stores.images import as_image, open_image

RNG = np.random.default_rng(0)


def _channels(url: Path) -> Any:
    return open_image(url).attrs["ome"]["omero"]["channels"]


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4", "bool"])
def test_percentiles_of_the_coarsest_level(tmp_path: Path, dtype: str, version: str) -> None:
    values = RNG.normal(100, 20, (2, 3, 300, 300)).astype("u1").astype(dtype)
    save_image(as_image(values, "czyx"), tmp_path / "a.ome.zarr", ome_version=version)
    coarsest = open_image(tmp_path / "a.ome.zarr", level=-1).values
    assert coarsest.shape[-1] == 150
    for number, channel in enumerate(_channels(tmp_path / "a.ome.zarr")):
        low, high = np.percentile(coarsest[number].astype(float), (1, 99.8))
        window = channel["window"]
        if low < high:
            assert (window["start"], window["end"]) == (low, high)
        assert window["min"] <= window["start"] < window["end"] <= window["max"]
        if dtype == "u2":
            assert (window["min"], window["max"]) == (0, 65535)
    assert [c["color"] for c in _channels(tmp_path / "a.ome.zarr")] == ["0000FF", "00FF00"]


def test_what_the_input_says_wins(tmp_path: Path) -> None:
    known = [
        {"label": "a", "color": "FF00FF", "window": {"start": 1, "end": 2, "min": 0, "max": 3}},
        {"label": "b"},
    ]
    image = as_image(RNG.integers(0, 99, (2, 40, 40), dtype="u1"), "cyx")
    save_image(image.assign_attrs(ome={"omero": {"channels": known, "name": "n"}}), tmp_path / "a.ome.zarr")
    found = open_image(tmp_path / "a.ome.zarr").attrs["ome"]["omero"]
    assert found["name"] == "n"
    assert found["channels"][0] == known[0]
    assert found["channels"][1]["label"] == "b"
    assert "window" in found["channels"][1]


@pytest.mark.parametrize("values", [np.zeros((40, 40)), np.full((40, 40), np.nan), np.full((40, 40), np.inf)])
def test_a_window_has_a_width(tmp_path: Path, values: Any) -> None:
    save_image(values.astype("f4"), tmp_path / "a.ome.zarr")
    window = _channels(tmp_path / "a.ome.zarr")[0]["window"]
    assert all(np.isfinite(v) for v in window.values())
    assert window["start"] < window["end"]


def test_of_many_or_large_planes_some_are_looked_at(tmp_path: Path) -> None:
    values = np.repeat(np.arange(200, dtype="u2")[:, None, None], 8, 1).repeat(8, 2)
    save_image(values, tmp_path / "a.ome.zarr", chunks=(50, 8, 8))
    window = _channels(tmp_path / "a.ome.zarr")[0]["window"]
    assert window["start"] < 10
    assert window["end"] > 190
    save_image(RNG.integers(0, 9, (2, 3000, 2500), dtype="u1"), tmp_path / "b.ome.zarr", levels=1)
    assert _channels(tmp_path / "b.ome.zarr")[0]["window"]["end"] == 8


def test_until_the_last_write_nothing_says_that_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "a.ome.zarr"

    def dies(layout: Any) -> None:
        root = zarr.open_group(layout.url, mode="r").attrs.asdict()
        assert root["denoizarr.state"] == "incomplete"
        assert "omero" not in root["ome"]
        with pytest.raises(IncompleteOutput):
            open_image(url)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write, "finish_output", dies)
        with pytest.raises(KeyboardInterrupt):
            save_image(RNG.integers(0, 99, (40, 40)).astype("u1"), url)
    with pytest.raises(IncompleteOutput):
        open_image(url)
