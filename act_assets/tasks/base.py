"""What a task is: one object that reads, one that judges, and the actions between them.

`training/`, `evaluation.py` and the roles know tasks only through this file; docs/adding-a-task.md adds one.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

from act_assets.conversation import (
    Action,
    AmbiguousTwin,
    ClearRequest,
    ContextBlock,
    Conversation,
    Message,
    Reading,
    Turn,
    TurnState,
)
from act_assets.metrics.similarity import Embedder
from act_assets.tasks.rules import Rules
from resources.errors import ActError, PromptError

Scores = dict[str, float]
"""Scores of one text, each in [0, 1], by name of the metric's form."""


SIDES = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class TaskData:
    """The annotated splits of a task, in file order. Without a `test` side, `validation` is evaluated."""

    train: tuple[Conversation, ...]
    validation: tuple[Conversation, ...]
    test: tuple[Conversation, ...] = ()


@dataclass(frozen=True)
class Tools:
    """What a judge may need beside the texts: the folder of the raw files, and an embedder."""

    data: Path
    embedder: Embedder


class TaskReader(Protocol):
    """Reads the official files and renders prompts. Subclass it: what has a body here is the default."""

    files: tuple[str, ...]

    def read(self, folder: Path) -> TaskData:
        """Conversations from a folder with `files` (plain or .gz). Raises DataError, naming file and item."""
        ...

    def system_message(self, context: Sequence[ContextBlock]) -> str:
        """Instruction and grounding as the first message of a prompt."""
        ...

    def further_files(self, folder: Path) -> Sequence[str]:
        """Files that belong to the data beside `files`, relative to the folder (databases, say)."""
        return ()

    def removal_order(self, turn: TurnState) -> Sequence[int]:
        """The indices of the context's blocks in the order in which they leave a prompt that is too long.

        By their distance from the open request: fewest words shared first, later ones first among equals.
        """
        request = _words(" ".join(m.content for m in turn.history[turn.open_request :]))
        removable = (i for i, block in enumerate(turn.context) if not block.essential)
        return sorted(removable, key=lambda i: (len(request & _words(turn.context[i].text)), -i))


class TaskJudge(Protocol):
    """Scores responses: the heuristic H with its tolerance, the metrics, the rule-based classifier, the
    rejected-action policy. Subclass it: what has a body here is the default.

    `forms` names the metric's forms, the main one first; `metric_name` is for people.
    """

    tolerance: float
    metric_name: str
    forms: tuple[str, ...]

    def rule_action(self, response: str) -> str:
        """The name of the action that a response takes, by rule."""
        ...

    def turn_scores(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[Scores]:
        """First responses against r; without the forms that say nothing at turn level."""
        ...

    def outcome_scores(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[Scores]:
        """Outcomes of trajectories against the goal g, all `forms` of them."""
        ...

    def heuristic(self, turns: Sequence[TurnState], outcomes: Sequence[str]) -> list[float]:
        """H(outcome, g) of Algorithm 2, compared with `tolerance` (epsilon)."""
        return [scores[self.forms[0]] for scores in self.outcome_scores(turns, outcomes)]

    def rejected_actions(self, turn: TurnState, actions: Sequence[Action]) -> Sequence[str]:
        """The names from which a' is drawn (Algorithm 1, line 4): S without a."""
        return [a.name for a in actions if a.name != turn.action]

    def equipped(self, tools: Tools) -> TaskJudge:
        """This judge with what it needs to score; `rule_action` works without."""
        return self

    @property
    def identity(self) -> str:
        """What the figures were measured with, as reports state it."""
        return self.metric_name


class TwinMaker(Protocol):
    """For tasks whose ambiguous requests are made from clear ones (appendix C)."""

    def requests(self, folder: Path, limits: dict[str, int | None]) -> list[ClearRequest]:
        """The clear requests of every side, at most `limits[side]` each, drawn with a fixed seed."""
        ...

    def problem(self, folder: Path, request: ClearRequest) -> str | None:
        """Why a request cannot be used (its target does not run, say), or None."""
        ...

    def read_reply(self, text: str) -> tuple[str, str] | None:
        """(ambiguous request, clarifying question) as a model wrote them; None where they cannot be read."""
        ...

    def conversations(self, folder: Path, twins: Sequence[AmbiguousTwin]) -> TaskData:
        """Two conversations for each twin, in one group: the clear one and the ambiguous one."""
        ...


@dataclass(frozen=True, slots=True)
class Task:
    """A registered task. `actions` is the ordered action space S (N >= 2), one of which ends a trajectory.

    `beta` is that of equation 1 (appendix J.2), where a profile gives none. U is grounded in a summary of the intent,
    or in the goal itself (`grounding`). `rules` answer for the embedded provider. A task that is not of this package
    may bring `prompts` (a folder with `<role>.md` files) and `sample` (a folder with its files).
    """

    name: str
    title: str
    actions: tuple[Action, ...]
    reader: TaskReader
    judge: TaskJudge
    rules: Rules
    beta: float = 0.01
    grounding: Literal["intent", "goal"] = "intent"
    twins: TwinMaker | None = None
    prompts: Path | None = None
    sample: Path | None = None

    def __post_init__(self) -> None:
        names = [a.name for a in self.actions]
        mistakes = []
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            mistakes.append(f"its name {self.name!r} is not of small letters, digits and underscores")
        if len(names) < 2 or len(set(names)) < len(names):
            mistakes.append(f"it needs two or more actions of different names, not {names}")
        if not any(a.ends_trajectory for a in self.actions):
            mistakes.append("none of its actions ends a trajectory")
        if mistakes:
            raise ValueError(f"task {self.name}: {'; '.join(mistakes)}")

    def action(self, name: str) -> Action:
        """The action of that name. Raises ActError where the task has none."""
        found = next((a for a in self.actions if a.name == name), None)
        if found is None:
            raise ActError(
                f"the task has no action {name!r}",
                where=f"task {self.name}",
                todo=f"its reader, its judge and its labels have to name one of {', '.join(self.action_names)}",
            )
        return found

    @property
    def action_names(self) -> tuple[str, ...]:
        return tuple(a.name for a in self.actions)

    def asks(self, role: str) -> bool:
        """Whether the task ever asks a role: intents are for grounding in intents, perturbations for making twins."""
        return {"intent": self.grounding == "intent", "perturbation": self.twins is not None}.get(role, True)

    def equipped(self, tools: Tools) -> Task:
        """The task with a judge that can score."""
        return replace(self, judge=self.judge.equipped(tools))

    def told(self, conversation: Conversation) -> tuple[tuple[str, Conversation], ...]:
        """(intent id, the conversation as that user went through it), for every trajectory that U may play."""
        ending = next(a.name for a in self.actions if a.ends_trajectory)
        asked = tuple(replace(turn, readings=()) for turn in conversation.turns)
        ways = [
            (state_id, (*asked[: position + 1], Turn(f"{turn.turn_id}+", r.reply, r.clear_request, r.goal, ending)))
            for position, turn in enumerate(conversation.turns)
            for state_id, r in self.readings(turn)
        ]
        if not all(self.readings(turn) for turn in conversation.turns):
            ways.insert(0, (conversation.conversation_id, asked))
        return tuple((intent_id, replace(conversation, turns=turns)) for intent_id, turns in ways)

    def readings(self, turn: Turn) -> tuple[tuple[str, Reading], ...]:
        """(state id, reading) for each of a turn's readings.

        None where its label, a pseudo label, takes it for an answer: what the request may mean is gold knowledge then,
        and the turn is taken as it stands.
        """
        if self.action(turn.action).ends_trajectory or not turn.readings:
            return ()
        return tuple(zip(turn.state_ids, turn.readings, strict=True))

    def turn_states(self, conversation: Conversation) -> tuple[TurnState, ...]:
        """Every turn of a conversation as (p, r, g, a), section 3.1; a turn with readings once for each.

        Message by message: the history of turn i holds turns 1..i-1 once each, and never r_i.
        """
        ends = [self.action(t.action).ends_trajectory for t in conversation.turns]
        states: list[TurnState] = []
        history = list(conversation.history)
        open_request = len(history)
        for position, turn in enumerate(conversation.turns):
            if position == 0 or ends[position - 1]:
                open_request = len(history)
            history.append(Message("user", turn.user))
            later = conversation.turns[position + 1 :]
            # Under pseudo labels the last turn may read as a clarification: then g is r itself (section 3.1).
            settled = next((i for i, done in enumerate(ends[position:]) if done), 0)
            last = (turn, *later)[settled]
            common = TurnState(
                task=conversation.task,
                conversation_id=conversation.conversation_id,
                turn_id=turn.turn_id,
                position=position,
                context=conversation.context,
                history=tuple(history),
                open_request=open_request,
                response=turn.response,
                goal=last.response,
                action=turn.action,
                clear_request=last.clear_request,
                gold_replies=tuple(t.user for t in later[:settled]),
                prompt_id=turn.turn_id,
                intent_id=conversation.conversation_id if self.grounding == "intent" else turn.turn_id,
                group=conversation.group_id,
                evaluated=turn.evaluated,
            )
            meant = [
                replace(
                    common,
                    turn_id=state_id,
                    intent_id=state_id,
                    goal=reading.goal,
                    clear_request=reading.clear_request,
                    gold_replies=(reading.reply,),
                )
                for state_id, reading in self.readings(turn)
            ]
            states += meant or [common]
            history.append(Message("assistant", turn.response.text))
        return tuple(states)


def messages_of(task: Task, turn: TurnState) -> tuple[Message, ...]:
    """The whole prompt p of a turn: system message, then the history."""
    return (Message("system", task.reader.system_message(turn.context)), *turn.history)


def fit_prompt(
    task: Task, turn: TurnState, count_tokens: Callable[[Sequence[Message]], int], max_tokens: int
) -> tuple[Message, ...]:
    """The prompt of a turn, shortened until it fits: oldest exchanges first, then grounding as the task orders it.

    The open request (the utterances since the trajectory began) and essential blocks always stay.
    Raises PromptError where even that does not fit.
    """

    firsts = (*range(0, turn.open_request, 2), turn.open_request)
    removable = task.reader.removal_order(turn)

    def shortened(steps: int) -> tuple[Message, ...]:
        gone = set(removable[: max(0, steps - len(firsts) + 1)])
        blocks = [b for i, b in enumerate(turn.context) if i not in gone]
        first = firsts[min(steps, len(firsts) - 1)]
        return (Message("system", task.reader.system_message(blocks)), *turn.history[first:])

    # Token counts fall with every exchange and block that is left out.
    steps = range(len(firsts) + len(removable))
    fits = lambda step: count_tokens(shortened(step)) <= max_tokens  # noqa: E731
    fewest = 0 if fits(0) else bisect_left(steps, True, lo=1, key=fits)
    if fewest == len(steps):
        raise PromptError(
            f"the prompt does not fit {max_tokens} tokens even without its grounding",
            where=turn.where,
            todo="raise policy.max_prompt_tokens in the profile",
        )
    return shortened(fewest)


def _words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+|\d+", text.lower()))
