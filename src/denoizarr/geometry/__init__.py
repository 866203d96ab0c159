"""Integers only: boxes, grids and tiles. No arrays, no I/O."""
