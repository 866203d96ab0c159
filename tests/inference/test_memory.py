"""P7: what a worker needs is what the plan says, and does not grow with the image."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from denoizarr.engine.stages import BLOCKS_AHEAD, BLOCKS_BEHIND
from denoizarr.inference.memory_model import BASE_BYTES, MemoryModel

linux = pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")


@linux
def test_peaks_stay_below_the_projection():
    program = Path(__file__).with_name("memory_program.py")
    cases = [("a tile", "uint16"), ("a tile of a volume", "uint8"), ("blocks", "float32")]
    done = subprocess.run(
        [sys.executable, str(program), json.dumps(cases)], capture_output=True, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    fresh = measured[0]["base"]
    for found in measured:
        assert fresh + found["beyond"] < BASE_BYTES + found["projected"], found
        # Without the process itself, for which the projection has some room: what the planner weighs.
        assert 0.3 * found["projected"] < found["beyond"] < 1.25 * found["projected"], found


@linux
def test_the_first_and_the_last_blocks_of_any_image_need_the_same(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import harness
    from areas import memory

    options = memory.OPTIONS | {"gigabytes": [1, 64], "blocks": 4, "side": 256, "features": 4}
    group, _ = memory.groups(options, tmp_path)
    measured = harness.run_group("memory", group, harness.Place(tmp_path, tmp_path), repeats=1)
    assert [row["label"] for row in measured["rows"] if not row["met"]] == []


def test_neighbours_in_flight_and_deep_chunks_count():
    model = MemoryModel(tile_bytes=960, input_bytes=2, output_bytes=2, chunk_voxels=10**6)
    nothing = model.peak_bytes(0, 0, 0, 0)
    assert model.peak_bytes(10**6, 0, 0, 0) - nothing == 960 * 10**6
    in_flight = BLOCKS_AHEAD + 1 + BLOCKS_BEHIND
    # The block that is computed, the one that is read, and its encoded chunks.
    assert model.peak_bytes(0, 10**6, 0, 0) - nothing >= in_flight * 2 * 10**6
    assert model.peak_bytes(0, 0, 10**6, 0) - nothing >= in_flight * 2 * 10**6
    # Chunks are decoded whole, however little of them is wanted, but only some at a time.
    few, many, more = (model.peak_bytes(0, 10**5, 0, n) for n in (1, 10, 1000))
    assert few < many == more
    assert many - nothing >= 10 * 2 * 10**6
