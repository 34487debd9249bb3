"""Settings as lines of TOML, and lists by commas."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.setting import as_toml, split

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.dictionaries(st.sampled_from(["root", "image-size", "stages"]), TEXT | st.integers(0, 2**40) | st.lists(TEXT))
)
def test_what_is_written_is_read_back(values: dict[str, object]) -> None:
    assert tomllib.loads(as_toml(values)) == values


def test_none_is_left_out_and_what_is_no_text_becomes_a_comment() -> None:
    text = as_toml({"root": "s\udcff", "weights": None, "seed": 3})
    assert tomllib.loads(text) == {"seed": 3} and "# root" in text


@given(st.lists(st.sampled_from(["a", "b,c", " d", "e"]), max_size=5))
def test_known_names_are_neither_split_nor_stripped(names: list[str]) -> None:
    assert split(names, ["a", "b,c", " d", "e"]) == tuple(dict.fromkeys(names))


def test_other_values_are_split_and_values_without_a_name_are_refused() -> None:
    assert split(["a, b", "b", "c,"]) == ("a", "b", "c") and split([]) == ()
    for empty in ([""], [","], [" , ", ""]):
        with pytest.raises(UserError, match="names nothing"):
            split(empty)
