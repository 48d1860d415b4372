"""A: labels the action of a sampled response (appendix G)."""

from __future__ import annotations

from collections.abc import Sequence

from act_assets.conversation import Conversation, TurnState, Utterance
from act_assets.roles.prompt import Example, conversation_lines, grounding_text, trajectory_lines
from act_assets.roles.role import ClassifierContext, Labeller, RoleResult, WithoutModel
from act_assets.tasks.base import Task
from resources.llm.base import LLMRequest


class Classifier(Labeller):
    """The action classifier A: a model with in-context examples, each a conversation up to one
    labelled response, the actions in rotation."""

    name = "classifier"

    def example(self, conversation: Conversation, number: int) -> Example:
        """Up to the last response that takes the action of this number; whole where none does."""
        action = self.task.action_names[number % len(self.task.action_names)]
        turns = conversation.turns
        last = max((i for i, t in enumerate(turns) if t.action == action), default=len(turns) - 1)
        lines = conversation_lines(self.task, conversation, turns[: last + 1])
        return Example(grounding_text(conversation.context), lines)

    def requests(self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]) -> list[LLMRequest]:
        """The requests that `classify` sends."""
        return [
            self.question(
                turn,
                trajectory_lines(utterances),
                ClassifierContext(turn, utterances),
                examples=self.examples_apart_from(turn),
            )
            for turn, utterances in zip(turns, trajectories, strict=True)
        ]

    def classify(self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]) -> list[RoleResult]:
        """The action name of the response that each trajectory ends with, in order; A sees all of it (appendix G)."""
        return self.answers(self.requests(turns, trajectories))


class RuleClassifier(WithoutModel):
    """A by the task's rule."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def classify(self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]) -> list[RoleResult]:
        """The action name of the response that each trajectory ends with, in order."""
        return [self.task.judge.rule_action(said[-1].text) for _, said in zip(turns, trajectories, strict=True)]
