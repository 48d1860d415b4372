"""`act chat` and `act export model`, as they are typed; nothing is trained."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from act_assets.cli.chat_session import Talk
from act_assets.cli.model import SHOWN, Conversations, printable, shortened

from act_assets.cli import app as cli
from act_assets.cli import model as model_cli
from act_assets.conversation import TurnState, Utterance
from act_assets.roles.classifier import Classifier
from act_assets.roles.simulator import GoldUser
from act_assets.tasks.base import Task
from act_assets.trajectory import Dialogue
from resources.errors import RoleError

ASKS = "Which year are you asking about?"
TINY = str(Path(__file__).parents[1] / "tiny.yaml")


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def home(
    checkpoints: Any, tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """ACT_HOME with checkpoints in it, and nothing else from the environment."""
    for name in ("ACT_DATA_DIR", "ACT_PROMPTS_DIR", "ACT_DEBUG", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path_factory.mktemp("making")))
    made: Path = checkpoints.filled(lambda: tmp_path_factory.mktemp("checkpoints"), tiny_tokenizer)
    monkeypatch.setenv("ACT_HOME", str(made))
    return made


Act = Callable[..., Ended]


@pytest.fixture
def act(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Act:
    """Runs `act` with arguments; `typed` is what a pipe holds."""

    def run(*arguments: str, typed: str = "") -> Ended:
        monkeypatch.setattr(sys, "argv", ["act", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


def test_a_checkpoint_is_talked_to_over_the_first_ambiguous_example(act: Act) -> None:
    ended = act("chat", "--profile", TINY, typed="Hello?\n/next\n/quit\nnever read\n")
    assert ended.code == 0
    assert ended.err == "loading act_checkpoint pacific|50 ...\n"
    examples = ended.out.split("--- example ")
    assert len(examples) == 3
    first = examples[1]
    assert first.startswith("ba61de22-efb2-41f6-a377-68c75f1e2f45\nYou are an Assistant")
    assert "\n[data]\n" in first
    assert "\nUser: What was the change in Capital redemption reserve?\n[" in first
    assert "\nDROP F1: 0.000\n" in first or "reply (Enter: embedded" in first
    assert "> Hello?\n[" in first
    assert first.endswith("> /next\n\n")
    assert "never read" not in ended.out


def test_sft_is_another_checkpoint(act: Act) -> None:
    said = {m: act("chat", "--profile", TINY, "--method", m) for m in ("sft", "act")}
    assert "sft_checkpoint pacific|50" in said["sft"].err
    assert said["sft"].out != said["act"].out


def test_the_end_of_the_input_ends_it_quietly(act: Act) -> None:
    assert act("chat", "--profile", TINY).code == 0


def test_an_interrupt_ends_it_quietly(act: Act, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(model_cli, "run_reader", lambda: interrupted)
    ended = act("chat", "--profile", TINY)
    assert (ended.code, ended.err) == (0, "loading act_checkpoint pacific|50 ...\n")


def test_the_list_names_every_evaluated_example_without_loading_a_model(
    act: Act, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cli, "load_talk", None)
    ended = act("chat", "--profile", TINY, "--list")
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert len(lines) == 188
    assert lines[0] == "7e202b95-39c4-4f65-aae0-18e5dc989f38  ANSWER   Who approved the financial statements?"


def test_a_terminal_shows_the_list_in_pages(
    few_turns: list[TurnState], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model_cli, "PAGE", 6)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    answers = iter(["", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or next(answers))
    model_cli._list(few_turns)
    assert len(capfd.readouterr().out.splitlines()) == 12
    assert asked == [f"-- {n} of 16; Enter for more, q to end " for n in (6, 12)]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["chat", "--profile", TINY, "--example", "nobody"], ["no example 'nobody'", "act chat --list"]),
        (["chat", "--method", "dpo"], ["unknown method 'dpo'", "choose sft or act"]),
        (["chat", "--train-size", "51"], ["unknown train size 51", "choose one of 50, 100, 250"]),
        (["chat", "--task", "pacifc"], ["unknown task 'pacifc'"]),
        (["chat", "--profile", TINY, "--train-size", "100"], ["act_checkpoint pacific|100 has not been", "act run"]),
        (
            ["chat", "--profile", TINY, "--seed", "7"],
            ["act_checkpoint pacific|50 has not been materialized for tiny-seed7", "act run"],
        ),
        (["export", "model", "--out", "x", "--profile", TINY, "--method", "dpo"], ["unknown method 'dpo'"]),
        (["export", "model", "--out", "x", "--profile", TINY, "--push", "u/n"], ["HF_TOKEN is not set"]),
        (["export", "messages", "--out", "x", "--adapter"], ["--adapter and --push are of a model"]),
        (["export", "tables", "--out", "x"], ["cannot export 'tables'", "or model"]),
    ],
    ids=lambda value: "",
)
def test_a_mistake_says_what_where_and_what_to_do(
    act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = act(*arguments)
    assert ended.code == 1
    assert "Traceback" not in ended.err
    for text in (*said, "to do:"):
        assert text in ended.err
    assert not list(tmp_path.iterdir())


def test_a_model_is_exported(act: Act, tmp_path: Path) -> None:
    ended = act("export", "model", "--profile", TINY, "--out", str(tmp_path / "out"))
    assert (ended.code, ended.err) == (0, "")
    assert f" in {tmp_path / 'out'}\n" in ended.out
    assert f"vllm serve {tmp_path / 'out'}" in ended.out
    assert "no figures" not in ended.out
    sft = act("export", "model", "--profile", TINY, "--out", str(tmp_path / "sft"), "--method", "sft")
    assert "the model card has no figures" in sft.out


class Scripted:
    def __init__(self, *texts: str) -> None:
        self.texts = list(texts)

    def respond(self, dialogues: Sequence[Dialogue]) -> list[Utterance | None]:
        return [Utterance("assistant", self.texts.pop(0), "") for _ in dialogues]


Talked = Callable[..., str]


@pytest.fixture
def talked(pacific: Task, few_turns: list[TurnState], capfd: pytest.CaptureFixture[str]) -> Talked:
    """What stands in the terminal: a policy that says `texts`, and a user who types `lines`."""
    turns = [t for t in few_turns if t.action == "CLARIFY"][:2]

    def run(texts: Sequence[str], lines: Sequence[str], simulator: Any = None) -> str:
        def read(prompt: str) -> str:
            if not typed:
                raise EOFError
            line = typed.pop(0)
            print(prompt + line)
            return line

        typed = list(lines)
        intents = {t.intent_id: "1. What he wants." for t in turns}
        talk = Talk(pacific, Scripted(*texts), Classifier(pacific, "rule"), 1, 0, simulator, intents)
        with pytest.raises(EOFError):
            Conversations(talk, turns, read, "nobody in particular").hold(0)
        return capfd.readouterr().out.split(f"User: {turns[0].request}\n", 1)[1]

    return run


def test_it_asks_the_person_replies_and_the_goal_is_shown(talked: Talked, few_turns: list[TurnState]) -> None:
    goal = next(t for t in few_turns if t.action == "CLARIFY").goal.text
    assert talked([ASKS, goal], ["2019"]) == (
        f"[CLARIFY] {ASKS}\nreply> 2019\n[ANSWER] {goal}\ngoal: {goal}\nDROP F1: 1.000\n"
    )


def test_enter_lets_the_simulated_user_reply_and_says_so(talked: Talked, few_turns: list[TurnState]) -> None:
    turn = next(t for t in few_turns if t.action == "CLARIFY")
    said = talked([ASKS, "5"], [""], GoldUser())
    assert (
        f"reply (Enter: nobody in particular replies)> \nsimulated user: {turn.gold_replies[0]}\n[ANSWER] 5\n" in said
    )


def test_without_a_simulated_user_enter_says_what_can_be_typed(talked: Talked) -> None:
    assert "reply> \ntype a reply, or one of /next  /example ID  /quit\n" in talked([ASKS], [""])


def test_a_simulated_user_that_fails_leaves_the_reply_to_the_person(talked: Talked) -> None:
    class Failing:
        def reply(self, *_: object) -> Any:
            raise RoleError("no answer", todo="type it")

    said = talked([ASKS, "5"], ["", "2019"], Failing())
    assert "error: no answer\n  to do: type it\n" in said
    assert "replies)> 2019\n[ANSWER] 5\n" in said


def test_it_is_told_when_it_has_asked_too_often(talked: Talked) -> None:
    said = talked([ASKS, ASKS], ["2019"])
    assert "it has asked 2 times: the request counts as not settled\ngoal: " in said
    assert "DROP F1: 0.000\n" in said


def test_another_request_has_no_goal(talked: Talked) -> None:
    said = talked(["5", "6"], ["And in 2020?"])
    assert said.count("goal: ") == 1
    assert said.endswith("another request, or /next  /example ID  /quit> And in 2020?\n[ANSWER] 6\n")


def test_commands_go_from_example_to_example(talked: Talked, few_turns: list[TurnState]) -> None:
    first, second = [t.turn_id for t in few_turns if t.action == "CLARIFY"][:2]
    lines = ["/next", "/next", f"/example {first}", f"/example {first[:12]}", "/example x", "/fly", "/quit", "no"]
    said = talked(["5"] * 4, lines)
    assert [part.split("\n")[0] for part in said.split("--- example ")[1:]] == [second, first, first]
    assert "that was the last example" in said
    assert "error: there is no example 'x'" in said
    assert "error: unknown command /fly" in said
    assert said.endswith("/quit\n")


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    assert shortened("a" * SHOWN) == "a" * SHOWN
    text = shortened("b" + "a" * SHOWN + "c")
    assert text.startswith("ba")
    assert text.endswith("ac")
    assert "\n... 2 characters left out ...\n" in text


def test_a_model_cannot_command_the_terminal() -> None:
    assert printable("a\x1b[2Jb\nc\u202e£") == "a\ufffd[2Jb\nc\ufffd£"
