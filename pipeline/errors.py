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


def brief(message: str, most: int = 2000) -> str:
    """A message with a middle left out where it is too long to read, without what ends its line or moves the cursor."""
    half = most // 2
    short = message if len(message) <= most else f"{message[:half]} .. {message[-half:]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in short)
