"""The record of a run's periodic lines: what was found, and the small table that takes it away.

::

    note     in words
    lines    [{"frequency": [fy, fx], "period", "harmonic", "significance", "amplitude"}, ...]
    images   [{"name", "image" (its digest), "frequencies", "leading", "waves"}, ...], in the job's order
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from denoizarr.errors import MetadataError
from denoizarr.stores.images import corrected_image, reader_of
from denoizarr.stores.periodic import WaveTable
from denoizarr.stores.records import digest

from .periodic import find_periodic_lines, lines_in_words
from .plane_waves import measure_waves


def periodic_record(
    images: Sequence[xr.DataArray], names: Sequence[str], *, client: Any = None
) -> dict[str, Any]:
    """Find the periodic lines of a job's images and measure them in every plane.

    Parameters
    ----------
    images : sequence of DataArray
    names : sequence of str
    client : distributed.Client, optional
        Planes are measured on its workers.

    Returns
    -------
    dict
        JSON-able, as above; ``images`` is empty where there are no lines.
    """
    lines = find_periodic_lines(images)
    if not lines:
        return {"note": "none found", "lines": [], "images": []}
    frequencies = [line.frequency for line in lines]
    tables = [measure_waves(reader_of(image), frequencies, client=client) for image in images]
    largest = [max((table.largest[number] for table in tables), default=0.0) for number in range(len(lines))]
    return {
        "note": f"{lines_in_words(lines)}; taken away",
        "lines": [
            {
                "frequency": list(line.frequency),
                "period": line.period,
                "harmonic": line.harmonic,
                "significance": line.significance,
                "amplitude": amplitude,
            }
            for line, amplitude in zip(lines, largest, strict=True)
        ],
        "images": [
            {"name": name, "image": digest(reader_of(image).identity), **table.to_json()}
            for name, image, table in zip(names, images, tables, strict=True)
        ],
    }


def images_of_record(
    record: Mapping[str, Any], images: Sequence[xr.DataArray]
) -> tuple[tuple[xr.DataArray, ...], tuple[float, ...]]:
    """Return the images less their lines, the same objects where there are none, and the lines' periods.

    Raises
    ------
    MetadataError
        The record is damaged, or of other images.
    """
    try:
        periods = tuple(sorted({float(line["period"]) for line in record["lines"]}))
        entries = record["images"] if periods else []
        tables = [WaveTable.from_json(entry) for entry in entries]
        measured_on = [str(entry["image"]) for entry in entries]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _spoilt(str(error)) from error
    if not periods:
        return tuple(images), ()
    if measured_on != [digest(reader_of(image).identity) for image in images]:
        raise _spoilt("measured on other images")
    return tuple(corrected_image(i, t) for i, t in zip(images, tables, strict=True)), periods


def _spoilt(reason: str) -> MetadataError:
    return MetadataError(
        "the record of periodic lines is not valid",
        where="periodic.json",
        got=reason,
        remedy="delete the file, and run again",
    )
