"""What the verbs share: the application, common options, how a result is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

app = typer.Typer(
    name="denoizarr",
    help="Denoise image stacks that do not fit in memory, learning from the noisy data alone.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line last.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Sizes = Annotated[
    str | None, typer.Option(help="One int per dim in the order t, c, z, y, x, such as 1,512,512.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Delete what lies at the destination first.")]

Cluster = Annotated[
    str | None,
    typer.Option(
        help="local, the address of a scheduler, or a YAML file with a job's cluster keys; default: threads."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Of a cluster that is started; default: one per core.")]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Allow a scheduler without TLS on another machine."),
]
Blocks = Annotated[
    str | None,
    typer.Option(
        "--blocks",
        metavar="I/N",
        help="In a job array: this process's share, 1/N to N/N, without Dask. When all are done, the same "
        "command without --blocks finishes the output.",
    ),
]


def say(lines: str, data: Mapping[str, Any], as_json: bool) -> None:
    """Print lines for people, and after them, where asked for, one for machines."""
    print(lines)
    if as_json:
        print(json.dumps(data, default=str))


def ints_of(text: str | None, option: str) -> tuple[int, ...] | None:
    """Return whole numbers between commas."""
    return None if text is None else tuple(numbers_of(text, option, int))


def numbers_of(text: str, option: str, kind: Callable[[str], Any]) -> list[Any]:
    """Return numbers between commas."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"got {text!r}, expected numbers between commas", param_hint=option
        ) from None


def told(summary: Any, blocks_option: str | None = None) -> str:
    """Return what a run did, in lines; of a share, what is left to do."""
    from denoizarr.engine.summary import smaller_tiles_in_words

    blocks = (
        f"{summary.blocks_done} of {summary.blocks_total} blocks done, {summary.blocks_skipped} done before"
    )
    cost = f"{summary.seconds:.1f} s, peak {summary.peak_bytes / 2**20:.0f} MiB"
    lines = [f"output {summary.destination}", f"{blocks}, {cost}"]
    if summary.blocks_in_smaller_tiles:
        lines.append(smaller_tiles_in_words(summary))
    if summary.requests or summary.retries:
        lines.append(f"{summary.requests} requests to object stores, {summary.retries} tries once more")
    if summary.missing_chunks:
        lines.append(f"{summary.missing_chunks} absent input chunks were read as the fill value")
    lines += [f"changed: {change}" for change in summary.changes]
    if blocks_option is not None:
        lines.append(f"share {blocks_option} is done; when all are, run once more without --blocks to finish")
    return "\n".join(lines)
