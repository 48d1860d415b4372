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
import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

REPO = Path(__file__).resolve().parent.parent
sys.path.append(str(REPO))  # the project need not be installed; last, for its folder `datasets` is no package

PAPER_TURNS, PAPER_EPOCHS = 1923, 12  # 250 conversations of PACIFIC
TARGETS = {"pairs_per_second": (">=", 3.2), "hours_for_23076_pairs": ("<=", 2.0)}
STRETCH = 5.0  # pairs a second
SIZES = {
    "7b": {"hidden": 4096, "layers": 32, "heads": 32, "kv_heads": 8, "intermediate": 14336, "vocabulary": 32000},
    "tiny": {"hidden": 64, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate": 128, "vocabulary": 2048},
}
PROMPT_TOKENS = {"7b": 832, "tiny": 256}
WORK = {  # how much is done with each size; turns 0: all of 250 conversations
    "7b": {"turns": 0, "batch_size": 32, "rollout_group": 128, "max_new_tokens": 64},
    "tiny": {"turns": 48, "batch_size": 8, "rollout_group": 16, "max_new_tokens": 8},
}
# What the prediction assumes; the measurement shows how far it is off.
UTILISATION = 0.4  # of the peak, in prompts, scoring and update
STEP_S_PER_LAYER = 0.001  # of transformers, for one token of a batch: about 40 kernels are launched a layer
REPLY_TOKENS = 12  # of the simulated user
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}  # bytes a second, NVIDIA's data sheets (SXM)
HEADINGS = ("generate", "classify", "simulate", "score", "update", "save", "validate", "other")


# The data: turns, pairs and intents, made by rules


class Direct:
    """Stands where `LLM` does: asks the embedded provider as it is, without memo, pace and budget."""

    def __init__(self, provider: Any) -> None:
        from resources.llm.base import Usage

        self.provider, self.usage = provider, Usage()

    def complete_all(self, requests: Sequence[Any], on_done: Callable[[], None] | None = None) -> list[Any]:
        async def all_of_them() -> list[Any]:
            return [await self.provider.complete(request) for request in requests]

        return asyncio.run(all_of_them())


@dataclass
class Steered:
    """The classifier (the task's rule, whose time counts) with its verdict replaced, and the simulated user."""

    classifier: Any
    user: Any
    first: float
    again: float
    most: int
    seed: int
    rounds: Counter[str] = field(default_factory=Counter)  # replies so far in each turn that is open
    responses: Counter[str] = field(default_factory=Counter)

    def classify(self, turns: Sequence[Any], responses: Sequence[str]) -> list[str]:
        from act_assets.seeds import derive_seed

        self.classifier.classify(turns, responses)
        labels = []
        for turn in turns:
            replies = self.rounds[turn.turn_id]
            drawn = random.Random(derive_seed(self.seed, "clarifies", turn.turn_id, replies)).random()
            clarifies = turn.action == "CLARIFY" and drawn < (self.again if replies else self.first)
            labels.append("CLARIFY" if clarifies else "ANSWER")
            self.responses["later" if replies else "first"] += 1
            if not clarifies or replies == self.most:
                del self.rounds[turn.turn_id]
        return labels

    def reply(self, turns: Sequence[Any], intents: Sequence[str], trajectories: Sequence[Any]) -> list[Any]:
        self.rounds.update(turn.turn_id for turn in turns)
        return list(self.user.reply(turns, intents, trajectories))


@dataclass(frozen=True)
class Material:
    """What a training reads."""

    task: Any
    tokenizer: Any
    turns: dict[str, Any]
    pairs: list[Any]
    held_out_turns: dict[str, Any]
    held_out: list[Any]
    intents: dict[str, str]
    clarifying: float  # share of the pairs where clarifying is right


def read_material(options: argparse.Namespace) -> Material:
    from act_assets.preference import build_pairs
    from act_assets.profile import LLMRole
    from act_assets.roles import EmbeddedProvider, Generator, IntentSummarizer
    from act_assets.roles.role import require_all
    from act_assets.seeds import derive_seed
    from act_assets.tasks import get_task

    task = get_task("pacific")
    data = task.reader.read(REPO / "datasets" / "sample" / "pacific")
    order = list(data.train)
    random.Random(derive_seed(options.seed, "train_subset", task.name)).shuffle(order)
    order = order[:250]
    turns = [t for c in order for t in task.turn_states(c)]
    if options.turns:
        turns = _with_both_actions(turns, options.turns)
    held_out_turns = [t for c in data.validation for t in task.turn_states(c)][: options.turns or None]
    llm: Any = Direct(EmbeddedProvider())
    rules = LLMRole(provider="embedded", model="embedded-rules-1")
    generator = Generator(llm, rules, task, ())
    pairs, held_out = (build_pairs(task, of, generator, options.seed)[0] for of in (turns, held_out_turns))
    told = [way for c in order for way in task.told(c)]
    summaries = require_all(IntentSummarizer(llm, rules, task).summarize([c for _, c in told]), "intents")
    texts = [task.reader.system_message(c.context) for c in order]
    texts += [text for c in order for t in c.turns for text in (t.user, t.response.text)]
    return Material(
        task,
        train_bpe(texts, options.vocabulary),
        {t.turn_id: t for t in turns},
        pairs,
        {t.turn_id: t for t in held_out_turns},
        held_out,
        {intent_id: text for (intent_id, _), text in zip(told, summaries, strict=True)},
        fmean(p.action == "CLARIFY" for p in pairs),
    )


def _with_both_actions(turns: list[Any], count: int) -> list[Any]:
    """The first turns, with the share of clarifying ones that all of them have, and one at least."""
    asking, others = ([t for t in turns if (t.action == "CLARIFY") is asks] for asks in (True, False))
    asked = max(1, round(count * len(asking) / len(turns)))
    return [*asking[:asked], *others[: count - asked]]


def train_bpe(texts: Sequence[str], vocabulary: int) -> Any:
    """A byte-level BPE with single digits, and the chat template of a policy from scratch."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from act_assets.training.chat_template import CHAT_TEMPLATE, SPECIAL_TOKENS

    core = Tokenizer(models.BPE())
    digits, level = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence([digits, level]), decoders.ByteLevel()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(level.alphabet()),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", chat_template=CHAT_TEMPLATE
    )


# The policy


def profile_of(options: argparse.Namespace, *, on_gpu: bool) -> Any:
    """The paper's profile for one process, with what the options change."""
    from act_assets.profile import Profile, load_profile

    settings = load_profile("paper").model_dump()
    settings["policy"] |= {
        "model": "random weights",
        "lora": None if options.full else {"r": options.rank, "alpha": 2 * options.rank},
        "mixed_precision": on_gpu,
        "max_prompt_tokens": PROMPT_TOKENS[options.size],
        "max_new_tokens": options.max_new_tokens,
    }
    settings["act"] |= {
        "batch_size": options.batch_size,
        "prefix_sharing": not options.no_prefix_sharing,
        "rollout_group": options.rollout_group,
        "rollout_lag": options.lag,
    }
    settings["engine"] = {"name": options.engine}
    if options.engine == "vllm":
        settings["engine"]["mode"] = options.engine_mode
    settings["compute"] = {
        "micro_batch_tokens": options.micro_batch_tokens,
        "gradient_checkpointing": options.gradient_checkpointing,
        "save_every_steps": 10**9,
    }
    return Profile.model_validate({**settings, "rollout_batch_size": options.rollout_group})


def config_of(options: argparse.Namespace, tokenizer: Any) -> Any:
    from transformers import MistralConfig

    return MistralConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        max_position_embeddings=32768,
        sliding_window=4096,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def random_model(config: Any, device: Any, *, halved: bool, seed: int) -> Any:
    """Normal weights, made on the device. `halved`: linear weights in bf16 at once, as LoRA leaves a base of fp32 under
    mixed precision (adapters.halve_linear); embedding and norms stay fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        dtype = torch.bfloat16 if halved else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()
    return model


def parameter_counts(options: argparse.Namespace) -> tuple[int, int]:
    """Of the policy, and of what is trained."""
    h, kv = options.hidden, options.hidden * options.kv_heads // options.heads
    linear = [(h, h), (h, kv), (h, kv), (h, h), *[(h, options.intermediate)] * 2, (options.intermediate, h)]
    of_layer = sum(a * b for a, b in linear) + 2 * h
    whole = 2 * options.vocabulary * h + options.layers * of_layer + h
    if options.full:
        return whole, whole
    adapter = options.layers * options.rank * sum(a + b for a, b in linear)
    return whole + adapter, adapter


# Prediction


def predict(options: argparse.Namespace, material: Material, profile: Any, gpu: str | None) -> dict[str, float]:
    """Tokens of a pair, counted on the data; then operations over peak, and bytes of weights over bandwidth."""
    from act_assets.training.act import initial_pair
    from act_assets.training.chat_template import ChatFormat
    from act_assets.training.meter import peak_flops
    from act_assets.training.policy import PromptEncoder

    prompts = PromptEncoder(material.task, ChatFormat(material.tokenizer), profile.policy.max_prompt_tokens)
    step = max(1, len(material.pairs) // 200)
    pairs = [
        initial_pair(material.turns[p.turn_id], p, prompts, profile.policy.max_length) for p in material.pairs[::step]
    ]
    prompt = fmean(len(p.prompt_ids) for p in pairs)
    response = fmean(len(p.chosen.token_ids) for p in pairs)
    sampled = options.max_new_tokens
    later = options.clarify_share * material.clarifying  # responses to a reply, a pair
    later *= sum(options.clarify_again**k for k in range(profile.act.max_clarifications))
    trajectory = sampled + later * (sampled + REPLY_TOKENS)
    copies = 2 if options.no_prefix_sharing else 1
    tokens = {
        "trained_tokens": copies * prompt + response + trajectory,
        "scored_tokens": prompt + trajectory,
        "prompt_tokens": prompt + later * (prompt + sampled + REPLY_TOKENS),
        "generated_tokens": sampled * (1 + later),
    }
    parameters, trainable = parameter_counts(options)
    again = 2.0 * parameters if options.gradient_checkpointing else 0.0
    forward = 2.0 * parameters * sum(tokens[n] for n in ("scored_tokens", "prompt_tokens", "generated_tokens"))
    model_flops = forward + (4.0 * parameters + 2.0 * trainable) * tokens["trained_tokens"]
    peak = options.peak_tflops * 1e12 if options.peak_tflops else (peak_flops(gpu or "H200") or 989e12)
    bandwidth = next((b for name, b in BANDWIDTH.items() if name in (gpu or "H200")), BANDWIDTH["H200"])
    steps = sampled * (
        1 + (profile.act.max_clarifications if later else 0)
    )  # of a group; its rounds follow one another
    reading = 2.0 * parameters / bandwidth  # bf16
    launching = STEP_S_PER_LAYER * options.layers if options.engine == "transformers" else reading
    floor = model_flops / peak + steps * reading / options.rollout_group
    computing = model_flops - 2.0 * parameters * tokens["generated_tokens"] + again * tokens["trained_tokens"]
    expected = computing / peak / UTILISATION + steps * max(reading, launching) / options.rollout_group
    return {
        "prompt_tokens_mean": prompt,
        "gold_response_tokens_mean": response,
        "pairs_where_clarifying_is_right": material.clarifying,
        **{f"predicted_{name}_a_pair": value for name, value in tokens.items()},
        "predicted_tflop_a_pair": model_flops / 1e12,
        "floor_seconds_a_pair": floor,
        "predicted_seconds_a_pair": expected,
        "predicted_pairs_per_second": 1 / expected,
        "predicted_model_flops_utilisation": model_flops / expected / peak,
        "predicted_hours_for_23076_pairs": PAPER_TURNS * PAPER_EPOCHS * expected / 3600,
    }


# Measurement


class Enough(Exception):
    """The time is over."""


@dataclass
class Window:
    """What is timed: from the end of the warm-up groups to the first end of a group after `seconds`."""

    seconds: float
    warm_up_groups: int
    setup: dict[str, Any] = field(default_factory=dict)
    setup_tokens: int = 0
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
        def run(self, groups: Sequence[Any]) -> None:
            super().run(groups)
            window.close(self.meter)
            raise Enough

        def group(self, group: Any, schedule: Any, *, last: bool) -> None:
            if group.number == 0:
                before = self.meter.snapshot()
                window.setup_score_s = before.get("time_score", 0.0)
                window.setup_tokens = int(before.get("count_scored_tokens", 0))
            if group.number == window.warm_up_groups:
                self.meter.restore({})
                window.began = time.perf_counter()
            if window.began is not None and window.groups and time.perf_counter() - window.began >= window.seconds:
                window.close(self.meter)
                raise Enough
            super().group(group, schedule, last=last)
            if window.began is not None:
                window.groups += 1
                window.staleness = [p.staleness for p in self.history.points if p.staleness is not None]

        def validate(self, epoch: int) -> None:
            self.rollouts = []

        def save(self, schedule: Any) -> None:
            return

    return Timed


def measure(options: argparse.Namespace, material: Material, profile: Any, folder: Path) -> dict[str, float]:
    """Runs `train_act` for the time, and gives its figures."""
    import torch

    from act_assets.profile import LLMRole
    from act_assets.roles import EmbeddedProvider, RuleClassifier, Simulator
    from act_assets.training import act_trainer as act_training
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
        mock.patch.object(act_training, "load_model", load),
        mock.patch.object(act_training, "_Loop", timed_loop(act_training._Loop, window)),
        contextlib.suppress(Enough),
    ):
        act_training.train_act(
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
