"""The two errors that a user sees as one line instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can mend: the message says what is wrong, where, and the mend, in one line."""


class ImageError(UserError):
    """An image file that cannot be read; the message names the file and the cause."""


class RunError(Exception):
    """A run that could not go on, through no mistake of the user's; the message says what to do, in one line."""
