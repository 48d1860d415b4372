"""One update after another, on one process or many: AdamW with linear warm-up and decay, on an Accelerator.

The caller says what an update sees; how it is cut into passes and dealt out to processes changes memory and time
only. Everything random within an update comes from its number, so that a resumed run needs no generator's state.
"""

from __future__ import annotations

import gc
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from act_assets.profile import Optimisation
from act_assets.seeds import derive_seed
from act_assets.training.meter import Meter
from act_assets.training.packing import share_out
from act_assets.training.sharded import Sharding, sharding_of
from resources.errors import TrainingError
from resources.settings import Compute

if TYPE_CHECKING:
    import torch

# The part of the loss that some examples of an update make, and sums to report beside it.
PassLoss = Callable[[Sequence[int]], "tuple[torch.Tensor, dict[str, torch.Tensor]]"]


@dataclass(frozen=True, slots=True)
class Updated:
    """What one update came to. `sums` are added up over its examples, whatever process they were on."""

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    sums: Mapping[str, float]


def is_first_process() -> bool:
    """Whether this is the process that writes; a launcher of several says which."""
    return os.environ.get("RANK", "0") == "0"


def free_memory() -> None:
    """Gives back what a training left in cycles of references: a second model beside it would hardly fit."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def make_accelerator() -> Any:
    """The Accelerator of this process, as the launcher's environment says."""
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    alone = "RANK" not in os.environ
    if alone:
        AcceleratorState._reset_state(reset_partial_state=True)  # one of another precision may have been here before
    return Accelerator(
        cpu=alone and not torch.cuda.is_available(),  # of several processes the launcher says where they compute
        mixed_precision="no",  # weights, moments and sums of gradients stay fp32; `Updater.autocast` is what is bf16
        gradient_accumulation_steps=1,
        step_scheduler_with_optimizer=False,
    )


class Updater:
    """Trains what of `model` requires a gradient; `total_steps` updates bring the learning rate to zero."""

    def __init__(
        self,
        model: Any,
        settings: Optimisation,
        compute: Compute,
        total_steps: int,
        seed: int,
        where: str,
        *,
        learning_rate: float | None = None,
        mixed_precision: bool = False,
    ) -> None:
        import torch
        from transformers.trainer_pt_utils import get_parameter_names

        self.settings, self.compute, self.seed, self.where = settings, compute, seed, where
        self.total_steps = total_steps
        self.peak = settings.learning_rate if learning_rate is None else learning_rate
        self.accelerator = make_accelerator()
        self.device, self.rank = self.accelerator.device, int(self.accelerator.process_index)
        self.is_main, self.processes = bool(self.accelerator.is_main_process), int(self.accelerator.num_processes)
        self.mixed_precision = mixed_precision
        self._own_autocast = False
        if compute.gradient_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            if hasattr(model, "enable_input_require_grads") and not all(p.requires_grad for p in model.parameters()):
                model.enable_input_require_grads()  # with a frozen base nothing else would need a gradient
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:
            plugin.deepspeed_config["gradient_clipping"] = settings.max_grad_norm
            # DeepSpeed switches another's autocast off, and has one of its own.
            plugin.deepspeed_config["torch_autocast"] = {"enabled": mixed_precision, "dtype": "bfloat16"}
            self._own_autocast = True
        self.parameters = int(model.num_parameters())  # of 4-bit weights the numbers, not the bytes they are packed in
        self.trainable_parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
        norms = [torch.nn.LayerNorm, *{type(m) for m in model.modules() if "RMSNorm" in type(m).__name__}]
        decaying = {n for n in get_parameter_names(model, norms) if "bias" not in n}  # neither norms nor biases do
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        groups = [
            {"params": [p for n, p in named if (n in decaying) == decays], "weight_decay": decay}
            for decays, decay in ((True, settings.weight_decay), (False, 0.0))
        ]
        groups = [g for g in groups if g["params"]]
        optimizer = torch.optim.AdamW(groups, lr=0.0, fused=self.device.type == "cuda")  # `step` sets its learning rate
        del named, groups  # FSDP frees the whole weights as it shards them
        self.model, self.optimizer = self.accelerator.prepare(model.to(self.device), optimizer)
        self.sharding: Sharding = sharding_of(self.accelerator, self.model, self.optimizer)
        self.sharding.reset()
        self.policy: Any = self.sharding.policy  # the model itself, without what wraps it for training
        self.step_count = 0

    def meter(self) -> Meter:
        """A meter of this training."""
        return Meter(self.parameters, trainable=self.trainable_parameters, processes=self.processes)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the update computes in."""
        import torch

        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.mixed_precision else nullcontext()

    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then linear decay to zero after `total_steps`."""
        warm_up = math.ceil(self.total_steps * self.settings.warm_up_ratio)
        if step < warm_up:
            return self.peak * step / warm_up
        return self.peak * max(0.0, (self.total_steps - step) / max(1, self.total_steps - warm_up))

    def step(self, sizes: Sequence[int], loss: PassLoss) -> Updated:
        """One update on examples of these sizes (tokens).

        `loss(examples)` gives their part of the loss, already divided by what the whole update is averaged over.
        Raises TrainingError where the loss or the gradient is not finite, the loss before anything is changed.
        """
        import torch

        passes = share_out(sizes, self.processes, self.compute.micro_batch_tokens)[self.rank]
        torch.manual_seed(derive_seed(self.seed, "update", self.step_count, self.rank) % 2**63)
        rate = self.learning_rate(self.step_count)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        totals: dict[str, torch.Tensor] = {}
        for number, chosen in enumerate(passes):
            last = number == len(passes) - 1
            self.accelerator.sync_gradients = last
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                part = self._pass(chosen, loss, totals)
                if last:
                    sums = self._reduced(totals)
                    self._check(sums["loss"])
                self.accelerator.backward(part * self.processes)  # gradients are averaged over processes
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        norm = 0.0 if norm is None else float(norm)
        self._check(norm, "gradient norm")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step_count += 1
        return Updated(self.step_count, sums.pop("loss"), rate, norm, sums)

    def evaluate(self, sizes: Sequence[int], loss: PassLoss) -> dict[str, float]:
        """The sums over examples, the loss among them, without an update."""
        import torch

        totals: dict[str, torch.Tensor] = {}
        self.model.eval()
        with torch.no_grad():
            for chosen in share_out(sizes, self.processes, self.compute.micro_batch_tokens)[self.rank]:
                self._pass(chosen, loss, totals)
        return self._reduced(totals)

    def _pass(self, chosen: Sequence[int], loss: PassLoss, totals: dict[str, torch.Tensor]) -> torch.Tensor:
        """One pass. Without examples it computes one all the same, for nothing: collective operations wait for it."""
        with nullcontext() if self._own_autocast else self.autocast():
            part, sums = loss(chosen or [0])
        weight = 1.0 if chosen else 0.0
        for name, value in {"loss": part, **sums}.items():
            value = value.detach().double() * weight
            totals[name] = totals[name] + value if name in totals else value
        return part * weight

    def _reduced(self, totals: Mapping[str, torch.Tensor]) -> dict[str, float]:
        import torch

        names = sorted(totals)
        values = torch.stack([totals[name] for name in names])
        return dict(zip(names, self.accelerator.reduce(values, "sum").tolist(), strict=True))

    def _check(self, value: float, what: str = "train loss") -> None:
        if not math.isfinite(value):
            raise TrainingError(
                f"the {what} became {value} at update {self.step_count + 1}",
                where=self.where,
                todo="lower the learning rate in the profile; what was saved before is intact",
            )

    def restore(self, step: int, weights: Mapping[str, torch.Tensor], moments: Mapping[str, torch.Tensor]) -> None:
        """Continues from the state after update `step`, saved by any number of processes."""
        self.step_count = step
        self.sharding.restore(step, weights, moments)

    def free(self) -> None:
        """Gives the memory of weights, gradients and moments back; nothing can be done with it afterwards."""
        self.model, self.optimizer = self.accelerator.free_memory(self.model, self.optimizer)
        del self.sharding, self.policy
