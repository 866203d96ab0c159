"""Import CAREamics in its own environment; run as a program it checks that it can be."""

from __future__ import annotations

from typing import Any

_KEPT: list[Any] = []


def patch_filters() -> Any:
    """Return ``careamics.dataset.patch_filter``, as it was published."""
    _declare_torchvision()
    from careamics.dataset import patch_filter

    return patch_filter


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
