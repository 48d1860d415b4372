"""What a run would ask of language models, before anything is spent.

    for line in plan(run, get_method("act")): print(line.asset, line.calls, line.memoized, line.cost_usd)

The stages themselves run, in a temporary folder, with models that record what they are asked instead of asking it;
so the preview cannot drift from the run. What the memo holds is answered from there; the rules of the embedded
provider stand in for the other answers. What depends on a policy in training cannot be known: there stands the
largest possible number, and why.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from act_assets.conversation import Utterance
from act_assets.methods.base import Method
from act_assets.methods.registry import lineage
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import Stage, run_stage, stage_key, up_to_date
from act_assets.profile import LLMRole
from act_assets.progress import quiet
from act_assets.roles.embedded import answer_by_rule
from act_assets.roles.role import AnnotatorContext, GeneratorContext
from act_assets.run import Run, evaluated_turns, roles_of, train_subset, turns_of
from resources.artifacts import MANIFEST, Artifact, ArtifactStore, Key
from resources.errors import RoleError
from resources.llm.base import LLMRequest, LLMResponse, LLMResult, ProviderError
from resources.llm.budget import estimate_tokens
from resources.llm.client import LLM
from resources.llm.memo.memo import Memo, memo_at
from resources.llm.memo.records import key_of

TURN_TOKENS = 40  # tokens of an utterance where nothing has been measured: PACIFIC's responses take 26 on average


@dataclass(frozen=True, slots=True)
class PlanLine:
    """What one asset's partition would ask one role.

    `calls` are the questions, `memoized` those already answered, `to_ask` the rest without those that an earlier asset
    of the plan asks. With `bound`, which says why, `calls` is the most there can be and nothing is known of the memo.
    Tokens and dollars are estimates for `to_ask`; `cost_usd` is None where no price is known.
    """

    asset: str
    partition: str
    role: str
    model: str
    state: str = "up to date"
    calls: int = 0
    memoized: int = 0
    to_ask: int = 0
    bound: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float | None = 0.0


class Recorder:
    """Opens models that record the questions they are asked. `asked` has them by role, each with its memo key.

    The answers are the memo's where it has one, unless `by_rule`; and rules give the others.
    """

    def __init__(self, run: Run, memo: Memo, *, by_rule: bool = False) -> None:
        self._open = roles_of(run).llm
        self.memo, self.by_rule = memo, by_rule
        self.asked: dict[str, list[tuple[str, LLMRequest]]] = {}
        self.memoized: set[str] = set()

    def __call__(self, role: LLMRole) -> LLM:
        return _RecordingLLM(self._open(role), self)


class _RecordingLLM(LLM):
    def __init__(self, real: LLM, recorder: Recorder) -> None:
        super().__init__(real.provider)
        self.recorder = recorder

    def complete_all(
        self, requests: Sequence[LLMRequest], on_done: Callable[[], None] | None = None
    ) -> list[LLMResult]:
        """What the memo holds, and for the rest what a rule says."""
        keys = [key_of(self.question(r)) for r in requests]
        found = self.recorder.memo.look_up(keys).answers
        self.recorder.memoized |= found.keys()
        results: list[LLMResult] = []
        for key, request in zip(keys, requests, strict=True):
            self.recorder.asked.setdefault(request.role, []).append((key, request))
            if key in found and not self.recorder.by_rule:
                results.append(found[key].response())
            else:
                results.append(LLMResponse(_stand_in(request.context), request.model))
            if on_done:
                on_done()
        return results


def _stand_in(context: object) -> str:
    """What a rule says; where a task has none for this question, what the reference says."""
    try:
        return answer_by_rule(context)
    except ProviderError:
        match context:
            case AnnotatorContext(turn):
                return turn.action
            case GeneratorContext(turn):  # equal to the winner: such a pair is counted and dropped
                return turn.response.text
        return "not known"


def plan(run: Run, method: Method) -> list[PlanLine]:
    """What `act run` would ask for the run's partition and method, asset by asset. Asks nothing, keeps nothing.

    Raises ActError where the data or a prompt cannot be read.
    """
    known: dict[Key, Artifact | None] = {}  # what is up to date; looked at once
    lines: list[PlanLine] = []
    planned: set[str] = set()
    with tempfile.TemporaryDirectory(prefix="act-plan-") as folder:
        scratch = replace(run, store=ArtifactStore(Path(folder), "plan"), progress=quiet)
        for stage in STAGES.values():
            if stage.group not in ("data", "pairs"):
                continue
            made = up_to_date(STAGES, stage.name, run, known)
            if made is not None:
                scratch.store.build(made.key, {"copied": made.content_hash}, _linked(made))
                played = [r for r in stage.prompts if r in run.profile.roles.played() and run.task.asks(r)]
                lines += [_done(run, stage, role) for role in played]
                continue
            recorder = Recorder(run, memo_at(run.calls.memo_folder))
            try:
                run_stage(STAGES, stage.name, replace(scratch, open_llm=recorder))
            except RoleError:  # an answer in the memo cannot be used: rules stand in for all of them
                recorder = Recorder(run, recorder.memo, by_rule=True)
                run_stage(STAGES, stage.name, replace(scratch, open_llm=recorder))
            for name, asked in recorder.asked.items():
                fresh = {k: r for k, r in asked if k not in recorder.memoized and k not in planned}
                planned |= fresh.keys()
                memoized = sum(key in recorder.memoized for key, _ in asked)
                tokens = sum(map(_prompt_tokens, fresh.values()))
                lines.append(_line(run, stage, name, recorder.memo, len(asked), memoized, len(fresh), tokens))
        artifacts = {n: scratch.store.find(stage_key(s, run)) for n, s in STAGES.items()}
        inputs = {name: artifact for name, artifact in artifacts.items() if artifact is not None}
        lines += _bounds(replace(scratch, inputs=inputs), run, method, known)
    return lines


def _linked(artifact: Artifact) -> Callable[[Path], Mapping[str, Any]]:
    """Fills a folder with an artifact's files, without copying them where the disk is the same."""

    def link(source: str, target: str) -> str:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)
        return target

    def fill(folder: Path) -> Mapping[str, Any]:
        # Not its manifest: the copy gets one of its own, which must not be written through a link.
        own = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(artifact.path, folder, dirs_exist_ok=True, copy_function=link, ignore=own)
        return artifact.facts

    return fill


def _bounds(scratch: Run, run: Run, method: Method, known: dict[Key, Artifact | None]) -> list[PlanLine]:
    """What trainings and evaluations ask at most: the policy decides which turns are replied to, and how often."""
    subset = train_subset(scratch)
    train = turns_of(run, subset)
    clarifying = [t for t in train if not run.task.action(t.action).ends_trajectory]
    evaluated = evaluated_turns(scratch)
    most, word = run.profile.act.max_clarifications, "word " * TURN_TOKENS
    said = (Utterance("assistant", word, ""),)
    lines = []
    for each in lineage(method):
        epochs = each.rollout_epochs(run.profile) if each.rollout_epochs else 0
        for asset, turns, replied, times in (
            # In training only turns that call for a clarification are rolled out; in evaluation, all may be.
            *([(each.checkpoint, train, clarifying, epochs)] if epochs else []),
            (each.evaluation, evaluated, evaluated, 1),
        ):
            stage, recorder = STAGES[asset], Recorder(run, memo_at(run.calls.memo_folder))
            roles = roles_of(replace(scratch, open_llm=recorder))
            roles.simulator().reply(replied, [word] * len(replied), [said] * len(replied))
            later = (*said, Utterance("user", word, ""), *said)
            trajectories = [said] * len(turns) + [later] * len(replied)
            roles.classifier(subset).classify([*turns, *replied], trajectories)
            if up_to_date(STAGES, asset, run, known) is not None:
                lines += [_done(run, stage, role) for role in recorder.asked]
                continue
            simulated = f"simulated {times} times" if times > 1 else "simulated once"
            counts = {
                "simulator": (
                    times * most * len(replied),
                    f"{len(replied)} turns, {simulated}, clarify up to {most} times, as the policy decides",
                ),
                "classifier": (
                    times * (len(turns) + most * len(replied)),
                    f"{len(turns)} first responses, and one after every reply of the user, {simulated}",
                ),
            }
            for name, asked in recorder.asked.items():
                number, bound = counts[name]
                tokens = round(sum(_prompt_tokens(r) for _, r in asked) / len(asked) * number)
                lines.append(_line(run, stage, name, recorder.memo, number, 0, number, tokens, bound))
    return lines


def _line(
    run: Run,
    stage: Stage,
    name: str,
    memo: Memo,
    calls: int,
    memoized: int,
    to_ask: int,
    prompt_tokens: int,
    bound: str = "",
) -> PlanLine:
    role = run.profile.roles.played()[name]
    # Tokens of an answer: the mean of this role's answers in the memo, else the most there can be.
    rows = memo.database.query(
        "SELECT avg(output_tokens) FROM answers WHERE role = ? AND provider = ? AND model = ?",
        [name, role.provider, role.model],
    )
    mean = rows[0][0] if rows else None
    output_tokens = round(float(mean or role.max_output_tokens) * to_ask)
    return replace(
        _done(run, stage, name),
        state="to make",
        calls=calls,
        memoized=memoized,
        to_ask=to_ask,
        bound=bound,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        cost_usd=roles_of(run).llm(role).sender.cost(prompt_tokens, output_tokens),
    )


def _done(run: Run, stage: Stage, name: str) -> PlanLine:
    role = run.profile.roles.played()[name]
    return PlanLine(stage.name, stage_key(stage, run).partition, name, f"{role.provider} ({role.model})")


def _prompt_tokens(request: LLMRequest) -> int:
    return sum(estimate_tokens(m.content) for m in request.messages)
