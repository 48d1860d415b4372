"""Whole weights and optimizer moments out of a model that may be spread over processes, and back.

One form for all: names and whole fp32 tensors, so that a run begun with one launcher resumes under
another. Every method is collective: all processes have to call it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


class Sharding:
    """Every process holds all of it: one process, or DDP.

    `weights` are the trained ones by name, `moments` AdamW's as `<name>/exp_avg` and
    `<name>/exp_avg_sq`: whole, fp32, on the CPU of the first process; empty on the others. Within
    `whole` every process has all weights, and may compute without the others.
    """

    def __init__(self, accelerator: Any, model: Any, optimizer: Any) -> None:
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer

    @property
    def policy(self) -> Any:
        return self.accelerator.unwrap_model(self.model)

    def trained(self) -> list[tuple[str, Any]]:
        return [(n, p) for n, p in self.policy.named_parameters() if p.requires_grad]

    def reset(self) -> None:
        """Makes the optimiser as new; what wraps it may have stepped it once to allocate memory."""

    def weights(self) -> dict[str, torch.Tensor]:
        return self._on_main({name: p.detach() for name, p in self.trained()})

    def moments(self) -> dict[str, torch.Tensor]:
        states = self.optimizer.state
        return self._on_main({f"{n}/{m}": states[p][m] for n, p in self.trained() if p in states for m in MOMENTS})

    def restore(self, step: int, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        import torch

        on = self.accelerator.device if self.optimizer.param_groups[0].get("fused") else "cpu"
        with torch.no_grad():
            for name, p in self.trained():
                p.copy_(self._like(weights[name], p))
                if f"{name}/{MOMENTS[0]}" in moments:  # a weight that never had a gradient has none
                    found = {m: self._like(moments[f"{name}/{m}"], p) for m in MOMENTS}
                    self.optimizer.state[p] = {"step": torch.tensor(float(step), device=on), **found}

    def _like(self, value: torch.Tensor, p: Any) -> Any:
        """A whole tensor as this process holds it of a parameter."""
        return value.to(p.device, copy=True)

    @contextmanager
    def whole(self) -> Iterator[None]:
        yield

    def gather(self, rows: Sequence[Any]) -> list[Any]:
        """JSON values of all processes, in the order of processes; nothing is pickled."""
        import torch

        if self.accelerator.num_processes == 1:
            return list(rows)
        device = self.accelerator.device
        text = torch.frombuffer(bytearray(json.dumps(list(rows)).encode()), dtype=torch.uint8).to(device)
        lengths = self.accelerator.gather(torch.tensor([len(text)], device=device)).tolist()
        padded = torch.zeros((1, max(lengths)), dtype=torch.uint8, device=device)
        padded[0, : len(text)] = text
        everything = self.accelerator.gather(padded).cpu()
        parts = [row[:n].numpy().tobytes() for row, n in zip(everything, lengths, strict=True)]
        return [value for part in parts for value in json.loads(part)]

    def _on_main(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if not self.accelerator.is_main_process:
            return {}
        return {name: t.detach().float().cpu().clone() for name, t in tensors.items()}


class DeepSpeed(Sharding):
    """ZeRO-2 and ZeRO-3: DeepSpeed's own calls put the pieces together."""

    @property
    def _inner(self) -> Any:
        """AdamW itself, beneath ZeRO's optimiser and Accelerate's."""
        optimizer = self.optimizer
        while hasattr(optimizer, "optimizer"):
            optimizer = optimizer.optimizer
        return optimizer

    def reset(self) -> None:
        import torch

        # ZeRO-2 looks for the moments of all parameter groups after the first group's first step, when AdamW has made
        # only those; and a state can be put back only where there are moments. Here they all are from the start.
        outer, fused = self.optimizer.optimizer, self._inner.param_groups[0].get("fused")
        for name in ("single_partition_of_fp32_groups", "fp32_partitioned_groups_flat"):
            for flat in getattr(outer, name, []):
                if not self._inner.state[flat]:
                    zeros = {m: torch.zeros_like(flat) for m in MOMENTS}
                    step = torch.tensor(0.0, device=flat.device if fused else "cpu")
                    self._inner.state[flat] = {"step": step, **zeros}
        link = getattr(outer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()
        self._count(0)

    def _count(self, step: int) -> None:
        for state in self._inner.state.values():
            if "step" in state:
                state["step"] = state["step"].clone().fill_(float(step))

    def weights(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        return self._collected((name, safe_get_full_fp32_param(p)) for name, p in self.trained())

    def moments(self) -> dict[str, torch.Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        return self._collected(
            (f"{name}/{m}", safe_get_full_optimizer_state(p, m)) for name, p in self.trained() for m in MOMENTS
        )

    def _collected(self, pieces: Iterator[tuple[str, Any]]) -> dict[str, torch.Tensor]:
        """One tensor at a time: a process that is not the first keeps none."""
        kept: dict[str, torch.Tensor] = {}
        for name, tensor in pieces:
            kept |= self._on_main({name: tensor}) if tensor is not None else {}
        return kept

    def restore(self, step: int, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        import torch
        from deepspeed import zero
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, p in self.trained():
            value = weights[name].to(self.accelerator.device)
            with torch.no_grad(), zero.GatheredParameters([p], modifier_rank=0):
                p.data.copy_(value)
            safe_set_full_fp32_param(p, value)
            for m in MOMENTS if f"{name}/{MOMENTS[0]}" in moments else ():
                safe_set_full_optimizer_state(p, moments[f"{name}/{m}"].to(self.accelerator.device), m)
        self._count(step)

    @contextmanager
    def whole(self) -> Iterator[None]:
        from trl.models.utils import unwrap_model_for_generation  # takes ZeRO-3's hooks off while it lasts

        with unwrap_model_for_generation(self.model, self.accelerator):
            yield


class FullyShardedDataParallel(Sharding):
    """FSDP 2."""

    def weights(self) -> dict[str, torch.Tensor]:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole = get_model_state_dict(self.model, options=options)
        names = {name for name, _ in self.trained()}
        return self._on_main({n: t for n, t in whole.items() if n in names})

    def moments(self) -> dict[str, torch.Tensor]:
        trained = {id(p): n for n, p in self.trained()}
        found: dict[str, torch.Tensor] = {}
        for p, state in self.optimizer.state.items():
            for m in MOMENTS:
                whole = state[m].full_tensor() if hasattr(state[m], "full_tensor") else state[m]
                found |= self._on_main({f"{trained[id(p)]}/{m}": whole})
        return found

    def _like(self, value: torch.Tensor, p: Any) -> Any:
        from torch.distributed.tensor import DTensor, distribute_tensor

        value = value.to(self.accelerator.device)
        return distribute_tensor(value, p.device_mesh, p.placements) if isinstance(p, DTensor) else value

    @contextmanager
    def whole(self) -> Iterator[None]:
        from torch.distributed.fsdp import FSDPModule

        parts = [m for m in self.model.modules() if isinstance(m, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()


def sharding_of(accelerator: Any, model: Any, optimizer: Any) -> Sharding:
    """How a prepared model and optimiser are spread over processes."""
    from accelerate.utils import DistributedType

    kinds = {DistributedType.DEEPSPEED: DeepSpeed, DistributedType.FSDP: FullyShardedDataParallel}
    return kinds.get(accelerator.distributed_type, Sharding)(accelerator, model, optimizer)
