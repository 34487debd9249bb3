"""A cache as files for other programs."""
