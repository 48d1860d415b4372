"""Stages that ask a real client library of a loopback server: what is paid once stays, what failed is asked again."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from act_assets.defs.assets import ASSETS
from act_assets.defs.resources import ActSettings
from act_assets.home import memo_folder
from act_assets.methods.registry import METHODS
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.plan import PlanLine, plan
from act_assets.pipeline.stage import StageResult, run_stage
from act_assets.run import Run, make_run
from resources.errors import ProfileError, RoleError
from resources.llm.memo.memo import close_memos, memo_at
from resources.llm.memo.records import Asker
from resources.llm.service import CallSettings

pytestmark = pytest.mark.integration

TESTS = Path(__file__).parent
PAIRS = 355  # questions about the turns of the 50 conversations


@pytest.fixture(scope="module")
def loopback() -> Any:
    spec = importlib.util.spec_from_file_location("loopback", TESTS / "loopback.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["loopback"] = module
    spec.loader.exec_module(module)
    return module


class Workshop:
    """A profile whose generator is at a loopback server, and an ACT_HOME."""

    def __init__(self, folder: Path, loopback: Any) -> None:
        self.folder, self.loopback = folder, loopback
        self.behaviour: Any = loopback.always()
        self.server = loopback.Loopback(lambda number, request: self.behaviour(number, request))

    def profile(self) -> str:
        profile = yaml.safe_load((TESTS / "tiny.yaml").read_text())
        profile["roles"]["generator"] = {"provider": "openai", "model": "m", "base_url": f"{self.server.url}/v1"}
        path = self.folder / "served.yaml"
        path.write_text(yaml.safe_dump(profile))
        return str(path)

    def run(self, asset: str = "contrastive_pairs", spender: str = "", **calls: Any) -> StageResult:
        return run_stage(STAGES, asset, self.make_run(spender, **calls))

    def make_run(self, spender: str = "", **calls: Any) -> Run:
        settings = CallSettings(memo_folder(), asker=Asker(run="test", budget=spender), **calls)
        return make_run(self.profile(), 0, "pacific", 50, calls=settings)

    def asked(self) -> int:
        """Requests since the last time."""
        number = len(self.server.calls)
        self.server.calls.clear()
        return number


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loopback: Any) -> Iterator[Workshop]:
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("ACT_PRICES", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    shop = Workshop(tmp_path, loopback)
    with shop.server:
        for asset in ("raw_dataset", "ambiguous_requests", "conversations", "action_labels", "train_subset"):
            shop.run(asset)
        yield shop
    close_memos()


def test_a_failed_item_is_named_and_the_next_run_asks_only_for_it(shop: Workshop) -> None:
    shop.behaviour = shop.loopback.at_rates({"safety": 0.1}, seed=3)
    with pytest.raises(RoleError, match="of 355 questions have no answer") as error:
        shop.run()
    failed = error.value.failures
    assert 10 < len(failed) < 80 and {f.kind for f in failed} == {"blocked"}
    assert all(f.label.startswith("task pacific") for f in failed)
    assert shop.asked() == PAIRS

    shop.behaviour = shop.loopback.always()
    outcome = shop.run()
    assert shop.asked() == len(failed), "what was answered is not asked again"
    facts = outcome.artifact.facts
    assert (facts["llm_calls"], facts["llm_hits"], facts["llm_failures"]) == (len(failed), PAIRS - len(failed), 0)


def test_a_budget_stops_before_it_is_exceeded_and_keeps_what_was_paid(shop: Workshop) -> None:
    with pytest.raises(RoleError, match="budget of 100 calls reached") as error:
        shop.run(spender="first", max_calls=100)
    assert "what was paid is kept" in error.value.todo
    assert shop.asked() == 100
    with pytest.raises(RoleError, match="budget of 100 calls reached"):
        shop.run(spender="first", max_calls=100)
    assert shop.asked() == 0, "the same budget, asked by another stage or process, is spent"
    assert shop.run(spender="second", max_calls=PAIRS - 100).artifact.facts["llm_calls"] == PAIRS - 100
    assert shop.asked() == PAIRS - 100


def test_a_budget_holds_for_other_processes_too(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RoleError, match="budget"):
        shop.run(spender="shared", max_calls=40)
    close_memos()
    monkeypatch.setattr("resources.llm.service._budgets", {})  # as a process that has just started
    with pytest.raises(RoleError, match="budget of 50 calls reached"):
        shop.run(spender="shared", max_calls=50)
    assert shop.asked() == 50


def test_a_process_that_has_begun_sees_what_another_has_spent_since(shop: Workshop) -> None:
    """As a run whose training process asks between two of its own assets."""
    parent = shop.make_run("both", max_calls=100)
    with pytest.raises(RoleError, match="budget of 60 calls reached"):
        run_stage(STAGES, "contrastive_pairs", replace(parent, calls=replace(parent.calls, max_calls=60)))
    assert shop.asked() == 60
    script = (
        "import sys, json; from act_assets.defs.resources import make_run\n"
        "from act_assets.pipeline.graph import STAGES\n"
        "from act_assets.pipeline.stage import run_stage; from resources.llm.service import CallSettings\n"
        "calls = CallSettings.from_json(json.loads(sys.argv[2]))\n"
        "run_stage(STAGES, 'contrastive_pairs', make_run(sys.argv[1], 0, 'pacific', 50, calls=calls))\n"
    )
    child = replace(parent.calls, max_calls=90)
    command = [sys.executable, "-c", script, shop.profile(), json.dumps(child.to_json())]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "budget of 90 calls reached" in ran.stderr
    assert shop.asked() == 30
    with pytest.raises(RoleError, match="budget of 100 calls reached"):
        run_stage(STAGES, "contrastive_pairs", parent)
    assert shop.asked() == 10, "60 + 30 had been spent"


def test_a_budget_in_dollars_needs_prices(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match=r"roles\.generator: the price of m at http://127\.0\.0\.1"):
        shop.run(max_cost_usd=1.0)
    assert shop.asked() == 0
    row = {"provider": "openai", "model": "m", "base_url": f"{shop.server.url}/v1", "input": 1, "output": 1}
    prices = shop.folder / "prices.yaml"
    prices.write_text(yaml.safe_dump([{**row, "as_of": "2026-11-20", "source": "this test"}]))
    monkeypatch.setenv("ACT_PRICES", str(prices))
    with pytest.raises(RoleError, match=r"budget of \$0.10 reached"):
        shop.run(max_cost_usd=0.1, spender="dollars")
    answered = shop.asked()
    spent, calls = memo_at(memo_folder()).spent("dollars")
    assert 0 < answered == calls < PAIRS and 0 < spent <= 0.1


def test_offline_replays_and_names_what_is_missing(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    first = shop.run()
    shop.asked()
    shutil.rmtree(shop.folder / "home" / "artifacts" / "contrastive_pairs")
    again = shop.run(mode="offline")
    assert shop.asked() == 0 and not again.reused
    assert again.artifact.content_hash == first.artifact.content_hash

    prompts = shop.folder / "prompts"
    shutil.copytree(shop.make_run().prompts_dir, prompts)
    prompt = prompts / "generator" / "pacific.md"
    prompt.write_text(prompt.read_text().replace("[[user]]", "[[user]]\nA word more.", 1))
    monkeypatch.setenv("ACT_PROMPTS_DIR", str(prompts))
    with pytest.raises(RoleError, match="355 of 355") as error:
        shop.run(mode="offline")
    assert shop.asked() == 0
    key = error.value.failures[0].message.split("key ")[1]
    from resources.llm.memo.explain import find_miss, why_miss

    miss = find_miss(memo_folder(), key)
    assert miss is not None
    found = why_miss(memo_at(memo_folder()), miss.question, miss.role, miss.label)
    assert "A word more." in str(found)


def test_refresh_asks_again_once_and_keeps_the_old_answers(shop: Workshop) -> None:
    import time

    shop.run()
    shop.asked()
    since = time.time()
    outcome = shop.run(mode="refresh", since=since)
    assert not outcome.reused and shop.asked() == PAIRS
    shop.run(mode="refresh", since=since)
    assert shop.asked() == 0, "one refreshing asks once"
    close_memos()
    ((current,),) = memo_at(memo_folder()).database.query("SELECT count(*) FROM answers")
    ((old,),) = memo_at(memo_folder()).database.query("SELECT count(*) FROM history")
    assert (current, old) == (PAIRS, PAIRS)


def test_plan_says_what_will_be_asked_and_asks_nothing(shop: Workshop) -> None:
    def line(asset: str) -> PlanLine:
        (found,) = [x for x in plan(shop.make_run(), METHODS["act"]) if x.asset == asset]
        return found

    before = line("contrastive_pairs")
    assert (before.calls, before.memoized, before.to_ask, before.bound) == (PAIRS, 0, PAIRS, "")
    assert before.cost_usd is None, "a server of one's own has no known price"
    bound = line("act_checkpoint")
    assert bound.bound and bound.calls == bound.to_ask > 0
    assert shop.asked() == 0
    shop.behaviour = shop.loopback.at_rates({"safety": 0.1}, seed=3)
    with pytest.raises(RoleError) as error:
        shop.run()
    missing = len(error.value.failures)
    shop.asked()
    partly = line("contrastive_pairs")
    assert (partly.memoized, partly.to_ask) == (PAIRS - missing, missing)
    shop.behaviour = shop.loopback.always()
    shop.run()
    assert shop.asked() == missing, "exactly what the plan said"
    assert line("contrastive_pairs").state == "up to date"


def test_dagster_shows_numbers_samples_and_failed_items(shop: Workshop) -> None:
    assert isinstance(shop.make_run(), Run)
    partition = dg.MultiPartitionKey({"task": "pacific", "train_size": "50"})
    with dg.DagsterInstance.ephemeral() as instance:

        def materialize(**settings: Any) -> Any:
            return dg.materialize(
                ASSETS,
                selection=dg.AssetSelection.assets("contrastive_pairs"),
                partition_key=partition,
                instance=instance,
                resources={"act": ActSettings(profile=shop.profile(), **settings)},
                raise_on_error=False,
            )

        failed = materialize(max_calls=55)
        (failure,) = [e.step_failure_data.user_failure_data for e in failed.all_events if e.is_step_failure]
        assert "budget of 55 calls reached" in failure.description
        assert failure.metadata["failed"].value == PAIRS - 55
        assert "budget" in str(failure.metadata["failed_items"].value)

        def metadata(result: Any) -> dict[str, Any]:
            assert result.success
            (event,) = result.get_asset_materialization_events()
            return {k: v.value for k, v in event.materialization.metadata.items()}

        made = metadata(materialize())
        assert (made["llm_calls"], made["llm_hits"], made["llm_failures"]) == (PAIRS - 55, 55, 0)
        assert isinstance(made["llm_cost_usd"], float) and made["llm_prompt_tokens"] > 0
        assert "**generator**" in str(made["llm_sample"]) and "answer" in str(made["llm_sample"])
        again = metadata(materialize())
        assert again["reused"] is True
        assert {again[k] for k in ("llm_calls", "llm_hits", "llm_prompt_tokens", "llm_cost_usd")} == {0}
        close_memos()
        askers = memo_at(memo_folder()).database.query("SELECT DISTINCT asset, partition, run != '' FROM answers")
        assert askers == [("contrastive_pairs", "pacific|50", True)]


def test_transport_settings_make_nothing_again(shop: Workshop) -> None:
    run = shop.make_run()
    made = run_stage(STAGES, "contrastive_pairs", run).artifact
    roles = run.profile.roles
    generator = roles.generator.model_copy(update={"max_concurrency": 2, "timeout_s": 5.0, "requests_per_minute": 9})
    changed = run.profile.model_copy(update={"roles": roles.model_copy(update={"generator": generator})})
    outcome = run_stage(STAGES, "contrastive_pairs", replace(run, profile=changed))
    assert outcome.reused and outcome.artifact.identity_hash == made.identity_hash
