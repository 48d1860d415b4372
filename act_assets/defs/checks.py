"""Asset checks: blocking before training, informing after it."""

from collections.abc import Callable, Sequence

import dagster as dg

from act_assets.conversation import AmbiguousTwin, Conversation, PreferencePair
from act_assets.defs.partitions import BY_TASK, BY_TASK_AND_SIZE, partition_of
from act_assets.defs.resources import ActSettings
from act_assets.methods.registry import TRAINED
from act_assets.pipeline import checks
from act_assets.pipeline.checks import Finding
from act_assets.pipeline.data import LABELLED_SIDES
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


def _twins(artifact: Artifact) -> list[AmbiguousTwin]:
    return read_rows(artifact.file("twins.parquet"), AmbiguousTwin)


def _conversations(artifact: Artifact, sides: Sequence[str]) -> list[Conversation]:
    return [c for side in sides for c in read_rows(artifact.file(f"{side}.parquet"), Conversation)]


def _artifact(asset: str, run: Run) -> Artifact:
    return run.store.require(stage_key(STAGES[asset], run))


PAIR_CHECKS: dict[str, Check] = {
    "no_leak": lambda run, a: checks.no_leak(
        _pairs(a), _conversations(_artifact("conversations", run), LABELLED_SIDES)
    ),
    "no_empty_response": lambda run, a: checks.no_empty_response(_pairs(a)),
    "chosen_differs_from_rejected": lambda run, a: checks.chosen_differs(_pairs(a)),
    "covers_all_actions": lambda run, a: checks.covers_actions(_pairs(a), run.task),
}
BLOCKING: dict[str, dict[str, Check]] = {
    "ambiguous_requests": {
        "twins_differ": lambda run, a: checks.twins_differ(_twins(a)),
        "targets_run": lambda run, a: checks.targets_run(_twins(a), run.task, _artifact("raw_dataset", run).path),
    },
    "conversations": {"balanced": lambda run, a: checks.balanced(_conversations(a, SIDES), run.task)},
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
        description=name.replace("_", " "),
    )
    def run_check(context: dg.AssetCheckExecutionContext, act: ActSettings) -> dg.AssetCheckResult:
        task, train_size = partition_of(context)
        run = make_run(act.profile, act.seed, task, train_size)
        finding = check(run, _artifact(asset, run))
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
