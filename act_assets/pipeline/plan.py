"""What a run would ask of language models, before anything is spent.

    for line in plan(run): print(line.asset, line.calls, line.memoized, line.cost_usd)

Questions that can be known are made exactly as the run makes them and looked up in the memo; what they need and costs
nothing (data, subsets) is made in a temporary folder. What depends on the policy that is being trained cannot be
known: for it the largest possible number stands, marked as an upper bound.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from act_assets.conversation import Conversation, TurnState, Utterance, once_per_prompt
from act_assets.pipeline.graph import (
    LABELLED_SIDES,
    STAGES,
    cast_of,
    clear_requests,
    conversations_of,
    evaluated_turns,
    evaluation_side,
    labelled_conversations,
    told_to_user,
    turns_of,
)
from act_assets.pipeline.stage import StageRun, run_stage, stage_key, up_to_date
from act_assets.preference import rejected_action
from act_assets.profile import LLMRole
from act_assets.roles.build import Cast
from act_assets.roles.embedded import MODEL
from act_assets.rows import read_rows
from act_assets.seeds import derive_seed
from resources.artifacts import Artifact, ArtifactStore, Key
from resources.llm.base import LLMRequest
from resources.llm.budget import estimate_tokens
from resources.llm.memo.memo import Memo, memo_at
from resources.llm.memo.records import key_of

TURN_TOKENS = 40  # tokens of an utterance where nothing has been measured: PACIFIC's responses take 26 on average


@dataclass(frozen=True, slots=True)
class PlanLine:
    """What one asset's partition would ask one role.

    `calls` are the questions, `memoized` those already answered, `to_ask` the rest without those that an earlier asset
    of the plan asks. With `bound`, `calls` is the most there can be (the policy decides) and nothing is known of the
    memo. Tokens and dollars are estimates for `to_ask`; `cost_usd` is None where no price is known.
    """

    asset: str
    partition: str
    role: str
    model: str
    state: str
    calls: int
    memoized: int
    to_ask: int
    bound: bool
    prompt_tokens: int
    output_tokens: int
    cost_usd: float | None


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one asset and role: exactly, or the largest number of them with an example of each kind."""

    asset: str
    role: str
    requests: Sequence[LLMRequest]
    times: int | None = None


def plan(run: StageRun, *, with_act: bool = True) -> list[PlanLine]:
    """What `act run` would ask for the run's partition, asset by asset. Asks nothing, makes nothing.

    Raises ActError where the data or a prompt cannot be read.
    """
    memo = memo_at(run.calls.memo_folder)
    known: dict[Key, Artifact | None] = {}  # what is up to date; looked at once
    planned: set[str] = set()
    lines = []
    with tempfile.TemporaryDirectory(prefix="act-plan-") as folder:
        scratch = _with_free_inputs(run, Path(folder), known)
        for questions in _questions(scratch, with_act):
            stage = STAGES[questions.asset]
            role = run.profile.roles.played()[questions.role]
            if up_to_date(STAGES, stage.name, run, known):
                lines.append(_done(run, questions, role))
            else:
                lines.append(_line(scratch, questions, role, memo, planned))
    return lines


def _with_free_inputs(run: StageRun, folder: Path, known: dict[Key, Artifact | None]) -> StageRun:
    """The run with everything that costs nothing made in a temporary folder.

    Labels and ambiguous twins that a model has yet to write are not known: gold labels and twins by rule stand for
    them, which changes the texts of some questions, and their number only by what is dropped.
    """
    store = ArtifactStore(folder, "plan")
    roles = run.profile.roles
    by_rule = roles.model_copy(
        update={"annotator": type(roles.annotator)(), "perturbation": LLMRole(provider="embedded", model=MODEL)}
    )
    supervision = "gold" if run.profile.labels_from == "llm" else run.profile.action_supervision
    free = replace(
        run,
        store=store,
        calls=replace(run.calls, memo_folder=folder / "memo"),
        profile=run.profile.model_copy(update={"action_supervision": supervision, "roles": by_rule}),
    )
    for name in ("raw_dataset", "ambiguous_requests", "conversations", "action_labels", "train_subset"):
        made = up_to_date(STAGES, name, run, known) if name in ("ambiguous_requests", "action_labels") else None
        artifact = _copied(store, made) if made is not None else run_stage(STAGES, name, free).artifact
        free = replace(free, inputs={**free.inputs, name: artifact})
    return replace(free, profile=run.profile, calls=run.calls)


def _copied(store: ArtifactStore, artifact: Artifact) -> Artifact:
    """An artifact of the run in the temporary folder."""

    def copy(folder: Path) -> dict[str, Any]:
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True)
        return dict(artifact.facts)

    return store.build(artifact.key, {"copied": artifact.content_hash}, copy)


def _questions(run: StageRun, with_act: bool) -> list[Questions]:
    """Asset by asset, in the order of the graph."""
    cast = cast_of(run)
    roles, act = run.profile.roles, run.profile.act
    train = read_rows(run.inputs["train_subset"].file("train.parquet"), Conversation)
    everything = [c for side in LABELLED_SIDES for c in conversations_of(run, side)]
    turns, evaluated = turns_of(run, train), evaluated_turns(run)
    found: list[Questions] = []
    if run.task.asks("perturbation"):
        clear, _ = clear_requests(run)
        found.append(Questions("ambiguous_requests", "perturbation", cast.perturber().requests(clear)))
    if roles.annotator.llm:
        once = once_per_prompt(turns_of(run, everything))
        found.append(Questions("action_labels", "annotator", cast.annotator().requests(once)))
    if run.task.asks("intent"):
        told = [c for _, c in told_to_user(run, conversations_of(run, evaluation_side(run)))]
        found.append(Questions("evaluation_intents", "intent", cast.intent_summarizer().requests(told)))
    found.append(_pairs(run, "validation_pairs", cast, labelled_conversations(run, "train"), "validation"))
    if run.task.asks("intent"):
        told = [c for _, c in told_to_user(run, train, in_training=True)]
        found.append(Questions("intent_summaries", "intent", cast.intent_summarizer().requests(told)))
    found.append(_pairs(run, "contrastive_pairs", cast, train, "train"))
    # Only turns that call for a clarification are rolled out in training; in evaluation, all may be.
    clarifying = [t for t in turns if not run.task.action(t.action).ends_trajectory]
    if with_act:
        found += _simulated(run, cast, "act_checkpoint", turns, clarifying, act.epochs, train)
    for name in ("evaluation_sft", "evaluation_act")[: 2 if with_act else 1]:
        found += _simulated(run, cast, name, evaluated, evaluated, 1, train)
    return found


def _pairs(run: StageRun, asset: str, cast: Cast, pool: Sequence[Conversation], side: str) -> Questions:
    conversations = pool if side == "train" else labelled_conversations(run, side)
    turns = turns_of(run, conversations)
    rejected = [rejected_action(run.task, t, run.seed) for t in turns]
    seeds = [derive_seed(run.seed, "generator", t.turn_id) for t in turns]
    return Questions(asset, "generator", cast.generator(pool).requests(turns, rejected, seeds))


def _simulated(
    run: StageRun,
    cast: Cast,
    asset: str,
    turns: Sequence[TurnState],
    rolled_out: Sequence[TurnState],
    times: int,
    pool: Sequence[Conversation],
) -> list[Questions]:
    """At most: every turn classified after each response, and every rolled-out turn replied to each time."""
    most = run.profile.act.max_clarifications
    said = (Utterance("assistant", "word " * TURN_TOKENS, ""),)
    found = []
    if rolled_out:
        requests = cast.simulator().requests(
            rolled_out, ["word " * TURN_TOKENS] * len(rolled_out), [said] * len(rolled_out)
        )
        found.append(Questions(asset, "simulator", requests, times * most * len(rolled_out)))
    if run.profile.roles.classifier.llm:
        requests = cast.classifier(pool).requests(turns, [said[0].text] * len(turns))
        found.append(Questions(asset, "classifier", requests, times * (len(turns) + most * len(rolled_out))))
    return found


def _line(run: StageRun, questions: Questions, role: LLMRole, memo: Memo, planned: set[str]) -> PlanLine:
    requests = questions.requests
    llm = cast_of(run).llm(role)
    if questions.times is None:
        keys = [key_of(llm.question(r)) for r in requests]
        found = memo.look_up(keys).answers
        fresh = {k: r for k, r in zip(keys, requests, strict=True) if k not in found and k not in planned}
        planned.update(fresh)
        asked: Sequence[LLMRequest] = list(fresh.values())
        calls, to_ask, memoized = len(requests), len(fresh), sum(k in found for k in keys)
        prompt_tokens = sum(map(_prompt_tokens, asked))
    else:
        calls, to_ask, memoized = questions.times, questions.times, 0
        prompt_tokens = round(sum(map(_prompt_tokens, requests)) / len(requests) * to_ask)
    output_tokens = round(_output_tokens(memo, role, questions.role) * to_ask)
    return PlanLine(
        questions.asset,
        _partition(run, questions.asset),
        questions.role,
        f"{role.provider} ({role.model})",
        "to make",
        calls,
        memoized,
        to_ask,
        questions.times is not None,
        prompt_tokens,
        output_tokens,
        llm.sender.cost(prompt_tokens, output_tokens),
    )


def _done(run: StageRun, questions: Questions, role: LLMRole) -> PlanLine:
    partition = _partition(run, questions.asset)
    model = f"{role.provider} ({role.model})"
    return PlanLine(questions.asset, partition, questions.role, model, "up to date", 0, 0, 0, False, 0, 0, 0.0)


def _partition(run: StageRun, asset: str) -> str:
    return stage_key(STAGES[asset], run).partition


def _prompt_tokens(request: LLMRequest) -> int:
    return sum(estimate_tokens(m.content) for m in request.messages)


def _output_tokens(memo: Memo, role: LLMRole, name: str) -> float:
    """Tokens of an answer: the mean of this role's answers in the memo, else the most there can be."""
    rows = memo.database.query(
        "SELECT avg(output_tokens) FROM answers WHERE role = ? AND provider = ? AND model = ?",
        [name, role.provider, role.model],
    )
    mean = rows[0][0] if rows else None
    return float(mean) if mean else float(role.max_output_tokens)
