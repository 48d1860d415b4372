"""Thoughts are told apart from the answer, whatever a model calls them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resources.llm.thoughts import UnfinishedThought, split_thoughts


@pytest.mark.parametrize(
    ("text", "thoughts", "answer"),
    [
        ("Which year?", "", "Which year?"),
        ("<think>He wants 2019.</think>\n\nWhich year?", "He wants 2019.", "Which year?"),
        ("\n<THINK>\na\nb\n</THINK>c", "a\nb", "c"),
        ("[THINK]a[/THINK]b", "a", "b"),
        ("<thinking>a</thinking><think>b</think> c", "a\n\nb", "c"),
        ("He wants 2019.</think>\nWhich year?", "He wants 2019.", "Which year?"),  # the template has opened it
        ("<think></think>\n\nWhich year?", "", "Which year?"),
        ("<think>only this</think>", "only this", ""),
        ("What does <think> mean?", "", "What does <think> mean?"),
        ("It is between <think> and </think>.", "", "It is between <think> and </think>."),
    ],
)
def test_thoughts_and_answer(text: str, thoughts: str, answer: str) -> None:
    assert split_thoughts(text) == (thoughts, answer)


@pytest.mark.parametrize("text", ["<think>on and on", "<think>a</think> <think>b", "[THINK]"])
def test_a_thought_that_never_ends(text: str) -> None:
    with pytest.raises(UnfinishedThought):
        split_thoughts(text)


@given(st.text(alphabet="ab\n <>/think", max_size=40), st.text(alphabet="ab ?", min_size=1, max_size=10))
def test_no_thought_is_in_the_answer(inside: str, answer: str) -> None:
    thought = inside.replace("<think>", "").replace("</think>", "")
    assert split_thoughts(f"<think>{thought}</think>{answer}")[1] == answer.lstrip()
