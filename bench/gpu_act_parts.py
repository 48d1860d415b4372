"""What bench/gpu_act.py measures with: data made by rules, a policy with random weights, and a prediction."""

from __future__ import annotations

import argparse
import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

REPO = Path(__file__).resolve().parent.parent
PAPER_TURNS, PAPER_EPOCHS = 1923, 12  # 250 conversations of PACIFIC
PROMPT_TOKENS = {"7b": 832, "tiny": 256}
# What the prediction assumes; the measurement shows how far it is off.
UTILISATION = 0.4  # of the peak, in prompts, scoring and update
STEP_S_PER_LAYER = 0.001  # of transformers, for one token of a batch: about 40 kernels are launched a layer
REPLY_TOKENS = 12  # of the simulated user
BANDWIDTH = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}  # bytes a second, NVIDIA's data sheets (SXM)
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

    def classify(self, turns: Sequence[Any], trajectories: Sequence[Any]) -> list[str]:
        from act_assets.seeds import derive_seed

        self.classifier.classify(turns, trajectories)
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
