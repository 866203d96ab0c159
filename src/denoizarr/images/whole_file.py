"""A file that is written whole or not at all: checked for first, put in its place in one step."""

from __future__ import annotations

import os
from pathlib import Path

from denoizarr.errors import NoSpace, OutputExists
from denoizarr.stores import locations


def check_free_file(destination: str, n_bytes: int, *, overwrite: bool) -> None:
    """Refuse a destination where something lies, or a disk that has no room.

    Raises
    ------
    OutputExists, NoSpace
    """
    path = locations.local_path(destination)
    if path.exists() and not (overwrite and path.is_file()):
        raise OutputExists(
            "something lies at the destination already",
            where=locations.redact(destination),
            remedy="choose another destination" + (" or pass overwrite" if path.is_file() else ""),
        )
    there = next(folder for folder in path.parents if folder.exists())
    stats = os.statvfs(there)
    if (free := stats.f_bavail * stats.f_frsize) < n_bytes:
        raise NoSpace(
            "the disk is too full for this file",
            where=str(there),
            got=f"{free / 2**30:,.1f} GiB free",
            expected=f"{n_bytes / 2**30:,.1f} GiB",
        )


def put_in_place(part: Path, path: Path, overwrite: bool) -> None:
    """Give a finished file its name.

    Raises
    ------
    OutputExists
        Somebody was faster.
    """
    if not overwrite:
        try:
            os.link(part, path)  # fails where somebody was faster, as a rename would not
        except FileExistsError as error:
            raise OutputExists("something lies at the destination by now", where=str(path)) from error
        except OSError:  # a disk without links
            part.rename(path)
    else:
        part.replace(path)
    locations.make_durable(path)
