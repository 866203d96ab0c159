"""Whether client, scheduler and workers of a cluster have the same of what decides bytes and messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from denoizarr.errors import BadRequest, ClusterLost

_ANSWER_SECONDS = 60.0
# What speaks between the three of them, and what computes voxels and codes them. A scheduler unpickles what
# it passes on, so that it must have all that a task imports, torch too.
_PACKAGES = ("denoizarr", "numpy", "zarr", "torch")
_ALL = ("python", "dask", "distributed", *_PACKAGES)
# Only what a build of one and the same release is called: 2.13.0+cpu beside 2.13.0+cu130.
_WITHOUT_BUILD = ("torch",)


def check_versions(client: Any) -> None:
    """Refuse a cluster whose parts would misunderstand one another, or write other bytes.

    Parameters
    ----------
    client : distributed.Client
        What joins later is not looked at here; every batch compares the package's own version.

    Raises
    ------
    BadRequest
        Names the first package that differs, and what each part has.
    ClusterLost
        The scheduler does not answer.
    """

    async def ask() -> Any:
        return await client.get_versions(packages=[*_PACKAGES])

    try:
        found = client.sync(ask, callback_timeout=_ANSWER_SECONDS)
    except (OSError, TimeoutError) as error:
        raise ClusterLost(
            "the scheduler does not say which versions it has", got=type(error).__name__
        ) from error
    workers = {address: _packages(worker) for address, worker in found["workers"].items()}
    if problem := difference(_packages(found["client"]), _packages(found["scheduler"]), workers):
        raise BadRequest(
            "versions that must be the same differ",
            where="cluster",
            got=problem,
            remedy="start scheduler and workers in the environment of this process",
        )


def difference(
    client: Mapping[str, str | None],
    scheduler: Mapping[str, str | None],
    workers: Mapping[str, Mapping[str, str | None]],
) -> str | None:
    """Return the first package that differs and what each part has; None where all is well.

    Parameters
    ----------
    client, scheduler : mapping
        Versions by the names of packages.
    workers : mapping
        The same by the workers' addresses.
    """
    parts = {"this process": client, "the scheduler": scheduler}
    parts |= {f"worker {address}": found for address, found in workers.items()}
    for package in _ALL:
        have = {name: found.get(package) or "none" for name, found in parts.items()}
        if len({_what_counts(package, version) for version in have.values()}) > 1 or (
            # Builds of torch for different devices round differently: workers must all be alike.
            package in _WITHOUT_BUILD
            and len({version for name, version in have.items() if name.startswith("worker ")}) > 1
        ):
            return f"{package} {_in_words(have)}"
    return None


def _what_counts(package: str, version: str) -> str:
    if package == "python":
        return ".".join(version.split(".")[:2])  # pickled code fits a minor release
    return version.split("+")[0] if package in _WITHOUT_BUILD else version


def _in_words(have: Mapping[str, str]) -> str:
    """Return who has what; of many workers, one with each version."""
    shown: dict[tuple[bool, str], str] = {}
    for name, version in have.items():
        shown.setdefault((name.startswith("worker "), version if name.startswith("worker ") else name), name)
    return ", ".join(f"{have[name]} in {name}" for name in shown.values())


def _packages(part: Any) -> Mapping[str, str | None]:
    return part["packages"] if isinstance(part, Mapping) and "packages" in part else {}
