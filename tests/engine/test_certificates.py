"""Certificates that the shipped script makes: with them a cluster works, without them nobody joins it."""

from __future__ import annotations

import logging
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from distributed import Security

from denoizarr.engine.cluster import ClusterSettings, open_client
from denoizarr.engine.cluster_security import security_of, temporary_files
from denoizarr.engine.cluster_settings import TLSFiles
from denoizarr.engine.runner import Step, run_step
from denoizarr.errors import BadRequest, ClusterLost
from tests.dask_processes import scheduler, tls_options, wait_until, worker

from .block_tasks import square

SCRIPT = Path(__file__).parents[2] / "deploy/certificates/make-certificates"
TASKS = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl to make certificates with")
    command = [str(SCRIPT), *arguments, str(folder)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two folders, each with an authority and its certificates."""
    ours, theirs = tmp_path_factory.mktemp("ours"), tmp_path_factory.mktemp("theirs")
    for folder in (ours, theirs):
        assert make(folder).returncode == 0
    return ours, theirs


def files_of(folder: Path, role: str = "client") -> TLSFiles:
    return TLSFiles(*(str(folder / name) for name in ("ca.pem", f"{role}.pem", f"{role}-key.pem")))


def test_keys_are_their_owners_alone_and_renewal_keeps_the_authority(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "certificates"
    assert make(folder, "--days", "30").returncode == 0
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    roles = ("scheduler", "worker", "client")
    assert modes == {
        "ca.pem": 0o644,
        "ca-key.pem": 0o600,
        **{f"{role}.pem": 0o644 for role in roles},
        **{f"{role}-key.pem": 0o600 for role in roles},
    }, "and nothing else is left"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert subprocess.run([SCRIPT, folder, "worker"], check=False, capture_output=True).returncode == 0
    changed = {path.name for path in folder.iterdir() if path.read_bytes() != before[path.name]}
    assert changed == {"worker.pem", "worker-key.pem"}
    for role in roles:
        chain = ["openssl", "verify", "-x509_strict", "-CAfile", folder / "ca.pem", folder / f"{role}.pem"]
        assert subprocess.run(chain, check=False, capture_output=True).returncode == 0


@pytest.mark.parametrize("arguments", [[], ["--help"], ["FOLDER", "driver"]])
def test_the_script_refuses_what_it_does_not_know(tmp_path: Path, arguments: list[str]) -> None:
    given = [str(tmp_path / "c") if each == "FOLDER" else each for each in arguments]
    done = subprocess.run([SCRIPT, *given], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "make-certificates" in done.stderr
    assert not (tmp_path / "c").exists()


@pytest.fixture
def secure(authorities: tuple[Path, Path], tmp_path: Path) -> Iterator[str]:
    """The address of a scheduler with a certificate of ours."""
    with scheduler(tmp_path, "--protocol", "tls", *tls_options(authorities[0], "scheduler")) as address:
        assert address.startswith("tls://")
        yield address


def test_work_is_done_over_tls_and_a_worker_of_another_authority_is_refused(
    authorities: tuple[Path, Path], secure: str, tmp_path: Path
) -> None:
    ours, theirs = authorities
    with ExitStack() as running:
        for name, folder in (("friend", ours), ("stranger", theirs)):
            options = tls_options(folder, "worker")
            running.enter_context(worker(tmp_path, secure, *options, name=name, environment=TASKS))
        with open_client(ClusterSettings("address", address=secure, tls=files_of(ours))) as client:
            client.wait_for_workers(1, timeout=60)
            tries = tmp_path / "stranger.log"
            wait_until(lambda: tries.read_text().count("Waiting to connect") > 5, "the stranger tries")
            records = run_step(Step("s", square, None, 12, 3), client=client, progress=False)
            assert [r["results"][0]["square"] for r in records] == [0, 9, 36, 81]
            # The friend, which differs from the stranger in nothing but its certificate.
            workers = client.scheduler_info(n_workers=-1)["workers"]
            assert [str(tmp_path / "friend") in w["local_directory"] for w in workers.values()] == [True]
            assert all(address.startswith("tls://") for address in workers)


def test_a_client_of_another_authority_gets_nothing(
    authorities: tuple[Path, Path], secure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("denoizarr.engine.cluster._ANSWER_SECONDS", 3)
    stranger = ClusterSettings("address", address=secure, tls=files_of(authorities[1]))
    with pytest.raises(ClusterLost, match="no scheduler answers at tls://"), open_client(stranger):
        pass


def test_a_local_cluster_may_have_tls(authorities: tuple[Path, Path]) -> None:
    settings = ClusterSettings(workers=1, memory_limit_bytes=2**30, tls=files_of(authorities[0], "worker"))
    with open_client(settings) as client:
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
        assert client.submit(sum, [1, 2], pure=False).result() == 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"key": "absent.pem"}, "no such file at cluster.tls.key: got absent.pem"),
        ({"key": "other"}, "certificates that cannot be used at cluster.tls: got KEY_VALUES_MISMATCH"),
        ({"certificate": "text"}, "certificates that cannot be used at cluster.tls: got"),
        ({"ca": "text"}, "certificates that cannot be used at cluster.tls: got"),
    ],
)
def test_bad_files_are_refused_by_name_and_not_repeated(
    authorities: tuple[Path, Path], tmp_path: Path, change: dict[str, str], says: str
) -> None:
    ours, theirs = authorities
    text = tmp_path / "text.pem"
    text.write_text("a secret that was never a certificate\n")
    paths = {"other": str(theirs / "client-key.pem"), "text": str(text), "absent.pem": "absent.pem"}
    files = {"ca": str(ours / "ca.pem"), "certificate": str(ours / "client.pem")}
    files["key"] = str(ours / "client-key.pem")
    files |= {name: paths[value] for name, value in change.items()}
    with pytest.raises(BadRequest, match=says) as caught:
        security_of(TLSFiles(**files))
    assert "a secret" not in str(caught.value)


def test_an_address_with_tls_needs_certificates_or_takes_dasks(
    authorities: tuple[Path, Path], secure: str
) -> None:
    import dask

    settings = ClusterSettings("address", address=secure)
    with pytest.raises(BadRequest, match="an address with TLS needs certificates"), open_client(settings):
        pass
    files = files_of(authorities[0])
    configured = {
        "distributed.comm.tls.ca-file": files.ca,
        "distributed.comm.tls.client.cert": files.certificate,
        "distributed.comm.tls.client.key": files.key,
    }
    with dask.config.set(configured), open_client(settings) as client:
        assert client.nthreads() == {}


def test_keys_show_nowhere(
    authorities: tuple[Path, Path], secure: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours, _ = authorities
    keys = [(ours / f"{role}-key.pem").read_text() for role in ("client", "worker", "scheduler")]
    with temporary_files(str(tmp_path)) as made:
        keys.append(Path(made.key).read_text())
        assert [stat.S_IMODE(Path(p).stat().st_mode) for p in (made.key, Path(made.key).parent)] == [
            0o600,
            0o700,
        ]
        shown = [repr(made), repr(security_of(made))]
    assert not Path(made.key).parent.exists(), "it is of one run"
    lines = [line for key in keys for line in key.splitlines() if "-----" not in line]
    assert len(lines) > 20
    caplog.set_level(logging.DEBUG)
    settings = ClusterSettings("address", address=secure, tls=files_of(ours))
    with (
        worker(tmp_path, secure, *tls_options(ours, "worker"), environment=TASKS),
        open_client(settings) as client,
    ):
        client.wait_for_workers(1, timeout=60)
        run_step(Step("s", square, None, 4, 1), client=client, progress=False)
        client.dump_cluster_state(str(tmp_path / "dump"), format="yaml")
        shown += [repr(settings), str(settings), repr(client), repr(client.security), repr(client.cluster)]
    shown += [record.getMessage() for record in caplog.records]
    shown += [path.read_text() for path in tmp_path.glob("*.log")]
    shown += [path.read_text() for path in tmp_path.glob("dump*")]
    text = "\n".join(shown)
    assert "client-key.pem" in text, "what was shown is looked at"
    assert not [line for line in lines if line in text]


def test_a_key_that_others_can_read_is_warned_of(
    authorities: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copied = tmp_path / "key.pem"
    copied.write_bytes((authorities[0] / "client-key.pem").read_bytes())
    files = TLSFiles(files_of(authorities[0]).ca, files_of(authorities[0]).certificate, str(copied))
    for mode, warned in ((0o600, False), (0o640, True)):
        copied.chmod(mode)
        caplog.clear()
        assert isinstance(security_of(files), Security)
        assert ("can be read by others" in caplog.text) == warned
