"""The reader and the judge of Abg-CoQA, over all 1,092 items of the sample."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from act_assets.conversation import Conversation, TurnState
from act_assets.tasks import get_task
from act_assets.tasks.abg_coqa.rules import clarified_parts
from act_assets.tasks.abg_coqa.task import INSTRUCTION, sentences
from act_assets.tasks.base import Task, TaskData, Tools, messages_of
from resources.embedder import default_embedder
from resources.errors import ActError

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[2] / "datasets" / "sample" / "abg_coqa"
SIDES = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task() -> Task:
    return get_task("abg_coqa")


@pytest.fixture(scope="module")
def data(task: Task) -> TaskData:
    return task.reader.read(SAMPLE)


@pytest.fixture(scope="module")
def conversations(data: TaskData) -> dict[str, Conversation]:
    return {c.conversation_id: c for side in SIDES for c in getattr(data, side)}


@pytest.fixture(scope="module")
def turns(task: Task, conversations: dict[str, Conversation]) -> list[TurnState]:
    return [t for c in conversations.values() for t in task.turn_states(c)]


@pytest.fixture(scope="module")
def items() -> list[dict[str, Any]]:
    """The items as they lie, side by side in order."""
    return [
        item
        for name in ("train", "val", "test")
        for item in json.loads(gzip.decompress((SAMPLE / f"coqa_abg_{name}.json.gz").read_bytes()))["data"]
    ]


@pytest.mark.parametrize(
    ("side", "number", "ambiguous", "readings"),
    [("train", 742, 85, 173), ("validation", 150, 23, 45), ("test", 200, 22, 48)],
)
def test_the_sides_hold_the_items_of_the_files(
    task: Task, data: TaskData, side: str, number: int, ambiguous: int, readings: int
):
    turns = [c.turns[0] for c in getattr(data, side)]
    assert Counter(t.action for t in turns) == {"CLARIFY": ambiguous, "ANSWER": number - ambiguous}
    assert sum(len(t.readings) for t in turns) == readings
    assert all(bool(t.readings) == (t.action == "CLARIFY") for t in turns)
    assert all(len(c.turns) == 1 for c in getattr(data, side))


def test_an_ambiguous_item_is_read_with_every_answer(conversations: dict[str, Conversation]):
    conversation = conversations["3pxx5px6lxyuqm3uo2o1yddekb4ab3|9|2"]
    (turn,) = conversation.turns
    assert [m.role for m in conversation.history] == ["user", "assistant"] * 2
    assert (turn.user, turn.action) == ("What did they remove?", "CLARIFY")
    assert turn.response.text == "Do you mean what did they remove before heading for the path?"
    assert turn.response.alternatives == ("Do you mean the ropes from their arms?",)
    assert turn.response.answer_type == "question"
    first, second = turn.readings
    assert first.reply == "Yes."
    assert first.clear_request == (
        "What did they remove? Do you mean what did they remove before heading for the path? Yes."
    )
    assert (first.goal.text, first.goal.alternatives) == ("Rope.", ("the dense brush- wood", "ropes"))
    assert (second.goal.text, second.goal.alternatives) == ("The dense brush-wood.", ("Unknown", "dense brush- wood"))
    assert first.goal.answer == "Rope."


def test_an_item_that_is_not_ambiguous_is_answered(conversations: dict[str, Conversation]):
    (turn,) = conversations["369j354ofdapu1z2ebz3jj2p5ajg6o|7|2"].turns
    assert (turn.user, turn.clear_request) == (turn.clear_request, "did the driver try to pick more people up?")
    assert (turn.response.text, turn.response.answer_type, turn.action) == ("yes", "yes/no", "ANSWER")
    assert turn.readings == ()


def test_the_history_is_that_of_the_item(conversations: dict[str, Conversation], items: list[dict[str, Any]]):
    for item in items:
        history = conversations[item["id"]].history
        said = [" ".join(t[key].split()) for t in item["history_turns"] for key in ("question", "answer")]
        assert [m.content for m in history] == said
        assert [m.role for m in history] == ["user", "assistant"] * len(item["history_turns"])


def test_no_clarification_turn_stands_in_a_prompt(
    task: Task, conversations: dict[str, Conversation], items: list[dict[str, Any]]
):
    """Appendix D: clarification turns are removed. What remains is the story, the turns before, and the question."""
    for item in items:
        conversation = conversations[item["id"]]
        for state in task.turn_states(conversation):
            system, *said = messages_of(task, state)
            story = system.content.removeprefix(f"{INSTRUCTION}\n[context]\n")
            assert story.split() == item["story"].split()
            assert len(said) == 2 * len(item["history_turns"]) + 1
            assert said[-1].content == " ".join(item["target_turn"]["question"].split())
            for clarification in (item["clarification_turn"], item.get("clarification_turn_2")):
                if clarification:
                    assert clarification["question"] not in [m.content for m in said]


def test_every_reading_is_a_turn_state_of_one_prompt(
    task: Task, conversations: dict[str, Conversation], items: list[dict[str, Any]]
):
    for item in items:
        states = task.turn_states(conversations[item["id"]])
        assert {s.prompt_id for s in states} == {item["id"]}
        assert len({s.history for s in states}) == len({s.response for s in states}) == 1
        if not item["clarification_turn"]:
            assert [s.turn_id for s in states] == [item["id"]]
            assert states[0].goal == states[0].response
            continue
        answers = item["clarification_turn"]["answers"]
        assert [s.turn_id for s in states] == [f"{item['id']}#{k}" for k in range(1, len(answers) + 1)]
        assert [s.intent_id for s in states] == [s.turn_id for s in states]
        for state, answer in zip(states, answers, strict=True):
            golds = [answer["org_ans"], *(answer[k] for k in ("org_ans_2", "org_ans_3"))]
            assert state.goal.answer == answer["org_ans"]
            assert {state.goal.text, *state.goal.alternatives} == {" ".join(g.split()) for g in golds}
            assert state.gold_replies == (" ".join(answer["clr_ans"].split()),)
            assert clarified_parts(state.clear_request, state.request) is not None


def test_every_user_is_told_one_trajectory(task: Task, conversations: dict[str, Conversation]):
    for conversation in conversations.values():
        states = task.turn_states(conversation)
        told = dict(task.told(conversation))
        assert list(told) == [s.intent_id for s in states]
        for state in states:
            ending = told[state.intent_id].turns[-1]
            assert (ending.clear_request, ending.response, ending.action) == (state.clear_request, state.goal, "ANSWER")


def test_items_about_one_story_are_one_group(conversations: dict[str, Conversation], items: list[dict[str, Any]]):
    groups: dict[str, set[str]] = {}
    for item in items:
        groups.setdefault(item["story"], set()).add(conversations[item["id"]].group_id)
    assert all(len(g) == 1 for g in groups.values())
    assert len({c.group_id for c in conversations.values()}) == len(groups) < len(items)


def test_answer_types_follow_from_the_text(conversations: dict[str, Conversation], turns: list[TurnState]):
    assert Counter(c.turns[0].response.answer_type for c in conversations.values()) == {
        "span": 809,
        "yes/no": 151,
        "question": 130,
        "unknown": 2,
    }
    types = {t.goal.text: t.goal.answer_type for t in turns}
    assert types["Unknown."] == types["Unknown"] == "unknown"
    assert types["No, he was lonely."] == types["Yes."] == types["no"] == "yes/no"
    assert types["Rope."] == "span"


def test_the_rule_classifies_what_its_docstring_says(conversations: dict[str, Conversation], task: Task):
    turns = [c.turns[0] for c in conversations.values()]
    right = Counter(t.action for t in turns if task.judge.rule_action(t.response.text) == t.action)
    assert right == {"CLARIFY": 127, "ANSWER": 962}
    goals = [task.judge.rule_action(r.goal.text) for t in turns for r in t.readings]
    assert Counter(goals) == {"ANSWER": 266}


@pytest.mark.parametrize(
    ("story", "found"),
    [
        ("One. Two!  Three?\n\nFour", ["One.", "Two!", "Three?", "Four"]),
        ('"Why?" she asked. "I said: go!" He went.', ['"Why?" she asked.', '"I said: go!"', "He went."]),
        (
            "Mr. and Mrs. Fox met J. K. Hall of the U.S. Navy. He left.",
            ["Mr. and Mrs. Fox met J. K. Hall of the U.S. Navy.", "He left."],
        ),
        (
            "At 11 P. M., Wednesday. It cost $ 1.50. 30 came.",
            ["At 11 P. M., Wednesday.", "It cost $ 1.50.", "30 came."],
        ),
        ("(He left.) She stayed.\n \nA line\nthat goes on.", ["(He left.)", "She stayed.", "A line that goes on."]),
        ("Wait... what? Émile came.", ["Wait... what?", "Émile came."]),
        (" \n\n ", []),
    ],
)
def test_stories_are_cut_into_sentences(story: str, found: list[str]):
    assert sentences(story) == found


def test_no_word_of_a_story_is_lost_and_sentences_are_short(items: list[dict[str, Any]]):
    lengths = []
    for item in items:
        found = sentences(item["story"])
        assert " ".join(found).split() == item["story"].split()
        assert all(found)
        lengths += [len(s.split()) for s in found]
    assert np.median(lengths) < 20
    assert max(lengths) < 150


# The judge.


@pytest.fixture(scope="module")
def judge(task: Task) -> Any:
    return task.equipped(Tools(SAMPLE, default_embedder())).judge


def test_gold_scores_one(judge: Any, turns: list[TurnState]):
    some = turns[::40]
    assert judge.turn_scores(some, [t.response.text for t in some]) == [{"similarity": 1.0}] * len(some)
    assert judge.outcome_scores(some, [t.goal.text for t in some]) == [{"similarity": 1.0}] * len(some)


def test_an_alternative_is_as_right(judge: Any, turns: list[TurnState]):
    some = [t for t in turns if t.goal.alternatives and t.response.alternatives][::12]
    assert judge.heuristic(some, [t.goal.alternatives[-1] for t in some]) == [1.0] * len(some)
    assert judge.turn_scores(some, [t.response.alternatives[0] for t in some]) == [{"similarity": 1.0}] * len(some)


def test_another_meaning_is_mostly_below_the_tolerance(judge: Any, task: Task, turns: list[TurnState]):
    pairs = [(a, b) for a, b in pairwise(turns) if a.prompt_id == b.prompt_id]
    scores = judge.heuristic([a for a, _ in pairs], [b.goal.text for _, b in pairs])
    assert np.mean([s < task.judge.tolerance for s in scores]) > 0.75


@pytest.mark.parametrize("text", ["", " ", "Assistant:"])
def test_a_bare_prefix_is_no_answer(judge: Any, turns: list[TurnState], text: str):
    assert max(judge.heuristic(turns[::20], [text] * len(turns[::20]))) < judge.tolerance


def test_the_opposite_answer_passes_as_the_docstring_says(judge: Any, turns: list[TurnState]):
    goals = [t for t in turns if t.goal.answer_type == "yes/no"]
    opposite = ["No" if t.goal.text.lower().startswith("yes") else "Yes" for t in goals]
    passed = sum(score >= judge.tolerance for score in judge.heuristic(goals, opposite))
    assert (passed, len(goals)) == (162, 174)


def test_scores_do_not_depend_on_what_is_scored_beside(judge: Any, turns: list[TurnState]):
    some = turns[:30]
    said = [t.context[0].text for t in some]
    together = judge.heuristic(some, said)
    alone = [judge.heuristic([t], [text])[0] for t, text in zip(some, said, strict=True)]
    assert together == pytest.approx(alone, abs=2e-6)


def test_identity_names_the_weights(judge: Any, task: Task):
    assert judge.identity == f"cosine similarity, {default_embedder().identity}"
    assert task.judge.identity == task.judge.metric_name == "cosine similarity (all-MiniLM-L6-v2)"


def test_a_judge_without_an_embedder_says_so(task: Task, turns: list[TurnState]):
    for score in (task.judge.turn_scores, task.judge.outcome_scores, task.judge.heuristic):
        with pytest.raises(ActError, match="needs an embedder") as caught:
            score(turns[:1], ["a"])
        assert "equipped" in caught.value.todo
