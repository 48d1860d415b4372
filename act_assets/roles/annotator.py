"""G: labels the action of a reference response (sections 3.1 and 5.4)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from act_assets.conversation import TurnState
from act_assets.roles.role import (
    AnnotatorContext,
    Line,
    OnDone,
    Prompted,
    RoleResult,
    RoleSettings,
    grounding_text,
    history_lines,
    labelled,
    usage_of,
)
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM

AnnotatorSource = Literal["gold", "rule", "llm"]


class Annotator:
    """The action annotator G: the dataset's own labels, the task's rule, or a zero-shot model (5.4).

    Only `llm` asks a model and needs `llm` and `settings`. Raises ValueError where they are missing.
    """

    def __init__(
        self,
        task: Task,
        source: AnnotatorSource,
        llm: LLM | None = None,
        settings: RoleSettings | None = None,
        prompts_dir: Path | None = None,
    ) -> None:
        self.task, self.source = task, source
        self._prompted: Prompted | None = None
        if source == "llm":
            if llm is None or settings is None:
                raise ValueError("an annotator of source 'llm' needs llm and settings")
            self._prompted = Prompted("annotator", llm, settings, task, prompts_dir)

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(self, turns: Sequence[TurnState]) -> list[LLMRequest]:
        """The requests that `label` sends, for previews; none where no model is asked."""
        if self._prompted is None:
            return []
        return [
            self._prompted.request(
                turn.where,
                AnnotatorContext(turn),
                actions=self.task.actions,
                grounding=grounding_text(turn.context),
                lines=(*history_lines(turn.history), Line("Assistant", one_line(turn.response.text))),
            )
            for turn in turns
        ]

    def label(self, turns: Sequence[TurnState], on_done: OnDone | None = None) -> list[RoleResult]:
        """The action name of each reference response, in order."""
        if self._prompted is None:
            labels: list[RoleResult] = []
            for turn in turns:
                gold = self.source == "gold"
                labels.append(turn.action if gold else self.task.judge.rule_action(turn.response.text))
                if on_done:
                    on_done()
            return labels
        return labelled(self._prompted.ask(self.requests(turns), on_done), (t.where for t in turns), self.task)
