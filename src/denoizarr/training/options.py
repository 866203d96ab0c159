"""What a user can choose about training, checked at once."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from denoizarr.errors import ConfigError
from denoizarr.geometry.grids import round_up
from denoizarr.kernels.blindspot import STRATEGIES, strategy_named, usual_percentage
from denoizarr.kernels.unet import NetworkShape, Norm, Upsampling

# An epoch of a small image would be a handful of steps otherwise: validation, checkpoint and log per second.
_FEWEST_PATCHES, _MOST_PATCHES = 1024, 4096
_SWITCHES = ("augment", "n2v2", "separate_masks", "compile", "use_centre")


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """Settings of :func:`~denoizarr.train`.

    Attributes
    ----------
    patch_size : int, (y, x) or (z, y, x)
        In voxels; multiples of the network's stride, ``2 ** num_layers``. An int or a pair trains plane by
        plane, three numbers a 3D network.
    batch_size : int
        Patches per step. Many small steps reach further than few large ones at equal cost.
    num_epochs : int
        At most; see ``early_stopping``.
    patches_per_epoch : int, optional
        None: as many as the index holds, but at least 1024 and at most 4096.
    mask_percentage : float, optional
        Predicted pixels, per cent of a patch; each hides the pixels of the blind-spot kernel around it, too.
        None: 8 for a single pixel, less for a kernel of more, 1.5 at least.
    masking_strategy : str or int
        "uniform", "median", "mean", "zero", "random", or 0, 1, 2 for mean, zero, random.
    separate_masks : bool
        Leave out centres until the kernels around those that stay neither overlap nor touch.
    learning_rate : float
        At the start.
    schedule : {"cosine", "plateau", "constant"}
        The learning rate falls to zero along half a cosine over all epochs; or is halved whenever the
        validation loss (without one: the training loss) has not improved for 3 epochs; or stays.
    early_stopping : int, optional
        Stop after so many epochs without a better masked validation loss; needs ``validation_fraction``.
    loss : {"mse", "mae"}
        Mean squared or mean absolute error: the network learns the mean, or the median, of what it cannot
        know.
    features, num_layers : int
        Channels of the network's finest level, and how often it halves its input.
    norm : {"batch", "none"}
        Batch normalisation, or nothing, which is faster and no worse.
    upsampling : {"nearest", "transposed"}
    n2v2 : bool
        Noise2Void 2's network (Hoeck et al. 2022): max-blur pooling and no skip at the finest level, against
        checkerboards; its replacement is ``masking_strategy="median"``.
    seed : int
        Decides the weights at the start, the patches, the blind spots and the turns.
    precision : {"auto", "float32", "bfloat16"}
        "bfloat16" computes the steps in mixed precision: two to three times as many in the same time where
        the processor multiplies such numbers, with no loss that is seen. "auto" takes it there, and "float32"
        elsewhere. Weights are float32, and so is what the model computes afterwards.
    augment : bool
        Turn patches by the flips and quarter turns that leave the kernel unchanged.
    validation_fraction : float
        Part of the index that is kept from training; 0 keeps the last epoch's weights in place of the best.
    validation_patches : int
        Patches of the fixed validation set; where fewer were held out, each is masked in several ways.
    ema_decay : float
        The model is a running average of the weights: each step keeps this part of it (less at the start).
    gradient_clip : float
        Largest norm of a gradient.
    device : str
        "auto" (cuda where there is one), "cpu", "cuda" or "cuda:1".
    threads : int, optional
        Threads that compute a step on the CPU, which decide the last bits of the weights. None: as many as
        torch would use, or when resuming as many as were used before.
    compile : bool
        Compile the network's steps with ``torch.compile``: minutes at the start, faster after on a GPU.
    use_centre : bool
        Give every voxel's own value the weight in the answer that its noise and the network's uncertainty,
        both measured by brightness after training, make right: .3 to 1 dB. Of structured noise that share
        stays, a tenth to a fifth in bright structure and next to nothing in background; False leaves none.
    checkpoint_minutes : float
        Longest time between checkpoints; there is one after every epoch in any case. Decides no weights.

    Raises
    ------
    ConfigError
        A value is out of range; the message names the setting and what would do.
    """

    patch_size: int | tuple[int, int] | tuple[int, int, int] = 64
    batch_size: int = 8
    num_epochs: int = 10
    patches_per_epoch: int | None = None
    mask_percentage: float | None = None
    masking_strategy: str | int = "uniform"
    learning_rate: float = 1e-3
    features: int = 32
    num_layers: int = 2
    norm: Norm = "none"
    upsampling: Upsampling = "nearest"
    seed: int = 0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    augment: bool = True
    validation_fraction: float = 0.1
    validation_patches: int = 128
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    device: str = "auto"
    threads: int | None = None
    n2v2: bool = False
    separate_masks: bool = False
    early_stopping: int | None = None
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    loss: Literal["mse", "mae"] = "mse"
    compile: bool = False
    checkpoint_minutes: float = 10.0
    use_centre: bool = True

    def __post_init__(self) -> None:
        given: Any = self.patch_size
        is_sequence = isinstance(given, list | tuple)  # a list, as JSON and YAML write a pair
        plain = tuple(map(_plain_integer, given)) if is_sequence else _plain_integer(given)
        object.__setattr__(self, "patch_size", plain)
        for name, lowest, highest in (
            ("batch_size", 1, 2**16),
            ("num_epochs", 1, 10**6),
            ("patches_per_epoch", 1, 2**31),
            ("features", 1, 1024),
            ("num_layers", 1, 6),
            ("seed", 0, 2**63 - 1),
            ("validation_patches", 1, 2**16),
            ("threads", 1, 1024),
            ("early_stopping", 1, 10**6),
        ):
            self._check_integer(name, lowest, highest)
        for name, lowest_number, highest_number, inclusive in (
            ("mask_percentage", 0.0, 50.0, False),
            ("learning_rate", 0.0, 1.0, False),
            ("validation_fraction", 0.0, 0.5, True),
            ("ema_decay", 0.0, 0.999999, True),
            ("gradient_clip", 0.0, math.inf, False),
            ("checkpoint_minutes", 0.0, 10.0**6, True),
        ):
            self._check_number(name, lowest_number, highest_number, inclusive)
        for name, choices in (
            ("norm", ("batch", "none")),
            ("upsampling", ("nearest", "transposed")),
            ("precision", ("auto", "float32", "bfloat16")),
            ("schedule", ("cosine", "plateau", "constant")),
            ("loss", ("mse", "mae")),
            *((switch, (True, False)) for switch in _SWITCHES),
        ):
            self._check_choice(name, choices)
        self._check_patch_size()
        self._check_strategy()
        if self.early_stopping is not None and self.validation_fraction == 0:
            raise ConfigError(
                "there is no validation loss to stop by",
                where="early_stopping, validation_fraction",
                got=f"{self.early_stopping}, {self.validation_fraction:g}",
                remedy="raise validation_fraction above 0, or leave early_stopping out",
            )
        if self.device not in ("auto", "cpu") and not str(self.device).startswith("cuda"):
            raise ConfigError(
                "no such device", where="device", got=repr(self.device), expected="auto, cpu, cuda or cuda:N"
            )

    @property
    def patch_shape(self) -> tuple[int, int] | tuple[int, int, int]:
        """``patch_size`` as (y, x) or (z, y, x)."""
        return (self.patch_size, self.patch_size) if isinstance(self.patch_size, int) else self.patch_size

    @property
    def network_shape(self) -> NetworkShape:
        """The network that these settings ask for."""
        return NetworkShape(
            ndim=len(self.patch_shape),
            features=self.features,
            depth=self.num_layers,
            norm=self.norm,
            upsampling=self.upsampling,
            n2v2=self.n2v2,
        )

    def percentage_of(self, kernel: NDArray[np.bool_]) -> float:
        """Return ``mask_percentage``, or what serves this kernel well where it was left out."""
        return (
            usual_percentage(kernel, self.patch_shape)
            if self.mask_percentage is None
            else self.mask_percentage
        )

    def epoch_size(self, n_patches: int) -> int:
        """Return the patches of an epoch over an index of ``n_patches``."""
        return self.patches_per_epoch or min(max(n_patches, _FEWEST_PATCHES), _MOST_PATCHES)

    def _check_integer(self, name: str, lowest: int, highest: int) -> None:
        value = _plain_integer(getattr(self, name))
        object.__setattr__(self, name, value)
        if value is None and name in ("patches_per_epoch", "threads", "early_stopping"):
            return
        if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
            expected = f"an integer from {lowest} to {highest}"
            raise ConfigError("setting out of range", where=name, got=repr(value), expected=expected)

    def _check_number(self, name: str, lowest: float, highest: float, inclusive: bool) -> None:
        value = getattr(self, name)
        if value is None and name == "mask_percentage":
            return
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not lowest <= value <= highest or (value == lowest and not inclusive):
            expected = f"a number {'from' if inclusive else 'above'} {lowest:g}"
            expected += f", at most {highest:g}" if highest < math.inf else ""
            raise ConfigError("setting out of range", where=name, got=repr(value), expected=expected)

    def _check_choice(self, name: str, choices: tuple[object, ...]) -> None:
        value = getattr(self, name)
        if type(value) is not type(choices[0]) or value not in choices:
            expected = " or ".join(map(str, choices))
            raise ConfigError("unknown setting", where=name, got=repr(value), expected=expected)

    def _check_strategy(self) -> None:
        try:
            strategy_named(self.masking_strategy)
        except ValueError as error:
            expected = f"{', '.join(STRATEGIES)}, or 0, 1, 2 for mean, zero, random"
            got = repr(self.masking_strategy)
            raise ConfigError(
                "no such strategy", where="masking_strategy", got=got, expected=expected
            ) from error

    def _check_patch_size(self) -> None:
        size, stride = self.patch_size, 2**self.num_layers
        shape = size if isinstance(size, tuple) else (size, size)
        if len(shape) not in (2, 3) or not all(type(n) is int and n > 0 for n in shape):
            expected = "an int, (y, x) or (z, y, x)"
            raise ConfigError("not a patch size", where="patch_size", got=repr(size), expected=expected)
        if any(n % stride or n < 2 * stride for n in shape):
            valid = tuple(max(round_up(n, stride), 2 * stride) for n in shape)
            raise ConfigError(
                f"a patch is a multiple of the stride, here {stride}, twice or more",
                where="patch_size",
                got=size,
                expected=valid if isinstance(size, tuple) else valid[0],
            )


def _plain_integer(value: Any) -> Any:
    """Return numpy's integers as Python's, which JSON knows; all else as it is."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return value
    try:
        return operator.index(value)
    except TypeError:  # an array of floats, numpy's own bool
        return value


DEFAULT_OPTIONS = TrainingOptions()
