"""``python -m denoizarr.cli``."""

from . import main

main()
