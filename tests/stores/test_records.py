"""JSON records: one text for equal data."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from denoizarr.errors import ImageNotFound, MetadataError
from denoizarr.stores import locations, records

_LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
TREES = st.recursive(
    _LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text(), t, max_size=3), max_leaves=8
)


def _shuffled(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _shuffled(data[key]) for key in reversed(list(data))}
    return [_shuffled(item) for item in data] if isinstance(data, list) else data


@settings(max_examples=60)
@given(TREES)
def test_the_digest_does_not_depend_on_the_order_of_keys(data: Any) -> None:
    assert records.digest(data) == records.digest(_shuffled(data))
    assert len(records.digest(data)) == 32


def test_the_digest_tells_data_apart() -> None:
    seen = {
        records.digest(d)
        for d in ({}, [], None, "", 0, False, {"a": 1}, {"a": "1"}, {"a": [1]}, [1, 2], [2, 1])
    }
    assert len(seen) == 11
    # Fixed for ever: records written by one version are read by the next.
    assert records.digest({"b": 1, "a": "µ"}) == records.digest({"a": "µ", "b": 1})
    assert records.canonical({"b": 1.5, "a": "µ"}) == '{"a":"µ","b":1.5}'


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {1, 2}])
def test_what_json_cannot_say_is_not_written(tmp_path: Path, bad: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        records.write_json(tmp_path / "a.json", {"x": bad})
    assert not locations.exists(tmp_path / "a.json")


@settings(max_examples=20)
@given(st.dictionaries(st.text(), TREES, max_size=3))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Any]) -> None:
    try:
        records.canonical(data).encode()
    except UnicodeEncodeError:
        return  # half a surrogate pair has no UTF-8
    url = tmp_path_factory.mktemp("r") / "a.json"
    records.write_json(url, data)
    assert records.read_json(url) == data


def test_create_writes_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(3)

    def create(n: int) -> bool:
        barrier.wait()
        return records.create_json(tmp_path / "a.json", {"n": n})

    with ThreadPoolExecutor(3) as pool:
        won = list(pool.map(create, range(3)))
    assert sum(won) == 1
    assert records.read_json(tmp_path / "a.json") == {"n": won.index(True)}


@pytest.mark.parametrize("text", ["{", "", "[1]", "3", "\xff\xfe", "[" * 100_000])
def test_a_damaged_record_has_our_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(MetadataError, match="JSON"):
        records.read_json(tmp_path / "a.json")
    with pytest.raises(ImageNotFound):
        records.read_json(tmp_path / "b.json")
