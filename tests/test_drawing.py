import matplotlib
import pytest
from matplotlib.figure import Figure

from pipeline.views.drawing import drawable, own_style


def test_names_are_plain_text_and_letters_without_a_font_are_escaped() -> None:
    with own_style():
        assert drawable("ä $x_1$ Ω") == "ä $x_1$ Ω"
        assert drawable("a\nb\x00\ud800") == "a\\nb\\x00\\ud800"
        assert drawable("\U000e0fff") == "\\U000e0fff"  # no font has it
        figure = Figure()
        assert not figure.text(0, 0, "$x").get_parse_math()


def test_the_style_is_matplotlibs_own_and_the_callers_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(matplotlib.rcParams, "text.usetex", True)
    with own_style():
        assert not matplotlib.rcParams["text.usetex"]
    assert matplotlib.rcParams["text.usetex"]
