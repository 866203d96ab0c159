"""Names of places: what is remote, what lies where, and what no URL may carry."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from denoizarr.errors import BadRequest, UnsupportedStore
from denoizarr.stores import urls

PARTS = st.text("abcXYZ012 .-_=+äµ", min_size=1, max_size=8).filter(lambda t: t.strip(".") != "")


@given(st.sampled_from(["s3", "gs", "az", "https"]), st.lists(PARTS, min_size=1, max_size=4), PARTS)
def test_a_joined_name_is_taken_apart_again(scheme: str, parts: list[str], last: str) -> None:
    url = urls.join(f"{scheme}://bucket", *parts, last)
    assert urls.split_remote(url) == (f"{scheme}://bucket", "/".join([*parts, last]))
    assert urls.name_of(url) == last
    assert urls.parent_of(url) == urls.join(f"{scheme}://bucket", *parts)
    assert urls.join(url) == url == urls.redact(url)
    # A Path folds two slashes into one.
    assert urls.join(Path(url)) == url
    assert urls.is_remote(Path(url))


def test_slashes_do_not_matter() -> None:
    assert urls.join("s3://bucket//a//b/") == "s3://bucket/a/b"
    assert urls.join("S3://bucket/a", "b/c") == "s3://bucket/a/b/c"
    assert urls.parent_of("s3://bucket/a") == "s3://bucket" == urls.parent_of("s3://bucket")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:hunter2@bucket/a",
        "s3://hunter2@bucket/a",
        "s3://key:hunter2/a",
        "https://me:hunter2@host/a.zarr",
        "https://host/a.zarr?X-Amz-Signature=hunter2",
        "https://host/a.zarr#hunter2",
        "s3://bucket/a?token=hunter2",
        "s3:/key:hun/ter2@bucket/a",
    ],
)
def test_a_url_that_carries_a_secret_is_refused_without_showing_it(url: str) -> None:
    for ask in (urls.join, urls.split_remote, urls.name_of, urls.parent_of):
        with pytest.raises(BadRequest) as caught:
            ask(url)  # type: ignore[operator]
        assert "hunter2" not in str(caught.value)
        assert "ter2" not in str(caught.value)
        assert "credentials come from the environment" in str(caught.value)


@pytest.mark.parametrize("part", ["..", ".", "a/../b", "a/.."])
def test_no_key_climbs_out_of_its_bucket(part: str) -> None:
    with pytest.raises(BadRequest, match=r'"\.\."'):
        urls.join("s3://bucket/data", part)
    with pytest.raises(BadRequest, match=r'"\.\."'):
        urls.split_remote(f"s3://bucket/{part}/x")


def test_what_is_on_disks_only_says_so() -> None:
    with pytest.raises(UnsupportedStore, match="on disks only"):
        urls.local_path("s3://bucket/plane.tif")
    with pytest.raises(UnsupportedStore, match="not supported at ftp://host/a: got ftp://, expected a path"):
        urls.local_path("ftp://host/a")


def test_overlapping_places(tmp_path: Path) -> None:
    assert urls.overlap("s3://b/a", "s3://b/a/")
    assert urls.overlap("s3://b/a/x", "s3://b/a")
    assert urls.overlap("s3://b", "s3://b/a")
    assert not urls.overlap("s3://b/a", "s3://b/ab")
    assert not urls.overlap("s3://b/a", "gs://b/a")
    assert not urls.overlap("s3://b/a", tmp_path / "a")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert urls.overlap(tmp_path / "link" / "x", tmp_path / "real")


def test_paths_in_a_job_count_from_where_the_job_lies() -> None:
    assert urls.absolute("data/in.zarr", "s3://b/jobs") == "s3://b/jobs/data/in.zarr"
    assert urls.absolute("../in.zarr", "s3://b/jobs/run") == "s3://b/jobs/in.zarr"
    assert urls.absolute("/disk/in.zarr", "s3://b/jobs") == "/disk/in.zarr"
    assert urls.absolute("s3://c/in.zarr", "/home/me") == "s3://c/in.zarr"
    assert urls.absolute("in.zarr", "/home/me") == "/home/me/in.zarr"
