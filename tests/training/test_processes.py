"""Several processes train one network: equal shares, one result, one writer, and no end without a name."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from denoizarr.errors import BadRequest, ClusterLost
from denoizarr.training.options import TrainingOptions
from denoizarr.training.processes import Processes, device_named, together
from denoizarr.training.trainer import train

SETTINGS: dict[str, Any] = {
    "patch_size": 8,
    "batch_size": 2,
    "num_epochs": 3,
    "patches_per_epoch": 22,
    "features": 2,
    "num_layers": 1,
    "mask_percentage": 5,
    "validation_patches": 4,
    "threads": 1,
    "norm": "batch",
    "device": "cpu",
}
FOLDER = Path(__file__).parent
ENVIRONMENT = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def noisy() -> np.ndarray:
    return np.random.default_rng(3).poisson(200, (64, 80)).astype(np.float32)


Ranks = list[dict[str, Any]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of both ranks of several trainings, done one after another by one program."""
    folder = tmp_path_factory.mktemp("ranks")
    several: dict[str, tuple[str, dict[str, Any]]] = {
        "straight": ("", {}),
        "killed": ("killed", {}),
        "resumed": ("", {}),
        "frozen": ("frozen", {}),
        "raises": ("raises", {}),
        "nan": ("nan", {"validation_fraction": 0.0, "num_epochs": 30}),
        "refused": ("", {}),
        "differ": ("differ", {}),
        "own": ("own", {}),
    }
    plan = []
    for name, (fault, changes) in several.items():
        own = folder / ("killed" if name == "resumed" else name)
        own.mkdir(exist_ok=True)
        np.save(own / "image.npy", with_nan() if name == "nan" else noisy())
        plan.append((str(own), fault, SETTINGS | changes, name == "straight"))
    options = TrainingOptions(**SETTINGS)
    alone = train(noisy(), options=options, progress=False, checkpoint=folder / "refused" / "checkpoints")
    command = [sys.executable, str(FOLDER / "ranks_program.py"), json.dumps(plan)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout)
    return dict(zip(several, outcomes, strict=True)) | {"folder": folder, "alone": alone.digest}


def with_nan() -> np.ndarray:
    image = noisy()
    image[40:42, 40:42] = np.nan
    return image


def test_two_ranks_have_equal_shares_and_end_with_the_same_weights(runs: dict[str, Any]) -> None:
    ranks: Ranks = runs["straight"]
    # 22 patches are 11 batches, of which each rank gets 5 whole ones, every epoch.
    assert [len(rank["numbers"]) for rank in ranks] == [15, 15]
    for epoch in range(3):
        batches = [rank["numbers"][5 * epoch : 5 * epoch + 5] for rank in ranks]
        drawn = list(itertools.chain(*batches[0], *batches[1]))
        assert len(drawn) == len(set(drawn)) == 20
    for name in ("digest", "average", "network"):
        assert ranks[0][name] == ranks[1][name]
    # It is another training than one process's, whose steps see half as many patches.
    assert runs["alone"] != ranks[0]["digest"]


def test_one_writes_and_reports(runs: dict[str, Any]) -> None:
    folder = runs["folder"] / "straight"
    assert [rank["reports"] for rank in runs["straight"]] == [15, 0]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["checkpoints", "image.npy", "rendezvous", "samples", "train.csv"]
    assert len((folder / "train.csv").read_text().splitlines()) == 4
    assert len(list((folder / "samples").iterdir())) == 3
    assert len(list((folder / "checkpoints").iterdir())) == 3


def test_a_killed_rank_ends_the_other_with_a_name_and_both_resume(runs: dict[str, Any]) -> None:
    first, second = runs["killed"]
    assert second is None
    assert first["error"] == "ClusterLost"
    assert "another process of this training is gone" in first["message"]
    assert first["seconds"] < 40
    # It was in its second epoch.
    assert [len(rank["numbers"]) for rank in runs["resumed"]] == [10, 10]
    assert [rank["digest"] for rank in runs["resumed"]] == [rank["digest"] for rank in runs["straight"]]


def test_a_frozen_rank_and_one_that_fails_do_not_hang_the_other(runs: dict[str, Any]) -> None:
    frozen = runs["frozen"][0]
    assert frozen["error"] == "ClusterLost"
    assert frozen["seconds"] < 40
    assert [rank["error"] for rank in runs["raises"]] == ["ClusterLost", "ValueError"]


def test_nan_in_one_ranks_patches_stops_both_and_that_rank_names_them(runs: dict[str, Any]) -> None:
    messages = [rank["message"] for rank in runs["nan"]]
    guilty = [message for message in messages if "holds NaN or infinity" in message]
    assert guilty
    assert all("patches at [" in message for message in guilty)
    if len(guilty) == 1:
        assert any("another process names" in message for message in messages)


def test_checkpoints_of_another_number_of_processes_are_refused_by_both(runs: dict[str, Any]) -> None:
    assert [rank["error"] for rank in runs["refused"]] == ["LedgerMismatch"] * 2


def test_processes_with_different_settings_say_so_before_any_work(runs: dict[str, Any]) -> None:
    for rank in runs["differ"]:
        assert rank["error"] == "BadRequest"
        assert "different settings at options.num_epochs: got 3; 2;" in rank["message"]
        assert rank["numbers"] == []


def test_a_network_of_ones_own_may_leave_parameters_out_of_a_step(runs: dict[str, Any]) -> None:
    first, second = runs["own"]
    # Neither seeded its weights: the second took over the first one's.
    assert first["digest"] == second["digest"]
    assert first["network"] == second["network"]
    assert first["training"]["processes"] == 2


UNDER_TORCHRUN = """
import json, os, sys
from pathlib import Path
import numpy as np
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
options = TrainingOptions(**json.loads(sys.argv[2]))
denoiser = train(np.load(folder / "image.npy"), options=options, progress=False)
(folder / f"rank-{rank}.txt").write_text(denoiser.digest)
"""


def test_torchrun_starts_it(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", noisy())
    (tmp_path / "program.py").write_text(UNDER_TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "program.py"), str(tmp_path), json.dumps(SETTINGS)]
    done = subprocess.run(
        command + arguments, check=False, capture_output=True, text=True, timeout=200, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    digests = {(tmp_path / f"rank-{rank}.txt").read_text() for rank in (0, 1)}
    assert len(digests) == 1


@pytest.mark.parametrize("count", ["0", "-1", "two", ""])
def test_a_world_size_that_is_none_is_refused(count: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", count)
    with pytest.raises(BadRequest, match=r"WORLD_SIZE.*1 or more.*torchrun"):
        train(noisy(), options=TrainingOptions(**SETTINGS), progress=False)


def test_a_world_without_a_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(BadRequest, match=r"RANK.*torchrun"):
        train(noisy(), options=TrainingOptions(**SETTINGS), progress=False)


def test_a_world_of_one_is_a_training_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with together("cpu") as processes:
        assert processes == Processes(torch.device("cpu"))
        assert processes.is_first
    assert not torch.distributed.is_initialized()


def test_only_what_a_lost_peer_says_is_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    for message, kind in (
        ("[pair.cc:553] Connection closed by peer [127.0.0.1]:4821", ClusterLost),
        ("NCCL error in: ProcessGroupNCCL.cpp:2251, remote process exited", ClusterLost),
        ("[unbound_buffer.cc:78] Timed out waiting 4000ms for recv operation", ClusterLost),
        ("CUDA out of memory", RuntimeError),
    ):
        with pytest.raises(kind), together("cpu"):
            raise RuntimeError(message)
    with pytest.raises(BadRequest), together("cpu"):
        raise BadRequest("nothing to do with a connection")


def test_the_device_is_checked() -> None:
    assert device_named("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    if not torch.cuda.is_available():
        with pytest.raises(BadRequest, match="not present"):
            device_named("cuda")
    with pytest.raises(BadRequest, match="no such device"):
        device_named("cuda:x")


def test_each_process_takes_the_gpu_of_its_local_number(monkeypatch: pytest.MonkeyPatch) -> None:
    from denoizarr.training import processes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert processes._own_device("auto") == torch.device("cuda:1")
    assert processes._own_device("cuda:0") == torch.device("cuda:0")
    assert processes._own_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(BadRequest, match="not present"):
        processes._own_device("cuda")
