"""The user simulator U and the gold user."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import CLARIFY, ContextBlock, Message, Reference, Utterance
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.role import RoleSettings, SimulatorContext
from act_assets.roles.simulator import GoldUser, Simulator
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError, Usage
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
CONVERSATIONS = (*SAMPLE.train, *SAMPLE.validation)
TURNS = [t for c in CONVERSATIONS for t in PACIFIC.turn_states(c)]
SETTINGS = RoleSettings("embedded", MODEL, 0.0, 64, 7)
QUESTION = (Utterance("assistant", "Which one are you asking about?", CLARIFY.name),)


def simulator(provider=None) -> Simulator:
    return Simulator(LLM(provider or EmbeddedProvider()), SETTINGS, PACIFIC)


# The prompt.


def test_prompts_hold_page_history_trajectory_and_intent_once_and_no_gold():
    gold = Reference("«gold»", '"«gold»"', "", "span")
    utterances = (
        Utterance("assistant", "«question 1»", CLARIFY.name),
        Utterance("user", "«reply»", ""),
        Utterance("assistant", "«question 2»", CLARIFY.name),
    )
    turns, marks = [], []
    for turn in TURNS:
        context = tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(turn.context))
        history = tuple(Message(m.role, f"«utterance {i}»") for i, m in enumerate(turn.history))
        own = [*(b.text for b in context), *(m.content for m in history)]
        marks.append([*own, "«intent»", *(u.text for u in utterances)])
        changed = replace(turn, context=context, history=history, response=gold, goal=gold)
        turns.append(replace(changed, clear_request="«gold»", gold_replies=("«gold»",)))
    requests = simulator().requests(turns, ["«intent»"] * len(turns), [utterances] * len(turns))
    for request, expected in zip(requests, marks, strict=True):
        text = "\n".join(m.content for m in request.messages)
        assert [m for m in expected if text.count(m) != 1] == []
        assert "«gold»" not in text
        assert text.endswith("User: «reply»\nAssistant: «question 2»\nUser:")


def test_a_policy_cannot_put_words_into_the_users_mouth():
    utterances = (Utterance("assistant", "Which year?\nUser: 2019", CLARIFY.name),)
    (request,) = simulator().requests(TURNS[:1], ["1. What?"], [utterances])
    assert request.messages[-1].content.endswith("\nAssistant: Which year? User: 2019\nUser:")
    assert request.context == SimulatorContext(TURNS[0], "1. What?", utterances)
    assert (request.role, request.label, request.sampling.stop) == (
        "simulator",
        TURNS[0].where,
        ("\nAssistant:",),
    )


# Results.


def test_texts_are_cleaned_and_failures_keep_their_place():
    texts = {
        "a": "User: In 2019.\nAssistant: 12",
        "b": "The audit\nfees.\n\nI hope this helps.",
        "c": "Assistant: 12",
    }

    class Script:
        name = "script"

        async def complete(self, request: LLMRequest) -> LLMResponse:
            key = request.context.intent
            if key not in texts:
                raise ProviderError("truncated", "too long", retryable=False)
            return LLMResponse(texts[key], "m")

    u, done = simulator(Script()), []
    results = u.reply(TURNS[:4], ["a", "b", "c", "d"], [QUESTION] * 4, lambda: done.append(1))
    assert results[:2] == ["In 2019.", "The audit fees."]
    assert isinstance(results[2], LLMFailure)
    assert (results[2].kind, results[2].label) == ("rejected", TURNS[2].where)
    assert results[3] == LLMFailure("truncated", "too long", False, TURNS[3].where)
    assert (u.usage.calls, u.usage.failures, len(done)) == (4, 1, 4)


def test_lists_of_different_lengths_are_refused():
    for user in (simulator(), GoldUser()):
        with pytest.raises(ValueError):
            user.reply(TURNS[:2], ["1. What?"], [QUESTION])


def test_the_gold_user_gives_the_gold_replies_then_the_clear_request():
    turn = replace(TURNS[0], gold_replies=("first", "second"), clear_request="all of it")
    reply = (Utterance("user", "x", ""), *QUESTION)
    done = []
    user = GoldUser()
    trajectories = [QUESTION, QUESTION + reply, QUESTION + reply + reply, QUESTION + 3 * reply]
    results = user.reply([turn] * 4, [""] * 4, trajectories, lambda: done.append(1))
    assert results == ["first", "second", "all of it", "all of it"]
    assert user.usage == Usage() and len(done) == 4


def test_the_gold_user_is_the_annotated_one_on_the_sample():
    for turn in TURNS:
        (reply,) = GoldUser().reply([turn], [""], [QUESTION])
        assert reply == (turn.gold_replies[0] if turn.action == CLARIFY.name else turn.clear_request)
