"""The self-contained HTML page of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from denoizarr.errors import BadRequest
from denoizarr.figures.intensity_bias import IntensityBias, bias_by_intensity
from denoizarr.stores import locations
from denoizarr.stores.records import read_json

from . import words
from .findings import Findings, findings_of
from .image_pairs import ImagePair, image_pairs
from .narrative import Fact, facts_of, lead_of, steps_of, warnings_of
from .planes import Planes, read_neighbours, read_planes, read_truth
from .run_folder import RunFolder, attempt, number_in, open_run
from .sections import Section, all_sections

_LOG = logging.getLogger(__name__)

_LISTED_IMAGES = 200


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step of the run in the table of steps."""

    name: str
    time: str
    resumed: str
    note: str


@dataclass(frozen=True, slots=True)
class Page:
    """Everything the template shows; text only, escaped by the template."""

    name: str
    subtitle: str
    lead: list[str]
    facts: list[Fact]
    warnings: list[str]
    other_images: list[Fact]
    sections: list[Section]
    steps: list[StepRow]
    settings: str
    provenance: list[Fact]


def write_report(run: str | Path) -> str:
    """Write ``report.html`` and ``figures/*.png`` into a run folder.

    Of the first image one plane is read, at most 2048 x 2048 pixels, and of three neighbours at most
    1024 x 1024. Where ``truth.json`` in the run folder names a known truth, as the demo's does, intensities
    are compared with it. A piece that is missing or cannot
    be read is left out with a sentence that says so: a run that stopped half-way can be looked at too.

    Parameters
    ----------
    run : str or Path
        The run folder (``output.url`` of the job).

    Returns
    -------
    str
        Where the page is. It needs no other file and no network.

    Raises
    ------
    ImageNotFound
        Nothing lies there.
    BadRequest
        It is no run folder.
    PermissionDenied, NoSpace, StoreUnavailable
        It cannot be written.
    """
    folder = open_run(run)
    pairs = attempt(
        folder.missing,
        "images",
        "The images",
        lambda: image_pairs(folder.url, folder.job, folder.summary, folder.periodic),
    )
    findings = _findings(folder, pairs or [])
    sections = all_sections(folder, findings)
    for section in sections:
        for picture in section.pictures:
            locations.put(locations.join(folder.url, "figures", f"{picture.name}.png"), picture.png)
    html = render_page(_page(folder, pairs or [], findings, sections))
    destination = locations.join(folder.url, "report.html")
    # One put of all bytes: whoever opens the page sees the old one or the new, never half of it.
    locations.put(destination, html.encode("utf-8"))
    _LOG.info("report written to %s", destination)
    return destination


def render_page(page: Page) -> str:
    """Return the page as HTML that needs nothing but itself."""
    return _template().render(page=page)


@lru_cache(maxsize=1)
def _template() -> jinja2.Template:
    text = resources.files("denoizarr.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(text)


def _findings(folder: RunFolder, pairs: list[ImagePair]) -> Findings | None:
    if not pairs:
        return None
    index = next((stage.index for stage in folder.stages if stage.index is not None), None)
    align = (1, 1) if index is None else (int(index.patch_size[-2]), int(index.patch_size[-1]))
    settings = folder.job.get("patch_filter")
    channel = int(number_in(settings, "ref_channel") or 0) if isinstance(settings, Mapping) else 0
    planes = attempt(
        folder.missing,
        "planes",
        "The input image",
        lambda: read_planes(pairs[0], align=align, channel=channel),
    )
    if planes is None:
        return None
    if index is None or len(index.patch_size) == 2:  # what looks at neighbours shares noise with them
        read = partial(read_neighbours, pairs[0], planes)
        planes = attempt(folder.missing, "neighbours", "The comparison of planes", read) or planes
    mask = np.ones((1, 1), bool) if folder.kernel is None else np.asarray(folder.kernel.hidden, bool)
    found = findings_of(planes, None if folder.has_target else mask)
    bias = _bias(folder, planes)
    return found if bias is None else replace(found, bias=bias)


def _bias(folder: RunFolder, planes: Planes) -> IntensityBias | None:
    """Compare the result with the truth that the run folder names, if it names one."""
    record = locations.join(folder.url, "truth.json")
    if planes.denoised is None or not locations.exists(record):
        return None
    return attempt(
        folder.missing,
        "truth",
        "The comparison with the truth",
        lambda: bias_by_intensity(read_truth(_named(folder, record), planes), planes.denoised),
    )


def _named(folder: RunFolder, record: str) -> str:
    """Return the URL that a record names; a relative one counts from the run folder."""
    url = str(read_json(record)["url"])
    named = locations.absolute(url, folder.url)
    if not locations.exists(named):
        raise BadRequest("nothing lies where truth.json says", where=locations.redact(named))
    return named


def _page(
    folder: RunFolder, pairs: list[ImagePair], findings: Findings | None, sections: list[Section]
) -> Page:
    name = pairs[0].name if pairs else locations.name_of(folder.url)
    if len(pairs) > 1:
        name = f"{name} and {words.plural(len(pairs) - 1, 'more image')}"
    return Page(
        name=name,
        subtitle=_subtitle(folder),
        lead=lead_of(folder, pairs, findings),
        facts=facts_of(folder, findings),
        warnings=warnings_of(folder, findings),
        other_images=_others(folder, pairs),
        sections=sections,
        steps=_steps(folder),
        settings=yaml.safe_dump(folder.job, sort_keys=False, allow_unicode=True, width=100)
        if folder.job
        else "",
        provenance=[Fact(key, value) for key, value in _flat(folder.provenance)],
    )


def _subtitle(folder: RunFolder) -> str:
    packages = folder.provenance.get("packages")
    version = packages.get("denoizarr") if isinstance(packages, Mapping) else None
    when = folder.provenance.get("begun")
    parts = [locations.redact(folder.url), f"denoizarr {version}" if version else "", str(when or "")]
    return " · ".join(part for part in parts if part)


def _others(folder: RunFolder, pairs: list[ImagePair]) -> list[Fact]:
    rows = []
    for pair in pairs[1 : _LISTED_IMAGES + 1]:
        result = pair.denoised.removeprefix(folder.url).lstrip("/")
        rows.append(Fact(pair.name, result if locations.exists(pair.denoised) else "not written yet"))
    if len(pairs) > _LISTED_IMAGES + 1:
        rows.append(Fact(f"and {len(pairs) - _LISTED_IMAGES - 1:,} more", "in the folder denoised"))
    return rows


def _steps(folder: RunFolder) -> list[StepRow]:
    rows = []
    for step in steps_of(folder):
        seconds = number_in(step, "seconds")
        if step.get("name") == "report" and not seconds:
            continue  # this page, being written
        resumed = step.get("resumed")
        rows.append(
            StepRow(
                name=str(step.get("name", "")),
                time="" if seconds is None else words.duration(seconds),
                resumed=("yes" if resumed else "")
                if isinstance(resumed, bool) or resumed is None
                else str(resumed),
                note=str(step.get("note") or ""),
            )
        )
    return rows


def _flat(data: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every value of a nested record under a dotted name."""
    if isinstance(data, Mapping):
        for key, value in data.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(data, list) and any(isinstance(item, Mapping | list) for item in data):
        for number, item in enumerate(data):
            yield from _flat(item, f"{prefix}[{number}]")
    elif isinstance(data, list):
        yield prefix, ", ".join(str(item) for item in data)
    else:
        yield prefix, "" if data is None else str(data)
