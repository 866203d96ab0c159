"""A file's claims are compared with its size before anything is read."""

from __future__ import annotations

import json
import tracemalloc
from contextlib import suppress
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import ImageNotFound, ModelError
from denoizarr.training import tensor_files
from denoizarr.training.tensor_files import check_tensors, read_header, read_tensors, write_tensors

TENSORS = {
    "half": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 4),
    "double": torch.tensor([0.1, -0.0], dtype=torch.float64),
}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    where = str(tmp_path / "a.safetensors")
    write_tensors(where, {"é": [1, None]}, TENSORS)
    header, tensors = read_tensors(where)
    assert header == {"é": [1, None]}
    announced_header, announced = read_header(where)
    assert announced_header == header
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value)
        assert (announced[name].dtype, announced[name].shape) == (value.dtype, value.shape)
        assert announced[name].is_meta
    check_tensors(announced, TENSORS, where)
    check_tensors(tensors, announced, where)


@pytest.mark.parametrize("claimed", [2**63, 2**40, 2**30, 10**6])
def test_a_head_of_gigabytes_costs_nothing(tmp_path: Path, claimed: int) -> None:
    (tmp_path / "a").write_bytes(claimed.to_bytes(8, "little") + b"{}" * 100)
    tracemalloc.start()
    with pytest.raises(ModelError, match="size is out of range"):
        read_tensors(str(tmp_path / "a"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


@pytest.mark.parametrize("size", [2**33, 2**42])
def test_a_vast_file_is_refused_unread(tmp_path: Path, size: int) -> None:
    """A sparse file costs nobody anything to make."""
    whole = safetensors.torch.save({"a": torch.zeros(1)}, metadata={"denoizarr": "{}"})
    with (tmp_path / "a").open("wb") as file:
        file.write(whole)
        file.truncate(size)
    with pytest.raises(ModelError, match="file of this package"):
        read_tensors(str(tmp_path / "a"))


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]},
        {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0]},
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        [1],
        None,
    ],
)
def test_a_claim_that_does_not_fit_is_refused(tmp_path: Path, entry: object) -> None:
    head = json.dumps({"__metadata__": {"denoizarr": "{}"}, "a": entry}).encode()
    (tmp_path / "a").write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))
    with pytest.raises(ModelError, match="whole file"):
        read_tensors(str(tmp_path / "a"))


@settings(max_examples=40)
@given(data=st.data())
def test_a_spoilt_byte_of_the_head_is_an_error_of_ours_or_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    where = tmp_path_factory.mktemp("files") / "a"
    write_tensors(str(where), {"a": 1}, TENSORS)
    content = bytearray(where.read_bytes())
    place = data.draw(st.integers(0, int.from_bytes(content[:8], "little") + 7))
    content[place] = data.draw(st.integers(0, 255))
    where.write_bytes(bytes(content))
    with suppress(ModelError):
        read_tensors(str(where))


def test_small_and_absent_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for content in (b"", b"1234567", bytes(8)):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(ModelError):
            read_tensors(str(tmp_path / "a"))
    with pytest.raises(ImageNotFound):
        read_tensors(str(tmp_path / "absent"))
    write_tensors(str(tmp_path / "b"), {}, TENSORS)
    monkeypatch.setattr(tensor_files, "_LARGEST_FILE_BYTES", 100)
    with pytest.raises(ModelError, match="at most 100"):
        read_tensors(str(tmp_path / "b"))
