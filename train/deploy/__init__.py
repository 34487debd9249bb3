"""A detector at work: it scores images, and is exported as one program."""
