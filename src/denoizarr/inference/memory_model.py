"""What a worker has in memory while it denoises: the projection that ``plan`` states and that must hold.

::

    process       interpreter, torch, zarr, distributed, the network: BASE_BYTES
    tile          the layers' outputs of one tile, its halo included
    blocks        input of the block that is computed, of the next one (read meanwhile)
                  and, of that one, what its chunks are while they are decoded
                  result of the block that is computed, and of the last one (written meanwhile):
                  itself, encoded, and read back to be compared
    pyramid       afterwards: what lies below a block of a coarser level, and its sums
"""

from __future__ import annotations

from dataclasses import dataclass

from denoizarr.engine.stages import BLOCKS_AHEAD, BLOCKS_BEHIND
from denoizarr.stores.sources import CHUNKS_AT_ONCE

# Resident memory of a worker before its first block: torch, zarr, distributed. 360 to 410 MiB where it has
# done nothing else, and up to 700 where a job's earlier steps have left numba, scipy and freed memory there.
BASE_BYTES = 768 * 2**20
# Of a result that is written: itself, encoded chunk by chunk and joined to a shard, or read back.
_RESULT_WRITTEN = 3
# Of a voxel that is averaged: itself, encoded, and half of a sum, then a quarter of one besides.
_SUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class MemoryModel:
    """Bytes per voxel of all that a block needs.

    Attributes
    ----------
    tile_bytes : int
        Of the network, per voxel of a tile with its halo.
    input_bytes, output_bytes : int
        Of one voxel as it is read, and as it is written.
    chunk_voxels : int
        Of a chunk of the input.
    chunks_at_once : int
        That are read and decoded at a time.
    fetched_whole : bool
        All chunks that a block touches are fetched before the first is decoded: those of a bucket's shards.
    """

    tile_bytes: int
    input_bytes: int
    output_bytes: int
    chunk_voxels: int
    chunks_at_once: int = CHUNKS_AT_ONCE
    fetched_whole: bool = False

    def peak_bytes(self, tile_voxels: int, read_voxels: int, block_voxels: int, block_chunks: int) -> int:
        """Return the projected peak of a worker process.

        Parameters
        ----------
        tile_voxels : int
            Of the largest tile, halo included.
        read_voxels, block_voxels : int
            Of the largest block, with and without its halo.
        block_chunks : int
            Of the input, that it touches.
        """
        block_read = read_voxels * self.input_bytes
        chunk_bytes = self.chunk_voxels * self.input_bytes
        chunks = min(self.chunks_at_once, block_chunks) * chunk_bytes
        # A shard's chunks are fetched at once and decoded some at a time; plain chunks some at a time. Noise
        # hardly compresses.
        fetched = block_chunks * chunk_bytes if self.fetched_whole else max(block_read, chunks)
        reading = block_read + fetched + chunks
        result = block_voxels * self.output_bytes
        around = block_read + BLOCKS_AHEAD * reading + result + BLOCKS_BEHIND * _RESULT_WRITTEN * result
        return BASE_BYTES + tile_voxels * self.tile_bytes + around

    def pyramid_bytes(self, voxels_below: int) -> int:
        """Return the projected peak of a worker that averages so many voxels to a block of the next level."""
        return BASE_BYTES + voxels_below * (2 * self.output_bytes + _SUM_BYTES * 3 // 4)
