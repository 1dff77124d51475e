r"""Texts that UTF-8 or a database refuses get escapes; all others stay as they are."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefect_batchflow.results.texts import encodable, encodable_value


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("", ""),
        ("plain ASCII\nand\ttabs", "plain ASCII\nand\ttabs"),
        ("schön 漢字 🙂", "schön 漢字 🙂"),
        ("x\ud800y", r"x\ud800y"),
        ("x\udfff", r"x\udfff"),
        ("caf\udce9", r"caf\xe9"),
        ("nul\0", r"nul\x00"),
        ("\udc7f\udd00", r"\udc7f\udd00"),
        (os.fsdecode(b"caf\xe9/\xff.jsonl"), r"caf\xe9/\xff.jsonl"),
    ],
)
def test_what_becomes_of_a_text(text: str, made: str) -> None:
    assert encodable(text) == made


@given(st.text(st.characters(codec=None, exclude_categories=())))
def test_every_text_can_be_encoded_afterwards_and_a_good_one_is_unchanged(text: str) -> None:
    made = encodable(text)
    assert "\0" not in made
    assert made.encode().decode() == made
    assert encodable(made) == made
    is_good = "\0" not in text and not any(0xD800 <= ord(character) <= 0xDFFF for character in text)
    assert (made == text) is is_good


def test_values_are_cleaned_at_any_depth_and_else_are_the_same_object() -> None:
    good = {"a": [1, 2.5, None, True, {"b": "ü"}]}
    assert encodable_value(good) is good
    assert encodable_value({"k\ud800": ["\0", ("a\udce9", 1)]}) == {r"k\ud800": [r"\x00", [r"a\xe9", 1]]}
