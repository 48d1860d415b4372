"""What each asset computes, from raw files to the report: the whole pipeline without Dagster.

A stage reads the artifacts of earlier stages and writes its own. Its identity is everything that can change its
content: its version, the settings it reads, the prompts it renders, the content of its inputs, the seed. An
artifact of that identity is never made twice, so a run that was killed resumes where it was, and a change that
changes nothing stops where it is found out.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from act_assets.profile import TRANSPORT, Profile
from act_assets.roles.prompt import prompt_hash
from act_assets.run import TRAIN_SIZES, Run
from act_assets.tasks import source_hash
from resources.artifacts import Artifact, Key, identity_hash
from resources.errors import ActError
from resources.files import locked

Build = Callable[[Run, Path], dict[str, Any]]


@dataclass(frozen=True)
class Stage:
    """A stage of the pipeline. `sized` stages are made once per train size, others once per task.

    `settings` picks what the stage reads from the profile; `prompts` are the roles whose templates it
    renders; `finds` are further inputs, of every train size for which they are up to date, by
    `<asset>@<size>`; `publish` puts a copy where people look for it, made or found again; a `resumable`
    one that is cut short resumes from its `work` folder. Raise `version` when the code changes what
    comes out. `summary`, `group`, `kind` and `pool` are what a graph shows of it, and what it waits for.
    """

    name: str
    sized: bool
    inputs: tuple[str, ...]
    build: Build
    version: int = 1
    seeded: bool = True
    settings: Callable[[Profile], Any] = lambda profile: None
    prompts: tuple[str, ...] = ()
    fingerprint: Callable[[Run], Any] = lambda run: None
    finds: tuple[str, ...] = ()
    publish: Callable[[Run, Artifact], dict[str, Any]] = lambda run, artifact: {}
    resumable: bool = False
    summary: str = ""
    group: str = "data"
    kind: str = "parquet"
    pool: Literal["gpu", "llm"] | None = None


@dataclass(frozen=True)
class StageResult:
    """A stage's artifact, whether it was there already, and what `publish` said."""

    artifact: Artifact
    reused: bool
    published: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Made:
    """What a launch came to: each asset's metadata by name, and the checks that did not pass."""

    assets: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed_checks: list[str] = field(default_factory=list)


def run_stage(stages: Mapping[str, Stage], name: str, run: Run) -> StageResult:
    """Makes a stage's artifact, or finds it again. Raises ActError naming what is missing or wrong."""
    stage = stages[name]
    key = stage_key(stage, run)
    inputs = {i: run.store.require(stage_key(stages[i], run)) for i in stage.inputs}
    run = replace(run, inputs=inputs | _found(stages, stage, run, {}), calls=run.calls.for_asset(name, key.partition))
    identity = _identity(stage, run)
    again = run.calls.mode == "refresh" and any(role in run.profile.roles.played() for role in stage.prompts)
    found = None if again else run.store.reuse(key, identity)
    if found is not None:
        if stage.resumable:  # a run that was killed when the artifact was there had no time to clear up
            shutil.rmtree(run.store.work_folder(key, identity), ignore_errors=True)
        result = StageResult(found, True)
    else:
        for began, _ in _listeners:
            began(key)
        result = StageResult(_build(stage, run, key, identity, again=again), False)
    for _, ended in _listeners:
        ended(key, result.reused, result.artifact.seconds)
    return replace(result, published=stage.publish(run, result.artifact))


def _build(stage: Stage, run: Run, key: Key, identity: dict[str, Any], *, again: bool) -> Artifact:
    """Makes the artifact. Raises ActError where a stage that can be resumed is being made by another run."""
    if not stage.resumable:
        return run.store.build(key, identity, lambda folder: stage.build(run, folder), replace=again)
    work = run.store.work_folder(key, identity)
    if again:  # what an earlier run left was not asked again
        work = work.with_name(f"{work.name}-{run.calls.since:.0f}")
    with locked(work.with_name(f"{work.name}.lock")) as free:
        if not free:
            raise ActError(
                f"{key} is being made by another run", where=str(work), todo="wait until it has ended, then run again"
            )
        working = replace(run, work=work)
        built = run.store.build(key, identity, lambda folder: stage.build(working, folder), replace=again)
        shutil.rmtree(work, ignore_errors=True)
    return built


def up_to_date(
    stages: Mapping[str, Stage], name: str, run: Run, known: dict[Key, Artifact | None] | None = None
) -> Artifact | None:
    """The artifact that `run_stage` would find again, all it was made from being up to date too; else None.

    Nothing is made. Dagster's own stale status looks at direct inputs alone; this looks all the way up. `known`
    carries what is found from one question to the next, so that each artifact is looked at once.
    """
    known = {} if known is None else known
    stage = stages[name]
    key = stage_key(stage, run)
    if key in known:
        return known[key]
    known[key] = None
    found = run.store.find(key)
    inputs: dict[str, Artifact] = {}
    for needed in stage.inputs if found else ():
        artifact = up_to_date(stages, needed, run, known)
        if artifact is None:
            return None
        inputs[needed] = artifact
    if found is not None:
        made_from = replace(run, inputs=inputs | _found(stages, stage, run, known))
        if identity_hash(_identity(stage, made_from)) == found.identity_hash:
            known[key] = found
    return known[key]


def _found(
    stages: Mapping[str, Stage], stage: Stage, run: Run, known: dict[Key, Artifact | None]
) -> dict[str, Artifact]:
    """Figures of earlier data, settings or prompts never stand beside those of now."""
    found = {
        f"{asset}@{size}": up_to_date(stages, asset, replace(run, train_size=size), known)
        for size in (TRAIN_SIZES if stage.finds else ())
        for asset in stage.finds
    }
    return {name: artifact for name, artifact in found.items() if artifact is not None}


def _identity(stage: Stage, run: Run) -> dict[str, Any]:
    """Everything that can change what a stage makes; `run.inputs` are its inputs."""
    played = run.profile.roles.played()
    return {
        "asset": stage.name,
        "partition": stage_key(stage, run).partition,
        "version": stage.version,
        "seed": run.seed if stage.seeded else None,
        "settings": _without_transport(stage.settings(run.profile)),
        "task": source_hash(run.task),
        # A role that a rule plays renders no prompt.
        "prompts": {
            role: prompt_hash(role, run.task.name, run.prompts_dir) if role in played else "not asked"
            for role in stage.prompts
        },
        "inputs": {name: artifact.content_hash for name, artifact in sorted(run.inputs.items())},
        "fingerprint": stage.fingerprint(run),
    }


Began = Callable[[Key], None]
Ended = Callable[[Key, bool, float], None]
_listeners: list[tuple[Began, Ended]] = []


@contextmanager
def announcing(began: Began, ended: Ended) -> Iterator[None]:
    """While it lasts, `began` hears of every stage that is being made, `ended` of every stage that is there."""
    _listeners.append((began, ended))
    try:
        yield
    finally:
        _listeners.remove((began, ended))


def stage_key(stage: Stage, run: Run) -> Key:
    """Which artifact a stage makes in a run."""
    if stage.sized and run.train_size is None:
        raise ActError(f"{stage.name} needs a train size", todo=f"choose one of {', '.join(map(str, TRAIN_SIZES))}")
    return Key(stage.name, run.task.name, run.train_size if stage.sized else None)


def _without_transport(value: Any) -> Any:
    """Settings without what changes only how fast an answer comes."""
    if isinstance(value, dict):
        # `stop` came later: at its default a setting that older artifacts know nothing of.
        kept = {k: v for k, v in value.items() if k not in TRANSPORT and (k, v) != ("stop", True)}
        return {k: _without_transport(v) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [_without_transport(v) for v in value]
    return _without_transport(value.model_dump(mode="json")) if isinstance(value, BaseModel) else value
