"""Objects: replaced whole, claimed once, kept inside their store, whatever their names."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import obstore
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from denoizarr.errors import (
    DenoizarrError,
    ImageNotFound,
    NoSpace,
    NotOmeZarr,
    PermissionDenied,
    StoreUnavailable,
    UnsupportedStore,
)
from denoizarr.stores import locations

ODD_NAMES = ["a b", "ü-µ", "a#b", "a%b", "a%20b", "a?b", "[z]", "a*b", "a:b", "~t", "a&b=c"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_just_names(tmp_path: Path, name: str) -> None:
    url = locations.join(tmp_path, name, name)
    locations.put(url, b"1")
    assert locations.create(url, b"2") is False
    assert locations.get(url) == b"1"
    assert (tmp_path / name / name).read_bytes() == b"1", "on the disk under that very name"
    assert locations.list_names(tmp_path / name) == [name]
    assert locations.get(Path(url).as_uri()) == b"1"
    locations.delete(url)
    assert not locations.exists(url)
    group = locations.open_group(tmp_path / name, "w")
    group.create_array("k", shape=(4,), dtype="u2")[:] = 3
    assert np.asarray(locations.open_group(tmp_path / name)["k"][:]).tolist() == [3] * 4  # type: ignore[index]
    assert locations.stored_bytes(tmp_path / name) > 0
    locations.delete_prefix(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_put_replaces_the_object_whole(tmp_path: Path) -> None:
    url = tmp_path / "object"
    bodies = [bytes([n]) * 200_000 for n in range(4)]
    locations.put(url, bodies[0])
    done = threading.Event()
    torn: list[int] = []

    def read() -> None:
        while not done.is_set():
            data = locations.get(url)
            if len(data) != 200_000 or len(set(data[::1000])) != 1:
                torn.append(len(data))

    with ThreadPoolExecutor(2) as pool:
        reader = pool.submit(read)
        for n in range(100):
            locations.put(url, bodies[n % 4])
        done.set()
        reader.result()
    assert torn == []
    assert locations.list_names(tmp_path) == ["object"], "nothing else is left behind"


def test_put_if_absent_is_won_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(4)

    def claim(who: int, round_: int) -> bool:
        barrier.wait()
        return locations.create(tmp_path / f"claim-{round_}", str(who).encode())

    with ThreadPoolExecutor(4) as pool:
        for round_ in range(20):
            won = [f.result() for f in [pool.submit(claim, who, round_) for who in range(4)]]
            assert sum(won) == 1
            assert locations.get(tmp_path / f"claim-{round_}") == str(won.index(True)).encode()


def test_keys_cannot_leave_their_store(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    group = locations.open_group(tmp_path / "root", "w")
    for name in ("../secret", "../other", "/etc/passwd", "a/../../secret"):
        with pytest.raises((KeyError, ValueError)):
            group[name]
        with pytest.raises((ValueError, DenoizarrError)):
            group.create_array(
                name.removeprefix("/") if name.startswith("/etc/..") else f"../{name}", shape=(1,), dtype="u1"
            )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root", "secret"]
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_what_is_absent(tmp_path: Path) -> None:
    for url in (tmp_path / "no", tmp_path / "no" / "such", tmp_path):
        with pytest.raises(ImageNotFound):
            locations.get(url)
    assert locations.list_names(tmp_path / "no") == []
    assert locations.stored_bytes(tmp_path / "no") == 0
    locations.delete(tmp_path / "no")
    locations.delete_prefix(tmp_path / "no")
    with pytest.raises(ImageNotFound):
        locations.open_group(tmp_path / "no")
    with pytest.raises(NotOmeZarr):
        locations.open_group(tmp_path)


def test_delete_prefix_takes_all_and_only_that(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    for key in ("a/1", "a/b/2", "a/.hidden", "a/2#1", "ab"):
        (tmp_path / "x" / key).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / key).write_bytes(b"1")
    (tmp_path / "x" / "a" / "empty").mkdir()
    outside.mkdir()
    (outside / "precious").write_bytes(b"1")
    (tmp_path / "x" / "a" / "link").symlink_to(outside)
    (tmp_path / "x" / "a" / "dangling").symlink_to(tmp_path / "nowhere")
    locations.delete_prefix(tmp_path / "x" / "a")
    assert [p.name for p in (tmp_path / "x").iterdir()] == ["ab"]
    assert (outside / "precious").exists(), "a link is deleted, not what it points to"


def test_a_prefix_that_is_itself_a_link_keeps_its_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "chunk").write_bytes(b"1")
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    locations.delete_prefix(tmp_path / "out")
    assert list((tmp_path / "disk").iterdir()) == []
    locations.put(tmp_path / "out" / "chunk", b"2")
    assert (tmp_path / "disk" / "chunk").read_bytes() == b"2"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write anywhere")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(PermissionDenied):
            locations.put(tmp_path / "a", b"1")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3://bucket/a.zarr", "s3://bucket/a.zarr"),
        ("https://user:pass@host/a.zarr", "https://host/a.zarr"),
        (
            "https://user:pass@host:8080/a@b.zarr",
            "https://b.zarr",
        ),  # a password may hold "@": rather too much
        ("https://host:8080/a@b.zarr", "https://host:8080/a@b.zarr"),
        ("https://host/a.zarr?X-Amz-Signature=abc#x", "https://host/a.zarr"),
        ("s3://AKIA:abc/def+x@bucket/a.zarr", "s3://bucket/a.zarr"),
        ("s3://AKIA:ab#c?d@bucket/a.zarr", "s3://bucket/a.zarr"),
        ("https:/user:pass@host/a.zarr", "https://host/a.zarr"),
        ("http://u:p@[bad/a", "http://[bad/a"),
        ("/data/a#b?c@d:e.zarr", "/data/a#b?c@d:e.zarr"),
        ("relative/a@b.zarr", "relative/a@b.zarr"),
    ],
)
def test_redaction(url: str, expected: str) -> None:
    assert locations.redact(url) == expected


_SECRETS = st.text("abcXYZ0189/+#?%:=~", min_size=6, max_size=20).filter(lambda s: s.strip("/"))


@given(_SECRETS)
@example("p/443/x")
@example("000:0/")
def test_no_secret_survives_redaction(secret: str) -> None:
    assert f"Q{secret}Q" not in locations.redact(f"s3://key:Q{secret}Q@bucket/a.zarr")


def test_other_schemes_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedStore, match="s3://"):
        locations.local_path("s3://bucket/a")
    assert locations.local_path("file:///data/a%20b") == Path("/data/a b")
    assert locations.local_path(Path("file:///data/a")) == Path("/data/a")


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_records_are_created_once_on_disks_without_hard_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As an exFAT disk and many a network share are."""

    def put(*_: object, mode: str = "overwrite") -> None:
        assert mode == "create"
        text = f"Generic LocalFileSystem error: Unable to rename file: what it says (os error {number})"
        raise obstore.exceptions.GenericError(text)

    monkeypatch.setattr(obstore, "put", put)
    assert locations.create(tmp_path / "a" / "b", b"first")
    assert not locations.create(tmp_path / "a" / "b", b"second")
    assert locations.get(tmp_path / "a" / "b") == b"first"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Unable to rename file: Input/output error (os error 5)", StoreUnavailable),
        ("Unable to create file: No space left on device (os error 28)", NoSpace),
        ("Unable to rename file: Disk quota exceeded (os error 122)", NoSpace),
        ("429 Too Many Requests: quota exceeded for requests per minute", StoreUnavailable),
        ("Unable to create file: Read-only file system (os error 30)", PermissionDenied),
    ],
)
def test_what_a_store_says_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, kind: type[Exception]
) -> None:
    def put(*_: object, **__: object) -> None:
        raise obstore.exceptions.GenericError(message)

    monkeypatch.setattr(obstore, "put", put)
    with pytest.raises(kind):
        locations.create(tmp_path / "a", b"")
    with pytest.raises(kind):
        locations.put(tmp_path / "a", b"")


def test_a_disk_that_is_mounted_read_only_is_refused_access() -> None:
    with pytest.raises(PermissionDenied, match="read-only"), locations.translated("a"):
        raise OSError(errno.EROFS, "Read-only file system")


def test_two_may_delete_the_same_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locations.put(tmp_path / "a", b"")
    monkeypatch.setattr(locations, "exists", lambda _: True)  # it was, a moment ago
    locations.delete(tmp_path / "a")
    locations.delete(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_file_system_that_cannot_be_asked_for_safety_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locations.put(tmp_path / "a", b"")
    for number, fails in ((errno.EINVAL, False), (errno.EIO, True)):

        def fsync(_: int, number: int = number) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(StoreUnavailable) if fails else nullcontext():
            locations.make_durable(tmp_path / "a")
