"""The pyramid against its plain definition, and the metadata of its levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from denoizarr.errors import DenoizarrError, MissingChunk
from denoizarr.images.save import save_image
from denoizarr.stores.images import as_image, open_image


def plain_level(values: np.ndarray[Any, Any], factors: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The mean of the voxels present, by padding with NaN: no code shared with what is tested."""
    padded = np.pad(
        values.astype("f8"),
        [(0, -n % f) for n, f in zip(values.shape, factors, strict=True)],
        constant_values=np.nan,
    )
    split = [m for n, f in zip(padded.shape, factors, strict=True) for m in (n // f, f)]
    means = np.nanmean(padded.reshape(split), axis=tuple(range(1, 2 * values.ndim, 2)))
    means = np.asarray(means)
    return means.round().astype(values.dtype) if values.dtype.kind in "ui" else means.astype(values.dtype)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i2", "f4"])
@pytest.mark.parametrize(
    ("shape", "spacing", "factors"),
    [
        ((5, 65, 79), (1.0, 1.0, 1.0), [(2, 2, 2), (2, 2, 2)]),
        ((5, 65, 79), (3.0, 1.0, 1.0), [(1, 2, 2), (2, 2, 2)]),
        ((1, 33, 47), (1.0, 0.3, 0.2), [(1, 2, 2), (1, 2, 2)]),
    ],
)
def test_levels_equal_the_definition(
    tmp_path: Path, version: str, dtype: str, shape: Any, spacing: Any, factors: Any
) -> None:
    rng = np.random.default_rng(0)
    kind = np.dtype(dtype)
    values = rng.integers(-128 if kind.kind == "i" else 0, 250, shape).astype(kind)
    if kind.kind == "f":
        values = rng.normal(size=shape).astype(kind)
    image = as_image(values).assign_coords(
        {d: np.arange(n) * s + 7.0 for d, n, s in zip("zyx", shape, spacing, strict=True)}
    )
    save_image(image, tmp_path / "a.ome.zarr", levels=3, chunks=(2, 16, 16), ome_version=version)
    expected = values
    start, step = np.full(3, 7.0), np.array(spacing)
    for level in range(3):
        found = open_image(tmp_path / "a.ome.zarr", level=level)
        assert np.array_equal(found.values, expected)
        for i, d in enumerate("zyx"):
            assert found.coords[d].values[0] == pytest.approx(start[i])
            assert found.coords[d].attrs["spacing"] == pytest.approx(step[i])
        if level < 2:
            f = np.array(factors[level])
            start, step = start + step * (f - 1) / 2, step * f
            expected = plain_level(expected, factors[level])


def test_time_and_channels_are_never_averaged(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 9, (2, 3, 40, 40), dtype="u1")
    save_image(as_image(values, "tcyx"), tmp_path / "a.ome.zarr", levels=2)
    coarse = open_image(tmp_path / "a.ome.zarr", level=1)
    assert coarse.shape == (2, 3, 20, 20)
    assert np.array_equal(coarse.values, plain_level(values, (1, 1, 2, 2)))


@pytest.mark.parametrize("whole_shard", [True, False])
def test_a_hole_in_the_level_below_is_not_averaged_in(tmp_path: Path, whole_shard: bool) -> None:
    values = np.full((64, 64), 9, "u2")
    url = tmp_path / "a.ome.zarr"
    save_image(values, url, levels=3, chunks=(8, 8), shards=(16, 16))
    if whole_shard:
        (url / "1" / "c" / "0" / "0").unlink()
    else:
        array = zarr.open_array(str(url / "0"), mode="r+", config={"write_empty_chunks": False})
        array[:8, :8] = 0  # all fill: zarr leaves the chunk out of its shard
        array = zarr.open_array(str(url / "1"), mode="r+", config={"write_empty_chunks": False})
        array[:8, :8] = 0
    (tmp_path / "a.ome.zarr.ledger" / "level-2" / "00000000.json").unlink()
    with pytest.raises(MissingChunk):
        save_image(values, url, levels=3, chunks=(8, 8), shards=(16, 16))
    with pytest.raises(DenoizarrError, match="not finished"):
        open_image(url)
