"""U: plays the user of a simulated trajectory, grounded in an intent summary (appendix H)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_assets.conversation import TurnState, Utterance
from act_assets.roles.role import (
    OnDone,
    Prompted,
    RoleResult,
    RoleSettings,
    SimulatorContext,
    grounding_text,
    history_lines,
    spoken,
    trajectory_lines,
    usable,
    usage_of,
)
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM


class Simulator:
    """The user simulator U."""

    def __init__(self, llm: LLM, settings: RoleSettings, task: Task, prompts_dir: Path | None = None) -> None:
        self.task = task
        self._prompted = Prompted("simulator", llm, settings, task, prompts_dir, stop=("\nAssistant:",))

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(
        self,
        turns: Sequence[TurnState],
        intents: Sequence[str],
        trajectories: Sequence[tuple[Utterance, ...]],
    ) -> list[LLMRequest]:
        """The requests that `reply` sends, for previews."""
        return [
            self._prompted.request(
                turn.where,
                SimulatorContext(turn, intent, utterances),
                intent=one_line(intent) if self.task.grounding == "intent" else intent,
                grounding=grounding_text(turn.context),
                lines=(*history_lines(turn.history), *trajectory_lines(utterances)),
            )
            for turn, intent, utterances in zip(turns, intents, trajectories, strict=True)
        ]

    def reply(
        self,
        turns: Sequence[TurnState],
        intents: Sequence[str],
        trajectories: Sequence[tuple[Utterance, ...]],
        on_done: OnDone | None = None,
    ) -> list[RoleResult]:
        """What the user of each turn says next, in order.

        `trajectories` are the utterances since the turn's prompt; each ends with the policy's question.
        """
        results = self._prompted.ask(self.requests(turns, intents, trajectories), on_done)
        return usable(results, (t.where for t in turns), _reply, "an utterance of the User")


class GoldUser:
    """The user as annotated, for the oracle test: answers the k-th question with the k-th gold reply, and states
    the clear request once they are used up."""

    usage = Usage()

    def reply(
        self,
        turns: Sequence[TurnState],
        intents: Sequence[str],
        trajectories: Sequence[tuple[Utterance, ...]],
        on_done: OnDone | None = None,
    ) -> list[RoleResult]:
        """What the user of each turn says next, in order; `intents` are not looked at."""
        replies: list[RoleResult] = []
        for turn, _, utterances in zip(turns, intents, trajectories, strict=True):
            said = sum(1 for u in utterances if u.speaker == "user")
            replies.append(turn.gold_replies[said] if said < len(turn.gold_replies) else turn.clear_request)
            if on_done:
                on_done()
        return replies


def _reply(text: str) -> str:
    """One paragraph of the user, on one line."""
    return one_line(re.split(r"\n[ \t]*\n", spoken(text, "User"), maxsplit=1)[0])
