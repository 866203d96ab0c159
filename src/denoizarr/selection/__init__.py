"""Where to look: statistics, filter maps and the patch index, all lazy."""
