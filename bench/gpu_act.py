"""How fast ACT trains a 7B policy on one GPU: the real loop on PACIFIC turns, with random weights.

    python bench/gpu_act.py --minutes 5                 # a GPU of 80 GB or more: LoRA r=16, 128 turns a rollout group
    python bench/gpu_act.py --minutes 5 --plain         # the same, and again without prefix sharing
    python bench/gpu_act.py --size tiny --minutes 0.1   # a CPU: shows that it runs, and says nothing about a GPU

`train_act` itself runs: rollouts, classifier, simulated user, judge, reference, update. Other than in a real training:

- The weights are random, of Mistral-7B-v0.1's shape, made on the device. A random policy never ends a response: each
  is cut at --max-new-tokens. It hardly ever clarifies, so the classifier's verdict is replaced by a seeded draw: of
  the turns where clarifying is right a share --clarify-share is rolled out, and asks again with --clarify-again.
- The tokenizer is a byte-level BPE trained on the sample with single digits, as Mistral's has them. The sample gives
  about 10,000 tokens; the model has 32,000.
- It stops after --minutes at the end of a rollout group. States, validation and kept models are left out of what is
  timed. The hours for the paper's 23,076 pairs add the first scoring of all pairs and twelve validations, not the disk.

Needs torch, transformers, trl, accelerate, peft, datasets, and of this project's other dependencies pydantic, pyyaml,
pyarrow, jinja2, scipy; nothing is downloaded. It first prints a prediction by arithmetic, then what it measured, and
ends with one line of JSON: every figure and its target. The targets are for one H200; elsewhere nothing is judged.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parent.parent
sys.path.append(str(REPO))  # the project need not be installed; last, for its folder `datasets` is no package

from bench.gpu_act_parts import (  # noqa: E402
    PAPER_EPOCHS,
    PAPER_TURNS,
    Direct,
    Material,
    Steered,
    config_of,
    parameter_counts,
    predict,
    profile_of,
    random_model,
    read_material,
)

TARGETS = {"pairs_per_second": (">=", 3.2), "hours_for_23076_pairs": ("<=", 2.0)}
STRETCH = 5.0  # pairs a second
SIZES = {
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "intermediate": 14336, "vocabulary": 32000},
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "vocabulary": 2048},
}
WORK = {  # how much is done with each size; turns 0: all of 250 conversations
    "7b": {"turns": 0, "batch_size": 32, "rollout_group": 128, "max_new_tokens": 64},
    "tiny": {"turns": 48, "batch_size": 8, "rollout_group": 16, "max_new_tokens": 8},
}
HEADINGS = ("generate", "classify", "simulate", "score", "update", "save", "validate", "other")


# Measurement


class Enough(Exception):
    """The time is over."""


@dataclass
class Window:
    """What is timed: from the end of the warm-up groups to the first end of a group after `seconds`."""

    seconds: float
    warm_up_groups: int
    setup_score_s: float = 0.0
    began: float | None = None
    groups: int = 0
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    staleness: list[float] = field(default_factory=list)

    def close(self, meter: Any) -> None:
        self.facts, self.flops = meter.facts(), meter.model_flops()
        self.counts = {n[6:]: v for n, v in meter.snapshot().items() if n.startswith("count_")}


def timed_loop(loop: type[Any], window: Window) -> type[Any]:
    """The loop of a training with the meter set to zero after the warm-up, and an end."""

    class Timed(loop):  # type: ignore[misc]
        def run(self) -> None:
            super().run()
            window.close(self.meter)
            raise Enough

        def group(self, group: Any) -> None:
            if group.number == 0:
                before = self.meter.snapshot()
                window.setup_score_s = before.get("time_score", 0.0)
            if group.number == window.warm_up_groups:
                self.meter.restore({})
                window.began = time.perf_counter()
            if window.began is not None and window.groups and time.perf_counter() - window.began >= window.seconds:
                window.close(self.meter)
                raise Enough
            super().group(group)
            if window.began is not None:
                window.groups += 1
                window.staleness = [p.staleness for p in self.log.points if p.staleness is not None]

        def validate(self, epoch: int) -> None:
            self.rollouts = []

        def save(self) -> None:
            return

    return Timed


def measure(options: argparse.Namespace, material: Material, profile: Any, folder: Path) -> dict[str, float]:
    """Runs `train_act` for the time, and gives its figures."""
    import torch

    from act_assets.profile import LLMRole
    from act_assets.roles import EmbeddedProvider, RuleClassifier, Simulator
    from act_assets.training import act_trainer
    from act_assets.training.chat_template import ChatFormat
    from act_assets.training.policy import pick_device, save_model

    device = pick_device()
    config = config_of(options, material.tokenizer)
    halved = not options.full and device.type == "cuda"

    def load(path: Path, revision: str | None = None, *, quantized: bool = False) -> tuple[Any, ChatFormat]:
        model = random_model(config, device, halved=halved, seed=options.seed)
        if options.engine == "vllm":
            model.name_or_path = str(path)  # where vLLM within this process reads the weights
        return model, ChatFormat(material.tokenizer)

    sft_model = folder / "sft"
    if options.engine == "vllm":  # it reads the weights that it starts from: 14 GB in bf16
        save_model(
            random_model(config, device, halved=True, seed=options.seed).bfloat16(), material.tokenizer, sft_model
        )
    llm: Any = Direct(EmbeddedProvider())
    rules = LLMRole(provider="embedded", model="embedded-rules-1")
    roles = Steered(
        RuleClassifier(material.task),
        Simulator(llm, rules, material.task),
        options.clarify_share,
        options.clarify_again,
        profile.act.max_clarifications,
        options.seed,
    )
    window = Window(60 * options.minutes, options.warm_up_groups)
    (folder / "artifact").mkdir()
    with (
        mock.patch.object(act_trainer, "load_model", load),
        mock.patch.object(act_trainer, "_Loop", timed_loop(act_trainer._Loop, window)),
        contextlib.suppress(Enough),
    ):
        act_trainer.train_act(
            material.task,
            material.turns,
            material.pairs,
            material.held_out_turns,
            material.held_out,
            material.intents,
            roles,
            roles,
            sft_model,
            profile,
            options.seed,
            folder / "artifact",
            folder / "work",
        )
    if not window.groups:
        raise SystemExit(
            f"no rollout group is left after the {options.warm_up_groups} of the warm-up: lower --warm-up-groups or "
            "--rollout-group, or raise --turns"
        )
    facts, seconds = window.facts, window.facts["seconds"]
    rate = window.counts["pairs"] / seconds
    per_pair = window.setup_score_s / (len(material.pairs) + len(material.held_out))  # a forward pass
    once = per_pair * (PAPER_TURNS + len(material.held_out) * (1 + PAPER_EPOCHS))
    figures: dict[str, float] = {
        "pairs_per_second": rate,
        "hours_for_23076_pairs": (PAPER_TURNS * PAPER_EPOCHS / rate + once) / 3600,
        "hours_of_them_scoring_all_pairs_and_validating": once / 3600,
        "trained_tokens_per_second": window.counts["trained_tokens"] / seconds,
        "scored_tokens_per_second": window.counts["scored_tokens"] / seconds,
        "generated_tokens_per_second": window.counts["generated_tokens"] / seconds,
        "tflop_a_pair": window.flops / window.counts["pairs"] / 1e12,
        "peak_memory_mb": facts["peak_memory_mb"],
        "seconds_measured": seconds,
        "groups_measured": window.groups,
        "pairs_measured": window.counts["pairs"],
        "later_responses_a_first": roles.responses["later"] / roles.responses["first"],
        "staleness_mean": fmean(window.staleness),
        "seconds_scoring_all_pairs_first": window.setup_score_s,
        **{name: value for name, value in facts.items() if name.startswith(("share_", "overlapped_"))},
        **{f"{n}_a_pair": v / window.counts["pairs"] for n, v in window.counts.items() if n.endswith("_tokens")},
    }
    if facts["model_flops_utilisation"] is not None:
        figures["model_flops_utilisation"] = facts["model_flops_utilisation"]
    if torch.cuda.is_available():
        figures["peak_memory_reserved_mb"] = torch.cuda.max_memory_reserved() / 2**20
    return figures


# What is printed


def table(title: str, figures: dict[str, float]) -> None:
    print(f"\n{title}\n")
    for name, value in figures.items():
        shown = f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
        print(f"  {name.replace('_', ' '):<48} {shown:>14}")
    print(flush=True)


def result_of(figures: dict[str, float], *, judged: bool) -> dict[str, dict[str, Any]]:
    """Every figure with its target; on another device or size than the target's, no verdict."""
    result: dict[str, dict[str, Any]] = {n: {"value": float(f"{v:.6g}")} for n, v in figures.items()}
    for name, (sign, bound) in TARGETS.items():
        value = figures[name]
        met = (value >= bound if sign == ">=" else value <= bound) if judged else None
        result[name] |= {"target": f"{sign} {bound}", "met": met}
    result["pairs_per_second"]["stretch"] = f">= {STRETCH}"
    return result


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="of measurement, after the warm-up groups")
    parser.add_argument("--warm-up-groups", type=int, default=1)
    parser.add_argument("--size", choices=sorted(SIZES), default="7b")
    for name in SIZES["7b"]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="default: of --size")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--lora", action="store_true", help="train adapters (the default)")
    weights.add_argument("--full", action="store_true", help="train all weights: 130 GB with the reference, for 7B")
    parser.add_argument("--rank", type=int, default=16, help="of LoRA; alpha is twice as much")
    parser.add_argument("--batch-size", type=int, help="pairs of an update (7b: 32)")
    parser.add_argument("--rollout-group", type=int, help="turns sampled together (7b: 128; the paper: one batch)")
    parser.add_argument("--lag", type=int, choices=(0, 1), default=0)
    parser.add_argument("--micro-batch-tokens", type=int, default=8192)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--max-new-tokens", type=int, help="of a response (7b: 64)")
    parser.add_argument("--engine", choices=("transformers", "vllm"), default="transformers")
    parser.add_argument("--engine-mode", choices=("colocated", "server"), default="colocated", help="of vllm")
    parser.add_argument("--no-prefix-sharing", action="store_true", help="winner and loser each with its own prompt")
    parser.add_argument("--plain", action="store_true", help="measure again without prefix sharing, and compare")
    parser.add_argument("--clarify-share", type=float, default=0.8, help="of the turns where clarifying is right")
    parser.add_argument("--clarify-again", type=float, default=0.3, help="of the responses to a reply")
    parser.add_argument("--turns", type=int, help="of the training side (7b: all of 250 conversations)")
    parser.add_argument("--peak-tflops", type=float, help="for the prediction; default: of the GPU, or an H200's")
    parser.add_argument("--folder", type=Path, help="for what vLLM reads; default: a temporary one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for name, value in (SIZES[options.size] | WORK[options.size]).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    return options


def run(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    from act_assets.training.meter import gpu_name

    gpu = gpu_name()
    material = read_material(options)
    profile = profile_of(options, on_gpu=gpu is not None)
    parameters, trainable = parameter_counts(options)
    print(f"{gpu or 'CPU: the figures say nothing about a GPU'}; {parameters:,} parameters, {trainable:,} trained")
    print(f"{len(material.pairs)} pairs, batches of {options.batch_size}, groups of {options.rollout_group}")
    print(f"responses cut at {options.max_new_tokens} tokens, for random weights never end them; the classifier's")
    print("verdicts are drawn, for a random policy hardly clarifies")
    predicted = predict(options, material, profile, gpu)
    table(f"Prediction for {gpu or 'one H200'}", predicted)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="act-bench-", dir=options.folder) as folder:
        measured = measure(options, material, profile, Path(folder))
    table("Measured", measured)
    shares = "  ".join(f"{name} {measured[f'share_{name}']:.1%}" for name in HEADINGS)
    print(f"time: {shares}")
    judged = gpu is not None and "H200" in gpu and options.size == "7b"
    setup = {"device": {"value": gpu or "cpu"}, "options": {"value": {k: str(v) for k, v in vars(options).items()}}}
    return setup | result_of(predicted | measured, judged=judged)


def both(arguments: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The shared and the plain form, each in a process of its own: the GPU is empty for both."""
    kept = [a for a in arguments if a not in ("--plain", "--no-prefix-sharing")]
    results = []
    for extra in ([], ["--no-prefix-sharing"]):
        command = [sys.executable, __file__, *kept, *extra]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        print(done.stdout, flush=True)
        if done.returncode:
            sys.exit(done.returncode)
        results.append(json.loads(done.stdout.strip().splitlines()[-1]))
    shared, plain = results
    rates = [r["pairs_per_second"]["value"] for r in results]
    print(f"prefix sharing: {rates[0]:.3g} pairs a second; plain: {rates[1]:.3g}\n")
    return shared | {"shared_over_plain": {"value": rates[0] / rates[1]}, "plain": {"value": plain}}


def main(arguments: Sequence[str] | None = None) -> None:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    options = options_of(arguments)
    given = sys.argv[1:] if arguments is None else arguments
    from resources.errors import ActError

    try:
        print(json.dumps(both(given) if options.plain else run(options)))
    except ActError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
