"""The inputs of a run with their results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xarray as xr

from denoizarr.errors import BadRequest
from denoizarr.stores import locations
from denoizarr.stores.images import corrected_image, open_image
from denoizarr.stores.periodic import WaveTable


@dataclass(frozen=True, slots=True)
class ImagePair:
    """Where an input and its results lie.

    Attributes
    ----------
    name : str
    source, denoised : str
        URLs; ``denoised`` may not exist yet.
    stage1 : str or None
        The first stage's result, where it was kept.
    level : int
        Of the source.
    axes : str or None
        Of a source that is a plain array.
    waves : WaveTable or None
        The periodic lines that the run took away from it.
    """

    name: str
    source: str
    denoised: str
    stage1: str | None
    level: int
    axes: str | None
    waves: WaveTable | None = None

    def open_input(self, *, less_waves: bool) -> xr.DataArray:
        """Open the input as it is stored, or less its periodic lines, if it has any."""
        # A job that fills missing chunks has counted them; one that does not has none by now.
        image = open_image(self.source, level=self.level, axes=self.axes, missing="fill")
        return corrected_image(image, self.waves) if less_waves and self.waves is not None else image


def image_pairs(
    run_url: str, job: dict[str, Any], summary: dict[str, Any], periodic: dict[str, Any] | None = None
) -> list[ImagePair]:
    """List the inputs of a run with their results.

    Parameters
    ----------
    run_url : str
    job : dict
        Resolved: ``input`` with ``url`` or ``urls`` (also a glob), ``level``, ``axes``.
    summary : dict
        Its ``images``, a list of records with ``name`` and ``url``, is believed first.
    periodic : dict, optional
        The record of periodic lines that were taken away.
    """
    settings = job.get("input")
    settings = settings if isinstance(settings, dict) else {"url": settings}
    level, axes = int(settings.get("level") or 0), settings.get("axes")
    axes = "".join(axes) if axes else None
    listed = summary.get("images")
    if (
        isinstance(listed, list)
        and listed
        and all(isinstance(item, dict) and item.get("url") for item in listed)
    ):
        found = [(str(item.get("name") or short_name(str(item["url"]))), str(item["url"])) for item in listed]
    else:
        found = [(short_name(source), source) for source in _sources(settings)]
    pairs = []
    for name, source in found:
        # By name, not by a recorded path: the run folder may have been moved since.
        denoised, stage1 = (
            locations.join(run_url, f"{kind}.ome.zarr")
            if len(found) == 1
            else locations.join(run_url, kind, f"{name}.ome.zarr")
            for kind in ("denoised", "stage1")
        )
        pairs.append(
            ImagePair(
                name,
                source,
                denoised,
                stage1 if locations.exists(stage1) else None,
                level,
                axes,
                _waves(periodic or {}, name),
            )
        )
    return pairs


def _waves(periodic: dict[str, Any], name: str) -> WaveTable | None:
    """Return what takes the periodic lines away from an image, None where it has none."""
    entries = [entry for entry in periodic.get("images", []) if entry["name"] == name]
    table = WaveTable.from_json(entries[0]) if entries else None
    return None if table is None or table.is_empty else table


def short_name(url: str) -> str:
    """Return the last part of a URL without what says "OME-Zarr"."""
    name = url.rstrip("/").rsplit("/", 1)[-1]
    for ending in (".ome.zarr", ".zarr"):
        name = name.removesuffix(ending)
    return name or url


def _sources(settings: dict[str, Any]) -> list[str]:
    urls = settings.get("urls") or settings.get("url")
    if not urls:
        raise BadRequest("the job names no input", where="job.yaml", expected="input.url or input.urls")
    found: list[str] = []
    for url in [urls] if isinstance(urls, str) else [str(url) for url in urls]:
        if any(sign in url for sign in "*?[") and not locations.exists(url):
            found += locations.matching(url) or [url]
        else:
            found.append(url)
    return found
