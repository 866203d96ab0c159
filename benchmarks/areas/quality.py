"""PSNR after a stated CPU budget on the eight fluorescence pairs, beside CAREamics' Noise2Void.

    DENOIZARR_DATA=FOLDER python benchmarks/run.py quality --repeats 1 --set budget_seconds=120

Every side learns from the single noisy frame (``fluorescence/raw``) and is compared with the mean of 50
(``fluorescence/gt``). The budget is CPU time of the process (user and system, all threads, one thread here)
from the call of the trainer to its last step: validation and data loading are inside, starting Python is not.

Ours: ``TrainingOptions()`` with patches_per_epoch such that all epochs fit: the learning rate falls over the
whole training, so its length must be known before. What a step and an epoch cost is measured first, and not
counted. Once as it is, and once with the blind spot that is measured on the noisy frame (0.2 seconds, not
counted), as the second stage of a job does; where that is a single pixel they are one and the same.

CAREamics: ``create_advanced_n2v_config`` with its defaults, stopped after the first step at which the budget,
or what ours took where that was more, is spent. It has no default batch size: 16 and 8 are both shown. It
predicts the whole image at once, with the weights of its last step.

PSNR has the range of the truth (largest less smallest value). *Scale-invariant*, as CAREamics and the papers
of Noise2Void report it: the prediction is first fitted to the truth by gain and offset, with least squares.
*PSNR* alone is without.

What a side found is kept in the scratch folder, one file per image, side and seed, written at once: a run
that was stopped goes on where it was, and runs of different images (``--only``) may go on side by side. A
file is of its settings, not of the code: delete the folder after a change.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from harness import HERE, Group, Row, Side

OPTIONS = {"budget_seconds": 120.0, "peer_batches": [16, 8], "patch": 64, "seeds": [0], "images": None}
# Steps of two trainings before the one that counts: they part the cost of a step from that of an epoch.
PROBE_STEPS = (6, 24)
OVER_BUDGET = 1.05
OURS = {"ours": "ours", "ours, measured kernel": "ours_measured_kernel"}
Pixels = np.ndarray[Any, Any]


def prepare(_options: dict[str, Any], folder: Path) -> None:
    from skimage.io import imread

    if "DENOIZARR_DATA" not in os.environ:
        raise SystemExit("the pairs of fluorescence images are not here: set DENOIZARR_DATA to their folder")
    pairs = Path(os.environ["DENOIZARR_DATA"]) / "fluorescence"
    for path in sorted((pairs / "raw").glob("*.png")):
        for kind in ("raw", "gt"):
            target = _pixels(folder, path.stem, kind)
            if not target.exists():
                begun = target.with_suffix(f".{os.getpid()}.npy")
                np.save(begun, imread(pairs / kind / path.name))
                begun.replace(target)


def _pixels(folder: Path, image: str, kind: str) -> Path:
    return folder / f"{image}-{kind}.npy"


def groups(options: dict[str, Any], folder: Path) -> list[Group]:
    found = sorted(path.name.removesuffix("-raw.npy") for path in folder.glob("*-raw.npy"))
    return [_group(image, options, folder) for image in options["images"] or found]


def _group(image: str, options: dict[str, Any], folder: Path) -> Group:
    shared = {"folder": str(folder), "image": image}
    shared |= {name: options[name] for name in ("budget_seconds", "patch", "seeds")}
    once = {"warm_up": False, "min_seconds": 0}
    peers = {f"CAREamics, batch {n}": shared | {"batch": n} for n in options["peer_batches"]}
    sides = [Side(name, function, shared, **once) for name, function in OURS.items()]
    sides += [Side(name, "careamics", own, peer="careamics", **once) for name, own in peers.items()]
    compared = shared | {"peers": [own["batch"] for own in peers.values()]}
    sides.append(Side("compare", "compare", compared, **once))
    rows = [Row("noisy: scale-invariant PSNR", "compare", quantity="noisy_si_psnr")]
    for name in (*OURS, *peers):
        rows.append(Row(f"{name}: scale-invariant PSNR", name, quantity="si_psnr"))
        rows.append(Row(f"{name}: PSNR", name, quantity="psnr"))
        rows.append(Row(f"{name}: steps", name, quantity="steps"))
    rows.append(Row("pixels of the measured kernel", "ours, measured kernel", quantity="kernel_pixels"))
    for name in OURS:
        rows.append(Row(f"{name}: share of the budget used", name, quantity="used", goal=("<=", OVER_BUDGET)))
        for batch in compared["peers"]:
            for figure, label in (("si_psnr", "scale-invariant PSNR"), ("psnr", "PSNR")):
                above = f"{name}: {label} above CAREamics, batch {batch}, dB"
                rows.append(Row(above, "compare", quantity=_above(name, figure, batch), goal=(">=", 0)))
    return Group(image, sides, rows)


def _above(name: str, figure: str, batch: int) -> str:
    return f"{name}: {figure} above batch {batch}"


# ---- what is kept


def _file(settings: Mapping[str, Any], side: str, seed: int) -> Path:
    """Return where a side's result for one seed is kept; a function of all that decides it."""
    decides = {name: settings.get(name) for name in ("budget_seconds", "patch", "batch")}
    name = hashlib.blake2b(json.dumps(decides, sort_keys=True).encode(), digest_size=4).hexdigest()
    return Path(settings["folder"]) / f"{settings['image']}-{side}-{name}-seed{seed}.json"


def _kept(path: Path, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what the file holds, or measure it and write the file, all of it or nothing."""
    if not path.exists():
        found = measure()
        begun = path.with_suffix(f".{os.getpid()}")
        begun.write_text(json.dumps(found, indent=1) + "\n")
        begun.replace(path)
    kept: dict[str, float] = json.loads(path.read_text())
    return kept


def _mean_over_seeds(
    settings: dict[str, Any], side: str, measure: Callable[[dict[str, Any], int], dict[str, float]]
) -> dict[str, Any]:
    found = [
        _kept(_file(settings, side, seed), lambda seed=seed: measure(settings, seed))
        for seed in settings["seeds"]
    ]
    return {"units": 1} | {name: float(np.mean([f[name] for f in found])) for name in found[0]}


# ---- figures


def psnr(truth: Pixels, predicted: Pixels) -> float:
    """Return the peak signal-to-noise ratio in dB, over the range of the truth."""
    truth, predicted = truth.astype(np.float64), predicted.astype(np.float64)
    return float(10 * np.log10(np.ptp(truth) ** 2 / np.mean((truth - predicted) ** 2)))


def scale_invariant_psnr(truth: Pixels, predicted: Pixels) -> float:
    """Return the same after the gain and the offset that bring the prediction closest to the truth."""
    predicted = predicted.astype(np.float64)
    centred = predicted - predicted.mean()
    offset = truth.mean(dtype=np.float64)
    gain = float(np.sum(centred * (truth - offset)) / max(float(np.sum(centred**2)), 1e-30))
    return psnr(truth, gain * centred + offset)


def _figures(settings: Mapping[str, Any], predicted: Pixels, steps: int, spent: float) -> dict[str, float]:
    truth = np.load(_pixels(Path(settings["folder"]), settings["image"], "gt"))
    predicted = np.asarray(predicted).reshape(truth.shape)
    return {
        "psnr": psnr(truth, predicted),
        "si_psnr": scale_invariant_psnr(truth, predicted),
        "steps": steps,
        "cpu_seconds": spent,
        "used": spent / settings["budget_seconds"],
    }


def _noisy(settings: Mapping[str, Any]) -> Pixels:
    noisy: Pixels = np.load(_pixels(Path(settings["folder"]), settings["image"], "raw"))
    return noisy


# ---- sides


def ours(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    return lambda: _mean_over_seeds(settings, "ours", _train_ours)


def ours_measured_kernel(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Train with the blind spot that is measured on the noisy frame, as the second stage of a job does."""
    import torch

    import denoizarr
    from denoizarr.kernels.blindspot import largest_percentage

    torch.set_num_threads(1)

    def measure(settings: dict[str, Any], seed: int) -> dict[str, float]:
        mask = denoizarr.extract_noise_kernel(_noisy(settings)).mask
        pixels = {"kernel_pixels": float(mask.sum())}
        if mask.size == 1:
            plain = _kept(_file(settings, "ours", seed), lambda: _train_ours(settings, seed))
            return plain | pixels
        largest = min(denoizarr.TrainingOptions().mask_percentage, largest_percentage(mask))
        return _train_ours(settings, seed, mask_percentage=largest, blind_spot=mask) | pixels

    return lambda: _mean_over_seeds(settings, "ours_measured_kernel", measure)


def _train_ours(
    settings: dict[str, Any], seed: int, *, blind_spot: Pixels | None = None, **more: Any
) -> dict[str, float]:
    import denoizarr

    noisy = _noisy(settings)
    defaults = denoizarr.TrainingOptions()
    given: dict[str, Any] = {"patch_size": settings["patch"], "seed": seed, "device": "cpu", "threads": 1}
    given |= more

    def trained(n_epochs: int, steps: int) -> tuple[Any, float]:
        patches = steps * defaults.batch_size
        options = denoizarr.TrainingOptions(num_epochs=n_epochs, patches_per_epoch=patches, **given)
        started = time.process_time()
        denoiser = denoizarr.train(noisy, blind_spot=blind_spot, options=options, progress=False)
        return denoiser, time.process_time() - started

    trained(1, 2)  # compiles, loads what a first step loads
    few, many = (trained(1, steps)[1] for steps in PROBE_STEPS)
    step = max(many - few, 1e-3) / (PROBE_STEPS[1] - PROBE_STEPS[0])
    epoch = max(few - PROBE_STEPS[0] * step, 0.0)
    per_epoch = (settings["budget_seconds"] / defaults.num_epochs - epoch) / step
    # A short budget has fewer epochs, not empty ones.
    n_epochs = defaults.num_epochs if per_epoch >= 1 else 1
    steps = max(int(per_epoch if n_epochs > 1 else (settings["budget_seconds"] - epoch) / step), 1)
    denoiser, spent = trained(n_epochs, steps)
    return _figures(settings, denoiser.denoise(noisy), n_epochs * steps, spent)


def careamics(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    import torch

    torch.set_num_threads(1)
    side = "careamics"
    return lambda: _mean_over_seeds(settings, side, _train_careamics)


def _train_careamics(settings: dict[str, Any], seed: int) -> dict[str, float]:
    sys.path.insert(1, str(HERE / "peers"))
    from load_careamics import trainer

    noisy, budget = _noisy(settings), _budget(settings, seed)
    spent = {"started": 0.0, "cpu": 0.0, "steps": 0}

    def after_step(step: int) -> bool:
        spent["cpu"], spent["steps"] = time.process_time() - spent["started"], step
        return spent["cpu"] < budget

    with tempfile.TemporaryDirectory() as folder:
        # Its seeds begin at 1.
        careamist = trainer(
            folder, after_step, "YX", settings["patch"], settings["batch"], seed=1 + seed, num_workers=0
        )
        spent["started"] = time.process_time()
        careamist.train(train_data=noisy)
        last = Path(folder) / "last.ckpt"
        careamist.trainer.save_checkpoint(last)
        predicted, _ = careamist.predict(noisy, checkpoint=last)
    return _figures(settings, predicted[0], int(spent["steps"]), spent["cpu"])


def _budget(settings: Mapping[str, Any], seed: int) -> float:
    """Return the budget, or what ours took of it where that is known to be more."""
    paths = [_file({**settings, "batch": None}, side, seed) for side in OURS.values()]
    took = [float(json.loads(path.read_text())["cpu_seconds"]) for path in paths if path.exists()]
    return max([float(settings["budget_seconds"]), *took])


def compare(settings: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Return by how much each of ours lies above each of CAREamics', in dB, from what is kept."""
    truth = np.load(_pixels(Path(settings["folder"]), settings["image"], "gt"))

    def mean(side: str, batch: int | None, figure: str) -> float:
        paths = [_file({**settings, "batch": batch}, side, seed) for seed in settings["seeds"]]
        return float(np.mean([json.loads(path.read_text())[figure] for path in paths]))

    def work() -> dict[str, Any]:
        numbers = {"units": 1.0, "noisy_si_psnr": scale_invariant_psnr(truth, _noisy(settings))}
        for (name, side), batch in product(OURS.items(), settings["peers"]):
            for figure in ("si_psnr", "psnr"):
                above = mean(side, None, figure) - mean("careamics", batch, figure)
                numbers[_above(name, figure, batch)] = above
        return numbers

    return work
