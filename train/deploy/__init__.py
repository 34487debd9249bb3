"""A detector at work: it scores images, and leaves as one program."""
