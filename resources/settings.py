"""The base of all settings, and those that the ground floor itself reads."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(gt=0, strict=True)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Temperature = Annotated[float, Field(ge=0)]


class Settings(BaseModel):
    """Base of all settings: frozen, unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class Compute(Settings):
    """Where training runs, and how much at a time. Nothing here changes what is learnt, only time and memory."""

    launcher: Literal["local", "accelerate"] = "local"  # one process; or `processes` of them on this machine
    strategy: Literal["ddp", "zero2", "zero3", "fsdp"] | None = None  # of accelerate
    processes: Positive = 1
    device: str | None = None  # what the name of each GPU has to contain, for example A100
    device_memory_gb: Positive | None = None  # what each GPU has to have, in 10^9 bytes
    micro_batch_tokens: Positive | None = None  # tokens of one pass of a process, padding included; null: no limit
    gradient_checkpointing: bool = False
    save_every_steps: Positive = 100  # states to resume from; one is saved after every epoch, too
    save_total_limit: Positive = 2

    @model_validator(mode="after")
    def _consistent(self) -> Compute:
        if (self.launcher == "accelerate") != (self.strategy is not None):
            raise ValueError("launcher 'accelerate' and a strategy go together")
        if self.launcher == "local" and self.processes != 1:
            raise ValueError("launcher 'local' is one process; choose launcher: accelerate and a strategy")
        return self
