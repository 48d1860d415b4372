"""The records that flow through everything (section 3.1 of the paper).

All are frozen and hold plain values, so that any of them can be written as a Parquet row (see `rows.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Speaker = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Action:
    """One element of a task's action space S.

    `ends_trajectory` is False where the user has to reply before the request is settled (CLARIFY).
    """

    name: str
    ends_trajectory: bool
    description: str


CLARIFY = Action("CLARIFY", False, "asks the user a clarifying question")
ANSWER = Action("ANSWER", True, "directly answers the user's request")


@dataclass(frozen=True, slots=True)
class Message:
    """One utterance of a prompt."""

    role: Speaker
    content: str


@dataclass(frozen=True, slots=True)
class ContextBlock:
    """The smallest piece of grounding that may be left out of a prompt: a sentence, a table row."""

    section: str
    text: str
    essential: bool = False


@dataclass(frozen=True, slots=True)
class Reference:
    """A gold response: its text as a policy should write it, and the annotation behind it.

    `answer_json` is the annotated answer as canonical JSON, in the task's own form. `alternatives` are further texts
    that are as right.
    """

    text: str
    answer_json: str = "null"
    scale: str = ""
    answer_type: str = ""
    alternatives: tuple[str, ...] = ()

    @property
    def answer(self) -> Any:
        return json.loads(self.answer_json)


@dataclass(frozen=True, slots=True)
class Reading:
    """One way in which an ambiguous request may be meant: what this user replies when asked, the request with
    everything said, and the goal then."""

    reply: str
    clear_request: str
    goal: Reference


@dataclass(frozen=True, slots=True)
class Turn:
    """One exchange as annotated: what the user said, what the system should say, by which action.

    `clear_request` is the request with everything said that the user left open. `readings` are all the ways an
    ambiguous request may be meant, where the data names several: each is a trajectory of its own, to be simulated and
    evaluated. Without them the rest of the conversation is the one trajectory. A turn with `evaluated` False is
    trained on, not evaluated.
    """

    turn_id: str
    user: str
    clear_request: str
    response: Reference
    action: str
    readings: tuple[Reading, ...] = ()
    evaluated: bool = True

    @property
    def state_ids(self) -> tuple[str, ...]:
        """The `turn_id` of each turn state that this turn gives rise to."""
        return tuple(f"{self.turn_id}#{k}" for k in range(1, len(self.readings) + 1)) or (self.turn_id,)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A grounded conversation of n annotated turns, after a `history` that is given and not learnt from.

    Conversations of one `group` belong together (twins, items about one story): they are drawn into a training subset
    together, none is an example in another's prompt, and intervals are drawn over groups.
    """

    task: str
    conversation_id: str
    context: tuple[ContextBlock, ...]
    turns: tuple[Turn, ...]
    history: tuple[Message, ...] = ()
    group: str = ""

    @property
    def group_id(self) -> str:
        return self.group or self.conversation_id


@dataclass(frozen=True, slots=True)
class TurnState:
    """t_i = (p_i, r_i, g_i, a_i), section 3.1.

    p_i is `context` and `history`; `history` ends with the user's request. `open_request` is the index in
    `history` of the utterance that opened the implicit trajectory (a request that is being clarified is never
    cut from a prompt). `gold_replies` are the user's own next utterances, for the gold user of the oracle.
    States that differ only in the reading of the request share a `prompt_id`; `intent_id` names what U is grounded in.
    """

    task: str
    conversation_id: str
    turn_id: str
    position: int
    context: tuple[ContextBlock, ...]
    history: tuple[Message, ...]
    open_request: int
    response: Reference
    goal: Reference
    action: str
    clear_request: str
    gold_replies: tuple[str, ...]
    prompt_id: str
    intent_id: str
    group: str
    evaluated: bool = True

    @property
    def request(self) -> str:
        """The user's utterance that this turn responds to."""
        return self.history[-1].content

    @property
    def where(self) -> str:
        """How messages name this turn."""
        return f"task {self.task}, conversation {self.conversation_id}, turn {self.turn_id}"


def once_per_prompt(turns: Iterable[TurnState]) -> list[TurnState]:
    """The turns without those that differ from an earlier one only in the reading of the request."""
    first: dict[str, TurnState] = {}
    for turn in turns:
        first.setdefault(turn.prompt_id, turn)
    return list(first.values())


@dataclass(frozen=True, slots=True)
class ActionLabel:
    """What the annotator G said of a reference response, beside the gold label."""

    task: str
    conversation_id: str
    turn_id: str
    gold: str
    label: str
    source: str


@dataclass(frozen=True, slots=True)
class IntentSummary:
    """What U is grounded in (appendix H): what the user wants to know, in a summary, or the target itself."""

    task: str
    conversation_id: str
    intent_id: str
    summary: str


@dataclass(frozen=True, slots=True)
class ClearRequest:
    """A request that leaves nothing open, of which an ambiguous twin is to be made (appendix C).

    `side` is the split it belongs to, `strategy` names what the twin leaves open, `grounding` is the database schema
    (or whatever the request is about) as text, `source` names where the target is valid (a database).
    """

    task: str
    side: str
    request_id: str
    source: str
    strategy: str
    request: str
    target: str
    grounding: str

    @property
    def where(self) -> str:
        """How messages name this request."""
        return f"task {self.task}, request {self.request_id}"


@dataclass(frozen=True, slots=True)
class AmbiguousTwin:
    """A clear request, its ambiguous twin and the question that resolves it (appendix C)."""

    clear: ClearRequest
    request: str
    clarifying_question: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """t'_i of Algorithm 1: winning response y_w under action a, losing response y_l under a'."""

    task: str
    conversation_id: str
    turn_id: str
    action: str
    rejected_action: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    goal: str


@dataclass(frozen=True, slots=True)
class Utterance:
    """One utterance of a simulated trajectory.

    `token_ids` are the policy's own tokens (end-of-turn included where it was sampled), empty for the user's.
    `truncated` says that the policy hit its token limit before ending its turn.
    """

    speaker: Literal["user", "assistant"]
    text: str
    action: str
    token_ids: tuple[int, ...] = ()
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The simulated conversation that follows a prompt (Algorithm 2, lines 6-12).

    `ended` says why it stopped: `settled` (an action that ends it), `max_clarifications`, `too_long` (no room
    for another exchange), or `not_rolled_out` (its first action was already wrong). Only a settled trajectory has
    an outcome to score.
    """

    turn_id: str
    utterances: tuple[Utterance, ...]
    ended: Literal["settled", "max_clarifications", "too_long", "not_rolled_out"]

    @property
    def first(self) -> Utterance:
        return self.utterances[0]

    @property
    def clarified(self) -> bool:
        """Whether the policy's first response left something for the user to say."""
        return len(self.utterances) > 1 or self.ended != "settled"

    @property
    def replies(self) -> int:
        """How often the simulated user spoke."""
        return sum(1 for u in self.utterances if u.speaker == "user")

    @property
    def outcome(self) -> str | None:
        """The text that settles the request; None where nothing did."""
        return self.utterances[-1].text if self.ended == "settled" else None

    @property
    def text(self) -> str:
        """The whole trajectory, readable."""
        return "\n".join(f"{u.speaker.capitalize()}: {u.text}" for u in self.utterances)
