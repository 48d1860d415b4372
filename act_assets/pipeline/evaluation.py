"""What the last assets hold: evaluations, the leaderboard, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from act_assets.evaluation.evaluate import (
    EvaluatedTurn,
    Provenance,
    evaluate,
    evaluate_actions,
    reports_in,
    write_report,
)
from act_assets.evaluation.leaderboard import LeaderboardRow, leaderboard_rows
from act_assets.evaluation.report.evidence import Evidence
from act_assets.evaluation.report.html import write_html
from act_assets.methods.base import Method
from act_assets.methods.registry import PREDICTORS, TRAINED
from act_assets.pipeline.stage import Build
from act_assets.profile import Profile
from act_assets.roles.build import describe, describe_labels, usage_facts
from act_assets.rows import write_rows
from act_assets.run import (
    TRAIN_SIZES,
    Run,
    equipped_task,
    evaluated_turns,
    evaluation_side,
    intents_in,
    judge_identity,
    roles_of,
    train_subset,
)
from act_assets.training.policy import load_policy
from resources.artifacts import Artifact, Key
from resources.errors import DataError
from resources.files import atomic_file


def evaluation_of(method: Method) -> Build:
    """Every evaluated turn to the end of its trajectory, with the method's checkpoint."""

    def build(run: Run, folder: Path) -> dict[str, Any]:
        profile, task, turns = run.profile, equipped_task(run), evaluated_turns(run)
        policy = load_policy(
            run.inputs[method.checkpoint].file("model"),
            task,
            profile.policy,
            batch_size=profile.evaluation.batch_size,
            temperature=profile.evaluation.temperature,
        )
        roles = roles_of(run)
        classifier, simulator = roles.classifier(train_subset(run)), roles.simulator()
        with run.progress(f"evaluation of {method.name}", len(turns)) as done:
            report, rows = evaluate(
                task,
                turns,
                policy,
                classifier,
                simulator,
                intents_in(run.inputs["evaluation_intents"]),
                provenance(run, method.name),
                max_clarifications=profile.act.max_clarifications,
                bootstrap_samples=profile.evaluation.bootstrap_samples,
                group_size=profile.rollout_batch_size,
                on_done=done,
            )
        write_report(folder / "report.json", report)
        write_rows(folder / "trajectories.parquet", rows, EvaluatedTurn)
        figures = {m.name: m.value for m in report.metrics} | {"turns": report.metrics[0].count}
        return {**figures, **usage_facts(classifier.usage + simulator.usage)}

    return build


def evaluation_settings(profile: Profile) -> Any:
    """What the evaluation of a checkpoint reads."""
    return {
        "evaluation": profile.evaluation,
        "policy": profile.policy,
        "simulator": profile.roles.simulator,
        "classifier": profile.roles.classifier,
        "in_context": profile.roles.in_context_conversations,
        "max_clarifications": profile.act.max_clarifications,
        "group": profile.rollout_batch_size,
    }


def predictions_of(method: Method) -> Build:
    """The figures of a method that only names actions: one report for each of its rows."""

    def build(run: Run, folder: Path) -> dict[str, Any]:
        assert method.predict is not None
        turns, facts = evaluated_turns(run), {}
        for row, predicted in method.predict(run, turns).items():
            report = evaluate_actions(
                run.task,
                turns,
                predicted,
                replace(provenance(run, row), policy="none", simulator="none", classifier="none", judge="none"),
                bootstrap_samples=run.profile.evaluation.bootstrap_samples,
            )
            write_report(folder / f"{row.replace(' ', '_')}.json", report)
            metric = report.metric("macro F1")
            facts[f"macro_f1 {row}"] = metric.value if metric else None
        return facts

    return build


def provenance(run: Run, method: str) -> Provenance:
    """Who is evaluated in a run, with what."""
    roles = run.profile.roles
    base = run.store.find(Key("base_policy", run.task.name))
    return Provenance(
        method=method,
        task=run.task.name,
        train_size=run.train_size,
        seed=run.seed,
        profile=run.profile.name,
        policy=str(base.facts.get("policy", run.profile.policy.model)) if base else run.profile.policy.model,
        simulator=describe(roles.simulator),
        classifier=describe(roles.classifier.llm, roles.classifier.source),
        action_supervision=describe_labels(run.profile),
        judge=judge_identity(run),
        side=evaluation_side(run),
    )


def named(run: Run) -> Any:
    """What a report says of its run beside its figures."""
    profile = run.profile
    return {"profile": profile.name, "action_supervision": describe_labels(profile), "judge": judge_identity(run)}


def build_leaderboard(run: Run, folder: Path) -> dict[str, Any]:
    """One row per method, train size and metric, the paper's figure beside it."""
    rows = leaderboard_rows(reports_in(run.inputs.values()), TRAINED)
    if not rows:
        raise DataError(
            "nothing has been evaluated yet",
            where=run.where,
            todo="materialize an evaluation first (act run --task ... --train-size ...)",
        )
    write_rows(folder / "leaderboard.parquet", rows, LeaderboardRow)
    return {"methods": len({(r.method, r.train_size) for r in rows}), "figures": len(rows)}


def build_report(run: Run, folder: Path) -> dict[str, Any]:
    """The static HTML page."""
    found = {(a, int(s)): artifact for k, artifact in run.inputs.items() for a, _, s in [k.partition("@")] if s}
    evidence = Evidence(run.task, run.profile, run.seed, TRAIN_SIZES, found, TRAINED, PREDICTORS)
    return write_html(evidence, folder / "report.html")


def publish_report(run: Run, artifact: Artifact) -> dict[str, Any]:
    """Copies the page to ACT_HOME/reports; returns where it lies."""
    run.reports_dir.mkdir(parents=True, exist_ok=True)
    page = run.reports_dir / f"{run.task.name}-{run.profile.name}-seed{run.seed}.html"
    with atomic_file(page) as beside:
        beside.write_bytes(artifact.file("report.html").read_bytes())
    return {"page": str(page)}
