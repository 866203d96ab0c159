"""Which clusters may be asked for: what contradicts itself or is not safe is refused before it starts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from denoizarr.cli.app import app
from denoizarr.engine.cluster_addresses import check_address, is_loopback, split
from denoizarr.engine.cluster_settings import (
    ClusterSettings,
    KubernetesSettings,
    SlurmSettings,
    TLSFiles,
    cores_of,
    walltime_seconds,
)
from denoizarr.engine.dask_settings import SETTINGS, worker_environment
from denoizarr.errors import BadRequest, ConfigError, DenoizarrError
from denoizarr.pipeline.cluster_file import cluster_of, load_cluster
from denoizarr.pipeline.config import JobConfig

SMALLEST = {"input": "in", "output": "out"}
KEY = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIHcanaryHcanaryHcanary\n-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    "address",
    ["tcp://10.1.2.3:8786", "10.1.2.3:8786", "ws://10.1.2.3:8786", "tcp://[fd00::1]:8786", "tcp://0.0.0.0:1"],
)
def test_a_plain_address_of_another_machine_is_refused_unless_somebody_says_so(address: str) -> None:
    with pytest.raises(
        BadRequest, match=r"without TLS: whoever reaches it can run programs as you at .*insecure"
    ):
        check_address(address, has_files=False, insecure=False)
    check_address(address, has_files=False, insecure=True)


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:8786", "127.8.9.1:1", "ws://localhost:80", "tcp://[::1]:8786"]
)
def test_this_machines_own_address_needs_no_tls(address: str) -> None:
    check_address(address, has_files=False, insecure=False)


@pytest.mark.parametrize(
    ("address", "has_files", "insecure", "says"),
    [
        (
            "tcp://10.1.2.3:8786",
            True,
            False,
            "certificates for an address without TLS .*expected tls://10.1.2.3:8786",
        ),
        ("tls://10.1.2.3:8786", True, True, "nothing insecure"),
        ("http://10.1.2.3:8786", False, True, "not an address of a scheduler"),
        ("tcp://10.1.2.3", False, True, "not an address of a scheduler"),
        ("cluster.yml.old", False, True, "not an address of a scheduler"),
    ],
)
def test_addresses_that_contradict_themselves(
    address: str, has_files: bool, insecure: bool, says: str
) -> None:
    with pytest.raises(BadRequest, match=says):
        check_address(address, has_files=has_files, insecure=insecure)


def test_hosts_and_what_is_before_an_at_sign() -> None:
    assert split("tls://[fd00::1]:8786/") == ("tls", "fd00::1")
    assert not is_loopback("10.0.0.1")
    assert not is_loopback("no-such-host.invalid")
    with pytest.raises(BadRequest, match="before the @") as caught:
        split("tls://me:canary@10.0.0.1:8786")
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize(
    ("cluster", "says"),
    [
        ({"kind": "address"}, "needs an address"),
        ({"address": "tls://h:1"}, "kind: address and address go together"),
        ({"kind": "address", "address": "tcp://10.0.0.1:8786"}, "without TLS"),
        ({"kind": "address", "address": "tcp://127.0.0.1:1", "maximum": 2, "minimum": 1}, "its own workers"),
        ({"kind": "cloud"}, "kind"),
        ({"kind": "slurm"}, "how many workers"),
        ({"kind": "slurm", "workers": 2, "kubernetes": {"image": "i"}}, "go together"),
        ({"slurm": {}}, "kind: slurm and slurm go together"),
        ({"kind": "slurm", "workers": 2, "slurm": {"walltime": "soon"}}, "not a time limit"),
        ({"kind": "slurm", "workers": 2, "slurm": {"gres": "gpu:4"}}, "a worker has one GPU"),
        ({"kind": "slurm", "workers": 2, "slurm": {"que": "x"}}, "did you mean 'queue'"),
        ({"kind": "kubernetes", "workers": 2, "insecure": True}, "needs an image"),
        ({"kind": "kubernetes", "workers": 2, "kubernetes": {"image": "i"}}, "no TLS"),
        ({"minimum": 2}, "minimum and maximum go together"),
        ({"minimum": 3, "maximum": 2}, "not a range of workers"),
        ({"minimum": 1, "maximum": 2, "workers": 2}, "workers says how many"),
        ({"insecure": True, "tls": {"ca": "a", "certificate": "b", "key": "c"}}, "contradict"),
        ({"tls": {"ca": "a", "certificate": "b"}}, "cluster.tls.key"),
    ],
)
def test_a_job_file_that_cannot_be_meant_is_refused_by_its_key(
    tmp_path: Path, cluster: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        JobConfig.load({**SMALLEST, "cluster": cluster})
    file = tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump(cluster))
    with pytest.raises(ConfigError):
        load_cluster(file)


@pytest.mark.parametrize(
    "cluster",
    [
        {"kind": "slurm", "workers": 2, "tls": {"ca": "a", "certificate": "b", "key": KEY}},
        {"kind": "slurm", "workers": 2, "tls": {"ca": "a", "certificate": "b", "key": [KEY]}},
        {"kind": "slurm", "workers": 2, "tls": KEY},
        {"kind": "slurm", "workers": 2, "slurm": {"prologue": [[KEY]]}},
        {"kind": "address", "address": f"tls://me:{KEY.splitlines()[1]}@10.0.0.1:8786"},
        {"kind": "address", "address": [KEY]},
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(cluster: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        JobConfig.load({**SMALLEST, "cluster": cluster})
    shown = f"{caught.value} {caught.value!r}"
    assert "canary" not in shown


def test_settings_show_no_secret() -> None:
    slurm = SlurmSettings(prologue=("export TOKEN=canary",))
    assert "canary" not in repr(ClusterSettings("slurm", 2, slurm=slurm))


def test_what_is_asked_for_arrives(tmp_path: Path) -> None:
    (tmp_path / "certificates").mkdir()
    file = tmp_path / "cluster.yaml"
    files = {"ca": "certificates/ca.pem", "certificate": "certificates/c.pem", "key": "/k.pem"}
    slurm = {"queue": "gpu", "gres": "gpu:a100:1", "cores": 4, "directives": ["--x"], "prologue": ["y"]}
    asked = {
        "kind": "slurm",
        "minimum": 1,
        "maximum": 9,
        "memory_limit": "1GiB",
        "tls": files,
        "slurm": slurm,
    }
    file.write_text(yaml.safe_dump(asked))
    found = cluster_of(str(file))
    assert found.tls == TLSFiles(*(str(tmp_path / files[name]) for name in ("ca", "certificate")), "/k.pem")
    assert found.slurm == SlurmSettings(
        queue="gpu", gres="gpu:a100:1", cores=4, directives=("--x",), prologue=("y",)
    )
    assert (found.minimum, found.maximum, found.memory_limit_bytes) == (1, 9, 2**30)
    assert found.is_adaptive
    assert found.reads_images
    assert cores_of(found, 7) == 36
    changed = cluster_of(str(file), workers=3, memory_limit_bytes=2**31)
    assert (changed.workers, changed.maximum, changed.memory_limit_bytes) == (3, None, 2**31)
    assert not changed.reads_images
    job = {**SMALLEST, "cluster": asked}
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(job))
    assert JobConfig.load(path).cluster.settings() == found
    pods = ClusterSettings("kubernetes", 2, insecure=True, kubernetes=KubernetesSettings("i", cores=3))
    pods.check()
    assert cores_of(pods, 7) == 6


def test_who_does_the_work_is_no_part_of_a_jobs_identity() -> None:
    slurm = {"kind": "slurm", "workers": 2, "slurm": {"queue": "x"}}
    assert JobConfig.load({**SMALLEST, "cluster": slurm}).identity() == JobConfig.load(SMALLEST).identity()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--cluster", "tcp://10.1.2.3:8786"], "without TLS"),
        (["--cluster", "slurm"], "expected a YAML file"),
        (["--cluster", "absent.yaml"], "no such cluster file"),
        (["--cluster", "tcp://127.0.0.1:1", "--workers", "3"], "its own workers"),
    ],
)
@pytest.mark.parametrize(
    "verb", [["predict", "model", "in", "out"], ["convert", "in", "out"], ["patch2self", "in.nii", "out.nii"]]
)
def test_the_command_line_refuses_them_too(
    verb: list[str], options: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import nibabel
    import numpy as np

    monkeypatch.chdir(tmp_path)
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)), "in.nii")
    done = CliRunner().invoke(app, [*verb, *options])
    assert isinstance(done.exception, DenoizarrError)
    assert says in str(done.exception)


@given(st.integers(60, 40 * 86400))
def test_time_limits_are_read_as_slurm_writes_them(seconds: int) -> None:
    minutes, s = divmod(seconds, 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    assert walltime_seconds(f"{days}-{h:02}:{m:02}:{s:02}") == seconds
    assert walltime_seconds(f"{hours}:{m:02}:{s:02}") == seconds
    assert walltime_seconds(f"{minutes}:{s:02}") == seconds
    assert walltime_seconds(str(minutes)) == minutes * 60
    if days:
        assert walltime_seconds(f"{days}-{h}") == days * 86400 + h * 3600
        assert walltime_seconds(f"{days}-{h}:{m}") == days * 86400 + h * 3600 + m * 60


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "0", "0:59"])
def test_other_time_limits_are_refused(text: str) -> None:
    with pytest.raises(BadRequest, match="time limit"):
        SlurmSettings(walltime=text)


def test_settings_reach_workers_by_their_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import dask

    environment = worker_environment()
    assert environment["MALLOC_ARENA_MAX"] == "1"
    read = dask.config.collect_env(environment)
    spawn = "distributed.nanny.pre-spawn-environ."
    for name, value in SETTINGS.items():
        if not name.startswith(spawn):
            assert dask.config.get(name, config=read) == value, name
