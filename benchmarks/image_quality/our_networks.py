"""Ours: both stages as a job trains them, with its defaults, sized beforehand to a budget of CPU seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

Pixels = np.ndarray[Any, Any]
# Epochs and steps of the trainings that say what fits a budget: they part the cost of a step from that of an
# epoch, and that from what is paid once.
_PROBES = ((1, 8), (1, 40), (3, 8))


def denoise(settings: dict[str, Any]) -> tuple[Pixels, dict[str, Any]]:
    """Train on the noisy array alone and denoise it with what was trained.

    ``settings["kernel"]``: "none" is stage 1; "found" is stage 2 with the kernel that is found in the noisy
    array, where the finder may ask the model of stage 1 (``settings["stage1"]``), as in a job; "true" is
    stage 2 with the kernel in the file ``settings["true_kernel"]``. Where what was found is a single pixel,
    or the true kernel, nothing is trained: the array is that of stage 1, or of stage 2.
    """
    import torch

    torch.set_num_threads(1)
    noisy = np.load(settings["noisy"])
    facts: dict[str, Any] = {}
    mask = None
    if settings["kernel"] != "none":
        started = time.process_time()
        mask = (
            _found(noisy, settings, facts)
            if settings["kernel"] == "found"
            else np.load(settings["true_kernel"])
        )
        facts |= {"kernel": mask.astype(int).tolist(), "kernel_cpu_seconds": time.process_time() - started}
        if mask.size == 1:
            return np.load(settings["stage1_array"]), facts | {"same_as": "ours, stage 1"}
        known = settings.get("found_kernel")
        if known is not None and np.array_equal(mask, np.array(known, bool)):
            return np.load(settings["stage2_array"]), facts | {"same_as": "ours, stage 2"}
    denoiser, trained = _train(noisy, mask, settings)
    started = time.process_time()
    denoised = np.asarray(denoiser.denoise(noisy))
    facts |= trained | {"predict_cpu_seconds": time.process_time() - started}
    facts["periods"] = [float(1 / np.hypot(*line)) for line in denoiser.periodic]
    if settings.get("model"):
        denoiser.save(settings["model"])
    return denoised, facts


def _found(noisy: Pixels, settings: dict[str, Any], facts: dict[str, Any]) -> Pixels:
    import denoizarr

    model = settings.get("stage1")
    denoiser = denoizarr.Denoiser.load(model) if model and Path(model).exists() else None
    kernel = denoizarr.extract_noise_kernel(noisy, denoiser=denoiser)
    facts |= {"kernel_source": kernel.source, "kernel_note": kernel.note, "periods": list(kernel.periods)}
    return np.asarray(kernel.hidden)


def _train(noisy: Pixels, mask: Pixels | None, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return a model of the largest training that fits the budget, and what it cost."""
    import denoizarr

    given = {"seed": settings["seed"], "device": "cpu", "threads": 1} | settings.get("options", {})

    def trained(n_epochs: int, steps: int) -> tuple[Any, float]:
        options = denoizarr.TrainingOptions(**given)
        options = denoizarr.TrainingOptions(
            **given | {"num_epochs": n_epochs, "patches_per_epoch": steps * options.batch_size}
        )
        options = _fitting(mask, options)
        started = time.process_time()
        denoiser = denoizarr.train(noisy, blind_spot=mask, options=options, progress=False)
        return denoiser, time.process_time() - started

    trained(1, 2)  # compiles, and loads what a first step loads
    n_epochs, steps = size(
        float(settings["budget_seconds"]),
        denoizarr.TrainingOptions(**given).num_epochs,
        {probe: trained(*probe)[1] for probe in _PROBES},
    )
    denoiser, spent = trained(n_epochs, steps)
    ran = denoiser.training.get("epochs", n_epochs)
    return denoiser, {
        "cpu_seconds": spent,
        "steps": int(ran) * steps,
        "epochs": int(ran),
        "planned_epochs": n_epochs,
    }


def size(budget: float, most_epochs: int, costs: dict[tuple[int, int], float]) -> tuple[int, int]:
    """Return epochs, and steps in each, that take a budget of CPU seconds.

    Parameters
    ----------
    budget : float
    most_epochs : int
        As many epochs as a job has by default, fewer where each would be empty.
    costs : dict
        CPU seconds of the trainings ``_PROBES``, by (epochs, steps of an epoch).
    """
    (_, few), (_, many), (epochs, _) = _PROBES
    step = max(costs[1, many] - costs[1, few], 1e-6) / (many - few)
    epoch = max((costs[epochs, few] - costs[1, few]) / (epochs - 1) - few * step, 0.0)
    once = max(costs[1, few] - epoch - few * step, 0.0)
    n_epochs = most_epochs
    while n_epochs > 1 and (budget - once) / n_epochs - epoch < step:
        n_epochs -= 1
    return n_epochs, max(int(((budget - once) / n_epochs - epoch) / step), 1)


def _fitting(mask: Pixels | None, options: Any) -> Any:
    """Return the options as the second stage of a job would have them for this kernel."""
    if mask is None:
        return options
    from denoizarr.pipeline.blind_spots import fitting_blind_spots
    from denoizarr.training.noise_kernel import NoiseKernel

    nothing = np.zeros(mask.shape)
    return fitting_blind_spots(NoiseKernel(mask, nothing, nothing), options).options
