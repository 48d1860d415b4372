"""A conversation with a checkpoint over one example, step by step, for people.

    session = ChatSession(turn, talk)
    spoken = session.open()                       # the policy responds to the example's request
    while not spoken.ended:
        spoken = session.say("The one of 2019")   # or session.simulated(), the simulated user's own reply
    session.say("And in 2020?")                   # a further request over the same grounding

A first request is sampled with the seeds of the evaluation: greedy decoding gives the responses that were evaluated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from act_assets.conversation import Message, Reference, TurnState, Utterance
from act_assets.roles.role import require_all
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from act_assets.trajectory import ActionClassifier, ConversationPolicy, Dialogue, UserSimulator, dialogue_seeds
from resources.errors import ActError

Ended = Literal["", "settled", "max_clarifications", "too_long"]


@dataclass(frozen=True, slots=True)
class Talk:
    """What stays the same from one example to the next. `intents` are what U is grounded in, by intent id; without
    `simulator` nobody replies for the user."""

    task: Task
    policy: ConversationPolicy
    classifier: ActionClassifier
    max_clarifications: int
    seed: int
    simulator: UserSimulator | None = None
    intents: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Spoken:
    """A response of the policy. `ended` says why the user has nothing to reply to it, "" where a reply is awaited.

    `score`, in [0, 1], is the judge's where the goal is known: of the outcome, 0 of a request that was never settled.
    `truncated`: it hit its token limit.
    """

    action: str
    text: str
    ended: Ended
    score: float | None = None
    truncated: bool = False


class ChatSession:
    """The conversation over one example. `turn` is the request that is open now."""

    def __init__(self, turn: TurnState, talk: Talk) -> None:
        self.turn, self.talk = turn, talk
        self.utterances: tuple[Utterance, ...] = ()
        self.ended = False
        self._requests = 1
        self._asked = 1  # unlike `_requests` never taken back

    @property
    def goal(self) -> str | None:
        """What would be right in the end; None for a request that is not of the data."""
        return self.turn.goal.text if self._requests == 1 else None

    @property
    def can_simulate(self) -> bool:
        """Whether the simulated user can reply: only to questions about the example's own request."""
        return (
            self.talk.simulator is not None and self._requests == 1 and self.turn.intent_id in (self.talk.intents or {})
        )

    def open(self) -> Spoken:
        """The response to the example's request."""
        return self._respond()

    def say(self, text: str) -> Spoken:
        """The response to a reply, or to a further request where the last one has ended.

        Raises ActError where there is none, as though nothing had been said.
        """
        text = " ".join(text.split())
        if not text:
            raise ActError("nothing was said", todo="type a reply or a request")
        before = self.turn, self.utterances, self.ended, self._requests
        try:
            if self.ended:
                self._begin(text)
            else:
                self.utterances = (*self.utterances, Utterance("user", text, ""))
            return self._respond()
        except ActError:
            self.turn, self.utterances, self.ended, self._requests = before
            raise

    def simulated(self) -> str:
        """What the simulated user would reply now. Raises RoleError where it has no answer, ActError where there is
        none to ask."""
        if not self.can_simulate or self.talk.simulator is None or self.ended:
            raise ActError("there is no simulated user for this", todo="type the reply yourself")
        intent = (self.talk.intents or {})[self.turn.intent_id]
        (reply,) = require_all(
            self.talk.simulator.reply([self.turn], [intent], [self.utterances]), "replies of the simulated user"
        )
        return reply

    def _begin(self, request: str) -> None:
        """All that was said becomes history, and `request` is open."""
        said = tuple(Message(u.speaker, u.text) for u in self.utterances)
        history = (*self.turn.history, *said)
        if history[-1].role == "user":  # the policy had no room to respond: chat templates want turns to alternate
            history = history[:-1]
        self._requests += 1
        unknown = Reference("")
        self.turn = replace(
            self.turn,
            turn_id=f"{self.turn.prompt_id}/{self._next_id()}",  # prompts are kept by this id
            position=self.turn.position + 1,
            history=(*history, Message("user", request)),
            open_request=len(history),
            response=unknown,
            goal=unknown,
            clear_request=request,
            gold_replies=(),
        )
        self.utterances, self.ended = (), False

    def _next_id(self) -> int:
        self._asked += 1
        return self._asked

    def _respond(self) -> Spoken:
        task, step = self.talk.task, sum(1 for u in self.utterances if u.speaker == "assistant")
        (seed,) = dialogue_seeds(self.talk.seed, [self.turn], "evaluation")
        (said,) = self.talk.policy.respond([Dialogue(self.turn, self.utterances, derive_seed(seed, step))])
        if said is None:
            self.ended = True
            return Spoken("", "", "too_long", self._score(None))
        (action,) = require_all(self.talk.classifier.classify([self.turn], [said.text]), "actions of responses")
        self.utterances = (*self.utterances, replace(said, action=action))
        ended: Ended = ""
        if task.action(action).ends_trajectory:
            ended = "settled"
        elif step == self.talk.max_clarifications:
            ended = "max_clarifications"
        self.ended = bool(ended)
        score = self._score(said.text if ended == "settled" else None) if ended else None
        return Spoken(action, said.text, ended, score, said.truncated)

    def _score(self, outcome: str | None) -> float | None:
        if self.goal is None:
            return None
        if outcome is None:
            return 0.0
        (scores,) = self.talk.task.judge.outcome_scores([self.turn], [outcome])
        return scores[self.talk.task.judge.forms[0]]


def first_ambiguous(task: Task, turns: Sequence[TurnState]) -> int:
    """The index of the first turn whose action leaves the request open; 0 where there is none."""
    return next((i for i, t in enumerate(turns) if not task.action(t.action).ends_trajectory), 0)


def find_example(turns: Sequence[TurnState], example: str) -> int:
    """The index of the turn with that id, or of the only one whose id begins so. Raises ActError."""
    exact = [i for i, t in enumerate(turns) if t.turn_id == example]
    found = exact or [i for i, t in enumerate(turns) if example and t.turn_id.startswith(example)]
    if len(found) != 1:
        what = f"{len(found)} examples begin with {example!r}" if found else f"there is no example {example!r}"
        raise ActError(what, todo="choose one that act chat --list shows")
    return found[0]
