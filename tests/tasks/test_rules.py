"""The rules that all tasks share: what a simulated user says, by the embedded provider, over the turns of PACIFIC."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import CLARIFY, Message, Reference, TurnState, Utterance
from act_assets.profile import LLMRole
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.simulator import Simulator
from act_assets.tasks.pacific.task import PACIFIC
from act_assets.tasks.rules import intent_items
from resources.llm.base import LLMFailure
from resources.llm.client import LLM

pytestmark = pytest.mark.integration

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
CONVERSATIONS = (*SAMPLE.train, *SAMPLE.validation)
TURNS = [t for c in CONVERSATIONS for t in PACIFIC.turn_states(c)]
SETTINGS = LLMRole(provider="embedded", model=MODEL)
QUESTION = (Utterance("assistant", "Which one are you asking about?", CLARIFY.name),)


def simulator() -> Simulator:
    return Simulator(LLM(EmbeddedProvider()), SETTINGS, PACIFIC)


@pytest.fixture(scope="module")
def intents() -> list[str]:
    summarizer = IntentSummarizer(LLM(EmbeddedProvider()), SETTINGS, PACIFIC)
    by_id = dict(zip((c.conversation_id for c in CONVERSATIONS), summarizer.summarize(CONVERSATIONS), strict=True))
    return [by_id[t.conversation_id] for t in TURNS]


@pytest.fixture(scope="module")
def replies(intents) -> list[str]:
    return simulator().reply(TURNS, intents, [QUESTION] * len(TURNS))


def words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def one(turn: TurnState, intent: str, utterances=QUESTION) -> str:
    (reply,) = simulator().reply([turn], [intent], [utterances])
    assert isinstance(reply, str)
    return reply


def asking(*history: str) -> TurnState:
    """A turn whose history is `history`, the last request being the open one."""
    messages = tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(history))
    return replace(TURNS[0], history=messages, open_request=len(messages) - 1)


def test_replies_hold_no_word_that_the_intent_lacks(intents, replies):
    for turn, intent, reply in zip(TURNS, intents, replies, strict=True):
        assert isinstance(reply, str) and reply, turn.where
        assert words(reply) <= words(intent), (turn.where, reply)


def test_replies_do_not_depend_on_any_reference(intents, replies):
    gold = Reference("«gold»", '"«gold»"', "", "span")
    turns = [replace(t, response=gold, goal=gold, clear_request="«gold»", gold_replies=("«gold»",)) for t in TURNS]
    assert simulator().reply(turns, intents, [QUESTION] * len(turns)) == replies


def test_replies_to_clarifying_turns_come_from_the_right_item_and_complete_it(replies):
    ambiguous = [(t, r) for t, r in zip(TURNS, replies, strict=True) if t.action == CLARIFY.name]
    assert len(ambiguous) == 320
    complete = 0
    for turn, reply in ambiguous:
        assert words(reply) <= words(turn.clear_request), (turn.where, reply)
        missing = words(turn.clear_request) - words(turn.request) - words(reply)
        complete += missing <= {"the", "of", "in", "for", "respective", "a", "an", "and", "at", "is", "was"}
    assert complete >= 310


@pytest.mark.parametrize(
    ("request_text", "item", "expected"),
    [
        ("What is the amount of total sales?", "What is the amount of total sales in 2019?", "In 2019."),
        ("What was the tax rate in 2018?", "What was the effective tax rate in 2018?", "Effective."),
        ("What was the net sales in 2017?", "What was the net sales in APAC in 2017?", "In APAC."),
        ("How much is the free cash flow ?", "How much is the 2019 free cash flow ?", "2019"),
        (
            "What was the gross margin in 2019?",
            "What was the gross margin in the first quarter of 2019?",
            "The first quarter.",
        ),
        ("What was the average yield?", "What was the average yield?", "What was the average yield?"),
        ("How about 2019?", "What was the tax rate in 2019?", "What was the tax rate in 2019?"),
    ],
)
def test_a_reply_says_what_the_item_adds(request_text, item, expected):
    other = "What is a bond?"
    assert one(asking(request_text), f"The user wants to know: 1. {item} 2. {other}") == expected


def test_the_item_is_found_by_words_then_by_place():
    intent = "1. What was the cost of bread in 2017? 2. What was the cost of cake in 2018? 3. What was it in 2019?"
    assert one(asking("What was the cost of cake?"), intent) == "In 2018."
    assert one(asking("What was the cost?"), intent) == "Of bread in 2017."
    later = asking("What was the cost of bread?", "Which year?", "2017", "12", "What was the cost?")
    assert one(later, intent) == "Of cake in 2018."


def test_what_the_user_said_in_the_trajectory_counts():
    intent = "1. What was the cost of bread in 2017?"
    turn = asking("What was the cost?")
    said = (*QUESTION, Utterance("user", "Of bread.", ""), *QUESTION)
    assert one(turn, intent, said) == "In 2017."
    all_said = (*QUESTION, Utterance("user", "Of bread in 2017.", ""), *QUESTION)
    assert one(turn, intent, all_said) == "What was the cost of bread in 2017?"


def test_an_intent_in_the_words_of_a_model_works():
    intent = (
        "The user wants to know: 1. What Walden sells, 2. What the revenue from shops was in 2021, "
        "and 3. What the change in it was."
    )
    assert one(asking("What was the revenue?"), intent) == "From shops in 2021."


def test_an_intent_without_items_is_a_failure():
    (result,) = simulator().reply(TURNS[:1], ["The user wants to know: nothing."], [QUESTION])
    assert isinstance(result, LLMFailure)
    assert (result.kind, result.label) == ("rejected", TURNS[0].where)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The user wants to know: 1. A? 2. B?", ["A?", "B?"]),
        ("1. What A was in 2019, 2. What B was, and 3. Why.", ["What A was in 2019", "What B was", "Why."]),
        ("1. Level 2. 2. Note 13. on p. 4.", ["Level", "2. Note 13. on p. 4."]),
        ("1. A grew by 3. 5 shops. 2. B", ["A grew by 3. 5 shops.", "B"]),
        ("The user wants to know: nothing.", []),
        ("", []),
    ],
)
def test_intent_items(text, expected):
    assert intent_items(text) == expected
