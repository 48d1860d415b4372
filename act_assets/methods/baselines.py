"""What a method has to beat: always the same action, and a regression that sees only the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from act_assets.conversation import TurnState
from act_assets.evaluation.baselines import always, question_only
from act_assets.methods.base import Method
from act_assets.run import Run, train_subset, turns_of


def predict(run: Run, turns: Sequence[TurnState]) -> Mapping[str, Sequence[str]]:
    """The action of every turn, by baseline."""
    predicted = {f"always {a.lower()}": always(a, turns) for a in run.task.action_names}
    train = turns_of(run, train_subset(run))
    return predicted | {"question-only logistic regression": question_only(train, turns, run.seed)}


METHOD = Method(
    name="baselines",
    title="the baselines",
    full_name="predictors that know nothing of the grounding",
    summary="Always the same action, and a question-only logistic regression.",
    section="",
    predict=predict,
    version=3,
)
