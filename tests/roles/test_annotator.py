"""The action annotator G."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ContextBlock, Message, Reference
from act_assets.roles.annotator import Annotator
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.role import AnnotatorContext, RoleSettings
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError, Usage
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
TURNS = [t for c in (*SAMPLE.train, *SAMPLE.validation) for t in PACIFIC.turn_states(c)]
SETTINGS = RoleSettings("embedded", MODEL, 0.0, 16, 7)


def llm_annotator(provider) -> Annotator:
    return Annotator(PACIFIC, "llm", LLM(provider), SETTINGS)


def test_rule_and_embedded_model_agree_with_gold_on_the_whole_sample():
    gold = Annotator(PACIFIC, "gold").label(TURNS)
    assert gold == [t.action for t in TURNS]
    assert Annotator(PACIFIC, "rule").label(TURNS) == gold
    annotator = llm_annotator(EmbeddedProvider())
    assert annotator.label(TURNS) == gold
    assert annotator.usage.calls == len(TURNS)


def test_gold_and_rule_differ_where_the_text_says_otherwise():
    turn = replace(TURNS[0], response=replace(TURNS[0].response, text="Which year?"))
    assert turn.action == "ANSWER"
    assert Annotator(PACIFIC, "gold").label([turn]) == ["ANSWER"]
    assert Annotator(PACIFIC, "rule").label([turn]) == ["CLARIFY"]


def test_sources_without_a_model_use_none():
    done = []
    annotator = Annotator(PACIFIC, "rule")
    annotator.label(TURNS[:3], lambda: done.append(1))
    assert annotator.usage == Usage() and annotator.requests(TURNS[:3]) == [] and len(done) == 3


@pytest.mark.parametrize("given", [{}, {"llm": LLM(EmbeddedProvider())}, {"settings": SETTINGS}])
def test_a_model_source_needs_model_and_settings(given):
    with pytest.raises(ValueError, match="needs llm and settings"):
        Annotator(PACIFIC, "llm", **given)


def test_prompts_hold_page_history_and_response_once():
    context = tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(TURNS[8].context))
    history = tuple(Message(m.role, f"«utterance {i}»") for i, m in enumerate(TURNS[8].history))
    turn = replace(
        TURNS[8],
        context=context,
        history=history,
        response=Reference("«response»", '"x"', "", "span"),
        goal=Reference("«goal»", '"x"', "", "span"),
        clear_request="«goal»",
        gold_replies=("«goal»",),
    )
    (request,) = llm_annotator(EmbeddedProvider()).requests([turn])
    text = "\n".join(m.content for m in request.messages)
    marks = [*(b.text for b in context), *(m.content for m in history), "«response»"]
    assert [m for m in marks if text.count(m) != 1] == []
    assert "«goal»" not in text
    assert all(name in text for name in PACIFIC.action_names)
    assert request.context == AnnotatorContext(turn)
    assert (request.role, request.label) == ("annotator", turn.where)
    assert request.sampling.seed is None, "greedy decoding draws nothing, so runs of several seeds share answers"


def test_labels_are_read_strictly_and_failures_keep_their_place():
    texts = {0: "CLARIFY", 1: "It is a question.", 2: "ANSWER", 3: "CLARIFY or ANSWER"}

    class Script:
        name = "script"

        async def complete(self, request: LLMRequest) -> LLMResponse:
            number = [t.where for t in TURNS].index(request.label)
            if number not in texts:
                raise ProviderError("blocked", "filtered", retryable=False)
            return LLMResponse(texts[number], "m")

    results = llm_annotator(Script()).label(TURNS[:5])
    assert [results[0], results[2]] == ["CLARIFY", "ANSWER"]
    for i, kind in ((1, "rejected"), (3, "rejected"), (4, "blocked")):
        assert isinstance(results[i], LLMFailure)
        assert (results[i].kind, results[i].label) == (kind, TURNS[i].where)
    assert "It is a question." in results[1].message
