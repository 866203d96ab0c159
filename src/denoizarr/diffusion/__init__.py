"""Denoising of 4D diffusion MRI, volume by volume from the others: two streaming passes."""
