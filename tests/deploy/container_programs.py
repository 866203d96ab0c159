"""The small programs of the image, which lie outside any package."""

from __future__ import annotations

import importlib.util
from types import ModuleType

from .manifests import DEPLOY

FOLDER = DEPLOY / "container"


def _loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


health = _loaded("health")
pin_versions = _loaded("pin_versions")
