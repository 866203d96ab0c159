"""One exception tree, grouped by what the caller does next.

A message is one line made of parts: what is wrong, where (store, key, index), what was got, what was
expected, and the remedy. Every class also inherits the builtin that a caller would expect.

* ``BadRequest``: change the request and call again. Nothing was done.
* ``BadData``: the input itself is damaged or unusable; look at the data.
* ``Unfinished``: the output is not complete; run the same job again.
* ``Outage``: the store or the cluster failed; run the same job again when it is back.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DenoizarrError(Exception):
    """Root of every error that this package raises on purpose.

    Parameters
    ----------
    what : str
        What is wrong, in a few words.
    where : str, optional
        The store, key, index or setting.
    got, expected : object, optional
        The value found and the values that would do.
    remedy : str, optional
        What to do next, in the imperative.
    """

    exit_status: ClassVar[int] = 1
    # Whether it may be gone in a moment, where whoever raised it could tell.
    passes: bool | None = None

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        got: Any = None,
        expected: Any = None,
        remedy: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.remedy = what, where, got, expected, remedy
        parts = [what]
        if where is not None:
            parts.append(f" at {where}")
        if got is not None:
            parts.append(f": got {got}")
        if expected is not None:
            parts.append(f"{',' if got is not None else ':'} expected {expected}")
        if remedy is not None:
            parts.append(f"; {remedy}")
        super().__init__(" ".join("".join(parts).split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by parts, so that an error crosses from a worker with its message whole."""
        parts = (type(self), self.what, self.where, self.got, self.expected, self.remedy)
        return _rebuild, parts, {"passes": self.passes}

    def __str__(self) -> str:
        # KeyError's own __str__ would quote the message.
        return str(self.args[0]) if self.args else self.what


def _rebuild(
    kind: type[DenoizarrError], what: str, where: str | None, got: Any, expected: Any, remedy: str | None
) -> DenoizarrError:
    return kind(what, where=where, got=got, expected=expected, remedy=remedy)


# Change the request and call again.


class BadRequest(DenoizarrError, ValueError):
    """The request cannot be carried out as it stands."""

    exit_status = 2


class ImageNotFound(BadRequest, FileNotFoundError):
    """Nothing lies at the given path or URL."""


class NotOmeZarr(BadRequest):
    """Something lies there, but it is no OME-Zarr image."""


class UnsupportedStore(BadRequest):
    """The URL scheme or the file format is not one that this package reads or writes."""


class MetadataError(BadRequest):
    """The metadata of an image contradict themselves or the data."""


class PatchTooLarge(BadRequest):
    """A patch does not fit into the image, or a blind-spot kernel into the patch."""


class EmptyIndex(BadRequest):
    """No patch is left to draw."""


class ConfigError(BadRequest):
    """A job file or a setting is not valid."""


class ModelError(BadRequest):
    """A model file is damaged, foreign, or does not fit the image."""


class OutputExists(BadRequest, FileExistsError):
    """The destination already holds something that would be overwritten."""


class OutputLocked(BadRequest):
    """Another driver is writing the same output."""


class MisalignedGrid(BadRequest):
    """Two grids that must fit do not: blocks and write units, or a mask and its image."""


class LedgerMismatch(BadRequest):
    """The ledger beside the output belongs to another job."""


class MemoryLimitTooSmall(BadRequest, MemoryError):
    """Not even the smallest tile fits under the memory limit."""


# Look at the data.


class BadData(DenoizarrError):
    """The input itself is damaged or unusable."""

    exit_status = 2


class MissingChunk(BadData, KeyError):
    """The store lacks a chunk, which would read as the fill value in silence."""


class CorruptChunk(BadData, OSError):
    """A stored chunk cannot be decoded, or its checksum is wrong."""


class NonFiniteData(BadData, ValueError):
    """The image holds NaN or infinity."""


class DegenerateData(BadData, ValueError):
    """The image carries no information to learn from."""


# Run the same job again.


class Unfinished(DenoizarrError):
    """The output is not complete."""


class IncompleteOutput(Unfinished, ValueError):
    """The image was begun by a job that has not finished."""

    exit_status = 2


class BlockFailed(Unfinished, RuntimeError):
    """One or more blocks could not be done; the others are."""


class Stopped(Unfinished):
    """The job was asked to stop; what is done stays done.

    No builtin beside it: it is raised wherever the signal arrives, and is not that code's error.
    """

    exit_status = 75


class Outage(DenoizarrError):
    """The store or the cluster failed."""


class StoreUnavailable(Outage, ConnectionError):
    """The store does not answer."""


class PermissionDenied(Outage, PermissionError):
    """The store refuses access."""


class CredentialsExpired(PermissionDenied):
    """The store no longer accepts the credentials that it accepted before."""


class NoSpace(Outage, OSError):
    """The disk or quota is full."""


class ClusterLost(Outage, ConnectionError):
    """The Dask cluster went away."""
