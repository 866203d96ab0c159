"""Import CAREamics in its own environment; run as a program it checks that it can be."""

from __future__ import annotations

from typing import Any

_KEPT: list[Any] = []


def patch_filters() -> Any:
    """Return ``careamics.dataset.patch_filter``, as it was published."""
    _declare_torchvision()
    from careamics.dataset import patch_filter

    return patch_filter


def n2v_config(data_type: str, axes: str, patch: int, batch: int, **others: Any) -> Any:
    """Return its configuration of Noise2Void: its own defaults where nothing is said.

    The data are loaded in this process, so that the CPU time of loading is seen.
    """
    _declare_torchvision()
    from careamics.config.factories import create_advanced_n2v_config

    settings = {"num_workers": 0, "seed": 1} | others
    return create_advanced_n2v_config(
        "benchmark", data_type=data_type, axes=axes, patch_size=[patch, patch], batch_size=batch, **settings
    )


def patches(data: Any, data_type: str, axes: str, patch: int, batch: int) -> Any:
    """Return its loader of training batches, as its trainer would be given it."""
    settings = n2v_config(data_type, axes, patch, batch)
    from careamics.lightning.data.data_module import CareamicsDataModule

    module = CareamicsDataModule(settings.data_config, train_data=data)
    module.setup("fit")
    return module.train_dataloader()


def trainer(
    folder: Any,
    callback: Any,
    axes: str,
    patch: int,
    batch: int,
    *,
    struct_span: int | None = None,
    **others: Any,
) -> Any:
    """Return its CAREamist for an array in memory.

    Without checkpoints on the way, which cost it time. ``callback(step)`` is called after every step and says
    whether to go on. With ``struct_span`` it is structN2V with a row of so many pixels, without turns as its
    own recipe has it; spans above 15, which its configuration refuses, are set past that check: what hides
    the pixels takes any.
    """
    if struct_span is not None:
        row = {"struct_n2v_axes": "horizontal", "struct_n2v_span": min(struct_span, 15)}
        others = {"augmentations": [], **row, **others}
    settings = n2v_config(
        "array",
        axes,
        patch,
        batch,
        num_epochs=10**6,
        checkpoint_params={"save_top_k": 0, "save_last": False},
        **others,
    )
    if struct_span is not None:
        settings.algorithm_config.n2v_config.struct_mask.span = struct_span
    from careamics import CAREamist
    from lightning.pytorch import Callback

    class AfterStep(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            trainer.should_stop = not callback(trainer.global_step)

    return CAREamist(settings, work_dir=folder, callbacks=[AfterStep()], enable_progress_bar=False)


def _declare_torchvision() -> None:
    """Name the two compiled operators that torchvision describes as it is imported.

    Its wheel is built for one build of torch; under another (torch for the CPU) its operators do not load,
    and describing what is not there fails. Nothing that is measured calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import sys

        import torch

        for name in [m for m in sys.modules if m.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        # The names live as long as the library does.
        _KEPT.append(library)


if __name__ == "__main__":
    print(sorted(patch_filters().__all__))
