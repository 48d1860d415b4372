"""`act chat`, and the part of `act export` that writes a model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console

from act_assets.cli.text import size_text
from resources.errors import ActError

if TYPE_CHECKING:
    from act_assets.cli.chat_session import ChatSession, Spoken, Talk
    from act_assets.conversation import TurnState
    from act_assets.run import Run

out, err = Console(), Console(stderr=True)
PAGE = 20  # examples that --list shows at once on a terminal
SHOWN = 1200  # characters of the grounding
LINES = 6  # of the history
HELP = "/next  /example ID  /quit"
_METHODS = ("sft", "act")


def export_checkpoint(run: Run, method: str, folder: Path, *, adapter: bool, push: str | None) -> None:
    """`act export model`: writes the folder and says what to do with it."""
    from act_assets.release.card_facts import Method
    from act_assets.release.publish import export_model

    check_method(method)
    exported = export_model(run, cast(Method, method), folder.expanduser(), adapter=adapter, push=push)
    _say(f"{exported.files} files, {size_text(exported.bytes)} in {exported.folder}")
    if not exported.evaluated:
        _say("the model card has no figures: the evaluation of this checkpoint is missing or not up to date (act run)")
    if exported.url:
        _say(f"pushed to {exported.url} (a new repository is private)")
    elif not adapter:
        _say(f"vllm serve {exported.folder}, or AutoModelForCausalLM.from_pretrained: README.md there says how")


def check_method(method: str) -> None:
    """Raises ActError for anything but sft and act."""
    if method not in _METHODS:
        raise ActError(f"unknown method {method!r}", todo="choose sft or act")


def chat(
    task: Annotated[str, typer.Option("--task", help="a registered task, for example pacific")] = "pacific",
    train_size: Annotated[int, typer.Option("--train-size", help="training conversations: 50, 100 or 250")] = 50,
    method: Annotated[str, typer.Option(help="the checkpoint: sft or act")] = "act",
    example: Annotated[
        str | None, typer.Option("--example", help="the id of an evaluated example; default: the first ambiguous one")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="show the examples: id, action, request")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy, as in the evaluation by default")] = 0.0,
    profile: Annotated[str, typer.Option("--profile", help="laptop, paper, or the path of a YAML file")] = "laptop",
    seed: Annotated[int, typer.Option("--seed", min=0, help="the seed that the checkpoint was trained with")] = 0,
) -> None:
    """Talk to a checkpoint over an example of the data, and see the action that each response takes.

    Where it asks, reply, or press Enter for the simulated user's reply. Then: another request over the same grounding,
    /next, /example ID, or /quit.
    """
    from act_assets.run import TRAIN_SIZES
    from act_assets.tasks import get_task

    get_task(task)
    check_method(method)
    if train_size not in TRAIN_SIZES:
        sizes = ", ".join(map(str, TRAIN_SIZES))
        raise ActError(f"unknown train size {train_size}", where=f"task {task}", todo=f"choose one of {sizes}")
    from act_assets.cli.chat_session import find_example, first_ambiguous
    from act_assets.run import evaluated_turns, make_run
    from resources.artifacts import Key

    run = make_run(profile, seed, task, train_size)
    if not show_list:
        run.store.require(Key(f"{method}_checkpoint", task, train_size))  # its message names the command that makes it
    made = {name: run.store.require(Key(name, task)) for name in ("raw_dataset", "conversations")}
    run = replace(run, inputs=made)
    turns = evaluated_turns(run)
    if show_list:
        _list(turns)
        return
    if not turns:
        raise ActError("there is no evaluated example", where=f"task {task}", todo="materialize conversations again")
    start = find_example(turns, example) if example else first_ambiguous(run.task, turns)
    talk = load_talk(run, method, temperature)
    try:
        Conversations(talk, turns, run_reader(), simulated_by(run)).hold(start)
    except (EOFError, KeyboardInterrupt):
        out.print()


def load_talk(run: Run, method: str, temperature: float) -> Talk:
    """A checkpoint that is up to date, ready to talk; `run.inputs` holds the raw dataset and the conversations."""
    from act_assets.cli.chat_session import Talk
    from act_assets.release.publish import checkpoint_of
    from act_assets.roles.classifier import RuleClassifier
    from act_assets.run import equipped_task, intents_in, roles_of
    from act_assets.training.generation import TransformersEngine
    from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings, load_model, pick_device
    from resources.artifacts import Key

    settings = run.profile.policy
    checkpoint = checkpoint_of(run, method)
    task = equipped_task(run)
    err.print(f"loading {checkpoint.key} ...", highlight=False)
    model, chat_format = load_model(checkpoint.file("model"))
    policy = ModelPolicy(
        TransformersEngine(model.to(pick_device()), chat_format.end_id, chat_format.pad_id, batch_size=1),
        chat_format,
        PromptEncoder(task, chat_format, settings.max_prompt_tokens),
        SamplingSettings(settings.max_length, settings.max_new_tokens, temperature),
    )
    intents = run.store.find(Key("evaluation_intents", task.name))
    simulated = simulated_by(run) is not None and intents is not None
    return Talk(
        task,
        policy,
        RuleClassifier(task),
        run.profile.act.max_clarifications,
        run.seed,
        roles_of(run).simulator() if simulated else None,
        intents_in(intents) if simulated and intents is not None else None,
    )


def simulated_by(run: Run) -> str | None:
    """Who would play the user; None where the key for it is missing."""
    from act_assets.roles.build import describe, missing_keys

    role = run.profile.roles.simulator
    needs_key = role.provider != "embedded" and role.base_url is None
    return None if needs_key and missing_keys([role.provider]) else describe(role)


Read = Callable[[str], str]


def run_reader() -> Read:
    """Reads a line; a line that comes from a pipe is shown, so that the whole can be read afterwards."""

    def read(prompt: str) -> str:
        if sys.stdin.isatty():
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        _say(prompt + line.rstrip("\n"))
        return line.rstrip("\n")

    return read


class Conversations:
    """One example after the other, until the reader ends."""

    def __init__(self, talk: Talk, turns: Sequence[TurnState], read: Read, user: str | None) -> None:
        self.talk, self.turns, self.read, self.user = talk, turns, read, user

    def hold(self, start: int) -> None:
        """Begins with the example at `start`. Raises EOFError where the input ends, or /quit is typed."""
        index = start
        while True:
            index = self._example(index)

    def _example(self, index: int) -> int:
        """Talks over one example; returns the index of the next one."""
        from act_assets.cli.chat_session import ChatSession

        turn = self.turns[index]
        session = ChatSession(turn, self.talk)
        self._introduce(turn)
        try:
            self._tell(session, session.open())
        except ActError as error:
            _say(f"error: {error}")
            session.ended = True
        while True:
            line = self.read(self._prompt(session)).strip()
            try:
                if line.startswith("/"):
                    chosen = self._command(line, index)
                    if chosen is not None:
                        return chosen
                    continue
                if not line and not session.ended and session.can_simulate:
                    line = session.simulated()
                    _say(f"simulated user: {line}")
                if not line:
                    _say(f"type a {'request' if session.ended else 'reply'}, or one of {HELP}")
                    continue
                self._tell(session, session.say(line))
            except ActError as error:
                _say(f"error: {error}")

    def _command(self, line: str, index: int) -> int | None:
        """The index of the example to go to, None to stay. Raises EOFError for /quit, ActError for what is unknown."""
        from act_assets.cli.chat_session import find_example

        word, _, rest = line.partition(" ")
        if word == "/quit":
            raise EOFError
        if word == "/example":
            return find_example(self.turns, rest.strip())
        if word != "/next":
            raise ActError(f"unknown command {word}", todo=HELP)
        if index + 1 < len(self.turns):
            return index + 1
        _say("that was the last example")
        return None

    def _introduce(self, turn: TurnState) -> None:
        said = [f"{m.role.capitalize()}: {m.content}" for m in turn.history[:-1]]
        _say("", f"--- example {turn.turn_id}", shortened(self.talk.task.reader.system_message(turn.context)), "")
        if len(said) > LINES:
            _say(f"... {len(said) - LINES} earlier utterances")
        _say(*said[-LINES:], f"User: {turn.request}")

    def _tell(self, session: ChatSession, spoken: Spoken) -> None:
        if spoken.ended == "too_long":
            _say("no room is left for a response (policy.max_length)")
        else:
            cut = " ... (it hit its token limit)" if spoken.truncated else ""
            _say(f"[{spoken.action}] {printable(spoken.text)}{cut}")
        if spoken.ended == "max_clarifications":
            _say(f"it has asked {self.talk.max_clarifications + 1} times: the request counts as not settled")
        if session.goal is not None and spoken.score is not None:
            _say(f"goal: {session.goal}", f"{self.talk.task.judge.metric_name}: {spoken.score:.3f}")

    def _prompt(self, session: ChatSession) -> str:
        if session.ended:
            return f"another request, or {HELP}> "
        return f"reply (Enter: {self.user} replies)> " if session.can_simulate else "reply> "


def shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def printable(text: str) -> str:
    """A model's text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def _list(turns: Sequence[TurnState]) -> None:
    """Pages on a terminal, everything at once in a pipe."""
    pages = sys.stdin.isatty() and sys.stdout.isatty()
    for number, turn in enumerate(turns):
        if pages and number and number % PAGE == 0:
            try:
                if input(f"-- {number} of {len(turns)}; Enter for more, q to end ").strip().lower().startswith("q"):
                    return
            except (EOFError, KeyboardInterrupt):
                out.print()
                return
        _say(f"{turn.turn_id}  {turn.action:<8} {' '.join(turn.request.split())}")


def _say(*lines: str) -> None:
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)
