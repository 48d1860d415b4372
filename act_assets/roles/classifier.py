"""A: labels the action of a sampled response (appendix G)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from act_assets.conversation import Conversation, TurnState
from act_assets.roles.role import (
    ClassifierContext,
    Example,
    Line,
    OnDone,
    Prompted,
    RoleResult,
    RoleSettings,
    conversation_lines,
    examples_apart_from,
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

ClassifierSource = Literal["rule", "llm"]


class Classifier:
    """The action classifier A: the task's rule, or a model with in-context examples.

    Only `llm` asks a model and needs `llm` and `settings`; `examples` are conversations of the training side, each
    shown up to one labelled response, the actions in rotation. Raises ValueError where llm or settings is missing.
    """

    def __init__(
        self,
        task: Task,
        source: ClassifierSource,
        llm: LLM | None = None,
        settings: RoleSettings | None = None,
        examples: Sequence[Conversation] = (),
        prompts_dir: Path | None = None,
        *,
        shown: int = 10,
    ) -> None:
        self.task, self.source = task, source
        self._prompted: Prompted | None = None
        if source == "llm":
            if llm is None or settings is None:
                raise ValueError("a classifier of source 'llm' needs llm and settings")
            self._prompted = Prompted("classifier", llm, settings, task, prompts_dir)
        names = task.action_names
        self.examples_shown = min(shown, len(examples))
        self._examples = [
            (c.group_id, _labelled_example(task, c, names[i % len(names)])) for i, c in enumerate(examples)
        ]

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[LLMRequest]:
        """The requests that `classify` sends, for previews; none where no model is asked."""
        if self._prompted is None:
            return []
        return [
            self._prompted.request(
                turn.where,
                ClassifierContext(turn, response),
                actions=self.task.actions,
                examples=examples_apart_from(turn, self._examples, self.examples_shown),
                grounding=grounding_text(turn.context),
                lines=(*history_lines(turn.history), Line("Assistant", one_line(response))),
            )
            for turn, response in zip(turns, responses, strict=True)
        ]

    def classify(
        self, turns: Sequence[TurnState], responses: Sequence[str], on_done: OnDone | None = None
    ) -> list[RoleResult]:
        """The action name of each response, in order."""
        if self._prompted is None:
            labels: list[RoleResult] = []
            for _, response in zip(turns, responses, strict=True):
                labels.append(self.task.judge.rule_action(response))
                if on_done:
                    on_done()
            return labels
        results = self._prompted.ask(self.requests(turns, responses), on_done)
        return labelled(results, (t.where for t in turns), self.task)


def _labelled_example(task: Task, conversation: Conversation, action: str) -> Example:
    """A conversation up to its last response that takes `action`, or whole where none does."""
    turns = conversation.turns
    last = max((i for i, t in enumerate(turns) if t.action == action), default=len(turns) - 1)
    return Example(grounding_text(conversation.context), conversation_lines(task, conversation, turns[: last + 1]))
