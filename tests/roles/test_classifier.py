"""The action classifier A."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ContextBlock, Message, Reference
from act_assets.roles.classifier import Classifier
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.role import ClassifierContext, RoleSettings
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError, Usage
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
TURNS = [t for c in (*SAMPLE.train, *SAMPLE.validation) for t in PACIFIC.turn_states(c)]
SETTINGS = RoleSettings("embedded", MODEL, 0.0, 16, 7)


def llm_classifier(provider=None, examples=()) -> Classifier:
    return Classifier(PACIFIC, "llm", LLM(provider or EmbeddedProvider()), SETTINGS, examples)


def text_of(request: LLMRequest) -> str:
    return "\n".join(m.content for m in request.messages)


def test_rule_and_embedded_model_are_right_on_every_gold_response():
    responses, gold = [t.response.text for t in TURNS], [t.action for t in TURNS]
    assert Classifier(PACIFIC, "rule").classify(TURNS, responses) == gold
    assert llm_classifier().classify(TURNS, responses) == gold


def test_the_response_is_judged_and_not_the_turn():
    swapped = ["12 (in millions)" if t.action == "CLARIFY" else "Which year?" for t in TURNS[:20]]
    expected = ["ANSWER" if t.action == "CLARIFY" else "CLARIFY" for t in TURNS[:20]]
    assert Classifier(PACIFIC, "rule").classify(TURNS[:20], swapped) == expected
    assert llm_classifier().classify(TURNS[:20], swapped) == expected


def test_a_rule_uses_no_model():
    done = []
    rule = Classifier(PACIFIC, "rule")
    rule.classify(TURNS[:2], ["a", "b"], lambda: done.append(1))
    assert rule.usage == Usage() and rule.requests(TURNS[:2], ["a", "b"]) == [] and len(done) == 2


@pytest.mark.parametrize("given", [{}, {"llm": LLM(EmbeddedProvider())}, {"settings": SETTINGS}])
def test_a_model_source_needs_model_and_settings(given):
    with pytest.raises(ValueError, match="needs llm and settings"):
        Classifier(PACIFIC, "llm", **given)


@pytest.mark.parametrize("source", ["rule", "llm"])
def test_lists_of_different_lengths_are_refused(source):
    classifier = Classifier(PACIFIC, "rule") if source == "rule" else llm_classifier()
    with pytest.raises(ValueError):
        classifier.classify(TURNS[:2], ["one"])


def test_prompts_hold_page_history_and_response_once_and_no_gold():
    gold = Reference("«gold»", '"«gold»"', "", "span")
    turns, marks = [], []
    for turn in TURNS:
        context = tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(turn.context))
        history = tuple(Message(m.role, f"«utterance {i}»") for i, m in enumerate(turn.history))
        marks.append([*(b.text for b in context), *(m.content for m in history), "«response»"])
        changed = replace(turn, context=context, history=history, response=gold, goal=gold)
        turns.append(replace(changed, clear_request="«gold»", gold_replies=("«gold»",)))
    requests = llm_classifier(examples=SAMPLE.train[:1]).requests(turns, ["«response»"] * len(turns))
    for request, expected in zip(requests, marks, strict=True):
        text = text_of(request)
        assert [m for m in expected if text.count(m) != 1] == []
        assert "«gold»" not in text
        # Nothing in the request's own part tells its label.
        assert text.endswith("Label of the last Assistant utterance:")


def test_examples_show_both_actions_by_their_last_utterance():
    examples = SAMPLE.train[:10]
    (request,) = llm_classifier(examples=examples).requests([TURNS[-1]], ["«response»"])
    lines = request.messages[-1].content.splitlines()
    labels = [i for i, line in enumerate(lines) if line.startswith("Label of the last Assistant utterance: ")]
    assert len(labels) == 10
    for i, conversation in zip(labels, examples, strict=True):
        label = lines[i].split(": ")[1]
        utterance = lines[i - 2].removeprefix("Assistant: ")
        assert (utterance, label) in [(" ".join(t.response.text.split()), t.action) for t in conversation.turns]
    assert {lines[i].split(": ")[1] for i in labels} == {"CLARIFY", "ANSWER"}


def test_a_turn_never_sees_its_own_conversation_as_an_example():
    turn = PACIFIC.turn_states(SAMPLE.train[1])[0]
    (request,) = llm_classifier(examples=SAMPLE.train[:2]).requests([turn], ["«response»"])
    assert SAMPLE.train[0].turns[0].response.text in text_of(request)
    assert text_of(request).count(" ".join(turn.context[0].text.split())) == 1
    assert text_of(request).count("=== Conversation") == 2


def test_a_sampled_response_stays_one_line():
    (request,) = llm_classifier().requests(TURNS[:1], ["Which year?\nUser: 2019\nAssistant: 12"])
    assert "\nAssistant: Which year? User: 2019 Assistant: 12\n" in request.messages[-1].content
    assert request.context == ClassifierContext(TURNS[0], "Which year?\nUser: 2019\nAssistant: 12")
    assert (request.role, request.label) == ("classifier", TURNS[0].where)


def test_labels_are_read_strictly_and_failures_keep_their_place():
    class Script:
        name = "script"

        async def complete(self, request: LLMRequest) -> LLMResponse:
            text = request.context.response
            if text == "fail":
                raise ProviderError("blocked", "filtered", retryable=False)
            return LLMResponse(text, "m")

    texts = ["a clarifying question", "clarify", "fail", "ANSWER or CLARIFY", "Answer."]
    results = llm_classifier(Script()).classify(TURNS[:5], texts)
    assert [results[1], results[4]] == ["CLARIFY", "ANSWER"]
    assert results[2] == LLMFailure("blocked", "filtered", False, TURNS[2].where)
    for i in (0, 3):
        assert isinstance(results[i], LLMFailure)
        assert (results[i].kind, results[i].retryable, results[i].label) == (
            "rejected",
            False,
            TURNS[i].where,
        )
