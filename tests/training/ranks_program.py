"""Trainings in two processes each, forked from this one so that torch is imported once.

The argument is JSON: a list of runs, each a folder, what goes wrong, settings, and whether it draws samples.
Printed is a list of what became of the ranks of each run; null for one that was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo
from numba.core.registry import cpu_target

from denoizarr.errors import DenoizarrError
from denoizarr.training.learner import Learner
from denoizarr.training.losses import StepReport
from denoizarr.training.normalisation import Normalisation
from denoizarr.training.options import TrainingOptions
from denoizarr.training.tensor_files import tensors_digest
from denoizarr.training.trainer import train


class Skipping(torch.nn.Module):
    """An own network with a parameter that no step uses, and one that some steps of some ranks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 1)
        self.spare, self.sometimes = torch.nn.Conv2d(1, 1, 1), torch.nn.Conv2d(2, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.first(x).relu()
        if not self.training or bool(torch.rand(()) < 0.5):
            features = features + self.sometimes(features)
        answer: torch.Tensor = self.last(features)
        return answer


def train_as(rank: int, folder: Path, fault: str, settings: dict[str, Any], samples: bool) -> dict[str, Any]:
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=4 if fault == "frozen" else 60),
    )
    learners: list[Learner] = []
    numbers: list[list[int]] = []
    learn = Learner.learn

    def noting(self: Learner, batch: Any, rate: float) -> torch.Tensor:
        if rank == 1 and self.steps_done == 7:
            if fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if fault == "frozen":
                os.kill(os.getpid(), signal.SIGSTOP)
            if fault == "raises":
                raise ValueError("something else")
        learners[:] = [self]
        numbers.append(batch.item["number"].tolist())
        return learn(self, batch, rate)

    Learner.learn = noting  # type: ignore[method-assign]
    if fault == "differ" and rank == 1:
        settings = settings | {"num_epochs": 2}
    image = np.load(folder / "image.npy")
    reports: list[StepReport] = []
    started = time.monotonic()
    outcome: dict[str, Any] = {}
    try:
        denoiser = train(
            image,
            options=TrainingOptions(**settings),
            checkpoint=folder / "checkpoints",
            log=folder / "train.csv",
            samples=folder / "samples" if samples else None,
            on_step=reports.append,
            normalisation=Normalisation((200.0,), (14.0,)) if fault == "nan" else None,
            network=Skipping() if fault == "own" else None,
            progress=False,
        )
        average = learners[0].average.state_dict() if learners else {}
        network = dict(learners[0].network.named_parameters()) if learners else {}
        outcome = {
            "digest": denoiser.digest,
            "average": tensors_digest(average),
            "network": tensors_digest(network),
            "training": denoiser.training,
        }
    except DenoizarrError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    except ValueError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    seconds = time.monotonic() - started
    return outcome | {"numbers": numbers, "reports": len(reports), "seconds": seconds}


def outcomes_of(folder: Path, fault: str, settings: dict[str, Any], samples: bool) -> list[Any]:
    (folder / "rendezvous").unlink(missing_ok=True)
    files = [folder / f"rank-{rank}.json" for rank in range(2)]
    children = []
    for rank, file in enumerate(files):
        child = os.fork()
        if child == 0:
            file.write_text(json.dumps(train_as(rank, folder, fault, settings, samples)))
            os._exit(0)
        children.append(child)
    os.waitpid(children[0], 0)
    if fault == "frozen":
        os.kill(children[1], signal.SIGKILL)
    os.waitpid(children[1], 0)
    found = [json.loads(file.read_text()) if file.exists() else None for file in files]
    for file in files:
        file.unlink(missing_ok=True)
    return found


def main() -> None:
    runs = json.loads(sys.argv[1])
    found = [outcomes_of(Path(folder), *arguments) for folder, *arguments in runs]
    print(json.dumps(found))  # noqa: T201


# Every process would load this anew.
cpu_target.target_context.refresh()
main()
