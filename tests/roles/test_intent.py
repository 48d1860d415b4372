"""Intent summaries: what the simulated user is grounded in must not hold answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, ContextBlock, Reference
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.role import IntentContext, RoleSettings
from act_assets.tasks.pacific.task import PACIFIC
from act_assets.tasks.rules import intent_items
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
CONVERSATIONS = (*SAMPLE.train, *SAMPLE.validation)
SETTINGS = RoleSettings("embedded", MODEL, 0.0, 512, 7)


def summarizer(provider=None) -> IntentSummarizer:
    return IntentSummarizer(LLM(provider or EmbeddedProvider()), SETTINGS, PACIFIC)


class Script:
    name = "script"

    def __init__(self, *texts: str) -> None:
        self.texts = iter(texts)

    async def complete(self, request: LLMRequest) -> LLMResponse:
        return LLMResponse(next(self.texts), "m")


def test_embedded_summaries_list_the_settled_requests_in_order():
    for conversation, summary in zip(CONVERSATIONS, summarizer().summarize(CONVERSATIONS), strict=True):
        wanted = [t.clear_request for t in conversation.turns if t.action == ANSWER.name]
        assert summary.startswith("The user wants to know: 1. ")
        assert intent_items(summary) == [" ".join(w.split()) for w in wanted], conversation.conversation_id


def test_embedded_summaries_do_not_depend_on_any_answer():
    """The same conversation with every response replaced has the same summary: none can be in it."""
    blank = Reference("«response»", '"«response»"', "", "span")
    changed = [replace(c, turns=tuple(replace(t, response=blank) for t in c.turns)) for c in CONVERSATIONS]
    summaries = summarizer().summarize(CONVERSATIONS)
    assert summaries == summarizer().summarize(changed)
    for conversation, summary in zip(CONVERSATIONS, summaries, strict=True):
        arithmetic = [t.response.text for t in conversation.turns if t.response.answer_type == "arithmetic"]
        assert not any(text.split(" (in ")[0] in summary for text in arithmetic)
        assert " = " not in summary


def test_prompts_hold_the_page_and_every_utterance_once():
    conversation = CONVERSATIONS[0]
    marked = replace(
        conversation,
        context=tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(conversation.context)),
        turns=tuple(
            replace(
                t,
                user=f"«user {i}»",
                response=Reference(f"«response {i}»", '"x"', "", "span"),
                clear_request="«clear request»",
            )
            for i, t in enumerate(conversation.turns)
        ),
    )
    (request,) = summarizer().requests([marked])
    text = "\n".join(m.content for m in request.messages)
    marks = [b.text for b in marked.context]
    marks += [m for t in marked.turns for m in (t.user, t.response.text)]
    assert [m for m in marks if text.count(m) != 1] == []
    assert "«clear request»" not in text  # a model has to find it out
    assert request.context == IntentContext(marked)
    assert request.label == f"task pacific, conversation {conversation.conversation_id}"
    assert request.role == "intent"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. What it was. 2. Why.", "The user wants to know: 1. What it was. 2. Why."),
        ("The user wants to know: 1. What.\n2. Why.", "The user wants to know: 1. What. 2. Why."),
        ("[Information] The User wants to know:\n1. What.", "The user wants to know: 1. What."),
    ],
)
def test_summaries_are_brought_into_one_form(text, expected):
    assert summarizer(Script(text)).summarize(CONVERSATIONS[:1]) == [expected]


@pytest.mark.parametrize("text", ["I cannot tell.", "The user wants to know: nothing", "2. Why."])
def test_a_text_without_a_numbered_list_is_a_failure(text):
    (result,) = summarizer(Script(text)).summarize(CONVERSATIONS[:1])
    assert isinstance(result, LLMFailure)
    assert (result.kind, result.label) == (
        "rejected",
        f"task pacific, conversation {CONVERSATIONS[0].conversation_id}",
    )
