"""Whole images through the engine: save, pyramid, convert."""
