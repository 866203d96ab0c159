"""Periodic lines of whole images: found where they are, measured in one pass, the same however it is read."""

from __future__ import annotations

import json
from math import hypot
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage
import xarray as xr
from PIL import Image

from denoizarr.errors import BadRequest, NonFiniteData
from denoizarr.images import plane_waves
from denoizarr.images.periodic import (
    find_periodic_lines,
    keep_waves,
    kept_waves,
    lines_in_words,
    without_known_lines,
    without_lines,
)
from denoizarr.images.plane_waves import measure_waves
from denoizarr.images.save import save_image
from denoizarr.kernels.wave_fit import plane_without_waves
from denoizarr.stores.images import as_image, open_image, reader_of
from denoizarr.stores.sources import ImageReader

FREQUENCY = (0.0, 0.125)
PAIRS = (
    "Confocal_BPAE_B", "Confocal_BPAE_G", "Confocal_BPAE_R", "Confocal_FISH", "Confocal_MICE",
    "TwoPhoton_BPAE_R", "TwoPhoton_MICE", "WideField_BPAE_G",
)  # fmt: skip


def noisy(shape, seed=0, scale=10.0):
    """Blobs of up to a few hundred grey levels, and white noise."""
    random = np.random.default_rng(seed)
    blobs = scipy.ndimage.gaussian_filter(random.normal(size=shape), (0,) * (len(shape) - 2) + (6, 6))
    return 100 + 900 * np.maximum(blobs, 0) + scale * random.normal(size=shape)


def line(shape, frequency=FREQUENCY, amplitude=12.0, phase=0.0):
    y, x = np.mgrid[: shape[-2], : shape[-1]]
    return amplitude * np.sin(2 * np.pi * (frequency[0] * y + frequency[1] * x) + phase)


def counted(reader):
    """The same reader, and a list that every box it reads goes into."""
    boxes = []

    def fetch(box):
        boxes.append(box)
        return reader.read(box)

    shapes = {"shape": reader.shape, "chunks": reader.chunks, "offset": reader.offset, "dims": reader.dims}
    return ImageReader(fetch, **shapes, dtype=reader.dtype, identity={}, name="counted"), boxes


def test_a_line_is_found_taken_away_and_nothing_else() -> None:
    base = noisy((512, 512))
    (image,), frequencies = without_lines([as_image(base + line(base.shape))])
    ((fy, fx),) = frequencies
    assert abs(fy) < 1e-4
    assert abs(fx / 0.125 - 1) < 1e-4
    left = image.values - base
    assert (left**2).mean() < 0.001 * (line(base.shape) ** 2).mean()
    again, known = without_lines([image])
    assert again[0] is image  # corrected already
    assert known == frequencies


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_an_image_without_lines_is_handed_back(dtype: str) -> None:
    image = as_image(np.clip(noisy((300, 400)) / (8 if dtype == "uint8" else 1), 0, 255).astype(dtype))
    images, frequencies = without_lines([image])
    assert images[0] is image
    assert frequencies == ()
    with_line = as_image((noisy((300, 400)) + line((300, 400))).astype("float32"))
    assert without_lines([with_line], "off") == ([with_line], ())
    with pytest.raises(BadRequest, match="auto or off"):
        without_lines([with_line], "on")
    assert len(without_lines([with_line])[1]) == 1  # the negative control


def test_the_sample_is_all_that_an_image_without_lines_costs() -> None:
    reader, boxes = counted(reader_of(as_image(noisy((4, 600, 1300)).astype("float32"))))
    image = as_image(np.zeros(reader.shape, "float32"))
    import denoizarr.images.periodic as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "reader_of", lambda _: reader)
        assert find_periodic_lines([image]) == ()
    assert len(boxes) <= 64
    assert sum(box.size for box in boxes) <= 64 * 256**2


def test_harmonics_diagonals_and_periods_in_words() -> None:
    base = noisy((512, 640), 3)
    comb = 40.0 * (np.arange(640) % 8 == 0)
    image = as_image(base + comb + line(base.shape, (0.061, 0.083), 12))
    lines = find_periodic_lines([image])
    assert len(lines) == 5
    periods = sorted({line.period for line in lines})
    assert periods == pytest.approx([8.0, 1 / hypot(0.061, 0.083)], rel=1e-3)
    words = lines_in_words(lines)
    assert "every 8 pixels along x (4 harmonics)" in words
    assert "every 9.708 pixels at 36.3 degrees" in words
    left = without_lines([image])[0][0].values - base
    assert (left - left.mean()).std() < 0.03 * (comb.std() + 12)


@pytest.mark.parametrize(
    ("chunks", "part"),
    [
        ((1, 1, 64, 64), {}),
        ((1, 1, 37, 151), {}),
        ((1, 2, 264, 128), {}),
        ((2, 3, 17, 300), {}),
        ((2, 2, 96, 128), {"z": slice(1, 3), "y": slice(30, 250), "x": slice(7, 290)}),
    ],
)
def test_it_is_measured_the_same_in_any_chunks(tmp_path: Path, chunks: tuple[int, ...], part: dict) -> None:
    values = (noisy((2, 3, 264, 300), 5) + line((264, 300))).astype("uint16")
    save_image(xr.DataArray(values, dims=tuple("tzyx")), tmp_path / "a.ome.zarr", chunks=chunks, levels=1)
    stored = open_image(tmp_path / "a.ome.zarr").isel(part)
    plain = np.ascontiguousarray(as_image(values, "tzyx").isel(part).values)
    reader, boxes = counted(reader_of(stored))
    frequencies = [FREQUENCY, (0.2, 0.3)]
    table = measure_waves(reader, frequencies)
    assert table == measure_waves(reader_of(as_image(plain, "tzyx")), frequencies)
    touched = np.zeros(stored.shape, np.int64)
    for box in boxes:
        touched[box.slices] += 1
    assert (touched == 1).all()  # each voxel once, and each chunk
    assert len(
        {tuple((o + a) // c for o, a, c in zip(reader.offset, b.start, chunks, strict=True)) for b in boxes}
    ) == len(boxes)
    for at in np.ndindex(*plain.shape[:-2]):
        (wave,) = table.waves(at)
        assert wave.amplitude == pytest.approx(12, rel=0.1)
        expected = plane_without_waves(plain[at], frequencies)
        assert without_known_lines([stored], frequencies)[0].values[at].tobytes() == expected.tobytes()


def test_wide_planes_are_measured_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    import denoizarr.images.plane_waves as module

    values = (noisy((260, 2000), 6) + line((260, 2000))).astype("float32")
    whole = measure_waves(reader_of(as_image(values)), [FREQUENCY])
    monkeypatch.setattr(module, "_PIECE_BYTES", 2**18)
    reader, boxes = counted(reader_of(as_image(values)))
    reader.chunks = (64, 128)
    assert measure_waves(reader, [FREQUENCY]) == whole
    assert max(box.size for box in boxes) <= 256 * 256
    reader.chunks = (50, 70)
    assert measure_waves(reader, [FREQUENCY]) == whole


def test_each_plane_channel_and_time_has_its_own_amplitude() -> None:
    base = noisy((2, 2, 2, 256, 300), 7)
    amplitudes = np.array([[[12.0, 0.0], [5.0, 20.0]], [[0.0, 0.0], [9.0, 3.0]]])
    phases = np.arange(8).reshape(2, 2, 2)
    lines = np.array(
        [
            line((256, 300), amplitude=a, phase=p)
            for a, p in zip(amplitudes.ravel(), phases.ravel(), strict=True)
        ]
    ).reshape(base.shape)
    images, frequencies = without_lines([as_image(base + lines, "tczyx")])
    assert len(frequencies) == 1
    left = images[0].values - base
    assert left.std() < 0.5
    for at in np.argwhere(amplitudes == 0):
        assert np.abs(left[tuple(at)]).max() < 1e-3


def test_images_of_one_job_are_looked_at_together() -> None:
    clean = noisy((256, 300), 8)
    striped = noisy((400, 400), 9) + line((400, 400))
    small = line((100, 100))
    images = [as_image(a) for a in (clean, striped, small)]
    corrected, frequencies = without_lines(images)
    assert len(frequencies) == 1
    assert corrected[0] is images[0]
    assert corrected[1] is not images[1]
    assert corrected[2] is images[2]
    assert without_lines(corrected) == (corrected, frequencies)


def test_a_texture_whose_phase_wanders_is_left_alone() -> None:
    x = np.arange(512) + np.zeros((512, 512))
    wander = scipy.ndimage.gaussian_filter(np.random.default_rng(2).normal(size=(512, 512)), 40)
    texture = 40 * np.cos(2 * np.pi * x / 9.3 + 3 * wander / wander.std())
    assert find_periodic_lines([as_image(noisy((512, 512)) + texture)]) == ()


def test_below_half_a_grey_level_nothing_is_done() -> None:
    base = 100 + np.random.default_rng(0).normal(size=(512, 512)) * 0.6
    faint = base + line(base.shape, amplitude=0.2)
    assert len(find_periodic_lines([as_image(faint)])) == 1
    assert find_periodic_lines([as_image(np.rint(faint).astype("uint8"))]) == ()


def test_spoilt_voxels_are_named_and_small_images_left_alone() -> None:
    values = noisy((512, 512)) + line((512, 512))
    values[300, 200] = np.nan
    with pytest.raises(NonFiniteData, match=r"\(300, 200\)"):
        without_lines([as_image(values)])
    for shape in ((60, 60), (120, 900), (4, 64, 64)):
        image = as_image(line(shape) + np.zeros(shape))
        assert without_lines([image])[0][0] is image
    constant = as_image(np.zeros((512, 512)))
    assert find_periodic_lines([constant]) == ()


def test_a_record_is_of_its_image_and_frequencies(tmp_path: Path) -> None:
    url = str(tmp_path / "waves.json")
    reader = reader_of(as_image(noisy((200, 200)) + line((200, 200))))
    table = measure_waves(reader, [FREQUENCY])
    assert kept_waves(url, reader, [FREQUENCY]) is None
    keep_waves(url, reader, table)
    assert kept_waves(url, reader, [FREQUENCY]) == table
    assert kept_waves(url, reader, [(0.0, 0.126)]) is None
    assert kept_waves(url, reader_of(as_image(noisy((200, 200)))), [FREQUENCY]) is None
    whole = json.loads(Path(url).read_text())
    for spoilt in ("{", "[]", '{"image": 3}', json.dumps(whole | {"leading": [float("inf")]})):
        Path(url).write_text(spoilt)
        assert kept_waves(url, reader, [FREQUENCY]) is None


def test_planes_of_deep_chunks_are_measured_a_few_at_a_time(tmp_path: Path, monkeypatch) -> None:
    values = (noisy((2, 5, 160, 200), 5) + line((160, 200))).astype("float32")
    image = xr.DataArray(values, dims=tuple("tzyx"))
    save_image(image, tmp_path / "deep.ome.zarr", chunks=(2, 4, 64, 64), levels=1)
    reader = reader_of(open_image(tmp_path / "deep.ome.zarr"))
    together = measure_waves(reader, [FREQUENCY])
    planes = []
    sums = plane_waves.CellSums

    def counted(*arguments):
        planes.append(1)
        return sums(*arguments)

    measured, most = plane_waves._measured, []

    def watched(*arguments):
        del planes[:]
        part = measured(*arguments)
        most.append(len(planes))
        return part

    monkeypatch.setattr(plane_waves, "CellSums", counted)
    monkeypatch.setattr(plane_waves, "_measured", watched)
    monkeypatch.setattr(plane_waves, "usable_cores", lambda: 1)
    monkeypatch.setattr(plane_waves, "_GROUP_BYTES", 3 * plane_waves._sums_bytes((160, 200), 1))
    assert measure_waves(reader, [FREQUENCY]) == together
    assert max(most) <= 3
    assert sum(most) == 10


def test_workers_measure_the_same(tmp_path: Path, client) -> None:
    values = (noisy((3, 256, 300), 5) + line((256, 300))).astype("uint16")
    save_image(as_image(values), tmp_path / "a.ome.zarr", chunks=(1, 128, 128))
    reader = reader_of(open_image(tmp_path / "a.ome.zarr"))
    assert measure_waves(reader, [FREQUENCY], client=client) == measure_waves(reader, [FREQUENCY])


@pytest.mark.parametrize("kind", ["gt", "raw"])
@pytest.mark.parametrize("scaled", [False, True])
def test_real_images_have_no_lines(data_dir: Path, kind: str, scaled: bool) -> None:
    for name in PAIRS:
        image = np.asarray(Image.open(data_dir / "fluorescence" / kind / f"{name}_1.png"))
        plane = image if image.ndim == 2 else image[..., 0]
        spread = float(plane.max()) - float(plane.min())
        values = (plane.astype("float32") - plane.min()) * (255 / spread) if scaled else plane
        assert find_periodic_lines([as_image(values)]) == (), name


def test_lines_over_a_real_image(data_dir: Path) -> None:
    """The case L of the benchmarks: less than a hundredth of the power stays, and the rest as it is."""
    plane = np.asarray(Image.open(data_dir / "fluorescence" / "gt" / "Confocal_MICE_1.png")).astype(float)
    plane = plane if plane.ndim == 2 else plane[..., 0]
    clean = (plane - plane.min()) * 255 / (plane.max() - plane.min())
    noise = 10 * np.random.default_rng(0).normal(size=clean.shape)
    added = line(clean.shape)
    (image,), (frequency,) = without_lines([as_image(clean + noise + added)])
    left = image.values - clean - noise
    assert abs(1 / (8 * hypot(*frequency)) - 1) < 1e-3
    assert (left**2).mean() < 0.01 * (added**2).mean()
    assert left.std() < 0.1
