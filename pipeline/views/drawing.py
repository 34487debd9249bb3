"""Where figures are drawn: by matplotlib's own defaults, whatever the user's files and environment say of it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from pipeline.errors import RunError, one_line

_USUAL = "sans-serif"


@contextmanager
def own_style() -> Iterator[None]:
    """Draw figures inside the block, and import what draws them there; RunError where matplotlib does not start."""
    # It tells of temporary folders for its fonts, which nobody can do anything about in the midst of a run.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import matplotlib
        except Exception as error:  # whatever a settings file of the user's made it raise
            raise RunError(f"matplotlib does not start ({one_line(error)}): look at its file matplotlibrc") from error
        with matplotlib.rc_context():
            matplotlib.rcdefaults()
            # A name may hold dollar signs, which are no mathematics.
            matplotlib.rcParams["text.parse_math"] = False
            yield


def try_to_draw(draw: Callable[[], object], *files: Path) -> None:
    """Draw figures that no result depends on; where that fails, one line says why, and none of the files is left."""
    try:
        with own_style():
            draw()
    except Exception as error:  # matplotlib raises whatever fonts, letters and numbers make it raise
        for file in files:
            file.unlink(missing_ok=True)
        names = " and ".join(map(str, files))
        print(f"not drawn: {names} ({type(error).__name__}: {one_line(error)})", file=sys.stderr)


def drawable(name: str) -> str:
    r"""The name with letters that no font has as \u...; inside `own_style` only, since it adds fonts for the others."""
    import matplotlib

    letters = []
    for letter in name:
        family = _family_with(letter)
        families = matplotlib.rcParams["font.family"]
        if family is not None and family not in families:
            matplotlib.rcParams["font.family"] = [*families, family]
        letters.append(letter if family is not None else letter.encode("unicode_escape").decode("ascii"))
    return "".join(letters)


@cache
def _family_with(letter: str) -> str | None:
    """A family of fonts that has the letter, first the one that all figures use; None where matplotlib knows none."""
    from matplotlib import get_data_path
    from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font

    if not letter.isprintable():
        return None
    plain = findfont(FontProperties(family=[_USUAL]))
    if get_font(plain).get_char_index(ord(letter)):
        return _USUAL
    for font in fontManager.ttflist:
        # The others that come with matplotlib are for mathematics, or have a box for every letter.
        if Path(font.fname).is_relative_to(get_data_path()):
            continue
        try:
            if get_font(font.fname).get_char_index(ord(letter)):
                return str(font.name)
        except (OSError, RuntimeError):  # deleted since matplotlib listed it, or damaged
            continue
    return None
