"""Sampling: eval mode with a KV cache, padding and neighbours without effect, each sample from its own seed."""

from __future__ import annotations

import copy
import hashlib
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from act_assets.conversation import Trajectory, TurnState, Utterance
from act_assets.home import PACKAGE
from act_assets.profile import Profile
from act_assets.roles.build import RoleFactory
from act_assets.roles.role import require_all
from act_assets.tasks.base import Task, TaskData
from act_assets.training.chat_template import ChatFormat
from act_assets.training.generation import TransformersEngine
from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings
from act_assets.trajectory import dialogue_seeds, simulate
from resources.llm.base import LLMFailure
from resources.llm.service import CallSettings

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def talker(model: Any, chat: ChatFormat) -> Any:
    """A policy that ends its turn with one token in eight or so: rows of a batch end at different steps."""
    changed = copy.deepcopy(model)
    likely = torch.zeros(len(chat.tokenizer))
    likely[chat.end_id] = 5.0
    changed.lm_head.register_forward_hook(lambda module, inputs, output: output + likely)
    return changed


@pytest.fixture(scope="module")
def prompts(chat: ChatFormat, pacific: Task, few_turns: list[TurnState]) -> list[tuple[int, ...]]:
    """The last tokens of sixteen prompts, of different lengths."""
    encoder = PromptEncoder(pacific, chat, 320)
    return [encoder.ids(turn)[-(30 + 5 * i) :] for i, turn in enumerate(few_turns)]


def _engine(model: Any, chat: ChatFormat, batch_size: int = 8, **options: Any) -> TransformersEngine:
    return TransformersEngine(model, chat.end_id, chat.pad_id, batch_size=batch_size, **options)


def _sample(
    engine: TransformersEngine,
    prompts: Sequence[Sequence[int]],
    temperature: float = 1.0,
    length: int = 12,
    seed: int = 0,
) -> list[list[int]]:
    seeds = range(seed, seed + len(prompts))
    return engine.sample(prompts, seeds, max_new_tokens=length, temperature=temperature)


def _one_by_one(model: Any, prompt: Sequence[int], length: int, end_id: int) -> list[int]:
    """Greedy decoding without cache, padding or batch."""
    ids = list(prompt)
    for _ in range(length):
        with torch.no_grad():
            ids.append(int(model.eval()(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == end_id:
            break
    return ids[len(prompt) :]


def _architectures(vocabulary: int) -> list[Any]:
    from transformers import (
        LlamaConfig,
        LlamaForCausalLM,
        MistralConfig,
        MistralForCausalLM,
        Qwen2Config,
        Qwen2ForCausalLM,
    )

    size: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    torch.manual_seed(3)
    return [
        LlamaForCausalLM(LlamaConfig(**size)),
        MistralForCausalLM(MistralConfig(**size, sliding_window=48)),
        Qwen2ForCausalLM(Qwen2Config(**size)),
    ]


def test_greedy_samples_are_those_of_plain_decoding_for_every_architecture(
    chat: ChatFormat, prompts: list[tuple[int, ...]]
) -> None:
    """Prompts longer than the sliding window, padded rows, and rows that leave the batch early."""
    short = [p[-n:] for p, n in zip(prompts, (20, 70, 33, 60, 47), strict=False)]
    for policy in _architectures(len(chat.tokenizer)):
        # An end that some of the greedy continuations reach, so that rows end at different steps.
        free = [_one_by_one(policy, p, 7, -1) for p in short]
        end_id = free[0][2]
        expected = [_one_by_one(policy, p, 7, end_id) for p in short]
        assert len({len(e) for e in expected}) > 1, type(policy)
        engine = TransformersEngine(policy, end_id, chat.pad_id, batch_size=3)
        assert _sample(engine, short, temperature=0.0, length=7) == expected, type(policy)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_samples_do_not_depend_on_the_batch(
    talker: Any, chat: ChatFormat, prompts: list[tuple[int, ...]], temperature: float
) -> None:
    alone = _sample(_engine(talker, chat, batch_size=1), prompts, temperature)
    assert alone == _sample(_engine(talker, chat, batch_size=16), prompts, temperature)
    assert len({len(ids) for ids in alone}) > 2 or temperature == 0.0


def test_results_are_in_the_order_of_the_prompts_and_end_with_the_end_of_turn(
    talker: Any, chat: ChatFormat, prompts: list[tuple[int, ...]]
) -> None:
    engine = _engine(talker, chat, batch_size=4)
    sampled = engine.sample(prompts, range(16), max_new_tokens=12, temperature=1.0)
    backwards = engine.sample(prompts[::-1], range(16)[::-1], max_new_tokens=12, temperature=1.0)
    assert sampled == backwards[::-1]
    assert any(ids[-1] == chat.end_id for ids in sampled)
    assert all(chat.end_id not in ids[:-1] for ids in sampled)
    assert all(len(ids) == 12 or ids[-1] == chat.end_id for ids in sampled)
    assert engine.sample([], [], max_new_tokens=12, temperature=1.0) == []
    assert _sample(engine, prompts) == _sample(engine, prompts) != _sample(engine, prompts, seed=99)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gumbel_sampling_draws_from_the_softmax(
    model: Any, chat: ChatFormat, prompts: list[tuple[int, ...]], temperature: float
) -> None:
    prompt = prompts[0][-40:]
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt])).logits[0, -1].float()
    expected = torch.softmax(logits / temperature, -1)
    drawn = _sample(_engine(model, chat, batch_size=500), [prompt] * 4000, temperature, length=1)
    counts = torch.bincount(torch.tensor([ids[0] for ids in drawn]), minlength=len(expected)) / 4000
    assert float((counts - expected).abs().sum()) / 2 < 0.25, "total variation of 4000 draws from ~1000 tokens"
    top = expected.topk(20).indices
    assert float((counts[top] - expected[top]).abs().max()) < 0.02


def test_sampling_runs_in_eval_mode_with_a_cache_and_gives_the_mode_back(
    model: Any, chat: ChatFormat, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published code samples in train mode, where checkpointing models lose the cache and causality."""
    seen: list[tuple[bool, int]] = []
    forward = model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((model.training, kwargs["input_ids"].shape[1]))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", watched)
    model.train()
    _sample(_engine(model, chat), prompts[:2], length=3)
    width = max(map(len, prompts[:2]))
    assert seen[0] == (False, width)
    assert seen[1:] == [(False, 1)] * (len(seen) - 1)
    assert model.training
    model.eval()


def test_rows_that_have_ended_leave_the_batch(
    talker: Any, chat: ChatFormat, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = talker.forward
    monkeypatch.setattr(
        talker, "forward", lambda **inputs: (rows.append(len(inputs["input_ids"])), forward(**inputs))[1]
    )
    _sample(_engine(talker, chat, batch_size=16), prompts, length=40)
    assert rows[0] == 16
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < 8


def test_what_a_model_ships_for_generation_does_not_change_the_sample_and_nothing_is_deprecated(
    model: Any, chat: ChatFormat, prompts: list[tuple[int, ...]]
) -> None:
    """A shipped repetition penalty would punish the tokens of the prompt's own table."""
    shipped = copy.deepcopy(model)
    shipped.generation_config.repetition_penalty = 3.0
    shipped.generation_config.no_repeat_ngram_size = 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampled = _sample(_engine(shipped, chat), prompts)
    assert sampled == _sample(_engine(model, chat), prompts)


# Mixed precision


def test_in_mixed_precision_weights_are_cast_once_and_the_fp32_data_come_back(
    chat: ChatFormat, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _architectures(len(chat.tokenizer))[0]
    before = {name: (p.data_ptr(), p.detach().clone()) for name, p in policy.named_parameters()}
    during: list[dict[str, torch.dtype]] = []
    forward = policy.forward

    def watched(**inputs: Any) -> Any:
        during.append({name: p.dtype for name, p in policy.named_parameters()})
        return forward(**inputs)

    monkeypatch.setattr(policy, "forward", watched)
    engine = _engine(policy, chat, mixed_precision=True)
    sampled = _sample(engine, prompts[:4], length=4)
    linear = {n for n in before if "proj" in n or "lm_head" in n}
    for types in during:
        assert {n for n, dtype in types.items() if dtype == torch.bfloat16} == linear
    for name, p in policy.named_parameters():
        assert p.data_ptr() == before[name][0] and torch.equal(p, before[name][1])

    def broken(**inputs: Any) -> Any:
        raise RuntimeError("out of memory")

    policy.train()
    monkeypatch.setattr(policy, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        _sample(engine, [[5, 6]])
    assert {p.dtype for p in policy.parameters()} == {torch.float32}, "after an error, too"
    assert policy.training
    monkeypatch.undo()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits = policy.eval()(torch.tensor([prompts[0]])).logits[0, -1].float()
    greedy = _engine(policy, chat, mixed_precision=True)
    assert _sample(greedy, prompts[:1], 0.0, length=1) == [[int(logits.argmax())]]
    assert all(len(ids) in range(1, 5) for ids in sampled)


def test_a_tied_embedding_stays_in_fp32(model: Any, chat: ChatFormat, prompts: list[tuple[int, ...]]) -> None:
    """Cast, it would put the residual stream into bf16, which the trained policy's is not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=1024, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True,
    )  # fmt: skip
    policy = LlamaForCausalLM(config)
    seen: list[torch.dtype] = []
    policy.model.embed_tokens.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    _sample(_engine(policy, chat, mixed_precision=True), prompts[:2], length=2)
    assert set(seen) == {torch.float32}


# Snapshots


def _change(model: Any, seed: int = 0) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn_like(p) * 0.5)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_a_snapshot_samples_the_weights_of_the_last_push(
    chat: ChatFormat, prompts: list[tuple[int, ...]], mixed_precision: bool
) -> None:
    policy = _architectures(len(chat.tokenizer))[0]
    engine = _engine(policy, chat, snapshot=True, mixed_precision=mixed_precision)
    live = _engine(policy, chat, mixed_precision=mixed_precision)
    first = _sample(engine, prompts)
    assert first == _sample(live, prompts)
    _change(policy)
    assert _sample(engine, prompts) == first
    assert _sample(live, prompts) != first
    engine.push(1)
    assert engine.version == 1
    assert _sample(engine, prompts) == _sample(live, prompts)
    assert {p.dtype for p in policy.parameters()} == {torch.float32}


def test_a_snapshot_shares_what_is_frozen_and_follows_the_adapter(
    chat: ChatFormat, prompts: list[tuple[int, ...]]
) -> None:
    from peft import LoraConfig, get_peft_model

    base = _architectures(len(chat.tokenizer))[0]
    policy = get_peft_model(
        base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    engine = _engine(policy, chat, snapshot=True)
    own = dict(engine.model.named_parameters())
    for name, p in policy.named_parameters():
        assert (own[name].data_ptr() == p.data_ptr()) != p.requires_grad, name
    first = _sample(engine, prompts)
    assert first == _sample(_engine(policy, chat), prompts)
    _change(policy)
    assert _sample(engine, prompts) == first
    engine.push(1)
    assert _sample(engine, prompts) == _sample(_engine(policy, chat), prompts) != first
    with policy.disable_adapter():
        without = _sample(_engine(policy, chat), prompts)
        assert _sample(engine, prompts) != without, "switching the trained model's adapter off must not reach the copy"


def test_a_push_waits_for_the_sample_that_is_under_way(
    chat: ChatFormat, prompts: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = _architectures(len(chat.tokenizer))[0]
    engine = _engine(policy, chat, snapshot=True)
    expected = _sample(engine, prompts)
    begun, forward = threading.Event(), engine.model.forward

    def slow(**inputs: Any) -> Any:
        begun.set()
        return forward(**inputs)

    monkeypatch.setattr(engine.model, "forward", slow)
    sampled: list[list[list[int]]] = []
    thread = threading.Thread(target=lambda: sampled.append(_sample(engine, prompts)))
    thread.start()
    begun.wait(10)
    _change(policy)
    engine.push(1)
    thread.join(10)
    assert sampled == [expected]
    assert _sample(engine, prompts) != expected


# Rollouts


class OftenAsks:
    """A: three responses in five clarify, by the hash of what was said; those of a random policy never would."""

    def classify(
        self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[str | LLMFailure]:
        texts = [said[-1].text for said in trajectories]
        return ["CLARIFY" if hashlib.sha256(text.encode()).digest()[0] < 154 else "ANSWER" for text in texts]


@pytest.fixture(scope="module")
def rollouts(
    talker: Any, chat: ChatFormat, pacific: Task, sample: TaskData, tiny_profile: Profile, tmp_path_factory: Any
) -> Callable[[int], list[Trajectory]]:
    """Trajectories of 64 turns, simulated in groups."""
    turns = [t for c in sample.train[:30] for t in pacific.turn_states(c)][:64]
    assert len(turns) == 64
    calls = CallSettings(tmp_path_factory.mktemp("memo"))
    cast = RoleFactory(tiny_profile, pacific, PACKAGE / "prompts", 0, calls)
    simulator = cast.simulator()
    summaries = require_all(cast.intent_summarizer().summarize(sample.train[:30]), "intents")
    intents = {c.conversation_id: text for c, text in zip(sample.train[:30], summaries, strict=True)}
    policy = ModelPolicy(
        _engine(talker, chat, batch_size=64), chat, PromptEncoder(pacific, chat, 320), SamplingSettings(1280, 16, 1.0)
    )

    def simulated(size: int) -> list[Trajectory]:
        groups = [turns[i : i + size] for i in range(0, len(turns), size)]
        return [
            trajectory
            for group in groups
            for trajectory in simulate(
                group,
                dialogue_seeds(5, group, "rollout"),
                policy,
                OftenAsks(),
                simulator,
                [intents[t.intent_id] for t in group],
                pacific,
                max_clarifications=3,
            )
        ]

    return simulated


def test_rollouts_are_the_same_in_groups_of_1_8_and_64(rollouts: Callable[[int], list[Trajectory]]) -> None:
    together = rollouts(64)
    rounds = Counter(sum(u.speaker == "user" for u in t.utterances) for t in together)
    assert all(rounds[n] >= 5 for n in range(4)), "the path over several rounds has to be taken"
    assert len({t.text for t in together}) > 40, "a few say nothing"
    for size in (1, 8):
        assert rollouts(size) == together, f"groups of {size}"
