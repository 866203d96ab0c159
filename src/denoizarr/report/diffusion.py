"""The self-contained HTML page of a series that Patch2Self denoised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from denoizarr import __version__
from denoizarr.diffusion.regressions import Regressions, read_regressions
from denoizarr.diffusion.streaming import measured_url, regressions_url
from denoizarr.engine.ledger import Ledger
from denoizarr.errors import BadRequest
from denoizarr.figures.canvas import png_of
from denoizarr.figures.diffusion import mean_residual_figure, predicted_figure, volume_figure
from denoizarr.images.output import ledger_url
from denoizarr.images.save import extra_of
from denoizarr.stores import locations
from denoizarr.stores.images import ImageLike, as_image, open_image
from denoizarr.stores.nifti import bvals_of

from .narrative import Fact
from .page import Page, render_page
from .sections import Picture, Section

# So many robust standard deviations beyond its group's median, a volume is not like the others. Directions
# alone make what is left of them differ by a third.
_OUTLIER, _LEAST_SPREAD = 3.5, 0.35


@dataclass(frozen=True, slots=True)
class _Slice:
    """One slice of all volumes, and which of them is shown; the residual is without the volumes' shift."""

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    residual: NDArray[np.float64]
    inside: NDArray[np.bool_]
    z: int
    volume: int


def write_diffusion_report(
    source: ImageLike,
    output: str | Path,
    destination: str | Path,
    *,
    bvals: Sequence[float] | None = None,
    volume: int | None = None,
    z: int | None = None,
    title: str | None = None,
) -> str:
    """Write a page with one slice before and after, every volume's share predicted, and the mean residual.

    Parameters
    ----------
    source : str, Path or image
        What was denoised.
    output : str or Path
        What came of it; its ledger beside it has the regressions.
    destination : str or Path
        The page, such as report.html.
    bvals : sequence of float, optional
        In s/mm2; those that the source carries, by default.
    volume, z : int, optional
        Which is shown; by default a diffusion-weighted volume in the middle, and the middle slice.
    title : str, optional
        Of the page; by default where the output is.

    Returns
    -------
    str
        Where the page is.

    Raises
    ------
    BadRequest
        No such volume or slice, or the output is not one of Patch2Self.
    """
    identity = Ledger.identity_on_record(ledger_url(str(output)))
    if identity.get("kind") != "patch2self":
        raise BadRequest("not an output of Patch2Self", where=locations.redact(str(output)))
    before, after = as_image(source), open_image(output)
    values = list(bvals) if bvals is not None else bvals_of(extra_of(before))
    n = before.shape[0]
    values = [0.0] * n if values is None or len(values) != n else values
    folder = ledger_url(str(output))
    found = read_regressions(regressions_url(folder))
    shift = found.intercepts - read_regressions(measured_url(folder)).intercepts
    weighted = np.flatnonzero(np.asarray(values) > min(values) + 50)
    usual = int(weighted[len(weighted) // 2]) if len(weighted) else n // 2
    shown = _slice(
        before, after, shift, usual if volume is None else volume, z, masked=identity["mask"] is not None
    )
    outliers = outliers_of(found.r_squared, identity["groups"])
    page = _page(str(output), title, identity, found, values, outliers, shown)
    where = locations.join(destination)
    locations.put(where, render_page(page).encode("utf-8"))
    return where


def outliers_of(r_squared: NDArray[np.float64], groups: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return the volumes of which far more is left unpredicted than of the rest of their group.

    On the logarithm of what is left: .02 beside .01 is no less odd than .4 beside .2.
    """
    found: list[int] = []
    for group in groups:
        left = np.log(np.maximum(1 - r_squared[list(group)], 1e-12))
        middle = float(np.nanmedian(left))
        spread = max(1.4826 * float(np.nanmedian(np.abs(left - middle))), _LEAST_SPREAD)
        found += [int(v) for v, value in zip(group, left, strict=True) if value > middle + _OUTLIER * spread]
    return tuple(sorted(found))


def _slice(
    before: Any, after: Any, shift: NDArray[np.float64], volume: int, z: int | None, *, masked: bool
) -> _Slice:
    n, depth = before.shape[:2]
    z = depth // 2 if z is None else z
    for name, number, size in (("volume", volume, n), ("z", z, depth)):
        if not 0 <= number < size:
            raise BadRequest("nothing there to show", where=name, got=number, expected=f"0 to {size - 1}")
    first = before.dims[0]
    old, new = (
        np.stack([np.asarray(image.isel({first: v, "z": z}), np.float64) for v in range(n)])
        for image in (before, after)
    )
    # What lay outside the mask was kept as it was, in every volume.
    inside = ~((old == new) | ~np.isfinite(old)).all(axis=0) if masked else np.ones(old.shape[1:], bool)
    residual = np.where(inside, old - new + shift[:, None, None], 0.0)
    return _Slice(old, new, residual, inside, z, volume)


def _page(
    name: str,
    title: str | None,
    identity: dict[str, Any],
    found: Regressions,
    bvals: Sequence[float],
    outliers: tuple[int, ...],
    shown: _Slice,
) -> Page:
    predicted = found.r_squared[np.isfinite(found.r_squared)]
    residual = shown.residual[:, shown.inside]
    taken = [v for group in identity["groups"] for v in group]
    mean, spread = shown.residual[taken].mean(axis=0), shown.residual[taken].std(axis=0)
    # Of pure noise the mean over n volumes has this share of its spread left.
    left, wide = (np.sqrt((plane[shown.inside] ** 2).mean()) for plane in (mean, spread))
    share = float(left / max(wide, 1e-300))
    by_chance = 1 / np.sqrt(max(len(taken), 1))
    said = list(found.warnings)
    if outliers:
        listed = ", ".join(map(str, outliers))
        said.append(f"volumes that the others do not predict as well as the rest: {listed}")
    options = identity["options"]
    facts = [
        Fact("volumes denoised", f"{len(taken)} of {len(bvals)}"),
        Fact("voxels fitted", f"{found.voxels:,}"),
        Fact("variance predicted, median", f"{np.median(predicted):.3f}" if len(predicted) else "none"),
        Fact("longest weights", _longest(found, taken)),
        Fact("noise taken away, root mean square", f"{np.sqrt((residual[taken] ** 2).mean()):.4g}"),
    ]
    provenance = [Fact("denoizarr", __version__)]
    if title is None:  # else what the output came by way of is deleted
        provenance.append(Fact("regressions", regressions_url(ledger_url(name))))
    return Page(
        title or name,
        f"Patch2Self, {options['model']}, patch radius {tuple(options['radius'])}",
        ["Every volume was predicted from the others of its group: noise, which they do not share, is not."],
        facts,
        said,
        [],
        [
            _shown_section(shown, bvals),
            _predicted_section(found, outliers, bvals),
            _mean_section(mean, spread, share, by_chance, shown.z),
        ],
        [],
        yaml.safe_dump({"patch2self": options, "kept as they are": identity["copied"]}, sort_keys=False),
        provenance,
    )


def _longest(found: Regressions, volumes: Sequence[int]) -> str:
    """Say which of some volumes' predictions hangs most on differences of others."""
    norms = found.norms[list(volumes)]
    if not len(norms):
        return "none"
    return f"{norms.max():.3g}, of volume {volumes[int(np.argmax(norms))]}; median {np.median(norms):.3g}"


def _shown_section(shown: _Slice, bvals: Sequence[float]) -> Section:
    which = f"volume {shown.volume} (b = {bvals[shown.volume]:.0f} s/mm²), slice z = {shown.z}"
    figure = volume_figure(
        shown.before[shown.volume],
        shown.after[shown.volume],
        shown.residual[shown.volume],
        title="Before and after",
        caption=f"{which}. Before and after have one contrast. A residual of noise alone shows no anatomy; "
        "the constant by which the volume was shifted, if it was, is not in it.",
    )
    return Section("slice", "One volume", (), (Picture("slice", png_of(figure), which),))


def _predicted_section(found: Regressions, outliers: tuple[int, ...], bvals: Sequence[float]) -> Section:
    figure = predicted_figure(
        found.r_squared,
        outliers,
        bvals,
        title="How much of each volume the others predict",
        caption="A volume far below its group moved, has artefacts, or is of another contrast. Look at it "
        "before what is computed from it. High b-values have more noise, and so lie lower.",
    )
    return Section(
        "volumes", "All volumes", (), (Picture("volumes", png_of(figure), "variance predicted, by volume"),)
    )


def _mean_section(
    mean: NDArray[np.float64], spread: NDArray[np.float64], share: float, by_chance: float, z: int
) -> Section:
    verdict = (
        "as of noise alone"
        if share < 2 * by_chance
        else "more than noise alone would leave: look whether anatomy shows in it"
    )
    text = (
        f"In the mean over volumes what was taken away has {share:.2f} of its spread left; noise alone would "
        f"leave {by_chance:.2f}: {verdict}. Where a magnitude image is dark, its noise is not Gaussian but "
        "Rician: it lifts the mean, and Patch2Self, which keeps means, leaves that bias in."
    )
    figure = mean_residual_figure(
        mean,
        spread,
        title="What was taken away, over all volumes",
        caption=f"Slice z = {z}. Left: structure here means that signal was removed. Right: a map of the "
        "noise, both at the noise's scale.",
    )
    return Section(
        "mean", "Was signal removed?", (text,), (Picture("mean", png_of(figure), "mean residual"),)
    )
