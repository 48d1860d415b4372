"""The graph as Dagster sees it says what the pipeline does, and the pipeline does not know Dagster."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from act_assets.conversation import PreferencePair
from act_assets.definitions import defs
from act_assets.defs.assets import ASSETS
from act_assets.defs.checks import CHECKS
from act_assets.defs.launch import observe_prompts
from act_assets.defs.prompts import PROMPTS
from act_assets.defs.resources import ActSettings
from act_assets.home import PACKAGE, PROJECT
from act_assets.pipeline import data as pipeline
from act_assets.pipeline.graph import EVALUATIONS, STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.preference import build_pairs
from act_assets.roles.prompt import ROLES
from act_assets.rows import read_rows
from act_assets.run import TRAIN_SIZES, make_run
from act_assets.tasks import all_tasks
from resources.artifacts import Key

pytestmark = pytest.mark.integration

GRAPH = defs.get_repository_def().asset_graph
TINY = str(PROJECT / "tests" / "tiny.yaml")
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def node(name: str) -> Any:
    return GRAPH.get(dg.AssetKey(name))


def test_the_code_location_loads() -> None:
    dg.Definitions.validate_loadable(defs)


def test_every_stage_is_an_asset_and_every_asset_a_stage() -> None:
    prompts = {dg.AssetKey(["prompts", role]) for role in ROLES}
    assert GRAPH.get_all_asset_keys() - prompts == {dg.AssetKey(name) for name in STAGES}
    assert GRAPH.get_all_asset_keys() >= prompts


@pytest.mark.parametrize("name", STAGES)
def test_an_asset_depends_on_its_stages_inputs_and_prompts_and_no_more(name: str) -> None:
    stage = STAGES[name]
    expected = {dg.AssetKey(i) for i in stage.inputs} | {dg.AssetKey(["prompts", role]) for role in stage.prompts}
    if name == "leaderboard":  # finds whatever has been evaluated
        expected |= {dg.AssetKey(e) for e in EVALUATIONS}
    assert node(name).parent_keys == expected


def test_what_the_report_finds_is_above_it_in_the_graph() -> None:
    above, todo = set(), [dg.AssetKey("report")]
    while todo:
        parents = GRAPH.get(todo.pop()).parent_keys - above
        above |= parents
        todo += parents
    assert {dg.AssetKey(a) for a in ("sft_checkpoint", "act_checkpoint", "contrastive_pairs", *EVALUATIONS)} <= above


@pytest.mark.parametrize("name", STAGES)
def test_sized_assets_have_a_partition_per_task_and_train_size_and_others_per_task(name: str) -> None:
    sized = [f"{task}|{size}" for task in all_tasks() for size in TRAIN_SIZES]
    keys = node(name).partitions_def.get_partition_keys()
    assert sorted(keys) == sorted(sized if STAGES[name].sized else all_tasks())
    assert ("pacific|50" in keys) == STAGES[name].sized


@pytest.mark.parametrize("name", STAGES)
def test_an_asset_says_what_it_is(name: str) -> None:
    asset = node(name)
    assert asset.group_name in ("data", "pairs", "training", "evaluation", "report")
    assert asset.kinds
    assert asset.owners == ["team:act"]
    assert asset.code_version == str(STAGES[name].version)
    assert len(asset.description) > 20


def test_what_needs_a_gpu_or_a_model_waits_in_a_pool() -> None:
    pools = {name: set(node(name).pools) for name in STAGES}
    assert {name for name, p in pools.items() if p == {"gpu"}} == {
        "base_policy",
        "sft_checkpoint",
        "act_checkpoint",
        "evaluation_sft",
        "evaluation_act",
    }
    asking = {"annotator", "intent", "generator", "perturbation"}
    makes_calls = {name for name, stage in STAGES.items() if asking & {*stage.prompts}}
    assert {name for name, p in pools.items() if p == {"llm"}} == makes_calls


OF_PAIRS = {"no_leak", "no_empty_response", "chosen_differs_from_rejected", "covers_all_actions"}
BLOCKING = {
    "ambiguous_requests": {"twins_differ", "targets_run"},
    "conversations": {"balanced"},
    "contrastive_pairs": OF_PAIRS,
    "validation_pairs": OF_PAIRS,
    "sft_checkpoint": {"finite_loss"},
    "act_checkpoint": {"finite_loss"},
}


@pytest.mark.parametrize("name", BLOCKING)
def test_blocking_checks_stand_between_an_asset_and_what_follows(name: str) -> None:
    checks = {key.name: GRAPH.get(key) for key in GRAPH.asset_check_keys if key.asset_key == dg.AssetKey(name)}
    blocking = {n for n, check in checks.items() if check.blocking}
    assert blocking == BLOCKING[name]
    assert {n for n in checks if n not in blocking} == ({"reward_margin"} if name == "act_checkpoint" else set())
    assert all(check.partitions_def == node(name).partitions_def for check in checks.values())


def test_no_other_asset_has_checks() -> None:
    assert {key.asset_key for key in GRAPH.asset_check_keys} == {dg.AssetKey(name) for name in BLOCKING}


def test_the_jobs_cover_every_asset() -> None:
    jobs = {job.name: job for job in defs.get_repository_def().get_all_jobs() if not job.name.startswith("__")}
    assert set(jobs) == {"prepare_task", "train_and_evaluate", "report_task"}
    covered = {key.path[-1] for job in jobs.values() for key in job.asset_layer.executable_asset_keys}
    assert covered == set(STAGES)


# --- running ---------------------------------------------------------------------------------------------------


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster without a disk, and an ACT_HOME of its own."""
    for name in ("ACT_DATA_DIR", "ACT_PROMPTS_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


def materialize(instance: dg.DagsterInstance, selection: dg.AssetSelection, partition: str) -> Any:
    return dg.materialize(
        [*ASSETS, *CHECKS],
        selection=selection,
        partition_key=partition,
        instance=instance,
        resources={"act": ActSettings(profile=TINY)},
        raise_on_error=False,
        run_config=QUIET,
    )


def test_an_asset_carries_its_contents_version_and_says_whether_it_was_reused(instance: dg.DagsterInstance) -> None:
    seen = []
    for _ in range(2):
        result = materialize(instance, dg.AssetSelection.assets("raw_dataset"), "pacific")
        assert result.success
        (event,) = result.get_asset_materialization_events()
        metadata = event.materialization.metadata
        seen.append((event.materialization.tags["dagster/data_version"], metadata["reused"].value))
    artifact = make_run(TINY, 0, "pacific", None).store.require(Key("raw_dataset", "pacific"))
    assert seen == [(artifact.content_hash, False), (artifact.content_hash, True)]


def test_labels_show_where_they_differ_from_gold_and_their_checks_ran_before(instance: dg.DagsterInstance) -> None:
    names = ("raw_dataset", "ambiguous_requests", "conversations", "action_labels")
    result = materialize(instance, dg.AssetSelection.assets(*names), "pacific")
    assert result.success
    metadata = {e.asset_key.path[-1]: e.materialization.metadata for e in result.get_asset_materialization_events()}
    assert set(metadata) == set(names)
    assert "| CLARIFY" in str(metadata["action_labels"]["confusion"].value)
    assert "ambiguous request" in str(metadata["ambiguous_requests"]["sample"].value)
    checked = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    assert checked == {"twins_differ": True, "targets_run": True, "balanced": True}, "PACIFIC has none to fail them"


def test_an_error_of_ours_fails_the_step_in_its_own_words(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path))
    result = materialize(instance, dg.AssetSelection.assets("raw_dataset"), "pacific")
    assert not result.success
    failure = result.failure_data_for_node("raw_dataset").user_failure_data
    assert failure.description.startswith("dataset file train.json is missing\n  where: task pacific")


def test_pairs_that_leak_an_answer_are_named_and_stop_what_follows(
    instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(*arguments: Any) -> Any:
        pairs, report = build_pairs(*arguments)
        *before, request = pairs[0].prompt
        request = replace(request, content=f"{request.content} {pairs[0].chosen}")
        return [replace(pairs[0], prompt=(*before, request)), *pairs[1:]], report

    monkeypatch.setattr(pipeline, "build_pairs", leaking)
    run = make_run(TINY, 0, "pacific", 50)
    for name in ("raw_dataset", "ambiguous_requests", "conversations", "action_labels", "train_subset"):
        run_stage(STAGES, name, run)
    both = dg.MultiPartitionKey({"task": "pacific", "train_size": "50"})
    result = materialize(instance, dg.AssetSelection.assets("contrastive_pairs", "act_checkpoint"), both)
    pairs = read_rows(run.store.require(Key("contrastive_pairs", "pacific", 50)).file("pairs.parquet"), PreferencePair)
    found = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert len(found) == 4
    assert {name for name, e in found.items() if not e.passed} == {"no_leak"}
    assert found["no_leak"].severity == dg.AssetCheckSeverity.ERROR
    assert found["no_leak"].metadata["offenders"].value == [pairs[0].turn_id]
    assert not result.success
    assert "act_checkpoint" not in {e.step_key for e in result.all_events if e.is_step_start}


def test_editing_a_prompt_changes_the_data_version_of_exactly_its_role(
    instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # PACIFIC's prompts, and for a role that it never asks those of a task that does.
    subject = {role: next(name for name, task in all_tasks().items() if task.asks(role)) for role in ROLES}
    assert {role for role, name in subject.items() if name != "pacific"} == {"perturbation"}

    def version(prompt: dg.SourceAsset, task: str) -> str:
        record = instance.get_latest_data_version_record(prompt.key, partition_key=task)
        observation = record.asset_observation if record else None
        return observation.tags["dagster/data_version"] if observation else ""

    def versions() -> dict[str, str]:
        observe_prompts(instance)
        return {p.key.path[-1]: version(p, subject[p.key.path[-1]]) for p in PROMPTS}

    shipped = versions()
    assert set(shipped) == set(ROLES)
    assert len(set(shipped.values())) == len(ROLES)
    asked = {p.key.path[-1]: version(p, "pacific") for p in PROMPTS}
    assert {role for role, found in asked.items() if found == "not asked"} == {"perturbation"}
    shutil.copytree(PACKAGE / "prompts", tmp_path / "prompts")
    monkeypatch.setenv("ACT_PROMPTS_DIR", str(tmp_path / "prompts"))
    assert versions() == shipped, "where the files lie does not matter"
    (tmp_path / "prompts" / "simulator" / "abg_coqa.md").unlink()
    assert versions() == shipped, "a prompt that another task lacks stops nothing here"
    (simulator,) = (p for p in PROMPTS if p.key.path[-1] == "simulator")
    assert version(simulator, "abg_coqa") == "missing"
    for role in ROLES:
        before = versions()
        with (tmp_path / "prompts" / role / f"{subject[role]}.md").open("a") as prompt:
            prompt.write("Be brief.\n")
        after = versions()
        assert {r for r in ROLES if after[r] != before[r]} == {role}
