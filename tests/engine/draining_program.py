"""A verb of the command line whose blocks take a while: for signals sent from outside."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

from denoizarr.cli import main
from denoizarr.cli.app import app
from denoizarr.engine.ledger import Ledger
from denoizarr.engine.runner import Step, run_step


def slow(spec: Any, block: int) -> dict[str, Any]:
    folder, seconds = spec
    Path(folder, f"began-{block}").touch()
    threading.Event().wait(seconds)
    return {"block": block}


@app.command()
def work(folder: str, seconds: float) -> None:
    ledger = Ledger.claim(f"{folder}/ledger", {})
    run_step(Step("s", slow, (folder, seconds), 300, 1), ledger=ledger, threads=2)


if __name__ == "__main__":
    main(["work", *sys.argv[1:]])
