"""M: writes a response that takes a given action (section 3.2.1, appendix F).

The prompt is mixed-initiative: before every Assistant utterance a line says what the Assistant does
next, in the in-context conversations as in the turn's own; the last such line states the wanted
action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from act_assets.conversation import TurnState
from act_assets.roles.prompt import grounding_text, history_lines
from act_assets.roles.role import GeneratorContext, OnDone, Role, RoleResult, spoken
from resources.llm.base import LLMRequest


class Generator(Role):
    """The conditional generator M, with in-context examples."""

    name = "generator"
    stop = ("\nUser:",)
    wanted = "an utterance of the Assistant"

    def requests(self, turns: Sequence[TurnState], actions: Sequence[str], seeds: Sequence[int]) -> list[LLMRequest]:
        """The requests that `generate` sends."""
        return [
            self.request(
                turn.where,
                GeneratorContext(turn, action, seed),
                seed,
                examples=self.examples_apart_from(turn),
                grounding=grounding_text(turn.context),
                # A prompt carries no labels of earlier turns; the rule says what they did.
                lines=[
                    replace(line, action=self.task.action(self.task.judge.rule_action(line.text)))
                    if line.speaker == "Assistant"
                    else line
                    for line in history_lines(turn.history)
                ],
                action=self.task.action(action),
            )
            for turn, action, seed in zip(turns, actions, seeds, strict=True)
        ]

    def generate(
        self,
        turns: Sequence[TurnState],
        actions: Sequence[str],
        seeds: Sequence[int],
        on_done: OnDone | None = None,
    ) -> list[RoleResult]:
        """A response to each turn by the action given for it, in order; `seeds` tell draws apart."""
        return self.answers(self.requests(turns, actions, seeds), on_done)

    def read(self, text: str) -> str | None:
        """All of it: several questions stay several, so that length and closing are no cue."""
        return spoken(text, "Assistant") or None
