"""Train in one process after another, each killed after so many steps and so many seconds.

Each is forked from this one, so that torch is imported once. Prints what became of them as JSON.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch._dynamo  # noqa: F401 - the optimiser would import it in every process
from numba.core.registry import cpu_target

from denoizarr.training.losses import StepReport
from denoizarr.training.options import TrainingOptions
from denoizarr.training.trainer import train


def main() -> None:
    folder, plan, settings = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    image = np.load(folder / "image.npy")
    options = TrainingOptions(**settings)

    def tell(writer: int, report: StepReport) -> None:
        os.write(writer, report.step.to_bytes(4, "big"))

    outcomes = []
    for steps, seconds in plan:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            on_step = partial(tell, writer)
            train(image, options=options, checkpoint=folder / "checkpoints", progress=False, on_step=on_step)
            os._exit(0)
        os.close(writer)
        heard = [os.read(reader, 4) for _ in range(steps)]
        # Not a wait for something: the moment within a step, a checkpoint or the start at which it is killed.
        select.select([], [], [], seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        while rest := os.read(reader, 4):
            heard.append(rest)
        os.close(reader)
        numbers = [int.from_bytes(part, "big") for part in heard if part]
        outcomes.append(
            {
                "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
                "first_step": numbers[0] if numbers else None,
                "last_step": numbers[-1] if numbers else None,
            }
        )
    print(json.dumps(outcomes))  # noqa: T201


# Every process would load this anew.
cpu_target.target_context.refresh()
main()
