"""Asset checks: blocking before training, informing after it."""

from collections.abc import Callable

import dagster as dg

from act_assets.conversation import AmbiguousTwin, Conversation, PreferencePair
from act_assets.defs.partitions import BY_TASK, BY_TASK_AND_SIZE, partition_of
from act_assets.defs.resources import ActSettings, stage_run
from act_assets.pipeline import checks
from act_assets.pipeline.checks import Finding
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import StageRun, stage_key
from act_assets.rows import read_rows
from act_assets.tasks.base import SIDES
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact

Check = Callable[[StageRun, Artifact], Finding]


def _pairs(artifact: Artifact) -> list[PreferencePair]:
    return read_rows(artifact.file("pairs.parquet"), PreferencePair)


def _points(artifact: Artifact) -> list[TrainingPoint]:
    return read_rows(artifact.file("history.parquet"), TrainingPoint)


def _no_leak(run: StageRun, artifact: Artifact) -> Finding:
    conversations = run.store.require(stage_key(STAGES["conversations"], run))
    every = [
        c for side in ("train", "validation") for c in read_rows(conversations.file(f"{side}.parquet"), Conversation)
    ]
    return checks.no_leak(_pairs(artifact), every)


def _twins(artifact: Artifact) -> list[AmbiguousTwin]:
    return read_rows(artifact.file("twins.parquet"), AmbiguousTwin)


def _targets_run(run: StageRun, artifact: Artifact) -> Finding:
    return checks.targets_run(_twins(artifact), run.task, run.store.require(stage_key(STAGES["raw_dataset"], run)).path)


def _balanced(run: StageRun, artifact: Artifact) -> Finding:
    every = [c for side in SIDES for c in read_rows(artifact.file(f"{side}.parquet"), Conversation)]
    return checks.balanced(every, run.task)


TWIN_CHECKS: dict[str, Check] = {
    "twins_differ": lambda run, a: checks.twins_differ(_twins(a)),
    "targets_run": _targets_run,
}
BALANCE_CHECKS: dict[str, Check] = {"balanced": _balanced}
PAIR_CHECKS: dict[str, Check] = {
    "no_leak": _no_leak,
    "no_empty_response": lambda run, a: checks.no_empty_response(_pairs(a)),
    "chosen_differs_from_rejected": lambda run, a: checks.chosen_differs(_pairs(a)),
    "covers_all_actions": lambda run, a: checks.covers_actions(_pairs(a), run.task),
}
TRAINING_CHECKS: dict[str, Check] = {"finite_loss": lambda run, a: checks.finite_loss(_points(a))}
MARGIN_CHECKS: dict[str, Check] = {"reward_margin": lambda run, a: checks.reward_margin(_points(a))}


def _check(
    asset: str, name: str, check: Check, *, blocking: bool, severity: dg.AssetCheckSeverity
) -> dg.AssetChecksDefinition:
    stage = STAGES[asset]

    @dg.asset_check(
        asset=asset,
        name=name,
        blocking=blocking,
        partitions_def=BY_TASK_AND_SIZE if stage.sized else BY_TASK,
        description=" ".join((check.__doc__ or name.replace("_", " ")).split()),
    )
    def run_check(context: dg.AssetCheckExecutionContext, act: ActSettings) -> dg.AssetCheckResult:
        task, train_size = partition_of(context)
        run = stage_run(act.profile, act.seed, task, train_size)
        finding = check(run, run.store.require(stage_key(stage, run)))
        return dg.AssetCheckResult(
            passed=finding.passed,
            severity=severity,
            description=finding.description,
            metadata={"offenders": dg.MetadataValue.json(list(finding.offenders))},
        )

    return run_check


CHECKS = [
    *(
        _check(asset, name, check, blocking=True, severity=dg.AssetCheckSeverity.ERROR)
        for asset in ("contrastive_pairs", "validation_pairs")
        for name, check in PAIR_CHECKS.items()
    ),
    *(
        _check(asset, name, check, blocking=True, severity=dg.AssetCheckSeverity.ERROR)
        for asset, of_asset in (("ambiguous_requests", TWIN_CHECKS), ("conversations", BALANCE_CHECKS))
        for name, check in of_asset.items()
    ),
    *(
        _check(asset, name, check, blocking=True, severity=dg.AssetCheckSeverity.ERROR)
        for asset in ("sft_checkpoint", "act_checkpoint")
        for name, check in TRAINING_CHECKS.items()
    ),
    *(
        _check("act_checkpoint", name, check, blocking=False, severity=dg.AssetCheckSeverity.WARN)
        for name, check in MARGIN_CHECKS.items()
    ),
]
