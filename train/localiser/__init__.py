"""The localiser: a network that learns from negatives to tell the cells that were changed."""
