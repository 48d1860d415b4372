"""The whole graph, in order: raw files, conversations, labels, subsets, pairs, policies, evaluations, report.

`STAGES` is all of it; `defs/` shows it to Dagster. To change what a stage computes, change its build function
(data.py, evaluation.py) or what it calls; a method brings its own stages (methods/).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from act_assets.methods.base import Method
from act_assets.methods.registry import METHODS
from act_assets.pipeline.data import (
    build_action_labels,
    build_ambiguous_requests,
    build_contrastive_pairs,
    build_conversations,
    build_intents,
    build_raw_dataset,
    build_train_subset,
    raw_fingerprint,
)
from act_assets.pipeline.evaluation import (
    build_leaderboard,
    build_report,
    evaluation_of,
    evaluation_settings,
    named,
    predictions_of,
    publish_report,
)
from act_assets.pipeline.stage import Stage
from act_assets.pipeline.train import training_of
from act_assets.run import Run, role_settings
from act_assets.training.base_policy import local_files
from resources.errors import ActError

PAIR_SETTINGS = role_settings("generator", "in_context_conversations")
SUBSET = ("train_subset", "conversations")
EVALUATIONS = tuple(m.evaluation for m in METHODS.values())


def _with_source(method: Method, fingerprint: Callable[[Run], Any]) -> Callable[[Run], Any]:
    """What else changes an outcome; of a method of another package its source, too."""
    return fingerprint if method.source is None else lambda run: [fingerprint(run), method.source]


def stages_of(method: Method) -> tuple[Stage, ...]:
    """The stages that a method brings: its checkpoint, if it trains, and its evaluation."""
    if method.train is None:
        return (
            Stage(
                method.evaluation,
                True,
                SUBSET,
                predictions_of(method),
                version=method.version,
                settings=lambda p: p.evaluation.bootstrap_samples,
                fingerprint=_with_source(method, named),
                summary=method.summary,
                group="evaluation",
                kind="json",
            ),
        )
    return (
        Stage(
            method.checkpoint,
            True,
            (method.start, *SUBSET, *method.needs),
            training_of(method.checkpoint),
            resumable=True,
            version=method.version,
            settings=method.settings,
            fingerprint=_with_source(method, method.fingerprint),
            prompts=method.asks,
            summary=method.summary,
            group="training",
            kind="pytorch",
            pool="gpu",
        ),
        Stage(
            method.evaluation,
            True,
            (method.checkpoint, *SUBSET, "evaluation_intents", "raw_dataset"),
            evaluation_of(method),
            version=2,
            settings=evaluation_settings,
            prompts=("simulator", "classifier"),
            fingerprint=named,
            summary=f"{method.title} on every evaluated turn, each to the end of its trajectory.",
            group="evaluation",
            pool="gpu",
        ),
    )


def by_name(stages: Iterable[Stage]) -> dict[str, Stage]:
    """Raises ActError where two stages make one asset, as when a method has the name of something else."""
    found: dict[str, Stage] = {}
    for stage in stages:
        if stage.name in found:
            raise ActError(
                f"two stages make the asset {stage.name}",
                where="the graph",
                todo="give the method that brings it another name",
            )
        found[stage.name] = stage
    return found


STAGES = by_name(
    (
        Stage(
            "raw_dataset",
            False,
            (),
            build_raw_dataset,
            seeded=False,
            fingerprint=raw_fingerprint,
            summary="The official files as they are, with their hashes.",
            kind="json",
        ),
        Stage(
            "ambiguous_requests",
            False,
            ("raw_dataset",),
            build_ambiguous_requests,
            seeded=False,
            settings=lambda p: [p.roles.played()["perturbation"], p.ambiguous_requests],
            prompts=("perturbation",),
            summary="An ambiguous twin and a clarifying question for each clear request (appendix C); empty for tasks "
            "whose data brings its own.",
            pool="llm",
        ),
        Stage(
            "conversations",
            False,
            ("raw_dataset", "ambiguous_requests"),
            build_conversations,
            version=2,
            seeded=False,
            summary="Typed conversations of every side: training, validation, and test where there is one.",
        ),
        Stage(
            "action_labels",
            False,
            ("conversations",),
            build_action_labels,
            settings=lambda p: [p.action_supervision, p.roles.annotator],
            prompts=("annotator",),
            summary="The annotator G's action for every reference response.",
            pool="llm",
        ),
        Stage(
            "evaluation_intents",
            False,
            ("conversations",),
            build_intents,
            settings=role_settings("intent"),
            prompts=("intent",),
            summary="What U is grounded in when the evaluated side is simulated.",
            group="pairs",
            pool="llm",
        ),
        Stage(
            "validation_pairs",
            False,
            ("conversations", "action_labels"),
            build_contrastive_pairs,
            settings=PAIR_SETTINGS,
            prompts=("generator",),
            summary="Algorithm 1 over the validation side: the reward margin that chooses checkpoints is measured on "
            "it.",
            group="pairs",
            pool="llm",
        ),
        Stage(
            "base_policy",
            False,
            ("conversations",),
            training_of("base_policy"),
            resumable=True,
            version=2,
            settings=lambda p: [p.policy.model, p.policy.revision, p.policy.scratch, p.policy.max_length],
            fingerprint=lambda run: local_files(run.profile.policy),  # replaced weights are noticed
            summary="The model that training starts from: built and warmed up here, or a Hugging Face model.",
            group="training",
            kind="pytorch",
            pool="gpu",
        ),
        Stage(
            "train_subset",
            True,
            ("conversations", "action_labels"),
            build_train_subset,
            summary="The first n conversations of a seeded order: 50 inside 100 inside 250.",
        ),
        Stage(
            "intent_summaries",
            True,
            ("train_subset",),
            build_intents,
            settings=role_settings("intent"),
            prompts=("intent",),
            summary="What each user of the subset wants to know; grounds the simulator (appendix H).",
            group="pairs",
            pool="llm",
        ),
        Stage(
            "contrastive_pairs",
            True,
            ("train_subset",),
            build_contrastive_pairs,
            settings=PAIR_SETTINGS,
            prompts=("generator",),
            summary="Algorithm 1 over the subset: gold response against a response under the rejected action.",
            group="pairs",
            pool="llm",
        ),
        *(stage for method in METHODS.values() for stage in stages_of(method)),
        Stage(
            "leaderboard",
            False,
            (),
            build_leaderboard,
            seeded=False,
            finds=EVALUATIONS,
            summary="Every method at every train size, the paper's figures beside.",
            group="report",
        ),
        Stage(
            "report",
            False,
            ("leaderboard",),
            build_report,
            fingerprint=lambda run: {"profile": run.profile.name, "settings": run.profile.digest(), "seed": run.seed},
            finds=(*EVALUATIONS, *(m.checkpoint for m in METHODS.values() if m.train), "contrastive_pairs"),
            publish=publish_report,
            summary="The static HTML page; also under ACT_HOME/reports.",
            group="report",
            kind="html",
        ),
    )
)
