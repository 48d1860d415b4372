"""Talking to a policy over one example: the same steps as an evaluated trajectory, with a person as the user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from act_assets.cli.chat_session import ChatSession, Talk, find_example, first_ambiguous

from act_assets.conversation import TurnState, Utterance
from act_assets.roles.classifier import Classifier
from act_assets.roles.simulator import GoldUser
from act_assets.tasks.base import Task, fit_prompt
from act_assets.trajectory import Dialogue, simulate
from resources.errors import ActError, PromptError

ASKS = "Which year are you asking about?"


class Scripted:
    """Says what it is told to, and keeps what it was shown."""

    def __init__(self, *texts: str | ActError | None) -> None:
        self.texts, self.shown = list(texts), []  # type: ignore[var-annotated]

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        (dialogue,) = dialogues
        self.shown.append(dialogue)
        text = self.texts.pop(0)
        if isinstance(text, ActError):
            raise text
        return [None if text is None else Utterance("assistant", text, "", (7,), text.endswith("..."))]


@pytest.fixture
def turn(few_turns: list[TurnState]) -> TurnState:
    return next(t for t in few_turns if t.action == "CLARIFY")


def talk(task: Task, policy: Scripted, **options: object) -> Talk:
    return replace(Talk(task, policy, Classifier(task, "rule"), 3, 0), **options)  # type: ignore[arg-type]


def test_it_asks_and_answers_and_the_goal_is_scored(pacific: Task, turn: TurnState) -> None:
    policy = Scripted(ASKS, turn.goal.text)
    session = ChatSession(turn, talk(pacific, policy))
    asked = session.open()
    assert (asked.action, asked.text, asked.ended, asked.score) == ("CLARIFY", ASKS, "", None)
    answered = session.say("  The one\n of 2019 ")
    assert (answered.action, answered.ended, answered.score) == ("ANSWER", "settled", 1.0)
    assert [u.text for u in policy.shown[1].utterances] == [ASKS, "The one of 2019"]
    assert session.goal == turn.goal.text


def test_a_wrong_answer_scores_nothing(pacific: Task, turn: TurnState) -> None:
    assert ChatSession(turn, talk(pacific, Scripted("bananas"))).open().score == 0.0


def test_it_is_the_trajectory_that_an_evaluation_runs(pacific: Task, turn: TurnState) -> None:
    texts = (ASKS, "Which kind?", turn.goal.text)
    evaluated = Scripted(*texts)
    user = GoldUser()
    from act_assets.trajectory import dialogue_seeds

    (trajectory,) = simulate(
        [turn], dialogue_seeds(5, [turn], "evaluation"), evaluated, Classifier(pacific, "rule"), user, [""], pacific, 3
    )
    policy = Scripted(*texts)
    session = ChatSession(
        turn, talk(pacific, policy, seed=5, simulator=user, intents={turn.intent_id: "wants something"})
    )
    session.open()
    for _ in range(2):
        session.say(session.simulated())
    assert session.utterances == trajectory.utterances
    assert policy.shown == evaluated.shown, "prompts, seeds and all"


def test_it_may_ask_as_often_as_in_training_and_then_has_failed(pacific: Task, turn: TurnState) -> None:
    session = ChatSession(turn, talk(pacific, Scripted(*[ASKS] * 3), max_clarifications=2))
    assert [session.open().ended, session.say("a").ended] == ["", ""]
    last = session.say("b")
    assert (last.ended, last.score) == ("max_clarifications", 0.0)


def test_a_further_request_stands_on_what_was_said(pacific: Task, turn: TurnState) -> None:
    policy = Scripted(ASKS, "5", "6", "7")
    session = ChatSession(turn, talk(pacific, policy, simulator=GoldUser(), intents={turn.intent_id: ""}))
    session.open()
    assert session.can_simulate
    session.say("2019")
    further = session.say("And in 2020?")
    assert (further.action, further.text, further.ended, further.score) == ("ANSWER", "6", "settled", None)
    assert session.goal is None
    assert not session.can_simulate, "nobody knows what this user means"
    shown = policy.shown[-1]
    said = [(m.role, m.content) for m in shown.turn.history[len(turn.history) :]]
    assert said == [("assistant", ASKS), ("user", "2019"), ("assistant", "5"), ("user", "And in 2020?")]
    assert shown.utterances == ()
    assert shown.turn.open_request == len(shown.turn.history) - 1
    session.say("And in 2021?")
    ids = [d.turn.turn_id for d in policy.shown]
    assert len(set(ids)) == 3, "each request is a prompt of its own"


def test_the_prompt_of_a_further_request_can_be_shortened_to_it(pacific: Task, turn: TurnState) -> None:
    policy = Scripted(ASKS, "5", "6")
    session = ChatSession(turn, talk(pacific, policy))
    session.open()
    session.say("2019")
    session.say("And in 2020?")
    longest = 10 + sum(len(m.content) for m in fit_prompt(pacific, turn, lambda m: 0, 0)) // 2
    messages = fit_prompt(pacific, session.turn, lambda m: sum(len(x.content) for x in m), longest)
    assert [m.content for m in messages if m.role == "user"][-1] == "And in 2020?"
    assert messages[1].role == "user"


def test_without_room_it_says_so_and_another_request_is_possible(pacific: Task, turn: TurnState) -> None:
    policy = Scripted(None, "5")
    session = ChatSession(turn, talk(pacific, policy))
    silent = session.open()
    assert (silent.action, silent.text, silent.ended, silent.score) == ("", "", "too_long", 0.0)
    session.say("Something short?")
    roles = [m.role for m in policy.shown[-1].turn.history]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], "speakers alternate"


def test_what_fails_was_never_said(pacific: Task, turn: TurnState) -> None:
    policy = Scripted(ASKS, PromptError("too long"), "5", PromptError("too long"), "6")
    session = ChatSession(turn, talk(pacific, policy))
    session.open()
    with pytest.raises(PromptError):
        session.say("a very long reply")
    assert session.say("2019").ended == "settled"
    assert [u.text for u in policy.shown[-1].utterances] == [ASKS, "2019"]
    with pytest.raises(PromptError):
        session.say("a very long request")
    assert session.goal == turn.goal.text, "the example's request is still the last one"
    session.say("In 2020?")
    assert [m.content for m in policy.shown[-1].turn.history[-2:]] == ["5", "In 2020?"]
    assert policy.shown[-1].turn.turn_id != policy.shown[-2].turn.turn_id, "a prompt is kept by its id"


def test_a_cut_response_is_told_apart(pacific: Task, turn: TurnState) -> None:
    assert ChatSession(turn, talk(pacific, Scripted("and so on..."))).open().truncated


@pytest.mark.parametrize("text", ["", " \n "])
def test_silence_is_no_reply(pacific: Task, turn: TurnState, text: str) -> None:
    session = ChatSession(turn, talk(pacific, Scripted(ASKS)))
    session.open()
    with pytest.raises(ActError, match="nothing was said"):
        session.say(text)


@pytest.mark.parametrize("given", ["no simulator", "no intent", "nothing to reply to"])
def test_the_simulated_user_replies_to_questions_about_the_example_alone(
    pacific: Task, turn: TurnState, given: str
) -> None:
    intents = {} if given == "no intent" else {turn.intent_id: ""}
    user = None if given == "no simulator" else GoldUser()
    text = "5" if given == "nothing to reply to" else ASKS
    session = ChatSession(turn, talk(pacific, Scripted(text), simulator=user, intents=intents))
    session.open()
    with pytest.raises(ActError, match="no simulated user"):
        session.simulated()


def test_the_first_ambiguous_example(pacific: Task, few_turns: list[TurnState]) -> None:
    answers = [t for t in few_turns if t.action == "ANSWER"]
    clarify = [t for t in few_turns if t.action == "CLARIFY"]
    assert first_ambiguous(pacific, [*answers[:2], clarify[0], answers[2]]) == 2
    assert first_ambiguous(pacific, answers) == 0


def test_an_example_is_found_by_its_id_or_the_beginning_of_it(few_turns: list[TurnState]) -> None:
    named = [replace(t, turn_id=i) for t, i in zip(few_turns, ("ab", "abc", "abd"), strict=False)]
    assert [find_example(named, i) for i in ("ab", "abc", "abd")] == [0, 1, 2]
    assert find_example(named[1:], "abd") == 1
    for wrong, said in (("x", "no example 'x'"), ("", "no example ''")):
        with pytest.raises(ActError, match=said):
            find_example(named, wrong)
    with pytest.raises(ActError, match="2 examples begin with 'a'"):
        find_example(named[1:], "a")
