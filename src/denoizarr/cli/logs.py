"""How the command line speaks: plain lines, or one JSON object a line, errors of usage included."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

import typer

from denoizarr.engine import json_logs
from denoizarr.errors import DenoizarrError

from .app import app

_OPTION = "--log-format"


@app.callback()
def settings(
    log_format: Annotated[
        Literal["text", "json"],
        typer.Option(
            _OPTION,
            envvar=json_logs.VARIABLE,
            help="Of what goes to standard error: lines for people, or one JSON object a line, progress and "
            "errors included. Stands before the verb.",
        ),
    ] = "text",
) -> None:
    """Denoise image stacks that do not fit in memory, learning from the noisy data alone."""
    if log_format == "json":
        json_logs.begin()


def run_app(arguments: Sequence[str]) -> None:
    """Run the command line; with JSON logs, what is wrong with the arguments is an object as well."""
    given = list(arguments)
    if not _wants_json(given):
        app(given, standalone_mode=True)
        return
    json_logs.begin()
    try:
        status = app(given, standalone_mode=False)
    except Exception as error:
        # Of the library that parses arguments, whose classes have no public name.
        if not hasattr(error, "format_message"):
            raise
        fields = {"class": "UsageError", "what": str(error.format_message()), "exit_status": 2}
        logging.getLogger("denoizarr").error("%s", error, extra={"error": fields})  # noqa: TRY400
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


def tell_error(error: DenoizarrError, *, with_traceback: bool) -> None:
    """Say with what the program ends: a line, or an object."""
    if json_logs.are_on():
        json_logs.log_error(error, with_traceback=with_traceback)
    else:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")


def _wants_json(given: Sequence[str]) -> bool:
    """Tell it before the arguments are parsed: what is wrong with them must be said in that format."""
    for number, word in enumerate(given):
        if not word.startswith("-"):
            break
        name, _, value = word.partition("=")
        if name == _OPTION:
            return (value or next(iter(given[number + 1 :]), "")) == "json"
    return os.environ.get(json_logs.VARIABLE) == "json"
