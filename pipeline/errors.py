"""The errors that a user sees as one line instead of a traceback."""

from __future__ import annotations


class UserError(Exception):
    """A mistake that the user can fix: the message says what is wrong, where, and how to fix it, in one line."""


class ImageError(UserError):
    """An image file that cannot be read; the message names the file and the cause."""


class RunError(Exception):
    """A run that failed without a mistake of the user; the message says what to do, in one line."""


def one_line(error: BaseException) -> str:
    """What an error says, in one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__
