"""The command line: parse, call one public function, print. Nothing is computed here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from denoizarr.errors import DenoizarrError

from . import diffusion as diffusion
from . import images as images
from . import jobs as jobs
from . import looking as looking
from . import models as models
from . import noise as noise
from .app import app
from .stopping import has_ended, obey_signals


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line.

    Exit status: 0 done; 1 a block or step failed; 2 the request or the data were wrong; 75 stopped in an
    orderly way and resumable.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(
        format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING, stream=sys.stderr
    )
    logging.getLogger("denoizarr").setLevel(logging.INFO)
    obey_signals()
    try:
        app(given, standalone_mode=True)
    except DenoizarrError as error:
        has_ended()
        if "--debug" in given:
            raise
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        sys.exit(error.exit_status)
    finally:
        has_ended()
    sys.exit(0)
