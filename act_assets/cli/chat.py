"""`act chat`: a conversation with a checkpoint over one example, step by step.

    session = ChatSession(turn, talk)
    session.respond()                    # the policy responds to the example's request
    while not session.ended:
        session.say("The one of 2019")   # or session.simulated(), the simulated user's own reply
    session.say("And in 2020?")          # a further request over the same grounding

A first request is sampled with the seeds of the evaluation: greedy decoding gives the responses
that were evaluated.
"""

from __future__ import annotations

import itertools
import pydoc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer

from act_assets.cli.options import CheckpointOption, ProfileOption, SeedOption, SizeOption, TaskOption, check_options
from act_assets.conversation import Message, Reference, TurnState, Utterance
from act_assets.methods.registry import DEFAULT, get_method
from act_assets.roles.build import describe, missing_keys
from act_assets.roles.classifier import RuleClassifier
from act_assets.roles.role import require_all
from act_assets.run import Run, equipped_task, evaluated_turns, intents_in, make_run, roles_of
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.training.policy import load_policy
from act_assets.trajectory import ActionClassifier, ConversationPolicy, Dialogue, UserSimulator, dialogue_seeds
from resources.artifacts import Key
from resources.errors import ActError

SHOWN = 1200  # characters of the grounding
LINES = 6  # of the history
HELP = "/next  /example ID  /quit"


@dataclass(frozen=True, slots=True)
class Talk:
    """What stays the same from one example to the next. `intents` are what U is grounded in, by
    intent id; without `simulator`, whom people know as `user`, nobody replies for the user.
    """

    task: Task
    policy: ConversationPolicy
    classifier: ActionClassifier
    max_clarifications: int
    seed: int
    simulator: UserSimulator | None = None
    user: str = ""
    intents: Mapping[str, str] = field(default_factory=dict)


class ChatSession:
    """The conversation over one example, as far as it has come.

    `turn` is the request that is open now; `further` says that it is not the example's own, so that
    nobody knows its goal. `ended` says why the user has nothing to reply to, "" where a reply is
    awaited. `score`, in [0, 1], is the judge's of an ended request whose goal is known: of the
    outcome, 0 of one that was never settled.
    """

    def __init__(self, turn: TurnState, talk: Talk) -> None:
        self.turn, self.talk = turn, talk
        self.utterances: tuple[Utterance, ...] = ()
        self.ended, self.further = "", False
        self.score: float | None = None
        # Of further requests: prompts are kept by their ids, so that none is used twice.
        self._ids = itertools.count(2)

    @property
    def goal(self) -> str | None:
        """What would be right in the end; None for a request that is not of the data."""
        return None if self.further else self.turn.goal.text

    @property
    def can_simulate(self) -> bool:
        """Whether the simulated user can reply: only to questions about the example's request."""
        known = not self.further and self.turn.intent_id in self.talk.intents
        return self.talk.simulator is not None and known and not self.ended

    def simulated(self) -> str:
        """The simulated user's reply. Raises RoleError without an answer, ActError without a user."""
        if self.talk.simulator is None or not self.can_simulate:
            raise ActError("there is no simulated user for this", todo="type the reply yourself")
        intent = self.talk.intents[self.turn.intent_id]
        replies = self.talk.simulator.reply([self.turn], [intent], [self.utterances])
        return require_all(replies, "replies of the simulated user")[0]

    def say(self, text: str) -> None:
        """A reply, or a further request where the last one has ended; and the response to it.

        Raises ActError where there is none, as though nothing had been said.
        """
        text = " ".join(text.split())
        if not text:
            raise ActError("nothing was said", todo="type a reply or a request")
        before = vars(self).copy()
        try:
            if self.ended:  # all that was said becomes history, and this request is open
                history = (*self.turn.history, *(Message(u.speaker, u.text) for u in self.utterances))
                if history[-1].role == "user":  # nothing was responded, and speakers have to alternate
                    history = history[:-1]
                self.turn = replace(
                    self.turn,
                    turn_id=f"{self.turn.prompt_id}/{next(self._ids)}",
                    position=self.turn.position + 1,
                    history=(*history, Message("user", text)),
                    open_request=len(history),
                    response=Reference(""),
                    goal=Reference(""),
                    clear_request=text,
                    gold_replies=(),
                )
                self.utterances, self.ended, self.score, self.further = (), "", None, True
            else:
                self.utterances = (*self.utterances, Utterance("user", text, ""))
            self.respond()
        except ActError:
            vars(self).update(before)
            raise

    def respond(self) -> None:
        """The policy responds to what has been said: at first to the example's request."""
        task, step = self.talk.task, sum(1 for u in self.utterances if u.speaker == "assistant")
        (seed,) = dialogue_seeds(self.talk.seed, [self.turn], "evaluation")
        (said,) = self.talk.policy.respond([Dialogue(self.turn, self.utterances, derive_seed(seed, step))])
        outcome = None
        if said is None:
            self.ended = "too_long"
        else:
            (action,) = require_all(
                self.talk.classifier.classify([self.turn], [(*self.utterances, said)]), "actions of responses"
            )
            self.utterances = (*self.utterances, replace(said, action=action))
            if task.action(action).ends_trajectory:
                self.ended, outcome = "settled", said.text
            elif step == self.talk.max_clarifications:
                self.ended = "max_clarifications"
        if self.ended and not self.further:
            judge = task.judge
            self.score = 0.0 if outcome is None else judge.outcome_scores([self.turn], [outcome])[0][judge.forms[0]]


def find_example(turns: Sequence[TurnState], example: str) -> int:
    """The index of the turn with that id, or of the only one that begins so. Raises ActError."""
    exact = [i for i, t in enumerate(turns) if t.turn_id == example]
    found = exact or [i for i, t in enumerate(turns) if example and t.turn_id.startswith(example)]
    if len(found) != 1:
        what = f"{len(found)} examples begin with {example!r}" if found else f"there is no example {example!r}"
        raise ActError(what, todo="choose one that act chat --list shows")
    return found[0]


def chat(
    task: TaskOption = "pacific",
    train_size: SizeOption = 50,
    method: CheckpointOption = DEFAULT,
    example: Annotated[
        str | None, typer.Option("--example", help="the id of an evaluated example; default: the first ambiguous one")
    ] = None,
    show_list: Annotated[bool, typer.Option("--list", help="show the examples: id, action, request")] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy, as in the evaluation by default")] = 0.0,
    profile: ProfileOption = "laptop",
    seed: SeedOption = 0,
) -> None:
    """Talk to a checkpoint over an example, and see the action that each response takes.

    Where it asks, reply, or press Enter for the simulated user's reply. Then: another request over
    the same grounding, /next, /example ID, or /quit.
    """
    check_options(task, train_size, profile)
    trained = get_method(method)
    run = make_run(profile, seed, task, train_size)
    if not show_list:
        run.store.require(Key(trained.checkpoint, task, train_size))  # names what makes it
    run = replace(run, inputs={name: run.store.require(Key(name, task)) for name in ("raw_dataset", "conversations")})
    turns = evaluated_turns(run)
    if show_list:  # in pages on a terminal
        pydoc.pager("".join(f"{t.turn_id}  {t.action:<8} {' '.join(t.request.split())}\n" for t in turns))
        return
    if not turns:
        raise ActError("there is no evaluated example", where=f"task {task}", todo="materialize conversations again")
    ambiguous = (i for i, t in enumerate(turns) if not run.task.action(t.action).ends_trajectory)
    start = find_example(turns, example) if example else next(ambiguous, 0)
    talk = load_talk(run, method, temperature)
    try:
        converse(talk, turns, start, read_line)
    except (EOFError, KeyboardInterrupt):
        typer.echo()


def load_talk(run: Run, method: str, temperature: float) -> Talk:
    """A checkpoint, ready to talk; `run.inputs` holds the raw dataset and the conversations."""
    from act_assets.release.publish import checkpoint_of  # huggingface_hub, and below torch

    role = run.profile.roles.simulator
    checkpoint = checkpoint_of(run, method)
    task = equipped_task(run)
    typer.echo(f"loading {checkpoint.key} ...", err=True)
    policy = load_policy(checkpoint.file("model"), task, run.profile.policy, batch_size=1, temperature=temperature)
    talk = Talk(task, policy, RuleClassifier(task), run.profile.act.max_clarifications, run.seed)
    intents = run.store.find(Key("evaluation_intents", task.name))
    if intents is None or (role.base_url is None and missing_keys([role.provider])):
        return talk
    return replace(talk, simulator=roles_of(run).simulator(), user=describe(role), intents=intents_in(intents))


def read_line(prompt: str) -> str:
    """Reads a line; one from a pipe is shown, so that the whole can be read afterwards."""
    if sys.stdin.isatty():
        return input(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    typer.echo(prompt + line.rstrip("\n"))
    return line.rstrip("\n")


def converse(talk: Talk, turns: Sequence[TurnState], index: int, read: Callable[[str], str]) -> None:
    """One example after the other, from the one at `index`. Raises EOFError at the end."""
    session = begin(talk, turns[index])
    while True:
        prompt = f"another request, or {HELP}> " if session.ended else "reply> "
        line = read(f"reply (Enter: {talk.user} replies)> " if session.can_simulate else prompt).strip()
        word, _, rest = line.partition(" ")
        try:
            if word == "/quit":
                raise EOFError
            if word == "/next" and index + 1 == len(turns):
                typer.echo("that was the last example")
            elif word in ("/next", "/example"):
                index = index + 1 if word == "/next" else find_example(turns, rest.strip())
                session = begin(talk, turns[index])
            elif word.startswith("/"):
                raise ActError(f"unknown command {word}", todo=HELP)
            else:
                if not line and session.can_simulate:
                    line = session.simulated()
                    typer.echo(f"simulated user: {printable(line)}")
                if line:
                    session.say(line)
                    tell(session)
                else:
                    typer.echo(f"type a {'request' if session.ended else 'reply'}, or one of {HELP}")
        except ActError as error:
            typer.echo(f"error: {error}")


def begin(talk: Talk, turn: TurnState) -> ChatSession:
    """Shows an example and the response to its request."""
    session = ChatSession(turn, talk)
    said = [f"{m.role.capitalize()}: {m.content}" for m in turn.history[:-1]]
    earlier = [f"... {len(said) - LINES} earlier utterances"] if len(said) > LINES else []
    typer.echo(f"\n--- example {turn.turn_id}\n{shortened(talk.task.reader.system_message(turn.context))}\n")
    typer.echo("\n".join([*earlier, *said[-LINES:], f"User: {turn.request}"]))
    try:
        session.respond()
        tell(session)
    except ActError as error:
        typer.echo(f"error: {error}")
        session.ended = "failed"
    return session


def tell(session: ChatSession) -> None:
    """Shows what the policy has just responded, and what became of the request."""
    if session.ended == "too_long":
        typer.echo("no room is left for a response (policy.max_length)")
    else:
        said = session.utterances[-1]
        cut = " ... (it hit its token limit)" if said.truncated else ""
        typer.echo(f"[{said.action}] {printable(said.text)}{cut}")
    if session.ended == "max_clarifications":
        typer.echo(f"it has asked {session.talk.max_clarifications + 1} times: the request counts as not settled")
    if session.score is not None:
        typer.echo(f"goal: {session.goal}\n{session.talk.task.judge.metric_name}: {session.score:.3f}")


def shortened(text: str) -> str:
    """The beginning and the end of a long text."""
    if len(text) <= SHOWN:
        return text
    half = SHOWN // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"


def printable(text: str) -> str:
    """A model's text without what a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)
