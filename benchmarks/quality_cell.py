"""One cell of the quality benchmark, in the process that ``quality.py`` started for it."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np


def main() -> None:
    task = json.loads(sys.argv[1])
    module = import_module(f"image_quality.{task['module']}")
    array, facts = getattr(module, task["function"])(task["settings"])
    np.save(task["array"], array)
    Path(task["facts"]).write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
