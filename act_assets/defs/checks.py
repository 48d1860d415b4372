"""Asset checks: blocking before training, informing after it."""

from collections.abc import Callable

import dagster as dg

from act_assets.conversation import AmbiguousTwin, Conversation, PreferencePair
from act_assets.defs.partitions import BY_TASK, BY_TASK_AND_SIZE, partition_of
from act_assets.defs.resources import ActSettings
from act_assets.methods import TRAINED
from act_assets.pipeline import checks
from act_assets.pipeline.checks import Finding
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import stage_key
from act_assets.rows import read_rows
from act_assets.run import Run, make_run
from act_assets.tasks.base import SIDES
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact

Check = Callable[[Run, Artifact], Finding]


def _pairs(artifact: Artifact) -> list[PreferencePair]:
    return read_rows(artifact.file("pairs.parquet"), PreferencePair)


def _points(artifact: Artifact) -> list[TrainingPoint]:
    return read_rows(artifact.file("history.parquet"), TrainingPoint)


def _no_leak(run: Run, artifact: Artifact) -> Finding:
    conversations = run.store.require(stage_key(STAGES["conversations"], run))
    every = [
        c for side in ("train", "validation") for c in read_rows(conversations.file(f"{side}.parquet"), Conversation)
    ]
    return checks.no_leak(_pairs(artifact), every)


def _twins(artifact: Artifact) -> list[AmbiguousTwin]:
    return read_rows(artifact.file("twins.parquet"), AmbiguousTwin)


def _targets_run(run: Run, artifact: Artifact) -> Finding:
    return checks.targets_run(_twins(artifact), run.task, run.store.require(stage_key(STAGES["raw_dataset"], run)).path)


def _balanced(run: Run, artifact: Artifact) -> Finding:
    every = [c for side in SIDES for c in read_rows(artifact.file(f"{side}.parquet"), Conversation)]
    return checks.balanced(every, run.task)


PAIR_CHECKS: dict[str, Check] = {
    "no_leak": _no_leak,
    "no_empty_response": lambda run, a: checks.no_empty_response(_pairs(a)),
    "chosen_differs_from_rejected": lambda run, a: checks.chosen_differs(_pairs(a)),
    "covers_all_actions": lambda run, a: checks.covers_actions(_pairs(a), run.task),
}
BLOCKING: dict[str, dict[str, Check]] = {
    "ambiguous_requests": {
        "twins_differ": lambda run, a: checks.twins_differ(_twins(a)),
        "targets_run": _targets_run,
    },
    "conversations": {"balanced": _balanced},
    "contrastive_pairs": PAIR_CHECKS,
    "validation_pairs": PAIR_CHECKS,
    **{m.checkpoint: {"finite_loss": lambda run, a: checks.finite_loss(_points(a))} for m in TRAINED},
}
INFORMING: dict[str, dict[str, Check]] = {
    m.checkpoint: {"reward_margin": lambda run, a: checks.reward_margin(_points(a))} for m in TRAINED if m.pairs
}


def _check(asset: str, name: str, check: Check, *, blocking: bool) -> dg.AssetChecksDefinition:
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
        run = make_run(act.profile, act.seed, task, train_size)
        finding = check(run, run.store.require(stage_key(stage, run)))
        return dg.AssetCheckResult(
            passed=finding.passed,
            severity=dg.AssetCheckSeverity.ERROR if blocking else dg.AssetCheckSeverity.WARN,
            description=finding.description,
            metadata={"offenders": dg.MetadataValue.json(list(finding.offenders))},
        )

    return run_check


CHECKS = [
    _check(asset, name, check, blocking=of_asset is BLOCKING)
    for of_asset in (BLOCKING, INFORMING)
    for asset, named in of_asset.items()
    for name, check in named.items()
]
