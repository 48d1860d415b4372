"""What a method has to beat: always the same action, and a regression that sees only the question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from act_assets.conversation import TurnState
from act_assets.methods.base import Method
from act_assets.run import Run, train_subset, turns_of


def question_only(train: Sequence[TurnState], turns: Sequence[TurnState], seed: int) -> list[str]:
    """A logistic regression on the words of the user's last utterance alone (TF-IDF of 1- and 2-grams).

    With a single action in the training turns it predicts that action.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    actions = [t.action for t in train]
    if len(set(actions)) == 1:
        return actions[:1] * len(turns)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000, random_state=seed % 2**31),
    )
    model.fit([t.request for t in train], actions)
    return [str(action) for action in model.predict([t.request for t in turns])]


def predict(run: Run, turns: Sequence[TurnState]) -> Mapping[str, Sequence[str]]:
    """The action of every turn, by baseline."""
    predicted = {f"always {a.lower()}": [a] * len(turns) for a in run.task.action_names}
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
