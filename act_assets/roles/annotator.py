"""G: labels the action of a reference response (sections 3.1 and 5.4)."""

from __future__ import annotations

from collections.abc import Sequence

from act_assets.conversation import TurnState
from act_assets.roles.prompt import Line
from act_assets.roles.role import AnnotatorContext, Labeller, RoleResult, WithoutModel
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest


class Annotator(Labeller):
    """The action annotator G: a zero-shot model (5.4)."""

    name = "annotator"

    def requests(self, turns: Sequence[TurnState]) -> list[LLMRequest]:
        """The requests that `label` sends."""
        return [
            self.question(turn, [Line("Assistant", one_line(turn.response.text))], AnnotatorContext(turn))
            for turn in turns
        ]

    def label(self, turns: Sequence[TurnState]) -> list[RoleResult]:
        """The action name of each reference response, in order."""
        return self.answers(self.requests(turns))


class GoldAnnotator(WithoutModel):
    """G as the dataset has it: its own labels."""

    def label(self, turns: Sequence[TurnState]) -> list[RoleResult]:
        """The annotated action of each turn, in order."""
        return [turn.action for turn in turns]


class RuleAnnotator(WithoutModel):
    """G by the task's rule."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def label(self, turns: Sequence[TurnState]) -> list[RoleResult]:
        """The action that the text of each reference response takes, in order."""
        return [self.task.judge.rule_action(t.response.text) for t in turns]
