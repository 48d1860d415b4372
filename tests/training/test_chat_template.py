"""Conversations as tokens: one tokenisation for SFT, rollouts and scoring, for several chat templates."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from act_assets.conversation import Message
from act_assets.training.chat_template import ChatFormat
from resources.errors import TrainingError

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DIALOGUE = [
    Message("system", "Table: 2019 : 5"),
    Message("user", "What is the amount?"),
    Message("assistant", "Which year are you asking about?"),
    Message("user", "2019"),
    Message("assistant", "5 (in millions)"),
]


@pytest.fixture(params=["ours", "zephyr", "no system role"])
def chat(request: pytest.FixtureRequest, tiny_tokenizer: Any) -> ChatFormat:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if request.param != "ours":
        tokenizer.chat_template = {"zephyr": ZEPHYR, "no system role": NO_SYSTEM}[request.param]
    return ChatFormat(tokenizer)


def test_prompt_response_and_reply_concatenate_to_the_template(chat: ChatFormat) -> None:
    """What is sampled and trained on is exactly what the template makes of the whole conversation."""
    pieces = [
        *chat.prompt_ids(DIALOGUE[:2]),
        *chat.response_ids(DIALOGUE[2].content),
        *chat.reply_ids(DIALOGUE[3].content),
        *chat.response_ids(DIALOGUE[4].content),
    ]
    whole = chat.tokenizer.decode(chat.prompt_ids(DIALOGUE[:4]))
    assert chat.tokenizer.decode(pieces).startswith(whole)
    assert chat.tokenizer.decode(pieces) == whole + "5 (in millions)" + chat.tokenizer.decode([chat.end_id])


def test_a_response_ends_with_the_end_of_turn_and_decodes_to_itself(chat: ChatFormat) -> None:
    ids = chat.response_ids("$(39,145) | $49,361")
    assert ids[-1] == chat.end_id
    assert ids.count(chat.end_id) == 1
    assert chat.text(ids) == "$(39,145) | $49,361"
    assert chat.text([*ids, *chat.response_ids("never read")]) == "$(39,145) | $49,361"


def test_a_reply_may_hold_the_placeholder_letters(chat: ChatFormat) -> None:
    assert "XYZ Z Y" in chat.tokenizer.decode(chat.reply_ids("XYZ Z Y"))


def test_a_tokenizer_without_template_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(TrainingError, match="no chat template"):
        ChatFormat(tokenizer)


def test_a_template_that_rewrites_answered_prompts_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{{ messages|length }}" + tokenizer.chat_template
    with pytest.raises(TrainingError, match="renders a prompt differently"):
        ChatFormat(tokenizer)
