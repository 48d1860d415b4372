"""What a profile asks of the machine, checked before anything is spent; and what to change when memory runs out.

check_compute(load_profile("paper"))        # ProfileError: all that is missing, and what to do about each
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from act_assets.home import act_home
from act_assets.profile import Lora, Optimisation, Profile
from resources.devices import Device, visible_devices
from resources.errors import ProfileError, TrainingError, all_mistakes

CPU_PARAMETERS = 500_000_000  # larger policies, and those whose size is not known, are not trained on a CPU
STATE_BYTES = 12  # a parameter in a training state: the weight and AdamW's two moments, fp32
FIRST_TENSOR = 100 * 2**20  # no header of a safetensors file is longer; the format's own limit


def check_training(profile: Profile, up_to_date: Callable[[], bool]) -> None:
    """Raises ProfileError where this machine cannot make the checkpoints of a profile.

    Those that are `up_to_date` need no machine; that is asked only where this one would not do.
    """
    try:
        check_compute(profile, parameters=known_parameters(profile))
    except ProfileError:
        if not up_to_date():
            raise


def check_compute(profile: Profile, *, parameters: int | None = None, devices: Sequence[Device] | None = None) -> None:
    """Whether this machine can train with a profile. Raises ProfileError listing ALL that stands against it.

    `parameters`: of the policy, where they are known; without them neither memory nor disk is estimated.
    `devices`: by default those that are visible now.
    """
    lora, strategy = profile.policy.lora, profile.compute.strategy
    needs_gpu = bool(
        profile.compute.device
        or profile.compute.device_memory_gb
        or profile.engine.name == "vllm"
        or (lora and lora.quantized)
        or (profile.policy.scratch is None and (parameters is None or parameters >= CPU_PARAMETERS))
    )
    extras = {
        "deepspeed": f"compute.strategy {strategy}" if strategy in ("zero2", "zero3") else "",
        "vllm": "engine.name vllm" if profile.engine.name == "vllm" else "",
        "bitsandbytes": "policy.lora.quantized" if lora and lora.quantized else "",
    }
    mistakes = _batches(profile) + [
        f"{setting} needs the package {package}: pip install -e '.[gpu]'"
        for package, setting in extras.items()
        if setting and find_spec(package) is None
    ]
    if needs_gpu:
        found = visible_devices() if devices is None else devices
        mistakes = [*_devices(profile, found), *mistakes]
        if parameters is not None:
            mistakes += _memory(profile, parameters, found)
    if parameters is not None:
        home, states = act_home(), profile.compute.save_total_limit + 1
        models = len(profile.sft.candidates) + 3  # of each learning rate, two while one is written, the artifact's
        needed, free = (states * STATE_BYTES + models * 4) * parameters, shutil.disk_usage(home).free
        if needed > free:
            mistakes.append(
                f"disk: {states} training states of {STATE_BYTES * parameters / 1e9:.1f} GB and {models} models need "
                f"{needed / 1e9:.0f} GB, {home} has {free / 1e9:.0f} GB left: free some, set ACT_HOME elsewhere, or "
                "lower compute.save_total_limit"
            )
    if mistakes:
        raise ProfileError(
            all_mistakes("training on this machine", mistakes),
            where=f"profile {profile.name}",
            todo="fix all of them in the profile, or run where the devices are; nothing has been spent",
        )


def _devices(profile: Profile, found: Sequence[Device]) -> list[str]:
    compute, wanted = profile.compute, profile.compute.processes
    instead = "train a smaller policy with profile laptop"
    if not found:
        what = f"{wanted} GPU{'s' if wanted > 1 else ''}"
        return [f"compute: {what} needed to train {profile.policy.model}, this machine shows none: {instead}"]
    mistakes = []
    if len(found) < wanted:
        alone = "launcher: local and no strategy, " if len(found) == 1 else f"processes: {len(found)}, "
        mistakes.append(
            f"compute.processes: {wanted} GPUs needed, this machine shows {len(found)}: set {alone}"
            "with policy.lora or another strategy where memory is short"
        )
    for number, device in enumerate(found[:wanted]):
        if compute.device and compute.device.lower() not in device.name.lower():
            mistakes.append(f"compute.device: GPU {number} is a {device.name}, not a {compute.device}")
        needed = compute.device_memory_gb
        if needed and device.memory_bytes < needed * 10**9:
            have = device.memory_bytes / 1e9
            mistakes.append(
                f"compute.device_memory_gb: GPU {number}, a {device.name}, has {have:.1f} GB, not {needed}: lower it "
                "together with compute.micro_batch_tokens"
            )
    return mistakes


def _batches(profile: Profile) -> list[str]:
    processes, mistakes = profile.compute.processes, []
    sections = {name: part.batch_size for name, part in profile if isinstance(part, Optimisation)}
    for name, size in sections.items():
        if size % processes:
            below, above = size - size % processes, size - size % processes + processes
            fitting = f"{below} or {above}" if below else str(above)
            mistakes.append(
                f"{name}.batch_size: {size} is what one update sees, and {processes} processes share it evenly: "
                f"choose {fitting}"
            )
    limit, least = profile.compute.micro_batch_tokens, smallest_pass(profile)
    if limit is not None and limit < least:
        mistakes.append(
            f"compute.micro_batch_tokens: {limit} holds no single pair, which has up to {least} tokens: choose at "
            f"least {least}, or lower policy.max_length"
        )
    return mistakes


def smallest_pass(profile: Profile) -> int:
    """Tokens of the longest pair: the prompt once or (without prefix sharing) twice, and both responses."""
    policy = profile.policy
    if not profile.act.prefix_sharing:
        return 2 * policy.max_length
    return policy.max_prompt_tokens + 2 * (policy.max_length - policy.max_prompt_tokens)


def memory_needed(profile: Profile, parameters: int) -> int:
    """Bytes of one device for what is always there, in SFT or in ACT, whichever needs more.

    Activations come on top, so this is a lower bound. Trained weights take 16 bytes a parameter (fp32, gradients and
    AdamW's moments), spread over the processes as the strategy does; a reference, or a base under an adapter, is whole
    on each device. vLLM within the training process takes its share of the device from ACT.
    """
    policy, engine = profile.policy, profile.engine
    strategy, processes = profile.compute.strategy, profile.compute.processes
    weights = 4 / (processes if strategy in ("zero3", "fsdp") else 1)
    trained = weights + 12 / (processes if strategy in ("zero2", "zero3", "fsdp") else 1)
    frozen = 2.0 if policy.mixed_precision else 4.0
    base = 0.6 if policy.lora and policy.lora.quantized else frozen  # NF4 with its constants; embedding and head apart
    sft = base if policy.lora and policy.lora.sft else trained
    act = base if policy.lora else trained + frozen
    if engine.name == "vllm" and engine.mode == "colocated":
        act /= 1 - engine.memory_share
    return int(parameters * max(sft, act))


def _memory(profile: Profile, parameters: int, found: Sequence[Device]) -> list[str]:
    compute = profile.compute
    there = [d.memory_bytes for d in found[: compute.processes]]
    if compute.device_memory_gb:
        there.append(compute.device_memory_gb * 10**9)
    if not there:
        return []
    free, needed = min(there), memory_needed(profile, parameters)
    if needed <= free:
        return []
    spread = {"compute": compute.model_copy(update={"launcher": "accelerate", "strategy": "zero3"})}
    bf16 = {"policy": profile.policy.model_copy(update={"mixed_precision": True})}
    adapters = {
        "policy": profile.policy.model_copy(update={"lora": Lora(r=16, alpha=32, sft=True), "mixed_precision": True})
    }
    changes: dict[str, dict[str, Any]] = {
        "compute.strategy: zero3": spread,
        "policy.mixed_precision: true": bf16,
        "policy.lora with sft: true, and policy.mixed_precision: true": adapters,
    }
    fitting = [
        c for c, update in changes.items() if memory_needed(profile.model_copy(update=update), parameters) <= free
    ]
    processes = compute.processes
    while not fitting and processes < 1024:  # a power of two divides most batches
        processes *= 2
        more = profile.model_copy(update={"compute": spread["compute"].model_copy(update={"processes": processes})})
        if memory_needed(more, parameters) <= free:
            fitting = [f"compute.strategy: zero3 with processes: {processes}"]
    return [
        f"memory: {parameters / 1e9:.2f} billion parameters need {needed / 1e9:.0f} GB of each device before any "
        f"activation, and it has {free / 1e9:.0f}: {' or '.join(fitting) or 'a smaller policy'} would fit"
    ]


def known_parameters(profile: Profile) -> int | None:
    """The policy's number of parameters where it can be read from files that are there; nothing is downloaded."""
    policy = profile.policy
    if policy.scratch is not None:
        s = policy.scratch  # training/base_policy.py: Llama, tied embeddings, three times as wide inside
        return s.vocab_size * s.hidden_size + s.layers * (13 * s.hidden_size**2 + 2 * s.hidden_size) + s.hidden_size
    folder = Path(policy.model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

        try:
            folder = Path(snapshot_download(policy.model, revision=policy.revision, local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError, ValueError):
            return None
    try:
        count = 0
        for path in folder.glob("*.safetensors"):
            with path.open("rb") as file:  # the header alone
                length = int.from_bytes(file.read(8), "little")
                if length > FIRST_TENSOR:
                    return None
                header = json.loads(file.read(length))
            count += sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")
        return count or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with the files is said where they are loaded


@contextmanager
def out_of_memory_advised(profile: Profile, where: str, during: Literal["rollouts", "update"]) -> Iterator[None]:
    """Raises TrainingError with advice in the place of torch's OutOfMemoryError."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        what = "while the policy was sampled" if during == "rollouts" else "in an update"
        raise TrainingError(
            f"the GPU ran out of memory {what}: {str(error).splitlines()[0]}",
            where=where,
            todo=f"{out_of_memory_advice(profile, during)}; run again: after a change of compute or rollout_batch_size "
            "it resumes from its last state",
        ) from error


def out_of_memory_advice(profile: Profile, during: Literal["rollouts", "update"]) -> str:
    """Which settings to change, and to what, after memory ran out."""
    policy, compute, engine, steps = profile.policy, profile.compute, profile.engine, []
    if during == "rollouts" and engine.name == "vllm":
        lower = max(0.05, round(engine.memory_share - 0.1, 2))
        steps.append(f"set engine.memory_share to {lower} (it is {engine.memory_share})")
    elif during == "rollouts" and profile.rollout_batch_size > 1:
        now = profile.rollout_batch_size
        steps.append(f"set rollout_batch_size to {now // 2} (it is {now})")
    elif during == "update":
        if not compute.gradient_checkpointing:
            steps.append("set compute.gradient_checkpointing to true")
        least = smallest_pass(profile)
        now = compute.micro_batch_tokens or least * -(-profile.act.batch_size // compute.processes)
        half = max(least, now // 2 // 64 * 64)
        if half < now:
            given = f"it is {now}" if compute.micro_batch_tokens else "there is no limit yet"
            steps.append(f"set compute.micro_batch_tokens to {half} ({given})")
    if len(steps) < 2:
        if policy.lora is None and policy.scratch is None:
            steps.append("train adapters: set policy.lora, for example {r: 16, alpha: 32}")
        more = "spread the weights: set compute.launcher to accelerate, strategy to zero3, and more processes"
        spread = compute.strategy in ("zero3", "fsdp")
        steps.append("use more compute.processes or GPUs with more memory" if spread else more)
    return "; if that is not enough, ".join(steps)
