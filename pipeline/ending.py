"""How a command ends at Ctrl-C, SIGTERM or a closed terminal: within seconds, and with one line on what was kept."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import parent_process
from types import FrameType, TracebackType
from typing import NoReturn

# Windows has no SIGHUP.
_SIGNALS = frozenset(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# What the work may take to put its files in order; the process ends without it after that.
_GRACE = 2.0
# The same for a block that must not be broken off.
_MOST = 4.0
# One Ctrl-C can arrive twice, for example by `timeout`, which signals a process and then its group.
_SAME = 0.2


class Stopped(BaseException):
    """A signal ended the command; no KeyboardInterrupt, because libraries catch that one and print lines of theirs."""


@dataclass
class _State:
    """The signal that ends this process, whether `Stopped` was raised for it, and what its command keeps.

    unbroken: blocks that no signal breaks off. ending: held by the thread that ends the process.
    """

    number: int = 0
    raised: bool = False
    kept: str = "Stopped: nothing was changed."
    unbroken: int = 0
    ending: threading.Lock = field(default_factory=threading.Lock)


_STATE = _State()


def end_at_signals() -> None:
    """Let signals end this process from now on; only in the process of a command, and in its main thread.

    A signal raises `Stopped` there. A thread ends the process where that leads to no end in time, such as in a
    library's long computation, or at a second signal. Signals that the caller ignores, as `nohup` does, stay ignored.
    """
    if parent_process() is not None:
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)
    threading.Thread(target=_watch, args=(reader,), name="ending", daemon=True).start()


def keeps(what: str) -> None:
    """Have this sentence said where a signal ends the process from now on."""
    _STATE.kept = what


def end_if_stopped() -> None:
    """End the process now if a signal has come, whatever exception it led to."""
    if _STATE.number:
        _end()


@contextmanager
def unbroken() -> Iterator[None]:
    """A short block that a first signal does not break off; it does so right after it."""
    _STATE.unbroken += 1
    try:
        yield
    finally:
        _STATE.unbroken -= 1
    if _STATE.number and not _STATE.unbroken and threading.current_thread() is threading.main_thread():
        _raise()


def _interrupt(number: int, frame: FrameType | None) -> None:
    _STATE.number = _STATE.number or number
    if not _STATE.unbroken and not _STATE.raised:
        if _imports(frame):
            _end()
        _raise()


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported; an exception in there makes the compiled part of some, torch's, abort."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _raise() -> NoReturn:
    _STATE.raised = True
    # What libraries say of work that is broken off is of no use to the user.
    logging.disable(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    threading.excepthook = lambda _: None
    sys.excepthook = _end_at_exception
    raise Stopped


def _end_at_exception(_kind: type[BaseException], _error: BaseException, _trace: TracebackType | None) -> None:
    _end()


def _watch(reader: int) -> None:
    """Wait for a signal, then for the process to end, and end it."""
    _STATE.number = _next_signal(reader, None)
    first = time.monotonic()
    while (left := first + _GRACE - time.monotonic()) > 0:
        if _next_signal(reader, left) and time.monotonic() - first > _SAME:
            break
    while _STATE.unbroken and time.monotonic() - first < _MOST:
        time.sleep(0.01)
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    _end()


def _next_signal(reader: int, seconds: float | None) -> int:
    """The number of the next signal of ours, or 0 where none comes in time."""
    while select.select([reader], [], [], seconds)[0]:
        number = os.read(reader, 1)[0]
        if number in _SIGNALS:
            return number
    return 0


def _end() -> NoReturn:
    """Say the line and end, without waiting for threads that compute, as Python would; workers end with the process."""
    if not _STATE.ending.acquire(blocking=False):
        while True:  # the other thread ends the process
            time.sleep(1)
    with suppress(OSError):
        os.write(2, f"{_STATE.kept}\n".encode())
    if threading.current_thread() is threading.main_thread():
        with suppress(OSError, ValueError):  # a pipe that nobody reads any more
            sys.stdout.flush()
    os._exit(128 + _STATE.number)
