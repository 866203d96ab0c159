"""The command line: parse, call one public function, print. Nothing is computed here."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import NoReturn

from denoizarr.engine import json_logs
from denoizarr.errors import DenoizarrError

from . import diffusion as diffusion
from . import images as images
from . import jobs as jobs
from . import logs as logs
from . import looking as looking
from . import models as models
from . import noise as noise
from .app import app as app
from .logs import run_app, tell_error
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
        run_app(given)
    except DenoizarrError as error:
        has_ended()
        if "--debug" in given and not json_logs.are_on():
            raise
        tell_error(error, with_traceback="--debug" in given)
        sys.exit(error.exit_status)
    finally:
        has_ended()
    sys.exit(0)
