"""Patch2Self: every volume of a diffusion MRI series predicted from the others, exactly, in two passes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from denoizarr.engine.cluster import usable_cores
from denoizarr.engine.freed_memory import freed_memory_kept
from denoizarr.engine.memory_limits import parse_bytes
from denoizarr.engine.progress import Progress
from denoizarr.engine.shares import Share
from denoizarr.engine.summary import RunSummary
from denoizarr.errors import BadRequest
from denoizarr.geometry.boxes import Box
from denoizarr.geometry.grids import ceil_div
from denoizarr.images.save import extra_of
from denoizarr.images.write import ImageJob, write_image
from denoizarr.kernels.neighbourhoods import n_offsets
from denoizarr.kernels.scatter import Floats, Scatter, merged
from denoizarr.stores import locations
from denoizarr.stores.images import as_image
from denoizarr.stores.nifti import bvals_of, check_voxels, is_nifti_name, open_nifti

from .blas_threads import one_blas_thread
from .kept_boxes import boxes_kept
from .nifti_files import by_way_of_zarr
from .options import Patch2SelfOptions, options_of
from .plan import DiffusionPlan, check_matrices, check_radius, output_dtype, plan_patch2self, volume_axis
from .regressions import Regressions, read_regressions, regress
from .streaming import denoise_block, regressions_url, surveys_of
from .volume_groups import VolumeGroups, group_volumes, read_bvals
from .voxel_boxes import VoxelBox, read_voxels

_LOG = logging.getLogger(__name__)
# Parts of an array in memory: of so many values, or larger where that were too many.
_PART_VALUES, _MOST_PARTS = 2**21, 64
# Their matrices, which are held until it is their turn to be merged; of larger ones there are fewer.
_WAITING_BYTES, _FEWEST_PARTS = 128 * 2**20, 16
# A job that was begun with other sums is not gone on with.
_ARITHMETIC = 4
# Of what was read, in all. A larger series is read again for the most part anyway.
_MOST_KEPT_BYTES = 512 * 2**20
# About a second of a core; of a series that takes no more than some, a small part.
_BATCH_VOXELS, _FEWEST_BATCHES = 32 * 2**20, 32


def patch2self(
    data: Any,
    bvals: Any = None,
    *,
    patch_radius: int | Sequence[int] = 0,
    model: str = "ols",
    alpha: float = 1.0,
    b0_threshold: float = 50,
    b0_denoising: bool = True,
    clip_negative_vals: bool = False,
    shift_intensity: bool = True,
    out_dtype: Any = None,
    verbose: bool = False,
    tmp_dir: str | Path | None = None,  # noqa: ARG001  # DIPY's, and nothing is put there
    version: int = 1,
    group_by_shell: bool = False,
    mask: Any = None,
    destination: str | Path | None = None,
    client: Any = None,
    memory_limit: str | int = "2GiB",
    chunks: Sequence[int] | None = None,
    shards: Sequence[int] | None = None,
    ome_version: str = "0.5",
    overwrite: bool = False,
    share: tuple[int, int] | None = None,
    then: Callable[[xr.DataArray, str], None] | None = None,
) -> NDArray[Any] | RunSummary:
    """Denoise diffusion MRI: predict each volume from all others, and keep what they agree on.

    Noise of one volume cannot be predicted from others, structure can. All regressions come from one matrix
    that one pass over the voxels yields; another pass predicts. Equal to DIPY's version 1 on integers, and
    for images of any size, from OME-Zarr to OME-Zarr.

    Parameters
    ----------
    data : ndarray (x, y, z, n), or str, Path, zarr.Array, DataArray
        In memory as in DIPY, or an OME-Zarr image of axes t or c (the volumes), z, y, x, or a NIfTI file.
    bvals : sequence of float (n,), or str, Path, or None
        In s/mm2, or a text file with them in a row or a column. None: those that the image carries, from the
        file that lay beside the NIfTI file that it came from.
    patch_radius : int or (int, int, int)
        Of the neighbourhood, in voxels along the data's own spatial axes; volumes are zero beyond their
        border. 0 predicts from the voxel itself in the other volumes.
    model : {"ols", "ridge", "lasso"}
    alpha : float
        Penalty of ridge and lasso, as in scikit-learn.
    b0_threshold : float
        At most this is b0. These volumes and the diffusion-weighted ones are predicted among themselves.
    b0_denoising : bool
        Without, b0 volumes are kept as they are. A lone b0 always is.
    clip_negative_vals : bool
        Negative values become zero; then nothing is shifted.
    shift_intensity : bool
        Each volume is shifted until its minimum is that of its input. From a store this goes through the
        input once more: what was read is kept, up to 512 MiB as far as the memory limit leaves them.
    out_dtype : dtype, optional
        The input's by default. Integers are rounded half to even and clipped, never wrapped.
    verbose : bool
        Show progress.
    tmp_dir
        Accepted and not used: nothing is put anywhere but at the destination.
    version : {1, 3}
        DIPY's versions. 3 fits on a sketch of the voxels; here all of them are used, as by 1.
    group_by_shell : bool
        Predict the volumes of each shell among themselves.
    mask : array, or an image of z, y, x, optional
        Along the data's own spatial axes: (x, y, z) of an array in memory, (z, y, x) of a stored image. Only
        voxels in it count. The others teach nothing, are zero to their neighbours, and stay as they are, be
        they NaN (zero among integers).
    destination : str or Path, optional
        Where the output of a stored image goes; its ledger, with the regressions, lies beside it. Of or to a
        NIfTI file it goes by way of OME-Zarr, in a folder ``<destination>.work`` that is deleted in the end.
    client : distributed.Client, optional
        For a stored image; without one, as many threads as there are cores.
    memory_limit : str or int
        Per worker process, or per thread where there is no client. Of an array in memory: of the matrices,
        and of sums that are kept if they fit.
    chunks, shards : sequence of int, optional
        Of the output: one int per axis. A shard has all volumes.
    ome_version : {"0.5", "0.4"}
    overwrite : bool
        Delete what lies at the destination first.
    share : (int, int), optional
        (i, n): this process' share of the work beside others, without Dask. Each pass waits for all shares of
        the one before, so they are run three times (twice where nothing is shifted); a call without it then
        finishes.
    then : callable, optional
        ``then(image, url)`` is called with the stored image and its finished output, such as for a report:
        of NIfTI files both are in OME-Zarr then, and deleted afterwards.

    Returns
    -------
    ndarray or RunSummary
        An array of ``data``'s shape, or what was written.

    Raises
    ------
    BadRequest
        b-values and volumes differ in number, a group has fewer than 3 volumes, data are not 4D, ...
    NonFiniteData
        NaN or infinity where no mask leaves it out.
    MemoryLimitTooSmall
        The matrix of all variables, (n p) x (n p) floats, does not fit.
    OutputExists, LedgerMismatch, MissingChunk, BlockFailed, ClusterLost

    References
    ----------
    Fadnavis, Batson and Garyfallidis 2020, "Patch2Self: Denoising diffusion MRI with self-supervised
    learning", NeurIPS 33.
    """
    options = options_of(
        patch_radius,
        model,
        alpha,
        clip_negative_vals=clip_negative_vals,
        shift_intensity=shift_intensity,
        version=version,
    )

    def grouped(n_volumes: int, carried: list[float] | None) -> VolumeGroups:
        values = read_bvals(bvals if bvals is not None else carried)
        return group_volumes(
            values, n_volumes, b0_threshold=b0_threshold, b0_denoising=b0_denoising, by_shell=group_by_shell
        )

    if isinstance(data, np.ndarray):
        _refuse_stored(destination, client, share, then)
        if data.ndim != 4:
            raise BadRequest(
                "Patch2Self needs 4D data", where="data", got=data.shape, expected="(x, y, z, volumes)"
            )
        limit = parse_bytes(memory_limit)
        return _in_memory(data, grouped(data.shape[3], None), options, mask, out_dtype, limit, verbose)
    if destination is None:
        raise BadRequest(
            "a stored image is denoised into another",
            where="destination",
            got="none",
            remedy="name one, or pass an array",
        )

    def of_image(image: xr.DataArray, url: str | Path) -> RunSummary:
        n_volumes = image.sizes[volume_axis([str(d) for d in image.dims])]
        planned = plan_patch2self(
            image,
            url,
            grouped(n_volumes, bvals_of(extra_of(image))),
            options,
            mask=mask,
            out_dtype=out_dtype,
            memory_limit=memory_limit,
            chunks=chunks,
            shards=shards,
            ome_version=ome_version,
        )
        who = {"client": client, "overwrite": overwrite, "progress": verbose}
        return _of_image(planned, **who, share=None if share is None else Share(*share))

    from_file = isinstance(data, str | Path) and is_nifti_name(data)
    if from_file:
        # Before it is copied for nothing.
        file = open_nifti(str(locations.local_path(data)))
        if len(file.shape) != 4:
            raise BadRequest("Patch2Self needs 4D data", where=str(data), got=file.shape)
        grouped(file.shape[3], bvals_of(file.metadata.extra))
        check_radius(options.radius, file.shape[2::-1])
    if out_dtype is not None:
        kept = output_dtype(out_dtype)
        if is_nifti_name(destination):
            check_voxels(kept, str(destination))
    if is_nifti_name(destination) or from_file:
        if share is not None:
            raise BadRequest(
                "shares of a job array write one OME-Zarr", where="share", remedy="convert to and from it"
            )
        return by_way_of_zarr(data, destination, of_image, overwrite=overwrite, progress=verbose, then=then)
    image = as_image(data)
    summary = of_image(image, destination)
    if then is not None and share is None:
        then(image, locations.join(destination))
    return summary


def _of_image(
    planned: DiffusionPlan, *, client: Any, overwrite: bool, progress: bool, share: Share | None
) -> RunSummary:
    spec = planned.spec
    _LOG.info("%s: %s", spec.reader.name, planned.in_words())
    identity = {
        "kind": "patch2self",
        "options": spec.options.identity(),
        "groups": [list(group) for group in spec.groups.groups],
        "copied": list(spec.groups.copied),
        "mask": None if spec.mask is None else spec.mask.identity,
        "blocks_per_span": spec.blocks_per_span,
        "arithmetic": _ARITHMETIC,
    }
    job = ImageJob(
        spec.reader,
        spec.layout,
        identity,
        denoise_block,
        spec,
        min(_BATCH_VOXELS, prod(spec.reader.shape) // _FEWEST_BATCHES),
        "Patch2Self",
        planned.changes,
        surveys=surveys_of(spec),
    )
    threads = usable_cores()
    with ExitStack() as here:
        if client is None:
            here.enter_context(freed_memory_kept())
            room = min(threads * planned.spare_bytes, _MOST_KEPT_BYTES)
            _LOG.info("beside them up to %d MiB of what was read is kept in this process", room // 2**20)
            here.enter_context(boxes_kept(spec.boxes(), room))
        summary = write_image(
            job, overwrite=overwrite, client=client, threads=threads, progress=progress, share=share
        )
    if share is None:
        _say(read_regressions(regressions_url(spec.folder)), spec.groups)
    return summary


def _refuse_stored(destination: Any, client: Any, share: Any, then: Any) -> None:
    given = {"destination": destination, "client": client, "share": share, "then": then}
    if named := [name for name, value in given.items() if value is not None]:
        raise BadRequest(
            "an array in memory is denoised in memory",
            where=", ".join(named),
            remedy="leave them out, or save the array as an image first",
        )


def _in_memory(
    data: NDArray[Any],
    groups: VolumeGroups,
    options: Patch2SelfOptions,
    mask: Any,
    out_dtype: Any,
    limit: int,
    verbose: bool,
) -> NDArray[Any]:
    output_dtype(data.dtype)
    dtype = output_dtype(data.dtype if out_dtype is None else out_dtype)
    *space, n = data.shape
    check_radius(options.radius, space)
    check_matrices(n, n_offsets(options.radius), limit)
    inside = None if mask is None else np.asarray(mask) != 0
    if inside is not None and inside.shape != tuple(space):
        raise BadRequest(
            "mask and volumes differ in shape", where="mask", got=inside.shape, expected=tuple(space)
        )
    # Each part's matrices wait for their turn to be merged: very large ones are made one at a time.
    own = 8 * (n * n_offsets(options.radius)) ** 2
    boxes = list(_parts_of(tuple(space), n, max(_WAITING_BYTES // own, _FEWEST_PARTS)))
    side_by_side = own * len(boxes) <= _WAITING_BYTES

    def read(box: Box) -> VoxelBox:
        return read_voxels(
            lambda part: _volumes_first(data, part),
            box,
            tuple(space),
            options.radius,
            None if inside is None else lambda part: inside[part.slices],
            "data",
        )

    if inside is None and not any(options.radius):
        read = cache(read)  # views, which hold nothing: looked at for NaN once, and not in every pass

    out = np.empty(data.shape, dtype)
    passes = 3 if options.shift else 2
    with (
        Progress("Patch2Self", passes * len(boxes), verbose) as bar,
        one_blas_thread(),
        ThreadPoolExecutor(usable_cores()) as pool,
    ):

        def scatters() -> Iterator[Scatter]:
            each = pool.map if side_by_side else map
            for part, n_outside in each(lambda box: _scatter_of(read(box)), boxes):
                counted.append(n_outside)
                bar.advance()
                yield part

        counted: list[int] = []
        found = regress(merged(scatters()), groups, options)
        predictor = found.predictor(dtype)
        kind = predictor.weights.dtype
        # Sums that need not be made twice, where there is room for them.
        sums: NDArray[Any] | None = None
        if options.shift and kind.itemsize * data.size <= limit:
            sums = out if dtype == kind else np.empty(data.shape, kind)
        if options.shift:

            def minima(box: Box) -> tuple[Floats, Floats]:
                return read(box).minima(predictor, None if sums is None else _volumes_first(sums, box))

            lowest = np.full((2, n), np.inf)
            for here in pool.map(minima, boxes):
                lowest = np.minimum(lowest, here)
                bar.advance()
            found = found.shifted(lowest[0] - lowest[1])
            predictor = found.predictor(dtype)

        def finish(box: Box) -> None:
            voxels, into, clip = read(box), _volumes_first(out, box), options.clip_negative
            if sums is None:
                voxels.predict(predictor, into, clip_negative=clip)
            else:
                voxels.finish(_volumes_first(sums, box), predictor.intercepts, into, clip_negative=clip)

        for _ in pool.map(finish, boxes):
            bar.advance()
    if sum(counted):
        _LOG.info("%d values outside the mask are not finite, and stay as they are", sum(counted))
    _say(found, groups)
    return out


def _volumes_first(data: NDArray[Any], box: Box) -> NDArray[Any]:
    """Return a box of (x, y, z, n) as (n, x, y, z)."""
    return data[box.slices].transpose(3, 0, 1, 2)


def _scatter_of(voxels: VoxelBox) -> tuple[Scatter, int]:
    return voxels.scatter(), voxels.outside_non_finite


def _parts_of(space: tuple[int, ...], n_volumes: int, at_most: int) -> Iterator[Box]:
    """Yield slabs along the first axis: as many for any machine, for their sums are merged in order."""
    parts = min(ceil_div(prod(space) * n_volumes, _PART_VALUES), _MOST_PARTS, at_most)
    step = ceil_div(space[0], max(parts, 1))
    for first in range(0, space[0], step):
        yield Box((first, 0, 0), (min(first + step, space[0]), *space[1:]))


def _say(found: Regressions, groups: VolumeGroups) -> None:
    for warning in found.warnings:
        _LOG.warning("%s", warning)
    if groups.copied:
        _LOG.info("b0 volumes kept as they are: %s", ", ".join(map(str, groups.copied)))
