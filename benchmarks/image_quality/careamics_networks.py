"""CAREamics' Noise2Void, N2V2 and structN2V, in an environment of its own, until a budget is spent."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]


def denoise(settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    """Train on the noisy array alone and predict it, with the weights of the last step.

    Its defaults but for the batch size, which it has none of: patches of 64 x 64. ``settings["network"]`` is
    "n2v", "n2v2" or "structn2v"; the latter hides a row of ``settings["span"]`` pixels and, as CAREamics'
    own recipe for it, turns no patches.
    """
    import torch

    torch.set_num_threads(1)
    sys.path.insert(1, str(Path(__file__).parents[1] / "peers"))
    from load_careamics import trainer

    noisy, budget = np.load(settings["noisy"]), float(settings["budget_seconds"])
    spent = {"started": 0.0, "cpu": 0.0, "steps": 0}

    def after_step(step: int) -> bool:
        spent["cpu"], spent["steps"] = time.process_time() - spent["started"], step
        return spent["cpu"] < budget

    others: dict[str, Any] = {"use_n2v2": True} if settings["network"] == "n2v2" else {}
    span = settings["span"] if settings["network"] == "structn2v" else None
    axes = "YX" if noisy.ndim == 2 else "SYX"
    with tempfile.TemporaryDirectory() as folder:
        careamist = trainer(
            folder,
            after_step,
            axes,
            64,
            settings["batch"],
            struct_span=span,
            seed=1 + settings["seed"],  # its seeds begin at 1
            **others,
        )
        spent["started"] = time.process_time()
        careamist.train(train_data=noisy)
        trained = time.process_time()
        last = Path(folder) / "last.ckpt"
        careamist.trainer.save_checkpoint(last)
        predicted, _ = careamist.predict(noisy, checkpoint=last)
    facts = {"cpu_seconds": spent["cpu"], "steps": int(spent["steps"])}
    facts["predict_cpu_seconds"] = time.process_time() - trained
    return np.asarray(predicted).reshape(noisy.shape).astype(np.float32), facts
