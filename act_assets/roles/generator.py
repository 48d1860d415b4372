"""M: writes a response that takes a given action (section 3.2.1, appendix F).

The prompt is mixed-initiative: before every Assistant utterance a line says what the Assistant does next, in the
in-context conversations as in the turn's own; the last such line states the wanted action.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from act_assets.conversation import Conversation, TurnState
from act_assets.roles.role import (
    Example,
    GeneratorContext,
    Line,
    OnDone,
    Prompted,
    RoleResult,
    RoleSettings,
    conversation_lines,
    examples_apart_from,
    grounding_text,
    history_lines,
    spoken,
    usable,
    usage_of,
)
from act_assets.tasks.base import Task
from resources.llm.base import LLMRequest, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM


class Generator:
    """The conditional generator M.

    `examples` are in-context conversations of the training side; a turn sees the first
    `shown` of them (appendices F and G: 10) that are not its own.
    """

    def __init__(
        self,
        llm: LLM,
        settings: RoleSettings,
        task: Task,
        examples: Sequence[Conversation],
        prompts_dir: Path | None = None,
        *,
        shown: int = 10,
    ) -> None:
        self.task = task
        self._prompted = Prompted("generator", llm, settings, task, prompts_dir, stop=("\nUser:",))
        self.examples_shown = min(shown, len(examples))
        self._examples = [
            (c.group_id, Example(grounding_text(c.context), conversation_lines(task, c))) for c in examples
        ]

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(self, turns: Sequence[TurnState], actions: Sequence[str], seeds: Sequence[int]) -> list[LLMRequest]:
        """The requests that `generate` sends, for previews."""
        return [
            self._prompted.request(
                turn.where,
                GeneratorContext(turn, action, seed),
                seed,
                examples=examples_apart_from(turn, self._examples, self.examples_shown),
                grounding=grounding_text(turn.context),
                lines=self._narrated(turn),
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
        """A response to each turn that takes the action given for it, in order; `seeds` tell draws apart.

        The text is kept whole: several questions stay several questions, so that length and closing are no cue.
        """
        results = self._prompted.ask(self.requests(turns, actions, seeds), on_done)
        return usable(
            results,
            (t.where for t in turns),
            lambda text: spoken(text, "Assistant"),
            "an utterance of the Assistant",
        )

    def _narrated(self, turn: TurnState) -> tuple[Line, ...]:
        # A prompt carries no labels of earlier turns; the rule says what they did, so that the format stays one.
        return tuple(
            replace(line, action=self.task.action(self.task.judge.rule_action(line.text)))
            if line.speaker == "Assistant"
            else line
            for line in history_lines(turn.history)
        )
