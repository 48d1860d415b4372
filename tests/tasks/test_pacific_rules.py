"""The embedded generator's rules for PACIFIC, over every turn of the sample."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, Message, Reference, TurnState
from act_assets.profile import LLMRole
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.tasks.pacific.answer import SCALE_NOTES, parse
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.client import LLM

pytestmark = pytest.mark.integration

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
TURNS = [t for c in (*SAMPLE.train, *SAMPLE.validation) for t in PACIFIC.turn_states(c)]
SETTINGS = LLMRole(provider="embedded", model=MODEL, temperature=0.7)


def other_action(turn: TurnState) -> str:
    return ANSWER.name if turn.action == CLARIFY.name else CLARIFY.name


def generate(turns, actions, seed=0) -> list[str]:
    results = Generator(LLM(EmbeddedProvider()), SETTINGS, PACIFIC, ()).generate(turns, actions, [seed] * len(turns))
    assert all(isinstance(r, str) for r in results)
    return results


@pytest.fixture(scope="module")
def losing() -> list[str]:
    """A response to every turn under the action that it does not take (Algorithm 1)."""
    return generate(TURNS, [other_action(t) for t in TURNS])


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return generate(TURNS, [CLARIFY.name] * len(TURNS))


@pytest.fixture(scope="module")
def answers() -> list[str]:
    return generate(TURNS, [ANSWER.name] * len(TURNS))


def test_every_losing_response_takes_its_action_and_is_not_gold(losing):
    assert len(losing) == 1982
    for turn, text in zip(TURNS, losing, strict=True):
        assert PACIFIC.judge.rule_action(text) == other_action(turn), turn.where
        assert text not in (turn.response.text, turn.goal.text), turn.where


def test_the_right_action_gives_no_reference_either(questions, answers):
    for turn, question, answer in zip(TURNS, questions, answers, strict=True):
        assert "?" in question and "?" not in answer
        assert turn.response.text not in (question, answer) and turn.goal.text != answer, turn.where


@pytest.mark.parametrize("seed", [1, 2])
def test_that_holds_for_other_seeds(seed):
    for turn, text in zip(TURNS[::5], generate(TURNS[::5], [other_action(t) for t in TURNS[::5]], seed), strict=True):
        assert PACIFIC.judge.rule_action(text) == other_action(turn)
        assert text not in (turn.response.text, turn.goal.text)


def test_the_same_request_gives_the_same_text_and_seeds_vary_it(losing):
    actions = [other_action(t) for t in TURNS]
    assert generate(TURNS, actions) == losing
    assert sum(a != b for a, b in zip(generate(TURNS, actions, 1), losing, strict=True)) > 600


def test_references_are_read_only_to_avoid_them(losing):
    """With other references the text is the same, unless it would repeat the real ones."""
    blank = Reference("«gold»", '"«gold»"', "", "span")
    turns = [replace(t, response=blank, goal=blank) for t in TURNS]
    blind = generate(turns, [other_action(t) for t in TURNS])
    changed = 0
    for turn, text, seeing in zip(TURNS, blind, losing, strict=True):
        if text != seeing:
            changed += 1
            assert parse(text).answer in (parse(turn.response.text).answer, parse(turn.goal.text).answer)
    assert 0 < changed < 200


def test_questions_have_the_form_and_the_mix_of_the_annotated_ones(questions):
    gold = [t.response.text for t in TURNS if t.action == CLARIFY.name]
    made = [q for t, q in zip(TURNS, questions, strict=True) if t.action == ANSWER.name]
    form = re.compile(r"[A-Z0-9].* are you asking about\?")
    assert all(form.fullmatch(q) for q in gold)
    assert all(form.fullmatch(q) and "  " not in q for q in made)

    def share(texts, start):
        return sum(t.startswith(start) for t in texts) / len(texts)

    for start in ("What kind of", "Which year", "Which period"):
        assert abs(share(made, start) - share(gold, start)) < 0.15, start
    assert len(set(made)) > 400
    words = [sum(len(t.split()) for t in texts) / len(texts) for texts in (made, gold)]
    assert abs(words[0] - words[1]) < 1


def test_answers_have_the_form_of_the_annotated_ones(answers):
    notes = tuple(note for note in SCALE_NOTES.values() if note)
    made = [a for t, a in zip(TURNS, answers, strict=True) if t.action == CLARIFY.name]
    gold = [t.goal.text for t in TURNS if t.action == CLARIFY.name]
    for texts in (made, gold):
        assert 0.3 < sum(" = " in a for a in texts) / len(texts) < 0.55
        assert 0.04 < sum(" | " in a for a in texts) / len(texts) < 0.2
        assert 0.55 < sum(a.endswith(notes) for a in texts) / len(texts) < 0.85


def test_arithmetic_is_right(answers):
    checked = 0
    for text in answers:
        if " = " not in text:
            continue
        parsed = parse(text)
        assert isinstance(parsed.answer, int | float), text
        left = text.split(" = ")[0].replace(",", "")
        assert re.fullmatch(r"[\d.()+\-/ ]+", left), text
        value = eval(left)  # digits and operators only
        # A share is given in percent; a difference or an average of percentages is in percent already.
        is_share = "/" in left and not re.search(r"\+.*\) ?/ ?2$", left)
        shown = value * 100 if is_share and parsed.scale == "percent" else value
        assert abs(parsed.answer - shown) <= 0.005 + 1e-9, text
        checked += 1
    assert checked > 300


def test_figures_come_from_the_page(answers):
    for turn, text in zip(TURNS, answers, strict=True):
        page = " ".join(" ".join(b.text.split()) for b in turn.context)
        written = text.split(" = ")[0] if " = " in text else text
        assert [n for n in re.findall(r"\d[\d,.]*\d", written) if n not in page] == [], (turn.where, text)


def test_a_page_without_a_table_still_gets_both_actions():
    turn = replace(
        TURNS[0],
        context=(ContextBlock("story", "The fox left the den before dawn and came back wet."),),
        history=(Message("user", "When did it leave?"),),
        open_request=0,
    )
    question, answer = generate([turn, turn], [CLARIFY.name, ANSWER.name])
    assert question.endswith("are you asking about?")
    assert answer and "?" not in answer


def test_codes_in_a_table_are_no_figures():
    rows = (f"Change in code : {'9' * 40} | 12 | 9", "Cost : 0.00001 | 0 | 3")
    turn = replace(
        TURNS[0],
        context=tuple(ContextBlock("table", row) for row in rows),
        history=(Message("user", "What was the percentage change in code?"),),
        open_request=0,
    )
    (answer,) = generate([turn], [ANSWER.name])
    assert answer in ("(12-9)/9 = 33.33 (in percent)", "(12 - 9) / 9 = 33.33 (in percent)")
