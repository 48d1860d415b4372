"""The embedded provider's rules for Abg-CoQA, over every turn of the sample."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from act_assets.conversation import Message, Reference, TurnState, Utterance
from act_assets.roles.embedded import answer_by_rule
from act_assets.roles.intent import OPENING
from act_assets.roles.role import GeneratorContext, IntentContext, SimulatorContext
from act_assets.tasks.abg_coqa.rules import AbgCoqaRules, clarified_parts, clear_request
from act_assets.tasks.abg_coqa.task import ABG_COQA

pytestmark = pytest.mark.integration

DATA = ABG_COQA.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "abg_coqa")
CONVERSATIONS = [*DATA.train, *DATA.validation, *DATA.test]
TURNS = [t for c in CONVERSATIONS for t in ABG_COQA.turn_states(c)]
AMBIGUOUS = [t for t in TURNS if t.action == "CLARIFY"]
RULES = AbgCoqaRules()
ASKED = (Utterance("assistant", "Which one do you mean?", "CLARIFY"),)


def plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))


@pytest.fixture(scope="module")
def generated() -> dict[str, list[str]]:
    texts = {a: [RULES.generate(t, a, 7) for t in TURNS] for a in ("CLARIFY", "ANSWER")}
    assert all(all(found) for found in texts.values()), "there is always one"
    return texts  # type: ignore[return-value]


@pytest.mark.parametrize("action", ["CLARIFY", "ANSWER"])
def test_a_response_takes_its_action_and_is_not_the_reference(generated: dict[str, list[str]], action: str):
    for turn, text in zip(TURNS, generated[action], strict=True):
        assert ABG_COQA.judge.rule_action(text) == action
        golds = [t for r in (turn.response, turn.goal) for t in (r.text, *r.alternatives)]
        assert plain(text) not in map(plain, golds), (turn.where, text)
        assert text == " ".join(text.split())


def test_an_answer_neither_holds_a_gold_answer_nor_is_part_of_one(generated: dict[str, list[str]]):
    for turn, text in zip(TURNS, generated["ANSWER"], strict=True):
        mine = set(plain(text).split())
        for gold in (turn.goal.text, *turn.goal.alternatives):
            words = set(plain(gold).split()) - {"a", "an", "the"}
            if words and "?" not in gold:
                assert not words <= mine and not mine - {"a", "an", "the"} <= words, (turn.where, text, gold)


def test_a_question_does_not_tell_the_answer(generated: dict[str, list[str]]):
    for turn, text in zip(TURNS, generated["CLARIFY"], strict=True):
        if turn.action == "ANSWER" and plain(turn.goal.text) not in ("yes", "no"):
            assert f" {plain(turn.goal.text)} " not in f" {plain(text)} ", (turn.where, text)


def test_answers_are_of_the_story_or_yes_or_no(generated: dict[str, list[str]]):
    for turn, text in zip(TURNS, generated["ANSWER"], strict=True):
        story = set(plain(" ".join(b.text for b in turn.context)).split())
        # `the driver` may stand for `a driver`.
        assert set(plain(text).split()) <= story | {"yes", "no", "unknown", "the"}, (turn.where, text)
        assert len(text.split()) <= 10


def test_form_and_length_of_questions_are_those_of_the_annotated_ones(generated: dict[str, list[str]]):
    turns = [c.turns[0] for c in CONVERSATIONS if c.turns[0].action == "CLARIFY"]
    gold = [q for t in turns for q in (t.response.text, *t.response.alternatives)]
    mine = generated["CLARIFY"]

    def share(texts: list[str], pattern: str) -> float:
        return float(np.mean([bool(re.search(pattern, t, re.IGNORECASE)) for t in texts]))

    for pattern in ("^Do you mean", "^Are you asking", " or ", "^[A-Z]", r"\?$"):
        assert share(mine, pattern) == pytest.approx(share(gold, pattern), abs=0.06), pattern
    words = [[len(t.split()) for t in texts] for texts in (mine, gold)]
    assert np.median(words[0]) == pytest.approx(np.median(words[1]), abs=1)
    assert np.mean(words[0]) == pytest.approx(np.mean(words[1]), abs=1.5)


def test_the_seed_draws_and_the_same_seed_repeats():
    some = TURNS[::25]
    for action in ("CLARIFY", "ANSWER"):
        first = [RULES.generate(t, action, 1) for t in some]
        assert first == [RULES.generate(t, action, 1) for t in some]
        changed = sum(a != b for a, b in zip(first, [RULES.generate(t, action, 2) for t in some], strict=True))
        assert changed > len(some) / 3
    assert RULES.generate(TURNS[0], "SING", 1) is None


# The user.


def intent(turn: TurnState) -> str:
    return f"{OPENING} 1. {turn.clear_request}"


def hidden(turn: TurnState) -> TurnState:
    """The turn without what a user must not be played from."""
    nothing = Reference("", "null")
    return replace(turn, goal=nothing, response=nothing, gold_replies=(), clear_request="")


def test_the_intent_of_a_trajectory_is_its_clear_request():
    for conversation in CONVERSATIONS:
        told = dict(ABG_COQA.told(conversation))
        for turn in ABG_COQA.turn_states(conversation):
            assert answer_by_rule(IntentContext(told[turn.intent_id])) == intent(turn)


def test_the_reply_comes_from_the_intent_alone():
    for turn in TURNS:
        assert RULES.reply(turn, intent(turn), ASKED) == RULES.reply(hidden(turn), intent(turn), ASKED)


def test_replies_to_one_request_tell_its_meanings_apart():
    replies: dict[str, list[str]] = {}
    for turn in AMBIGUOUS:
        replies.setdefault(turn.prompt_id, []).append(answer_by_rule(SimulatorContext(turn, intent(turn), ASKED)))
    assert all(len(set(said)) == len(said) for said in replies.values())


def test_a_reply_can_be_understood_without_the_annotated_question():
    for turn in AMBIGUOUS:
        reply = RULES.reply(turn, intent(turn), ASKED)
        assert reply and not re.match(r"(?:yes|no)\b", reply, re.IGNORECASE), reply
        assert reply[-1] in ".?" and reply[0].upper() == reply[0]
        assert reply != turn.clear_request


def reply_of(question: str, reply: str, request: str = "What did she do", said: tuple[str, ...] = ()) -> str | None:
    turn = replace(TURNS[0], history=(*TURNS[0].history[:-1], Message("user", request)))
    spoken = (*ASKED, *(Utterance("user", s, "") for s in said))
    return RULES.reply(turn, f"{OPENING} 1. {clear_request(request, question, reply)}", spoken)


@pytest.mark.parametrize(
    ("question", "reply", "said"),
    [
        ("Do you mean what did they remove first?", "Yes.", "I mean what did they remove first."),
        ("Are you asking where she found Mr. Tree?", "Yes", "I am asking where she found Mr. Tree."),
        ("Do you want to know a name?", "yes", "I want to know a name."),
        ("Are you talking about the first album?", "Yes.", "I am talking about the first album."),
        ('By "she" do you mean Kate?', "Yes", "I mean Kate."),
        ("Are you asking if Tom ever came?", "Yes, did he?", "I am asking if Tom ever came."),
        ("Do you mean Williams?", "No, I mean Young.", "I mean Young."),
        ("Do you mean before the accident?", "No, after the accident", "After the accident."),
        ("Do you mean what part of the week?", "No", "I do not mean what part of the week."),
        ("Do you mean initially, or at the end.", "I mean initially.", "I mean initially."),
        ("What year", "1849", "1849."),
        ("Didn't go where?", "Who didn't go to school?", "Who didn't go to school?"),
    ],
)
def test_replies_as_a_user_would_give_them(question: str, reply: str, said: str):
    assert reply_of(question, reply) == said


def test_what_was_said_is_said_again_with_the_request():
    assert reply_of("Do you mean Kate?", "Yes.", said=("I mean Kate.",)) == "What did she do? I mean Kate."


def test_a_needless_question_is_answered_with_the_request():
    turns = [t for t in TURNS if t.action == "ANSWER"][::20]
    for turn in turns:
        assert RULES.reply(turn, intent(turn), ASKED) == turn.request


def test_a_model_s_summary_works_too():
    turn = replace(TURNS[0], history=(Message("user", "What did she do?"),), open_request=0)
    summary = f"{OPENING} 1. Who owned the kite. 2. What did she do after the storm."
    assert RULES.reply(turn, summary, ASKED) == "After the storm."
    assert RULES.reply(turn, "no list", ASKED) is None


def test_clear_requests_are_taken_apart_again():
    for turn in AMBIGUOUS:
        parts = clarified_parts(turn.clear_request, turn.request)
        assert parts is not None
        question, reply = parts
        assert reply.rstrip(".") == turn.gold_replies[0].rstrip("."), turn.where
        assert question.rstrip(".?") == turn.response.text.rstrip(".?"), turn.where
    assert clarified_parts("Something else", "What?") is None


def test_the_provider_answers_for_the_task():
    turn = AMBIGUOUS[0]
    answer = answer_by_rule(GeneratorContext(turn, "ANSWER", 3))
    assert answer == RULES.generate(turn, "ANSWER", 3)
    assert Counter(answer_by_rule(GeneratorContext(t, "CLARIFY", 3))[-1] for t in TURNS[:20]) == {"?": 20}
