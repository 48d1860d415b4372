"""bench/gpu_act.py on a CPU, with a policy of 368,960 parameters: that it runs, and what its arithmetic says."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).resolve().parent.parent / "bench" / "gpu_act.py"
NOT_NEEDED = {
    *("dagster", "dagster_pipes", "duckdb", "vllm", "deepspeed", "google", "openai", "sqlglot"),
    *("sentence_transformers", "tensorboard", "tensorboardX", "sklearn", "matplotlib", "bitsandbytes"),
}
BLOCKED = """
import runpy, sys
from importlib.machinery import PathFinder

found = PathFinder.find_spec

@classmethod
def find_spec(cls, name, path=None, target=None):
    return None if name.partition(".")[0] in {names!r} else found(name, path, target)

PathFinder.find_spec = find_spec
sys.argv = {arguments!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def bench() -> Any:
    """The names of the script and of its parts."""
    spec = importlib.util.spec_from_file_location("bench_gpu_act", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return SimpleNamespace(**(vars(sys.modules["bench.gpu_act_parts"]) | vars(module)))


SMALL = ("--size", "tiny", "--turns", "12", "--batch-size", "4", "--rollout-group", "4", "--max-new-tokens", "4")


def test_it_measures_the_real_loop_without_the_packages_that_a_gpu_machine_need_not_have(tmp_path: Path) -> None:
    arguments = [str(SCRIPT), *SMALL, "--minutes", "0.001"]
    program = BLOCKED.format(names=NOT_NEEDED, arguments=arguments)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    value = {name: figure["value"] for name, figure in figures.items()}
    assert value["pairs_measured"] == 4
    assert value["generated_tokens_a_pair"] >= 4
    assert value["pairs_per_second"] > 0
    assert figures["pairs_per_second"]["target"] == ">= 3.2"
    if value["device"] == "cpu":
        assert figures["pairs_per_second"]["met"] is None
    shares = sum(v for name, v in value.items() if name.startswith("share_"))
    assert shares == pytest.approx(1, abs=1e-3)
    assert value["share_generate"] > 0
    assert value["share_update"] > 0
    assert value["trained_tokens_a_pair"] == pytest.approx(value["predicted_trained_tokens_a_pair"], rel=0.25)


def test_random_weights_are_what_lora_leaves_of_a_base_in_fp32(bench: Any) -> None:
    from act_assets.training.adapters import halve_linear

    options = bench.options_of(["--size", "tiny"])
    config = bench.config_of(options, bench.train_bpe(["12 of 34"], 300))
    halved = bench.random_model(config, "cpu", halved=True, seed=0)
    whole = bench.random_model(config, "cpu", halved=False, seed=0)
    assert {str(p.dtype) for p in whole.parameters()} == {"torch.float32"}
    halve_linear(whole)
    assert [(n, p.dtype) for n, p in halved.named_parameters()] == [(n, p.dtype) for n, p in whole.named_parameters()]


@pytest.mark.parametrize("weights", ["--lora", "--full"])
def test_the_arithmetic_counts_the_parameters_that_there_are(bench: Any, weights: str) -> None:
    from act_assets.training.adapters import with_adapter

    options = bench.options_of(["--size", "tiny", weights])
    model = bench.random_model(
        bench.config_of(options, bench.train_bpe(["12 of 34"], 300)), "cpu", halved=False, seed=0
    )
    if not options.full:
        model = with_adapter(model, bench.profile_of(options, on_gpu=False).policy.lora, 0, mixed_precision=False)
    counted = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False)]
    assert bench.parameter_counts(options) == tuple(counted)


def test_the_default_size_is_that_of_mistral_7b(bench: Any) -> None:
    assert bench.parameter_counts(bench.options_of(["--full"]))[0] == 7_241_732_096


def test_the_classifier_clarifies_only_where_it_is_right_and_forgets_a_turn_that_is_settled(bench: Any) -> None:
    asked = [SimpleNamespace(turn_id=f"t{i}", action="CLARIFY" if i < 2 else "ANSWER") for i in range(4)]
    rule = SimpleNamespace(classify=lambda turns, trajectories: ["ANSWER"] * len(turns))
    user = SimpleNamespace(reply=lambda turns, intents, trajectories: ["2019"] * len(turns))
    always = bench.Steered(rule, user, first=1.0, again=1.0, most=2, seed=0)
    for _ in range(2):  # a turn comes again in the next epoch
        assert always.classify(asked, [""] * 4) == ["CLARIFY", "CLARIFY", "ANSWER", "ANSWER"]
        for _ in range(2):
            always.reply(asked[:2], [""] * 2, [()] * 2)
            assert always.classify(asked[:2], [""] * 2) == ["CLARIFY"] * 2
        assert not always.rounds
    never = bench.Steered(rule, user, first=0.0, again=0.0, most=2, seed=0)
    assert never.classify(asked, [""] * 4) == ["ANSWER"] * 4
