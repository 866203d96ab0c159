"""OME-Zarr metadata, versions 0.4 and 0.5, read and written through ome-zarr-models.

Level paths, axes and transforms always come from the metadata: levels may be 0, 1, ... or s0, s1, ...
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import zarr
from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05
from pydantic import ValidationError

from denoizarr.errors import IncompleteOutput, MetadataError, NotOmeZarr

DIMS = ("t", "c", "z", "y", "x")
STATE = "denoizarr.state"
NIFTI = "denoizarr.nifti"
CARRIED = (NIFTI,)
_AXIS_TYPE = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}

OmeVersion = Literal["0.4", "0.5"]


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image.

    Attributes
    ----------
    path : str
        Of the array, below the image's group.
    scale, translation : tuple of float
        World coordinate of a voxel's centre = index * scale + translation, per axis, in the axis' unit.
    """

    path: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class OmeImage:
    """What the metadata of an OME-Zarr image say.

    Attributes
    ----------
    version : str
        "0.4" or "0.5".
    dims : tuple of str
        Axis names in the order of the arrays, a subset of t, c, z, y, x in that order.
    units : tuple of str or None
        UDUNITS name per axis, such as "micrometer".
    levels : tuple of Level
        Finest first.
    name : str
    omero : dict
        Rendering hints (channel names, colours, windows), carried along untouched.
    extra : dict
        Attributes of ours that go from an image to what is computed of it, such as a NIfTI file's header.
    """

    version: str
    dims: tuple[str, ...]
    units: tuple[str | None, ...]
    levels: tuple[Level, ...]
    name: str = ""
    omero: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


def read_ome(group: zarr.Group, where: str, *, allow_incomplete: bool = False) -> OmeImage:
    """Read and check the metadata of an image group.

    Raises
    ------
    NotOmeZarr
        The group has no multiscales.
    MetadataError
        The multiscales contradict the specification.
    IncompleteOutput
        The image was begun by this package and not finished.
    """
    attributes = group.attrs.asdict()
    if attributes.get(STATE, "complete") != "complete" and not allow_incomplete:
        raise IncompleteOutput(
            "this image is not finished", where=where, remedy="run the job that began it again, then read it"
        )
    ome = attributes.get("ome")
    body: dict[str, Any] = ome if isinstance(ome, dict) else attributes
    if not isinstance(body.get("multiscales"), list) or not body["multiscales"]:
        raise NotOmeZarr(
            "a Zarr group without OME-Zarr multiscales",
            where=where,
            remedy="name the image's own group, or a plain array with axes=",
        )
    version = "0.5" if body is ome else "0.4"
    multiscale = _validated(body["multiscales"][0], version, where)
    dims = tuple(str(axis.name) for axis in multiscale.axes)
    if not set(dims) <= set(DIMS) or len(set(dims)) != len(dims) or not {"y", "x"} <= set(dims):
        raise MetadataError(
            "axes that this package does not know", where=where, got=dims, expected="some of t, c, z, y, x"
        )
    overall = multiscale.coordinateTransformations
    levels = tuple(
        _level(d.path, d.coordinateTransformations, overall, len(dims), where) for d in multiscale.datasets
    )
    omero = body.get("omero")
    return OmeImage(
        version,
        dims,
        tuple(None if axis.unit is None else str(axis.unit) for axis in multiscale.axes),
        levels,
        str(multiscale.name or ""),
        omero if isinstance(omero, dict) else {},
        {name: attributes[name] for name in CARRIED if isinstance(attributes.get(name), dict)},
    )


def _validated(data: Any, version: str, where: str) -> Any:
    model = Multiscale05 if version == "0.5" else Multiscale04
    try:
        with warnings.catch_warnings():
            # Swapped transforms are mended by the model; a warning for each would drown the log.
            warnings.simplefilter("ignore")
            return model.model_validate(data)
    except (ValidationError, RecursionError) as error:
        problem = (
            error.errors()[0]
            if isinstance(error, ValidationError)
            else {"loc": (), "msg": "nested too deeply"}
        )
        place = ".".join(str(part) for part in problem["loc"])
        raise MetadataError(
            f"OME-Zarr {version} metadata are not valid",
            where=f"{where} multiscales[0].{place}",
            got=problem["msg"],
        ) from error


def _level(
    path: str, transforms: Sequence[Any], overall: Sequence[Any] | None, n_dims: int, where: str
) -> Level:
    if path.startswith(("/", "\\")) or ".." in path.replace("\\", "/").split("/"):
        raise MetadataError(
            "a level outside its image", where=where, got=repr(path), expected="a path below the group"
        )
    scale, translation = [1.0] * n_dims, [0.0] * n_dims
    for transform in [*transforms, *(overall or ())]:
        values = getattr(transform, transform.type, None)
        if not isinstance(values, list | tuple) or len(values) != n_dims or not np.isfinite(values).all():
            raise MetadataError(
                "a coordinate transformation that does not fit the axes",
                where=f"{where} level {path}",
                got=f"{transform.type} {values}",
                expected=f"{n_dims} finite numbers",
            )
        if transform.type == "scale":
            scale = [a * float(b) for a, b in zip(scale, transform.scale, strict=True)]
            translation = [a * float(b) for a, b in zip(translation, transform.scale, strict=True)]
        elif transform.type == "translation":
            translation = [a + float(b) for a, b in zip(translation, transform.translation, strict=True)]
    return Level(path, tuple(scale), tuple(translation))


def ome_attributes(image: OmeImage) -> dict[str, Any]:
    """Return the group attributes that say ``image``, checked by ome-zarr-models before they are written."""
    multiscale: dict[str, Any] = {
        "name": image.name,
        "axes": [
            {"name": dim, "type": _AXIS_TYPE[dim]} | ({} if unit is None else {"unit": unit})
            for dim, unit in zip(image.dims, image.units, strict=True)
        ],
        "datasets": [
            {
                "path": level.path,
                "coordinateTransformations": [{"type": "scale", "scale": list(level.scale)}]
                + (
                    [{"type": "translation", "translation": list(level.translation)}]
                    if any(level.translation)
                    else []
                ),
            }
            for level in image.levels
        ],
        "type": "mean",
    }
    if image.version == "0.4":
        multiscale["version"] = "0.4"
    _validated(multiscale, image.version, "the metadata to be written")
    body: dict[str, Any] = {"multiscales": [multiscale]}
    if image.omero:
        body["omero"] = image.omero
    told = {"ome": {"version": image.version, **body}} if image.version == "0.5" else body
    return told | image.extra
