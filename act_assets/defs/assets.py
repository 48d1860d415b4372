"""The assets, grouped by stage. Each one runs its stage of `pipeline.STAGES` and attaches what people look at."""

import os
import socket
from collections.abc import Callable
from typing import Any

import dagster as dg

from act_assets.defs.metadata import failed_items, metadata_of
from act_assets.defs.partitions import BY_TASK, BY_TASK_AND_SIZE, partition_of
from act_assets.defs.prompts import prompt_key
from act_assets.defs.resources import ActSettings
from act_assets.pipeline.graph import EVALUATIONS, STAGES
from act_assets.pipeline.stage import run_stage
from resources.errors import ActError

OWNERS = ["team:act"]
PID_TAG, HOST_TAG = "act/pid", "act/host"
AssetFunction = Callable[[dg.AssetExecutionContext, ActSettings], dg.MaterializeResult[Any]]


def process_stamp() -> dict[str, str]:
    """Run tags that say which process runs it."""
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname()}


def _declare(name: str, group: str, **options: Any) -> Callable[[AssetFunction], dg.AssetsDefinition]:
    """The decorator of a stage's asset: its partitions, inputs and prompts follow from STAGES."""
    stage = STAGES[name]
    declared: Callable[[AssetFunction], dg.AssetsDefinition] = dg.asset(
        name=name,
        group_name=group,
        owners=OWNERS,
        partitions_def=BY_TASK_AND_SIZE if stage.sized else BY_TASK,
        code_version=str(stage.version),
        deps=[*stage.inputs, *map(prompt_key, stage.prompts), *options.pop("extra_deps", ())],
        **options,
    )
    return declared


def _run(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Runs the stage of the asset's name for the running partition."""
    name = context.asset_key.path[-1]
    # Whoever finds a pool slot of this run later can tell whether its process is still there.
    context.instance.add_run_tags(context.run_id, process_stamp())
    task, train_size = partition_of(context)
    try:
        outcome = run_stage(STAGES, name, act.stage_run(context, task, train_size))
    except ActError as error:
        raise dg.Failure(description=str(error), metadata=failed_items(error), allow_retries=False) from error
    return dg.MaterializeResult(
        data_version=dg.DataVersion(outcome.artifact.content_hash), metadata=metadata_of(outcome)
    )


@_declare("raw_dataset", "data", kinds={"json"})
def raw_dataset(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """The official files as they are, with their hashes."""
    return _run(context, act)


@_declare("ambiguous_requests", "data", kinds={"parquet"}, pool="llm")
def ambiguous_requests(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """An ambiguous twin and a clarifying question for each clear request (appendix C); empty for tasks whose data
    brings its own."""
    return _run(context, act)


@_declare("conversations", "data", kinds={"parquet"})
def conversations(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Typed conversations of every side: training, validation, and test where there is one."""
    return _run(context, act)


@_declare("action_labels", "data", kinds={"parquet"}, pool="llm")
def action_labels(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """The annotator G's action for every reference response."""
    return _run(context, act)


@_declare("train_subset", "data", kinds={"parquet"})
def train_subset(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """The first n conversations of a seeded order: 50 inside 100 inside 250."""
    return _run(context, act)


@_declare("intent_summaries", "pairs", kinds={"parquet"}, pool="llm")
def intent_summaries(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """What each user of the subset wants to know; grounds the simulator (appendix H)."""
    return _run(context, act)


@_declare("contrastive_pairs", "pairs", kinds={"parquet"}, pool="llm")
def contrastive_pairs(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Algorithm 1 over the subset: gold response against a response under the rejected action."""
    return _run(context, act)


@_declare("evaluation_intents", "pairs", kinds={"parquet"}, pool="llm")
def evaluation_intents(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """What U is grounded in when the evaluated side is simulated."""
    return _run(context, act)


@_declare("validation_pairs", "pairs", kinds={"parquet"}, pool="llm")
def validation_pairs(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Algorithm 1 over the validation side: the reward margin that chooses checkpoints is measured on it."""
    return _run(context, act)


@_declare("base_policy", "training", kinds={"pytorch"}, pool="gpu")
def base_policy(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """The model that training starts from: built and warmed up here, or a Hugging Face model."""
    return _run(context, act)


@_declare("sft_checkpoint", "training", kinds={"pytorch"}, pool="gpu")
def sft_checkpoint(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Supervised fine-tuning on the gold responses (section 4.3)."""
    return _run(context, act)


@_declare("act_checkpoint", "training", kinds={"pytorch"}, pool="gpu")
def act_checkpoint(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """ACT (Algorithm 2): DPO on pairs kept up to date by simulated trajectories."""
    return _run(context, act)


@_declare("evaluation_sft", "evaluation", kinds={"parquet"}, pool="gpu")
def evaluation_sft(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """SFT on every evaluated turn, each to the end of its trajectory."""
    return _run(context, act)


@_declare("evaluation_act", "evaluation", kinds={"parquet"}, pool="gpu")
def evaluation_act(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """ACT on every evaluated turn, each to the end of its trajectory."""
    return _run(context, act)


@_declare("evaluation_baselines", "evaluation", kinds={"json"})
def evaluation_baselines(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Always the same action, and a question-only logistic regression."""
    return _run(context, act)


@_declare("leaderboard", "report", kinds={"parquet"}, extra_deps=EVALUATIONS)
def leaderboard(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """Every method at every train size, the paper's figures beside."""
    return _run(context, act)


@_declare("report", "report", kinds={"html"})
def report(context: dg.AssetExecutionContext, act: ActSettings) -> dg.MaterializeResult[Any]:
    """The static HTML page; also under ACT_HOME/reports."""
    return _run(context, act)


TASK_ASSETS = [
    raw_dataset,
    ambiguous_requests,
    conversations,
    action_labels,
    evaluation_intents,
    validation_pairs,
    base_policy,
]
SIZED_ASSETS = [
    train_subset,
    intent_summaries,
    contrastive_pairs,
    sft_checkpoint,
    act_checkpoint,
    evaluation_sft,
    evaluation_act,
    evaluation_baselines,
]
REPORT_ASSETS = [leaderboard, report]
ASSETS = [*TASK_ASSETS, *SIZED_ASSETS, *REPORT_ASSETS]
