"""What a profile asks of the machine, checked before anything is spent; and what to change when memory runs out.

check_compute(load_profile("paper"))        # ProfileError: all that is missing, and what to do about each
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from act_assets.home import act_home
from act_assets.profile import Lora, Profile
from resources.devices import Device, visible_devices
from resources.errors import ProfileError, all_mistakes

CPU_PARAMETERS = 500_000_000  # larger policies, and those whose size is not known, are not trained on a CPU
STATE_BYTES = 12  # a parameter in a training state: the weight and AdamW's two moments, fp32
FIRST_TENSOR = 100 * 2**20  # no header of a safetensors file is longer; the format's own limit


def check_training(profile: Profile, up_to_date: Callable[[], bool]) -> None:
    """Raises ProfileError where this machine cannot train with a profile what is not up to date."""
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
    needs_gpu = bool(
        profile.compute.device
        or profile.compute.device_memory_gb
        or profile.engine.name == "vllm"
        or (profile.policy.lora and profile.policy.lora.quantized)
        or (profile.policy.scratch is None and (parameters is None or parameters >= CPU_PARAMETERS))
    )
    mistakes = [*_batches(profile), *_extras(profile)]
    if needs_gpu:
        found = visible_devices() if devices is None else devices
        mistakes = [*_devices(profile, found), *mistakes]
        if parameters is not None:
            mistakes += _memory(profile, parameters, found)
    if parameters is not None:
        mistakes += _disk(profile, parameters)
    if mistakes:
        raise ProfileError(
            all_mistakes("training on this machine", mistakes),
            where=f"profile {profile.name}",
            todo="mend all of them in the profile, or run where the devices are; nothing has been spent",
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
    for name, size in (("sft", profile.sft.batch_size), ("act", profile.act.batch_size)):
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


def _extras(profile: Profile) -> list[str]:
    lora, strategy = profile.policy.lora, profile.compute.strategy
    needed = {
        "deepspeed": f"compute.strategy {strategy}" if strategy in ("zero2", "zero3") else "",
        "vllm": "engine.name vllm" if profile.engine.name == "vllm" else "",
        "bitsandbytes": "policy.lora.quantized" if lora and lora.quantized else "",
    }
    return [
        f"{setting} needs the package {package}: pip install -e '.[gpu]'"
        for package, setting in needed.items()
        if setting and find_spec(package) is None
    ]


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


def _disk(profile: Profile, parameters: int) -> list[str]:
    home, states = act_home(), profile.compute.save_total_limit + 1
    kept = len(profile.sft.candidates) + 3  # models: of each learning rate, two while one is written, the artifact's
    needed, free = (states * STATE_BYTES + kept * 4) * parameters, shutil.disk_usage(home).free
    if needed <= free:
        return []
    return [
        f"disk: {states} training states of {STATE_BYTES * parameters / 1e9:.1f} GB and {kept} models need "
        f"{needed / 1e9:.0f} GB, "
        f"{home} has {free / 1e9:.0f} GB left: free some, set ACT_HOME elsewhere, or lower compute.save_total_limit"
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
        return sum(map(_elements, sorted(folder.glob("*.safetensors")))) or None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # what is wrong with the files is said where they are loaded


def _elements(path: Path) -> int:
    """Of all tensors of a safetensors file, by its header alone."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > FIRST_TENSOR:
            raise ValueError("not a safetensors file")
        header = json.loads(file.read(length))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for extent in tensor["shape"]:
                size *= extent
            total += size
    return total


_GIB = {"bytes": 2**-30, "KiB": 2**-20, "MiB": 2**-10, "GiB": 1.0, "TiB": 2**10}
_AMOUNT = r"([\d.]+) (bytes|KiB|MiB|GiB|TiB)"


def _amount(pattern: str, message: str) -> float | None:
    """A number of GiB that follows, or precedes, other words."""
    found = re.search(pattern.replace("#", _AMOUNT), message, re.IGNORECASE)
    return None if found is None else float(found[1]) * _GIB[found[2]]


def out_of_memory_advice(profile: Profile, message: str, *, during: Literal["rollouts", "update"] = "update") -> str:
    """Which settings to change, and to what, after torch's OutOfMemoryError with this message."""
    tried = _amount(r"tried to allocate #", message)
    free = _amount(r"of which # is free", message)
    allocated = _amount(r"memory # is allocated by PyTorch", message)
    unused = _amount(r"and # is reserved by PyTorch but unallocated", message)
    missing = None if tried is None or free is None else max(tried - free, 0.0)
    shortfall = "" if missing is None else f"{missing:.1f} GiB were missing. "
    steps = _for_rollouts(profile) if during == "rollouts" else _for_update(profile, missing, allocated)
    if tried and unused and unused >= tried:
        steps.insert(0, f"set PYTORCH_ALLOC_CONF=expandable_segments:True ({unused:.1f} GiB were free in pieces)")
    if len(steps) < 2:
        steps += _spread(profile)
    return shortfall + "; if that is not enough, ".join(steps)


def _for_rollouts(profile: Profile) -> list[str]:
    if profile.engine.name == "vllm":
        lower = max(0.05, round(profile.engine.memory_share - 0.1, 2))
        return [f"set engine.memory_share to {lower} (it is {profile.engine.memory_share})"]
    if profile.rollout_batch_size > 1:
        half = profile.rollout_batch_size // 2
        return [f"set rollout_batch_size to {half} (it is {profile.rollout_batch_size})"]
    return []


def _for_update(profile: Profile, missing: float | None, allocated: float | None) -> list[str]:
    steps, compute, least = [], profile.compute, smallest_pass(profile)
    if not compute.gradient_checkpointing:
        steps.append("set compute.gradient_checkpointing to true")
    now = compute.micro_batch_tokens or least * -(-profile.act.batch_size // compute.processes)
    share = 1 - missing / allocated if missing is not None and allocated else 1.0  # all of it cannot be activations
    lower = max(least, int(min(now * share, now / 2)) // 64 * 64)
    if lower < now:
        given = f"it is {now}" if compute.micro_batch_tokens else "there is no limit yet"
        steps.append(f"set compute.micro_batch_tokens to {lower} ({given})")
    return steps


def _spread(profile: Profile) -> list[str]:
    steps, compute = [], profile.compute
    if profile.policy.lora is None and profile.policy.scratch is None:
        steps.append("train adapters: set policy.lora, for example {r: 16, alpha: 32}")
    if compute.strategy not in ("zero3", "fsdp"):
        steps.append("spread the weights: set compute.launcher to accelerate, strategy to zero3, and more processes")
    else:
        steps.append("use more compute.processes or GPUs with more memory")
    return steps
