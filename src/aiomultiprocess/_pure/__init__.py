"""Pure-Python twins of the modules of `amp_ext`, named as they are there."""
