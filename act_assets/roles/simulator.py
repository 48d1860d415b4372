"""U: plays the user of a simulated trajectory, grounded in an intent summary (appendix H)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from act_assets.conversation import TurnState, Utterance
from act_assets.roles.prompt import grounding_text, history_lines, trajectory_lines
from act_assets.roles.role import Role, RoleResult, SimulatorContext, WithoutModel, spoken
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest


class Simulator(Role):
    """The user simulator U."""

    name = "simulator"
    stop = ("\nAssistant:",)
    wanted = "an utterance of the User"

    def requests(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[LLMRequest]:
        """The requests that `reply` sends."""
        return [
            self.request(
                turn.where,
                SimulatorContext(turn, intent, utterances),
                intent=one_line(intent) if self.task.grounding == "intent" else intent,
                grounding=grounding_text(turn.context),
                lines=(*history_lines(turn.history), *trajectory_lines(utterances)),
            )
            for turn, intent, utterances in zip(turns, intents, trajectories, strict=True)
        ]

    def reply(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[RoleResult]:
        """What the user of each turn says next, in order.

        `trajectories` are the utterances since the turn's prompt; each ends with a question.
        """
        return self.answers(self.requests(turns, intents, trajectories))

    def read(self, text: str) -> str | None:
        """One paragraph of the user, on one line."""
        return one_line(re.split(r"\n[ \t]*\n", spoken(text, "User"), maxsplit=1)[0]) or None


class GoldUser(WithoutModel):
    """The user as annotated, for the oracle test: answers the k-th question with the k-th gold
    reply, and states the clear request once they are used up."""

    def reply(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[RoleResult]:
        """What the user of each turn says next, in order; `intents` are not looked at."""
        replies: list[RoleResult] = []
        for turn, _, utterances in zip(turns, intents, trajectories, strict=True):
            said = sum(1 for u in utterances if u.speaker == "user")
            replies.append(turn.gold_replies[said] if said < len(turn.gold_replies) else turn.clear_request)
        return replies
