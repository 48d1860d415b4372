"""What a profile asks of a machine is checked before anything is spent, and every mistake says what to change."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from act_assets.profile import Engine, Lora, Profile, load_profile
from act_assets.training import preflight
from act_assets.training.preflight import (
    check_compute,
    check_training,
    known_parameters,
    memory_needed,
    out_of_memory_advice,
    out_of_memory_advised,
)
from resources import devices as devices_module
from resources.devices import Device, visible_devices
from resources.errors import ProfileError, TrainingError
from resources.settings import Compute

pytestmark = pytest.mark.integration

A100 = Device("NVIDIA A100-SXM4-80GB", 81920 * 2**20)
A10 = Device("NVIDIA A10G", 24 * 10**9)
ZEPHYR = 7_241_732_096


class Usage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(autouse=True)
def a_large_disk_and_all_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 10**13))
    monkeypatch.setattr(preflight, "find_spec", lambda name: object())


@pytest.fixture
def paper() -> Profile:
    return load_profile("paper")


def changed(profile: Profile, part: str, **values: Any) -> Profile:
    return profile.model_copy(update={part: getattr(profile, part).model_copy(update=values)})


def mistakes(profile: Profile, found: list[Device], parameters: int | None = None) -> list[str]:
    """The lines of the error, or none."""
    try:
        check_compute(profile, parameters=parameters, devices=found)
    except ProfileError as error:
        return [line.removeprefix("  - ") for line in error.what.splitlines()[1:]]
    return []


def test_the_paper_profile_fits_the_papers_machine(paper: Profile) -> None:
    assert mistakes(paper, [A100] * 8, ZEPHYR) == []
    assert mistakes(changed(paper, "compute", device="a100-sxm"), [A100] * 8) == [], "a part of the name will do"


@pytest.mark.parametrize(
    ("gpus", "said"), [(0, "this machine shows none: train a smaller"), (4, "this machine shows 4: set processes: 4")]
)
def test_too_few_gpus_say_what_can_be_trained(paper: Profile, gpus: int, said: str) -> None:
    (mistake,) = mistakes(paper, [A100] * gpus)
    assert "8 GPUs needed" in mistake
    assert said in mistake


def test_all_mistakes_are_said_at_once(paper: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    wrong = changed(paper, "compute", device="H100", micro_batch_tokens=1000)
    wrong = changed(changed(wrong, "sft", batch_size=4), "act", batch_size=20)
    found = mistakes(wrong, [A10] * 3, ZEPHYR)
    said = [m.split(":")[0] for m in found]
    assert said.count("compute.device") == said.count("compute.device_memory_gb") == 3
    for topic in ("compute.processes", "sft.batch_size", "act.batch_size", "compute.micro_batch_tokens", "memory"):
        assert topic in said
    assert any("pip install" in m and "deepspeed" in m for m in found)


@pytest.mark.parametrize(("size", "fitting"), [(4, "choose 8"), (20, "choose 16 or 24"), (33, "choose 32 or 40")])
def test_a_batch_that_processes_cannot_share_names_the_nearest_that_they_can(
    paper: Profile, size: int, fitting: str
) -> None:
    (mistake,) = mistakes(changed(paper, "act", batch_size=size), [A100] * 8)
    assert mistake.startswith(f"act.batch_size: {size}")
    assert mistake.endswith(fitting)


def test_a_pass_has_to_hold_one_pair(paper: Profile) -> None:
    least = 832 + 2 * (1280 - 832)
    assert mistakes(changed(paper, "compute", micro_batch_tokens=least), [A100] * 8) == []
    (mistake,) = mistakes(changed(paper, "compute", micro_batch_tokens=least - 1), [A100] * 8)
    assert f"at least {least}" in mistake
    plain = changed(paper, "act", prefix_sharing=False)
    assert mistakes(changed(plain, "compute", micro_batch_tokens=2 * 1280), [A100] * 8) == []
    assert mistakes(changed(plain, "compute", micro_batch_tokens=2 * 1280 - 1), [A100] * 8)


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_a_policy_from_scratch_trains_anywhere_under_any_launcher(strategy: Any) -> None:
    compute = Compute(launcher="accelerate", strategy=strategy, processes=2)
    laptop = load_profile("laptop").model_copy(update={"compute": compute})
    assert mistakes(laptop, [], known_parameters(laptop)) == []


def test_a_small_model_may_be_trained_on_the_cpu_and_one_of_unknown_size_may_not(paper: Profile) -> None:
    small = paper.model_copy(update={"compute": Compute()})
    assert mistakes(small, [], 135_000_000) == []
    assert mistakes(small, [], None)
    assert mistakes(small, [], ZEPHYR)


@pytest.mark.parametrize(
    ("part", "values", "packages"),
    [
        ("compute", {"strategy": "zero2"}, ["deepspeed"]),
        ("compute", {"strategy": "zero3"}, ["deepspeed"]),
        ("compute", {"strategy": "ddp"}, []),
        ("compute", {"strategy": "fsdp"}, []),
        ("engine", {"name": "vllm"}, ["deepspeed", "vllm"]),
        ("policy", {"lora": Lora(r=8, alpha=16, quantized=True)}, ["deepspeed", "bitsandbytes"]),
    ],
)
def test_a_package_is_needed_for_what_uses_it_alone(
    paper: Profile, monkeypatch: pytest.MonkeyPatch, part: str, values: dict[str, Any], packages: list[str]
) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    found = mistakes(changed(paper, part, **values), [A100] * 8)
    assert [m.split(" needs the package ")[1].split(":")[0] for m in found] == packages


@pytest.mark.parametrize(
    ("strategy", "each"), [("ddp", 16 + 2), ("zero2", 4 + 12 / 8 + 2), ("zero3", 16 / 8 + 2), ("fsdp", 16 / 8 + 2)]
)
def test_what_a_strategy_spreads_is_not_needed_on_every_device(paper: Profile, strategy: str, each: float) -> None:
    profile = changed(paper, "compute", strategy=strategy)
    assert memory_needed(profile, 10**9) == int(each * 10**9)
    assert memory_needed(changed(profile, "policy", mixed_precision=False), 10**9) == int((each + 2) * 10**9)
    assert memory_needed(changed(profile, "policy", lora=Lora(r=8, alpha=8)), 10**9) == int((each - 2) * 10**9)


def test_memory_that_does_not_suffice_names_a_strategy_that_does(paper: Profile) -> None:
    (mistake,) = mistakes(changed(paper, "compute", strategy="ddp"), [A100] * 8, ZEPHYR)
    assert "need 130 GB of each device" in mistake
    assert (
        "compute.strategy: zero3 or policy.lora with sft: true, and policy.mixed_precision: true would fit" in mistake
    )
    alone = changed(paper.model_copy(update={"compute": Compute()}), "sft", batch_size=32)
    (mistake,) = mistakes(alone, [A100], ZEPHYR)
    assert "it has 86: policy.lora with sft: true, and policy.mixed_precision: true would fit" in mistake


def test_the_disk_has_to_hold_one_state_more_than_are_kept_and_the_models(
    paper: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(paper.sft.candidates) == 3
    needed = (3 * 12 + (3 + 3) * 4) * ZEPHYR
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    assert mistakes(paper, [A100] * 8, ZEPHYR) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed - 1))
    (mistake,) = mistakes(paper, [A100] * 8, ZEPHYR)
    assert "435 GB" in mistake
    assert "ACT_HOME" in mistake


def test_parameters_are_counted_in_the_files_of_a_folder(paper: Profile, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for number in (1, 2):
        save_file(
            {"a": torch.zeros(3, 5), "b": torch.zeros(7, dtype=torch.bfloat16), "c": torch.zeros(())},
            tmp_path / f"model-{number}.safetensors",
            {"format": "pt"},
        )
    assert known_parameters(changed(paper, "policy", model=str(tmp_path))) == 2 * (15 + 7 + 1)


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 20, b"\x02\0\0\0\0\0\0\0[]", b"\x0c\0\0\0\0\0\0\0" + b'{"a": "bad"}']
)
def test_files_that_cannot_be_read_leave_the_number_unknown(paper: Profile, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    assert known_parameters(changed(paper, "policy", model=str(tmp_path))) is None


def test_nothing_is_downloaded_to_count_parameters(paper: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert known_parameters(paper) is None


def test_the_estimate_for_a_policy_from_scratch_is_what_is_built(tiny_profile: Profile, tiny_tokenizer: Any) -> None:
    from act_assets.training.base_policy import build_model
    from act_assets.training.chat_template import ChatFormat

    scratch = tiny_profile.policy.scratch
    assert scratch is not None
    model = build_model(scratch, scratch.vocab_size, 64, ChatFormat(tiny_tokenizer), 0)
    assert known_parameters(tiny_profile) == sum(p.numel() for p in model.parameters())


def test_a_run_whose_checkpoints_are_there_needs_no_gpu(paper: Profile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "visible_devices", list)
    check_training(paper, lambda: True)
    with pytest.raises(ProfileError, match="8 GPUs needed"):
        check_training(paper, lambda: False)


# --- devices ----------------------------------------------------------------------------------------------------

LISTED = """0, GPU-aaaa-1, NVIDIA A100-SXM4-80GB, 81920
1, GPU-bbbb-2, NVIDIA H200, 143771
"""
H200 = Device("NVIDIA H200", 143771 * 2**20)


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name that says LISTED."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (None, [A100, H200]),
        ("", []),
        ("1", [H200]),
        ("1,0", [H200, A100]),
        ("0,7,1", [A100]),
        ("-1", []),
        ("GPU-bbbb", [H200]),
    ],
)
def test_visible_devices_are_those_that_cuda_would_show(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, chosen: str | None, expected: list[Device]
) -> None:
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_devices() == expected


@pytest.mark.parametrize("broken", ["no driver", "failing"])
def test_without_a_working_driver_there_are_no_devices(
    nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    nvidia_smi.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed because it could not communicate'; exit 9\n")
    if broken == "no driver":
        monkeypatch.setattr(devices_module.shutil, "which", lambda name: None)
        monkeypatch.setattr(devices_module, "DRIVER", Path("/nonexistent"))
    assert visible_devices() == []


# --- advice -----------------------------------------------------------------------------------------------------


def test_an_update_gets_half_as_many_tokens_but_no_fewer_than_a_pair_has(paper: Profile) -> None:
    assert "set compute.micro_batch_tokens to 2048 (it is 4096)" in out_of_memory_advice(paper, "update")
    assert "policy.lora" in out_of_memory_advice(paper, "update")
    tight = out_of_memory_advice(changed(paper, "compute", micro_batch_tokens=2000), "update")
    assert "set compute.micro_batch_tokens to 1728 (it is 2000)" in tight
    least = out_of_memory_advice(changed(paper, "compute", micro_batch_tokens=1728), "update")
    assert "micro_batch_tokens" not in least
    assert "more compute.processes" in least


def test_checkpointing_comes_first_where_it_is_off(paper: Profile) -> None:
    advice = out_of_memory_advice(changed(paper, "compute", gradient_checkpointing=False), "update")
    assert advice.index("compute.gradient_checkpointing to true") < advice.index("compute.micro_batch_tokens")


def test_without_a_limit_one_is_named(tiny_profile: Profile) -> None:
    assert "there is no limit yet" in out_of_memory_advice(tiny_profile, "update")


def test_rollouts_are_sampled_in_smaller_batches_or_vllm_gets_less_memory(paper: Profile) -> None:
    advice = out_of_memory_advice(paper, "rollouts")
    assert "set rollout_batch_size to 32 (it is 64)" in advice
    assert "micro_batch_tokens" not in advice
    with_vllm = paper.model_copy(update={"engine": Engine(name="vllm", memory_share=0.3)})
    assert "set engine.memory_share to 0.2 (it is 0.3)" in out_of_memory_advice(with_vllm, "rollouts")


def test_memory_that_runs_out_becomes_advice_and_other_errors_stay_what_they_are(paper: Profile) -> None:
    import torch

    for during in ("rollouts", "update"):
        with pytest.raises(TrainingError) as raised, out_of_memory_advised(paper, "task pacific", during):  # type: ignore[arg-type]
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        assert raised.value.where == "task pacific"
        assert raised.value.todo.startswith(out_of_memory_advice(paper, during))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="something else"), out_of_memory_advised(paper, "", "update"):
        raise RuntimeError("something else")
