"""`act chat`: the steps of an evaluated trajectory with a person as the user; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from act_assets.cli import chat as screen
from act_assets.cli.app import app
from act_assets.cli.chat import SHOWN, ChatSession, Talk, converse, find_example, printable, shortened
from act_assets.conversation import TurnState, Utterance
from act_assets.roles.classifier import RuleClassifier
from act_assets.roles.simulator import GoldUser
from act_assets.tasks.base import Task, fit_prompt
from act_assets.trajectory import Dialogue, dialogue_seeds, simulate
from resources.artifacts import Key
from resources.errors import ActError, PromptError, RoleError

pytestmark = pytest.mark.integration

ASKS = "Which year are you asking about?"
FAILING = Mock(reply=Mock(side_effect=RoleError("no answer")))  # a simulated user
TINY = str(Path(__file__).parents[1] / "tiny.yaml")


class Scripted:
    """Says what it is told to, and keeps what it was shown."""

    def __init__(self, *texts: str | ActError | None) -> None:
        self.texts = list(texts)
        self.shown: list[Dialogue] = []

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        self.shown += dialogues
        text = self.texts.pop(0)
        if isinstance(text, ActError):
            raise text
        return [None if text is None else Utterance("assistant", text, "", (7,), text.endswith("..."))]


@pytest.fixture
def turn(few_turns: list[TurnState]) -> TurnState:
    return next(t for t in few_turns if t.action == "CLARIFY")


@pytest.fixture
def started(pacific: Task, turn: TurnState) -> Callable[..., ChatSession]:
    """A session over `turn` whose policy says `texts`, the first of them already."""

    def start(*texts: str | ActError | None, **options: Any) -> ChatSession:
        talk = Talk(pacific, Scripted(*texts), RuleClassifier(pacific), 3, 0)
        session = ChatSession(turn, replace(talk, **options))
        session.respond()
        return session

    return start


def test_a_reply_is_one_line_and_a_wrong_answer_scores_nothing(started: Any) -> None:
    session = started(ASKS, "bananas")
    assert (session.ended, session.score) == ("", None)
    session.say("  The one\n of 2019 ")
    assert [u.text for u in session.utterances] == [ASKS, "The one of 2019", "bananas"]
    assert (session.ended, session.score) == ("settled", 0.0)
    with pytest.raises(ActError, match="nothing was said"):
        session.say(" \n ")


def test_it_is_the_trajectory_that_an_evaluation_runs(started: Any, pacific: Task, turn: TurnState) -> None:
    texts = (ASKS, "Which kind?", turn.goal.text)
    evaluated, user = Scripted(*texts), GoldUser()
    seeds = dialogue_seeds(5, [turn], "evaluation")
    (trajectory,) = simulate([turn], seeds, evaluated, RuleClassifier(pacific), user, [""], pacific, 3)
    session = started(*texts, seed=5, simulator=user, intents={turn.intent_id: "wants something"})
    for _ in range(2):
        session.say(session.simulated())
    assert session.utterances == trajectory.utterances
    assert session.talk.policy.shown == evaluated.shown, "prompts, seeds and all"


def test_a_further_request_stands_on_what_was_said(started: Any, turn: TurnState) -> None:
    session = started(ASKS, "5", "6", "7", simulator=GoldUser(), intents={turn.intent_id: ""})
    assert session.can_simulate
    session.say("2019")
    session.say("And in 2020?")
    said = session.utterances[-1]
    assert (said.action, said.text, session.ended, session.score) == ("ANSWER", "6", "settled", None)
    assert (session.goal, session.can_simulate) == (None, False), "nobody knows what this user means"
    shown = session.talk.policy.shown[-1]
    assert [m.content for m in shown.turn.history[len(turn.history) :]] == [ASKS, "2019", "5", "And in 2020?"]
    assert shown.utterances == ()
    assert shown.turn.open_request == len(shown.turn.history) - 1
    session.say("And in 2021?")
    assert len({d.turn.turn_id for d in session.talk.policy.shown}) == 3, "each request is a prompt of its own"


def test_the_prompt_of_a_further_request_can_be_shortened_to_it(started: Any, pacific: Task, turn: TurnState) -> None:
    session = started(ASKS, "5", "6")
    session.say("2019")
    session.say("And in 2020?")
    longest = 10 + sum(len(m.content) for m in fit_prompt(pacific, turn, lambda m: 0, 0)) // 2
    messages = fit_prompt(pacific, session.turn, lambda m: sum(len(x.content) for x in m), longest)
    assert [m.content for m in messages if m.role == "user"][-1] == "And in 2020?"
    assert messages[1].role == "user"


def test_without_room_it_says_so_and_another_request_is_possible(started: Any) -> None:
    session = started(None, "5")
    assert (session.utterances, session.ended, session.score) == ((), "too_long", 0.0)
    session.say("Something short?")
    roles = [m.role for m in session.talk.policy.shown[-1].turn.history]
    assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"], "speakers alternate"


def test_what_fails_was_never_said(started: Any, turn: TurnState) -> None:
    session = started(ASKS, PromptError("too long"), "5", PromptError("too long"), "6")
    with pytest.raises(PromptError):
        session.say("a very long reply")
    session.say("2019")
    shown = session.talk.policy.shown
    assert session.ended == "settled"
    assert [u.text for u in shown[-1].utterances] == [ASKS, "2019"]
    with pytest.raises(PromptError):
        session.say("a very long request")
    assert session.goal == turn.goal.text, "the example's request is still the last one"
    session.say("In 2020?")
    assert [m.content for m in shown[-1].turn.history[-2:]] == ["5", "In 2020?"]
    assert shown[-1].turn.turn_id != shown[-2].turn.turn_id, "a prompt is kept by its id"


@pytest.mark.parametrize("given", ["no simulator", "no intent", "nothing to reply to"])
def test_the_simulated_user_replies_to_questions_about_the_example_alone(
    started: Any, turn: TurnState, given: str
) -> None:
    intents = {} if given == "no intent" else {turn.intent_id: ""}
    user = None if given == "no simulator" else GoldUser()
    session = started("5" if given == "nothing to reply to" else ASKS, simulator=user, intents=intents)
    with pytest.raises(ActError, match="no simulated user"):
        session.simulated()


def test_an_example_is_found_by_its_id_or_the_beginning_of_it(few_turns: list[TurnState]) -> None:
    named = [replace(t, turn_id=i) for t, i in zip(few_turns, ("ab", "abc", "abd"), strict=False)]
    assert [find_example(named, i) for i in ("ab", "abc", "abd")] == [0, 1, 2]
    assert find_example(named[1:], "abd") == 1
    for wrong, said in (("x", "no example 'x'"), ("", "no example ''"), ("a", "3 examples begin with 'a'")):
        with pytest.raises(ActError, match=said):
            find_example(named, wrong)


def test_a_checkpoint_is_talked_to_over_the_first_ambiguous_example(checkpoint_run: Any) -> None:
    ended = CliRunner().invoke(app, ["chat", "--profile", TINY], input="Hello?\n/next\n/quit\nnever read\n")
    assert (ended.exit_code, ended.stderr) == (0, "loading act_checkpoint pacific|50 ...\n")
    _, first, _ = ended.stdout.split("--- example ")
    assert first.startswith("ba61de22-efb2-41f6-a377-68c75f1e2f45\nYou are an Assistant")
    assert "\nUser: What was the change in Capital redemption reserve?\n[" in first
    assert "> Hello?\n[" in first
    assert first.endswith("> /next\n\n")
    assert "never read" not in ended.stdout
    sft = CliRunner().invoke(app, ["chat", "--profile", TINY, "--method", "sft"])
    assert (sft.exit_code, sft.stderr) == (0, "loading sft_checkpoint pacific|50 ...\n"), "the input's end is an end"
    said = [next(line for line in x.stdout.splitlines() if line.startswith("[ANSWER]")) for x in (ended, sft)]
    assert said[0] != said[1], "they are different checkpoints"


def test_an_interrupt_ends_it_quietly(checkpoint_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screen, "read_line", Mock(side_effect=KeyboardInterrupt))
    ended = CliRunner().invoke(app, ["chat", "--profile", TINY])
    assert (ended.exit_code, ended.stderr) == (0, "loading act_checkpoint pacific|50 ...\n")


@pytest.mark.parametrize(("missing", "user"), [([], "embedded (embedded-rules-1)"), (["no key"], "")])
def test_without_the_simulators_key_nobody_replies_for_the_user(
    checkpoint_run: Any, monkeypatch: pytest.MonkeyPatch, missing: list[str], user: str
) -> None:
    monkeypatch.setattr(screen, "missing_keys", lambda providers: missing)
    made = {name: checkpoint_run.store.require(Key(name, "pacific")) for name in ("raw_dataset", "conversations")}
    talk = screen.load_talk(replace(checkpoint_run, inputs=made), "act", 0.0)
    assert (talk.user, talk.simulator is None) == (user, bool(missing))


def test_the_list_names_every_evaluated_example_without_loading_a_model(
    checkpoint_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(screen, "load_talk", None)
    ended = CliRunner().invoke(app, ["chat", "--profile", TINY, "--list"])
    assert (ended.exit_code, ended.stderr) == (0, "")
    lines = ended.stdout.splitlines()
    assert len(lines) == 188
    assert lines[0] == "7e202b95-39c4-4f65-aae0-18e5dc989f38  ANSWER   Who approved the financial statements?"


@pytest.mark.parametrize(
    ("arguments", "said", "todo"),
    [
        (["--example", "nobody"], "no example 'nobody'", "act chat --list"),
        (["--method", "dpo"], "unknown method 'dpo'", "choose sft or act"),
        (["--train-size", "51"], "unknown train size 51", "choose one of 50, 100, 250"),
        (["--task", "pacifc"], "unknown task 'pacifc'", "choose"),
        (["--train-size", "100"], "act_checkpoint pacific|100 has not been materialized", "act run"),
        (["--seed", "7"], "act_checkpoint pacific|50 has not been materialized for tiny-seed7", "act run"),
    ],
    ids=str,
)
def test_a_mistake_says_what_and_what_to_do(checkpoint_run: Any, arguments: list[str], said: str, todo: str) -> None:
    ended = CliRunner().invoke(app, ["chat", "--profile", TINY, *arguments])
    assert isinstance(ended.exception, ActError)
    assert said in ended.exception.what
    assert todo in ended.exception.todo


@pytest.fixture
def talked(pacific: Task, few_turns: list[TurnState], capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What stands in the terminal: a policy that says `texts`, and a user who types `lines`."""
    turns = [t for t in few_turns if t.action == "CLARIFY"][:2]

    def run(texts: Sequence[Any], lines: Sequence[str], simulator: Any = None) -> str:
        typed = iter(lines)

        def read(prompt: str) -> str:
            line = next(typed, None)
            if line is None:
                raise EOFError
            print(prompt + line)
            return line

        intents = {t.intent_id: "1. What he wants." for t in turns}
        talk = Talk(pacific, Scripted(*texts), RuleClassifier(pacific), 1, 0, simulator, "somebody", intents)
        with pytest.raises(EOFError):
            converse(talk, turns, 0, read)
        return capsys.readouterr().out.split(f"User: {turns[0].request}\n", 1)[1]

    return run


ANOTHER = "another request, or /next  /example ID  /quit> "
SHOWS = {  # what the policy says, what is typed, who else replies; what is shown
    "asks": ([ASKS, "{goal}"], ["2019"], None, "reply> 2019\n[ANSWER] {goal}\ngoal: {goal}\nDROP F1: 1.000\n"),
    "Enter": ([ASKS, "5"], [""], GoldUser(), "somebody replies)> \nsimulated user: {reply}\n[ANSWER] 5\n"),
    "no simulator": ([ASKS], [""], None, "reply> \ntype a reply, or one of /next  /example ID  /quit\n"),
    "simulator fails": (
        [ASKS, "5"],
        ["", "2019"],
        FAILING,
        "error: no answer\nreply (Enter: somebody replies)> 2019\n",
    ),
    "asks too often": ([ASKS, ASKS], ["2019"], None, "it has asked 2 times: the request counts as not settled\ngoal: "),
    "no room": ([None], [], None, "no room is left for a response (policy.max_length)\ngoal: "),
    "cut": (["and so on..."], [], None, "[ANSWER] and so on... ... (it hit its token limit)\ngoal: "),
    "fails": ([PromptError("too long")], [], None, f"error: too long\n{ANOTHER}"),
    "no goal": (["5", "6"], ["2020?"], None, f"DROP F1: 0.000\n{ANOTHER}2020?\n[ANSWER] 6\n"),
}


@pytest.mark.parametrize(("texts", "typed", "simulator", "shown"), SHOWS.values(), ids=SHOWS)
def test_what_is_shown(
    talked: Any, turn: TurnState, texts: list[Any], typed: list[str], simulator: Any, shown: str
) -> None:
    known = {"goal": turn.goal.text, "reply": turn.gold_replies[0]}
    said = talked([t.format(**known) if isinstance(t, str) else t for t in texts], [*typed, "/quit"], simulator)
    assert shown.format(**known) in said


def test_commands_go_from_example_to_example(talked: Any, few_turns: list[TurnState]) -> None:
    first, second = [t.turn_id for t in few_turns if t.action == "CLARIFY"][:2]
    lines = ["/next", "/next", f"/example {first}", f"/example {first[:12]}", "/example x", "/fly", "/quit", "no"]
    said = talked(["5"] * 4, lines)
    assert [part.split("\n")[0] for part in said.split("--- example ")[1:]] == [second, first, first]
    for text in ("that was the last example", "error: there is no example 'x'", "error: unknown command /fly"):
        assert text in said
    assert said.endswith("/quit\n")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("a" * SHOWN) == "a" * SHOWN
    half = "a" * (SHOWN // 2 - 1)
    assert shortened("b" + "a" * SHOWN + "c") == f"b{half}\n... 2 characters left out ...\n{half}c"


def test_a_model_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\u202e£") == "a\ufffd[2Jb\nc\ufffd£"
