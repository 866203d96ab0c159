"""A block of the finest level, and with it what lies above it in coarser ones: computed, not read again.

::

    level 0   +-----------+  the block, in memory  ---> write, read back, checksum
    level 1   +-----+        means of it           ---> write, read back, checksum
    level 2   +--+           means of those        ---> write, read back, checksum
                                                   ---> one record for all of them

The means are those of the pass over a finished level (``pyramid``), to the last bit: of the level below as it
is stored, rounded to its dtype.
"""

from __future__ import annotations

from typing import Any

from denoizarr.kernels.pooling import mean_pool
from denoizarr.stores.sources import Array

from .layout import OutputLayout
from .output import open_level, write_box


def write_with_levels(layout: OutputLayout, block: int, values: Array) -> dict[str, Any]:
    """Write one write unit of the finest level, and of every coarser one that is written along.

    Parameters
    ----------
    layout : OutputLayout
    block : int
        Number of the unit on the finest level's grid.
    values : ndarray
        Of the unit's shape, cropped at the image's far end, and of the output's dtype.

    Returns
    -------
    dict
        ``checksum`` of the stored object; ``above``: of those of coarser levels, finest first, if any;
        ``written_bytes`` of all together.

    Raises
    ------
    CorruptChunk
        What was read back is not what was written.
    """
    finest = layout.levels[0]
    record = write_box(open_level(layout, finest), finest.write_units.box(block), values)
    above = []
    for level in layout.levels[1 : 1 + layout.along]:
        values = mean_pool(values, level.factors)
        box = level.write_units.box(block)
        assert box.shape == values.shape, f"level {level.path}: {box} above block {block}"
        coarser = write_box(open_level(layout, level), box, values)
        above.append(coarser["checksum"])
        record["written_bytes"] += coarser["written_bytes"]
    return record | ({"above": above} if above else {})
