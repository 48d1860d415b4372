"""What samples pi_theta: one small interface, and the engine that needs only transformers.

    engine = TransformersEngine(model, chat.end_id, chat.pad_id, batch_size=64)
    engine.sample(prompts, seeds, max_new_tokens=48, temperature=1.0)      # [[token ids], ...]

A sample is the argmax of logits / T + Gumbel noise, and the noise is a function of (seed, step, token id) alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from act_assets.training.noise import gumbel_noise, noise_keys
from act_assets.training.vllm_engine import VllmColocatedEngine, VllmServerEngine
from resources.errors import TrainingError

if TYPE_CHECKING:
    from act_assets.profile import Engine
    from act_assets.training.chat_template import ChatFormat


# Rows that have ended leave the batch once they are this share of it: leaving copies the KV cache of those that stay.
LEAVING = 0.25


class RolloutEngine(Protocol):
    """Samples pi_theta."""

    version: int  # of the weights that samples come from

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """One continuation per prompt, up to and including the end-of-turn token, at most `max_new_tokens` long;
        temperature 0 is greedy. A sample depends on its prompt, its seed and the weights alone."""
        ...

    def push(self, version: int) -> None:
        """The policy has been updated: from now on samples come from its present weights. `version` counts updates."""
        ...

    def close(self) -> None:
        """Ends what the engine started; safe to call again."""
        ...


class TransformersEngine:
    """Batched decoding with a KV cache, in eval mode, prompts padded on the left.

    `model` is any causal language model of transformers, with an adapter or without. `mixed_precision`: bf16 autocast.
    `snapshot`: samples come from a copy of the model as it was at the last `push`, so that a thread can
    sample while the model is trained; what is frozen is shared with it. Sharded weights are made whole
    by the caller. Within one device and precision, samples of different batches differ only where two
    tokens tie to rounding.
    """

    def __init__(
        self,
        model: Any,
        end_id: int,
        pad_id: int,
        *,
        batch_size: int,
        mixed_precision: bool = False,
        snapshot: bool = False,
    ) -> None:
        self.end_id, self.pad_id, self.batch_size, self.mixed_precision = end_id, pad_id, batch_size, mixed_precision
        self.version = 0
        self._trained, self._busy = model, threading.Lock()
        self._own = snapshot
        self.model = model
        if snapshot:
            import torch

            # What is frozen is shared; a quantized parameter carries more than its data.
            shared = {
                id(p): torch.nn.Parameter(p.data, requires_grad=False) if type(p) is torch.nn.Parameter else p
                for p in model.parameters()
                if not p.requires_grad
            }
            self.model = copy.deepcopy(model, shared).eval()
            if mixed_precision:
                for parameter in _castable(self.model):
                    parameter.data = parameter.data.bfloat16()

    def push(self, version: int) -> None:
        """Waits for a `sample` that is under way in another thread."""
        import torch

        with self._busy:
            if self._own:
                with torch.no_grad():
                    for own, trained in zip(self.model.parameters(), self._trained.parameters(), strict=True):
                        if trained.requires_grad:
                            own.copy_(trained)
            self.version = version

    def close(self) -> None:
        return

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `RolloutEngine`. Prompts of similar length go together, `batch_size` at a time."""
        import torch

        result: list[list[int]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with self._busy, ExitStack() as stack:
            stack.callback(self.model.train, self.model.training)
            self.model.eval()  # in train mode, checkpointing models lose the cache
            stack.enter_context(torch.no_grad())
            if self.mixed_precision:
                stack.enter_context(nullcontext() if self._own else _cast_once(self.model))
                stack.enter_context(torch.autocast(next(self.model.parameters()).device.type, dtype=torch.bfloat16))
            for start in range(0, len(order), self.batch_size):
                batch = order[start : start + self.batch_size]
                rows = [prompts[i] for i in batch]
                sampled = self._decode(rows, [seeds[i] for i in batch], max_new_tokens, temperature)
                for i, ids in zip(batch, sampled, strict=True):
                    result[i] = ids
        return result

    def _decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        import torch
        from transformers import DynamicCache

        device = next(self.model.parameters()).device
        width = max(len(prompt) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad_id, dtype=torch.long)
        mask = torch.ones((len(prompts), width + max_new_tokens), dtype=torch.long)  # with room for all new tokens
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt, dtype=torch.long)
            mask[row, : width - len(prompt)] = 0
        positions = (mask[:, :width].cumsum(-1) - 1).clamp_(min=0)
        ids, mask, positions = (t.to(device) for t in (ids, mask, positions))
        keys = noise_keys(seeds, device)
        cache = DynamicCache(config=self.model.config)
        sampled: list[list[int]] = [[] for _ in prompts]
        rows = list(range(len(prompts)))  # which prompt each row of the batch continues
        ended = [False] * len(rows)
        for step in range(max_new_tokens):
            scores = self.model(
                input_ids=ids,
                attention_mask=mask[:, : width + step],
                position_ids=positions,
                cache=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            if temperature > 0:
                scores = gumbel_noise(keys, step, scores.shape[-1]).add_(scores.float(), alpha=1 / temperature)
            chosen = scores.argmax(-1)
            for place, token in enumerate(chosen.tolist()):  # the one point of a step where a GPU is waited for
                if not ended[place]:
                    sampled[rows[place]].append(token)
                    ended[place] = token == self.end_id
            if all(ended):
                break
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            if sum(ended) >= LEAVING * len(rows):
                kept = [place for place, over in enumerate(ended) if not over]
                rows, ended = [rows[place] for place in kept], [False] * len(kept)
                places = torch.tensor(kept, device=device)
                ids, positions, mask, keys = (t[places] for t in (ids, positions, mask, keys))
                cache.batch_select_indices(places)
        return sampled


def _castable(model: Any) -> list[Any]:
    """The fp32 parameters that linear layers alone use; a tied embedding is left to autocast, for its rows are read
    in fp32 elsewhere, and quantized weights are left as they are."""
    import torch

    linear: dict[int, Any] = {}
    others: set[int] = set()
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, torch.nn.Linear):
            linear |= {id(p): p for p in own if p.dtype == torch.float32}
        else:
            others |= {id(p) for p in own}
    return [p for key, p in linear.items() if key not in others]


@contextmanager
def _cast_once(model: Any) -> Iterator[None]:
    """Linear weights in bf16 for the block; autocast would cast them again at every token.

    Stand-ins take the parameters' places. Other data in the same parameters would lose the hooks by which DDP averages
    gradients.
    """
    import torch

    standing = {id(p): torch.nn.Parameter(p.detach().bfloat16(), requires_grad=False) for p in _castable(model)}
    kept: list[tuple[Any, str, Any]] = []
    try:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if id(parameter) in standing:
                    kept.append((module, name, parameter))
                    module._parameters[name] = standing[id(parameter)]
        yield
    finally:
        for module, name, parameter in kept:
            module._parameters[name] = parameter


def make_engine(
    settings: Engine,
    model: Any,
    chat: ChatFormat,
    *,
    batch_size: int,
    mixed_precision: bool,
    snapshot: bool,
    model_path: str | Path,
    logs: Path,
    max_length: int,
    accelerator: Any,
) -> RolloutEngine:
    """The engine that a profile names. Raises TrainingError where it cannot run here.

    `model_path` holds the weights that vLLM starts from, `logs` what it says; `max_length` is the longest
    conversation in tokens.
    """
    if settings.name == "transformers":
        return TransformersEngine(
            model,
            chat.end_id,
            chat.pad_id,
            batch_size=batch_size,
            mixed_precision=mixed_precision,
            snapshot=snapshot,
        )
    if settings.mode == "server":
        return VllmServerEngine(
            settings,
            model,
            chat.tokenizer,
            chat.end_id,
            model_path,
            logs,
            max_length=max_length,
            accelerator=accelerator,
        )
    if snapshot:
        raise TrainingError(
            "act.rollout_lag 1 samples while the policy is trained, and vLLM in mode colocated shares its weights",
            todo="set engine.mode to server, or act.rollout_lag to 0",
        )
    return VllmColocatedEngine(
        settings, model, chat.tokenizer, chat.end_id, max_length=max_length, accelerator=accelerator
    )
