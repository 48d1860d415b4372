"""Predictors that know nothing of the grounding, beside every method so that no trivial score looks good."""

from __future__ import annotations

from collections.abc import Sequence

from act_assets.conversation import TurnState


def always(action: str, turns: Sequence[TurnState]) -> list[str]:
    """The same action for every turn."""
    return [action] * len(turns)


def question_only(train: Sequence[TurnState], turns: Sequence[TurnState], seed: int) -> list[str]:
    """A logistic regression on the words of the user's last utterance alone (TF-IDF of 1- and 2-grams).

    With a single action in the training turns it predicts that action.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    actions = [t.action for t in train]
    if len(set(actions)) == 1:
        return always(actions[0], turns)
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        LogisticRegression(class_weight="balanced", C=10.0, max_iter=1000, random_state=seed % 2**31),
    )
    model.fit([t.request for t in train], actions)
    return [str(action) for action in model.predict([t.request for t in turns])]
