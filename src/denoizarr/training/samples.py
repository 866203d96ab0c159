"""Pictures of what the network makes of a few held-out patches, one per epoch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from denoizarr.figures.canvas import png_of
from denoizarr.figures.sample_predictions import sample_predictions_figure
from denoizarr.stores import locations

from .held_out import HeldOut
from .learner import Learner
from .normalisation import Normalisation

_SHOWN = 4


class Samples:
    """Draws a PNG per epoch into a folder: ``epoch-0001.png`` and so on.

    Parameters
    ----------
    folder : str or Path
    held_out : HeldOut
        Shown are four of these patches, from the one with the widest spread of intensities to the one with
        the narrowest, the same in all pictures; of volumes the middle plane, of channels the first.
    normalisation, target_normalisation : Normalisation
        Of the image, and of the target that is predicted, if there is one.
    dims : tuple of str
        Of an origin.
    """

    def __init__(
        self,
        folder: str | Path,
        held_out: HeldOut,
        normalisation: Normalisation,
        target_normalisation: Normalisation | None,
        dims: tuple[str, ...],
    ) -> None:
        self._folder = folder
        patches = held_out.item["patch"]
        order = torch.argsort(patches[:, 0].flatten(1).std(1), descending=True, stable=True)
        chosen = order[torch.linspace(0, len(order) - 1, min(_SHOWN, len(order))).round().long()]
        self._item = {name: value[chosen] for name, value in held_out.item.items()}
        self._dims = dims
        self._mean, self._std = normalisation.mean[0], normalisation.std[0]
        answer = target_normalisation or normalisation
        self._answer_mean, self._answer_std = answer.mean[0], answer.std[0]

    def draw(self, epoch: int, epochs: int, learner: Learner) -> None:
        """Draw and write the picture after an epoch."""
        raw = self._item["patch"][:, :1]
        answer = learner.predict((raw - self._mean) / self._std) * self._answer_std + self._answer_mean
        target = self._item.get("target")
        figure = sample_predictions_figure(
            _planes(raw),
            _planes(answer),
            self._names(),
            targets=None if target is None else _planes(target),
            title=f"What the network has learnt after epoch {epoch} of {epochs}",
        )
        name = f"epoch-{epoch:04d}.png"
        locations.put(locations.join(self._folder, name), png_of(figure))

    def _names(self) -> list[str]:
        """Return where each patch begins, in the words of the image: "image 2, z 3, y 16, x 80"."""
        names = []
        for row, origin in enumerate(self._item["origin"].tolist()):
            parts = [f"{dim} {n}" for dim, n in zip(self._dims, origin, strict=True)]
            if "image" in self._item:
                parts.insert(0, f"image {int(self._item['image'][row])}")
            names.append(", ".join(parts))
        return names


def _planes(patches: Tensor) -> list[object]:
    """Return the first channel of every patch, of volumes the middle plane."""
    planes = patches[:, 0]
    if planes.ndim == 4:
        planes = planes[:, planes.shape[1] // 2]
    return [plane.numpy() for plane in planes]
