"""A trained network over a whole image, block by block."""
