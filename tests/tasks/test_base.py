"""What every task gets from the interface: turn states, readings, defaults, and mistakes that are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, Action, Conversation, Message, Turn, TurnState
from act_assets.tasks.base import Scores, Task, TaskJudge, Tools, fit_prompt, messages_of
from act_assets.tasks.pacific.answer import reference
from resources.errors import ActError

# --- turn states -----------------------------------------------------------------------------------------------


def test_without_readings_a_state_is_its_turn(pacific: Task, every_conversation: list[Conversation]) -> None:
    for conversation in every_conversation:
        states = pacific.turn_states(conversation)
        assert [s.turn_id for s in states] == [t.turn_id for t in conversation.turns]
        assert all(s.prompt_id == s.turn_id for s in states)
        assert {(s.intent_id, s.group) for s in states} == {(conversation.conversation_id,) * 2}
        assert all(s.evaluated for s in states)
        assert [(s.turn_id,) for s in states] == [t.state_ids for t in conversation.turns]


def test_every_reading_is_a_state_of_its_own_with_one_prompt(pacific: Task, ambiguous: Conversation) -> None:
    (turn,) = ambiguous.turns
    states = pacific.turn_states(ambiguous)
    assert turn.state_ids == ("sales-1#1", "sales-1#2", "sales-1#3")
    assert tuple(s.turn_id for s in states) == tuple(s.intent_id for s in states) == turn.state_ids
    assert {s.prompt_id for s in states} == {"sales-1"}
    assert {s.group for s in states} == {"a bakery"}
    assert len({messages_of(pacific, s) for s in states}) == 1
    for state, reading in zip(states, turn.readings, strict=True):
        assert (state.action, state.response) == ("CLARIFY", turn.response)
        assert (state.goal, state.clear_request) == (reading.goal, reading.clear_request)
        assert state.gold_replies == (reading.reply,)


def test_a_request_that_a_label_takes_for_answered_is_one_state_and_shows_no_reading(
    pacific: Task, ambiguous: Conversation
) -> None:
    """What the request may mean is gold knowledge, which pseudo supervision must not see (sections 3.1 and 5.4)."""
    labelled = replace(ambiguous, turns=(replace(ambiguous.turns[0], action="ANSWER"),))
    (state,) = pacific.turn_states(labelled)
    assert (state.turn_id, state.intent_id) == ("sales-1", ambiguous.conversation_id)
    assert (state.goal, state.gold_replies) == (state.response, ())
    assert pacific.told(labelled) == (
        (ambiguous.conversation_id, replace(labelled, turns=(replace(labelled.turns[0], readings=()),))),
    )


def test_grounded_in_the_goal_every_turn_has_its_own(pacific: Task, every_conversation: list[Conversation]) -> None:
    task = replace(pacific, grounding="goal")
    for state in (s for c in every_conversation[:20] for s in task.turn_states(c)):
        assert state.intent_id == state.turn_id


def test_an_action_that_the_task_does_not_have_is_named(pacific: Task) -> None:
    with pytest.raises(ActError, match=r"no action 'JOKE'(?s:.*)CLARIFY, ANSWER"):
        pacific.action("JOKE")


def test_a_history_comes_before_the_first_turn_and_is_no_part_of_the_open_request(
    pacific: Task, ambiguous: Conversation
) -> None:
    state = pacific.turn_states(ambiguous)[0]
    assert state.history == (*ambiguous.history, Message("user", "What were the sales?"))
    assert (state.position, state.open_request, state.request) == (0, 2, "What were the sales?")
    words = lambda messages: sum(len(m.content.split()) for m in messages)  # noqa: E731
    full = messages_of(pacific, state)
    assert fit_prompt(pacific, state, words, words(full)) == full
    assert fit_prompt(pacific, state, words, words(full) - 1) == (full[0], full[-1]), "the history is cut first"


def test_a_history_that_begins_with_the_assistant_is_cut_before_any_grounding(
    pacific: Task, ambiguous: Conversation
) -> None:
    greeted = replace(ambiguous, history=(Message("assistant", "Good morning! What would you like to know?"),))
    state = pacific.turn_states(greeted)[0]
    words = lambda messages: sum(len(m.content.split()) for m in messages)  # noqa: E731
    full = messages_of(pacific, state)
    assert fit_prompt(pacific, state, words, words(full) - 1) == (full[0], full[-1])


def test_a_later_turn_is_told_apart_from_the_readings_before_it(pacific: Task, ambiguous: Conversation) -> None:
    answer = reference(["1999"], "", "span", "")
    later = Turn("sales-2", "When was it founded?", "When was it founded?", answer, "ANSWER")
    first = Turn("sales-0", "Who runs it?", "Who runs it?", reference(["Ann"], "", "span", ""), "ANSWER")
    whole = replace(ambiguous, turns=(first, *ambiguous.turns, later))
    states = pacific.turn_states(whole)
    assert [s.turn_id for s in states] == ["sales-0", "sales-1#1", "sales-1#2", "sales-1#3", "sales-2"]
    assert [s.position for s in states] == [0, 1, 1, 1, 2]
    assert [m.content for m in states[-1].history].count("What were the sales?") == 1
    assert states[-1].history[:-2] == states[1].history
    told = dict(pacific.told(whole))
    assert set(told) == {s.intent_id for s in states}, "U has something to go by in every trajectory"
    assert [t.turn_id for t in told["sales-1#2"].turns] == ["sales-0", "sales-1", "sales-1+"]
    assert not any(t.readings for c in told.values() for t in c.turns)


def test_a_turn_that_is_not_evaluated_says_so_in_its_states(pacific: Task, ambiguous: Conversation) -> None:
    turns = tuple(replace(t, evaluated=False) for t in ambiguous.turns)
    assert [s.evaluated for s in pacific.turn_states(replace(ambiguous, turns=turns))] == [False] * 3


# --- what U is told ----------------------------------------------------------------------------------------------


def test_without_readings_one_user_lived_through_the_whole_conversation(
    pacific: Task, every_conversation: list[Conversation]
) -> None:
    for conversation in every_conversation[:40]:
        assert pacific.told(conversation) == ((conversation.conversation_id, conversation),)


def test_every_reading_is_a_user_who_was_asked_and_said_what_was_meant(pacific: Task, ambiguous: Conversation) -> None:
    (turn,) = ambiguous.turns
    told = pacific.told(ambiguous)
    assert tuple(intent_id for intent_id, _ in told) == turn.state_ids
    for (_, conversation), reading in zip(told, turn.readings, strict=True):
        asked, settled = conversation.turns
        assert asked == replace(turn, readings=())
        assert (settled.user, settled.clear_request) == (reading.reply, reading.clear_request)
        assert (settled.response, settled.action) == (reading.goal, "ANSWER")
        assert (conversation.history, conversation.context) == (ambiguous.history, ambiguous.context)
        states = pacific.turn_states(conversation)
        assert states[0].goal == reading.goal, "as a conversation it means what the reading means"


def test_the_user_is_answered_by_the_action_that_ends_a_trajectory(pacific: Task, ambiguous: Conversation) -> None:
    actions = (CLARIFY, Action("HINT", False, "gives a hint"), Action("REPLY", True, "replies"), ANSWER)
    told = replace(pacific, actions=actions).told(ambiguous)
    assert {c.turns[-1].action for _, c in told} == {"REPLY"}


# --- a task and its mistakes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Tea Shop"}, "name 'Tea Shop' is not of small letters"),
        ({"name": "2tea"}, "name '2tea'"),
        ({"name": "tea-shop"}, "name 'tea-shop'"),
        ({"name": ""}, "name ''"),
        ({"actions": (ANSWER,)}, "two or more actions"),
        ({"actions": ()}, "two or more actions"),
        ({"actions": (ANSWER, CLARIFY, ANSWER)}, "of different names"),
        ({"actions": (CLARIFY, replace(CLARIFY, name="ASK"))}, "none of its actions ends a trajectory"),
    ],
    ids=str,
)
def test_a_task_that_cannot_work_is_refused_by_name(pacific: Task, change: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=r"^task ") as caught:
        replace(pacific, **change)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_all_mistakes_of_a_task_are_named_together(pacific: Task) -> None:
    with pytest.raises(ValueError, match=r"(?s)small letters.*two or more actions.*ends a trajectory"):
        replace(pacific, name="?", actions=(CLARIFY,))


def test_a_task_asks_only_the_roles_that_it_needs(pacific: Task) -> None:
    roles = ("generator", "annotator", "classifier", "intent", "simulator", "perturbation")
    assert [r for r in roles if not pacific.asks(r)] == ["perturbation"]
    assert [r for r in roles if not replace(pacific, grounding="goal").asks(r)] == ["intent", "perturbation"]
    assert [r for r in roles if not replace(pacific, twins=object()).asks(r)] == []  # type: ignore[arg-type]


# --- defaults of reader and judge ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Letters(TaskJudge):
    """Scores by shared letters, once it knows the folder of the raw files."""

    data: Path | None = None

    tolerance = 0.5
    metric_name = "letters"
    forms = ("share", "any")

    def rule_action(self, response: str) -> str:
        return "ANSWER"

    def turn_scores(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[Scores]:
        return [{} for _ in turns]

    def outcome_scores(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[Scores]:
        assert self.data is not None
        return [{"any": 1.0, "share": len(o) / 10} for _, o in zip(turns, outcomes, strict=True)]

    def equipped(self, tools: Tools) -> TaskJudge:
        return replace(self, data=tools.data)


class NoEmbedder:
    identity = "none"

    def embed(self, texts: Sequence[str]) -> object:
        raise AssertionError("nothing is embedded here")


def test_a_task_is_equipped_with_what_its_judge_needs(
    pacific: Task, few_turns: list[TurnState], tmp_path: Path
) -> None:
    tools = Tools(tmp_path, NoEmbedder())  # type: ignore[arg-type]
    assert pacific.equipped(tools).judge is pacific.judge, "PACIFIC's needs nothing"
    bare = replace(pacific, judge=Letters())
    ready = bare.equipped(tools)
    assert (ready.judge, bare.judge) == (Letters(tmp_path), Letters())
    assert ready.judge.heuristic(few_turns[:2], ["abc", "abcde"]) == [0.3, 0.5], "the first of `forms`, whatever comes"
    assert ready.judge.identity == "letters"


def test_the_losing_action_is_any_other_by_default(pacific: Task, few_turns: list[TurnState]) -> None:
    three = (*pacific.actions, Action("DECLINE", True, "declines"))
    turn = next(t for t in few_turns if t.action == "ANSWER")
    assert list(pacific.judge.rejected_actions(turn, three)) == ["CLARIFY", "DECLINE"]


def test_a_reader_may_order_what_leaves_a_prompt(pacific: Task, every_turn: list[TurnState]) -> None:
    turn = next(t for t in every_turn if t.position == 0 and len(t.context) > 8)
    default = pacific.reader.removal_order(turn)
    assert sorted(default) == [i for i, b in enumerate(turn.context) if not b.essential]

    class FirstGoesFirst(type(pacific.reader)):  # type: ignore[misc]
        def removal_order(self, turn: TurnState) -> Sequence[int]:
            return sorted(super().removal_order(turn))

    words = lambda messages: sum(len(m.content.split()) for m in messages)  # noqa: E731
    full = words(messages_of(pacific, turn))
    kept = fit_prompt(replace(pacific, reader=FirstGoesFirst()), turn, words, full - 1)
    assert kept[0].content == pacific.reader.system_message(turn.context[1:])
    assert pacific.reader.further_files(Path()) == ()
