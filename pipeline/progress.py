"""Progress of a long command: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0

Advance = Callable[[int], None]

_SHOWN = ContextVar("_SHOWN", default=True)


@contextmanager
def hide_progress() -> Iterator[None]:
    """Show no progress inside the block, because the caller shows its own."""
    token = _SHOWN.set(False)
    try:
        yield
    finally:
        _SHOWN.reset(token)


@contextmanager
def progress(label: str, total: int, unit: str) -> Iterator[Advance]:
    """Show done/total, units per second and the time left on standard error; yields a function that adds to done."""
    if not _SHOWN.get():
        yield lambda _: None
        return
    console = Console(stderr=True)
    # isatty too: FORCE_COLOR and TTY_COMPATIBLE make Rich take a file for a terminal, and the bar would fill a log.
    moving = sys.stderr.isatty() and console.is_interactive
    with _bar(console, label, total, unit) if moving else _lines(label, total, unit) as advance:
        yield advance


@contextmanager
def _bar(console: Console, label: str, total: int, unit: str) -> Iterator[Advance]:
    start = time.monotonic()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as bars:
        task = bars.add_task(label, total=total, rate="")
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - start, 1e-9)
            bars.update(task, advance=count, rate=f"{_rate(rate)} {unit}/s")

        yield advance


@contextmanager
def _lines(label: str, total: int, unit: str) -> Iterator[Advance]:
    start = last = time.monotonic()
    done = 0

    def advance(count: int) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if done >= total or now - last >= _SECONDS_BETWEEN_LINES:
            last = now
            rate = done / max(now - start, 1e-9)
            left = (total - done) / max(rate, 1e-9)
            line = f"{label}: {done}/{total} {unit}, {_rate(rate)} {unit}/s, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    yield advance


def _rate(value: float) -> str:
    return f"{value:.1f}" if value >= 1 else f"{value:.2g}"
