"""vLLM as the engine, against a program that speaks its endpoints on 127.0.0.1."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from act_assets.profile import Engine
from act_assets.training import vllm_engine, vllm_server
from act_assets.training.generation import make_engine
from act_assets.training.vllm_engine import SERVE, VllmServerEngine, serve_command
from resources.artifacts import process_is_alive
from resources.errors import TrainingError

pytestmark = pytest.mark.integration

END = 7
ALONE: Any = SimpleNamespace(is_main_process=True, num_processes=1, wait_for_everyone=lambda: None)
PROFILE = Engine(name="vllm", mode="server", memory_share=0.4, devices="1")
FAKE = (Path(__file__).resolve().parent / "fake_vllm.py").read_text(encoding="utf-8")


class Fake:
    """The program, and what it was asked; engines that are started with it end with the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.program = folder / "fake_vllm.py"
        self.program.write_text(FAKE, encoding="utf-8")
        self.serve = (sys.executable, str(self.program))
        self.engines: list[VllmServerEngine] = []

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        file = self.folder / "requests.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return [r for r in map(json.loads, lines) if path in r["path"]]

    @property
    def started(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "started.json").read_text(encoding="utf-8")))

    def engine(self, model: Any = None, fault: str = "", **options: Any) -> VllmServerEngine:
        self._monkeypatch.setenv("FAKE_FAULT", fault)
        options = {"max_length": 1280, "accelerator": ALONE, "serve": self.serve, **options}
        engine = VllmServerEngine(PROFILE, model, None, END, "some/model", self.folder / "logs", **options)
        self.engines.append(engine)
        return engine


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    fake = Fake(tmp_path, monkeypatch)
    yield fake
    for engine in fake.engines:
        engine.close()


def _sample(engine: VllmServerEngine, *seeds: int, length: int = 9) -> list[list[int]]:
    return engine.sample([[1]] * len(seeds), seeds, max_new_tokens=length, temperature=1.0)


def _gone(pids: list[int], within_s: float = 5.0) -> bool:
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not any(map(process_is_alive, pids)):
            return True
        time.sleep(0.02)
    return False


def test_each_row_is_a_request_with_its_own_seed_and_results_are_in_order(fake: Fake) -> None:
    engine = fake.engine()
    prompts, seeds = [[1, 2, 3], [4], [5, 6], [1, 2, 3]], [2**63 - 1, 12, 13, 14]
    sampled = engine.sample(prompts, seeds, max_new_tokens=9, temperature=0.8)
    assert [ids[1] for ids in sampled] == [3, 1, 2, 3]
    assert sampled[0] != sampled[3]
    assert [ids[-1] == END for ids in sampled] == [False, True, False, True]
    bodies = {r["body"]["seed"]: r["body"] for r in fake.requests("completions")}
    assert [bodies[s]["prompt"] for s in seeds] == prompts
    expected = {"model": "some/model", "return_token_ids": True, "stop_token_ids": [END], "ignore_eos": True}
    expected |= {"max_tokens": 9, "temperature": 0.8, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
    for body in bodies.values():
        assert body.items() >= expected.items()
    assert _sample(engine) == []


def test_all_rows_are_asked_at_once(fake: Fake) -> None:
    engine = fake.engine(fault="slow")
    began = time.monotonic()
    assert len(_sample(engine, *range(64))) == 64
    assert time.monotonic() - began < 5, "one after the other takes 19 s"
    assert max(r["busy"] for r in fake.requests()) > 32


def test_the_end_of_turn_is_part_of_the_sample_also_where_the_server_leaves_it_out(fake: Fake) -> None:
    stopped, cut = _sample(fake.engine(fault="no end"), 2, 3)
    assert stopped[-1] == END
    assert END not in cut


def test_the_server_listens_on_loopback_with_the_settings_of_the_profile(fake: Fake) -> None:
    engine = fake.engine()
    assert fake.started["environment"] == {
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True",
        "CUDA_VISIBLE_DEVICES": "1",
        "VLLM_HOST_IP": "127.0.0.1",
    }
    assert fake.started["argv"][0] == "some/model"
    assert fake.started["argv"][-4:] == ["--host", "127.0.0.1", "--port", str(engine.server.port)]


def test_the_command_follows_the_policy() -> None:
    def option(command: list[str], name: str) -> str:
        return command[command.index(name) + 1]

    full = serve_command(PROFILE, None, "m", 1280)
    assert full[: len(SERVE) + 1] == [*SERVE, "m"]
    assert option(full, "--max-model-len") == "1280"
    assert option(full, "--gpu-memory-utilization") == "0.4"
    assert option(full, "--generation-config") == "vllm"
    assert json.loads(option(full, "--weight-transfer-config")) == {"backend": "nccl"}
    assert "--enable-lora" not in full
    adapter = SimpleNamespace(r=24)
    lora = SimpleNamespace(peft_config={"default": adapter}, active_adapter="default", is_loaded_in_4bit=True)
    adapted = serve_command(PROFILE, lora, "m", 1280)
    assert option(adapted, "--max-lora-rank") == "32"
    assert option(adapted, "--quantization") == "bitsandbytes"
    assert "--weight-transfer-config" not in adapted
    assert not any("trust" in part for part in [*full, *adapted])


# Pushing


@pytest.fixture
def lora() -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    base = LlamaForCausalLM(
        LlamaConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    )
    return get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))


def test_an_adapter_is_loaded_under_a_new_name_before_the_older_one_goes(fake: Fake, lora: Any) -> None:
    import torch
    from safetensors.torch import load_file

    engine = fake.engine(lora)
    _sample(engine, 1)
    engine.push(3)
    assert engine.version == 3
    _sample(engine, 1)
    with torch.no_grad():
        for name, p in lora.named_parameters():
            if "lora_B" in name:
                p.fill_(2.0)
    engine.push(4)
    folder = Path(fake.requests("/load_lora")[-1]["body"]["lora_path"])
    saved = load_file(folder / "adapter_model.safetensors")
    assert all(bool((t == 2.0).all()) for n, t in saved.items() if "lora_B" in n)
    assert [p.name for p in folder.parent.iterdir()] == ["policy-4"]
    _sample(engine, 1)
    engine.push(4)  # a resumed run may push a version that the server has
    _sample(engine, 1)
    engine.close()
    said = [(r["path"].split("/")[-1], r["body"].get("lora_name") or r["body"].get("model")) for r in fake.requests()]
    assert said == [
        ("completions", "some/model"),
        ("load_lora_adapter", "policy-3"),
        ("completions", "policy-3"),
        ("load_lora_adapter", "policy-4"),
        ("unload_lora_adapter", "policy-3"),
        ("completions", "policy-4"),
        ("load_lora_adapter", "policy-4-3"),
        ("unload_lora_adapter", "policy-4"),
        ("completions", "policy-4-3"),
    ]
    assert not folder.parent.exists(), "adapters are removed with the server"


def test_an_adapter_that_the_server_refuses_is_an_error_and_the_older_one_stays(
    fake: Fake, lora: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake.engine(lora)
    engine.push(1)
    monkeypatch.setattr(type(lora), "save_pretrained", lambda self, folder, **options: Path(folder).mkdir())
    with pytest.raises(TrainingError, match="status 400"):
        engine.push(2)
    assert engine.version == 1
    _sample(engine, 1)
    assert fake.requests("completions")[-1]["body"]["model"] == "policy-1"
    assert not fake.requests("unload")


def test_full_weights_are_sent_by_the_transfer_that_is_made_once_or_the_error_says_what_to_set(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake.engine()
    with pytest.raises(TrainingError) as caught:
        engine.push(1)  # vLLM is not installed
    assert "engine.devices" in caught.value.todo
    said: list[str] = []

    def transfer(model: Any, accelerator: Any, tokenizer: Any, server: Any) -> Any:
        said.append(f"made for {server.url}")
        return lambda: said.append("sent")

    monkeypatch.setattr(vllm_engine, "weight_transfer", transfer)
    engine.push(1)
    engine.push(2)
    assert said == [f"made for {engine.server.url}", "sent", "sent"]
    assert engine.version == 2


# What can go wrong


def test_a_server_that_dies_while_it_starts_is_an_error_that_names_its_log(fake: Fake) -> None:
    with pytest.raises(TrainingError, match=r"(?s)exit code 3 before.*CUDA out of memory") as caught:
        fake.engine(fault="dies")
    assert caught.value.where == str(fake.folder / "logs" / "vllm.txt")
    assert "engine.memory_share" in caught.value.todo
    assert _gone(fake.started["pids"]), "what it had started ends with it"


def test_a_server_that_is_never_ready_is_ended(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_FAULT", "never")
    with pytest.raises(TrainingError, match="not ready after 2 s"):
        vllm_server.VllmServer.start([*fake.serve, "m"], fake.folder / "log.txt", limit_s=2.0)
    assert _gone(fake.started["pids"])


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", "status 500: .*EngineCore encountered"),
        ("no ids", "no token ids"),
        ("killed", "signal SIGKILL"),
        ("unknown", "status 404: .*unknown does not exist"),
    ],
)
def test_what_is_no_sample_is_an_error_that_names_the_log(fake: Fake, fault: str, message: str) -> None:
    engine = fake.engine(fault=fault)
    if fault == "unknown":
        engine._name = "unknown"
    with pytest.raises(TrainingError, match=message) as caught:
        _sample(engine, 1, 2, 3)
    assert "vllm.txt" in caught.value.where


def test_proxies_have_no_part_in_it(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert _sample(fake.engine(), 1, length=1) == [[11]]


def test_closing_ends_the_server_and_all_it_started(fake: Fake) -> None:
    engine = fake.engine()
    pids = fake.started["pids"]
    assert not _gone(pids, 0.1)
    engine.close()
    assert _gone(pids)
    engine.close()


def test_the_server_ends_when_the_training_is_killed(fake: Fake) -> None:
    """kill -9 leaves no time to close anything."""
    script = f"""
import sys, time
from pathlib import Path
from act_assets.training.vllm_server import VllmServer
VllmServer.start([*{fake.serve!r}, "m"], Path({str(fake.folder / "log.txt")!r}))
print("ready", flush=True)
time.sleep(600)
"""
    training = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert training.stdout is not None
    assert training.stdout.readline() == "ready\n"
    pids = fake.started["pids"]
    assert not _gone(pids, 0.1)
    os.kill(training.pid, signal.SIGKILL)
    training.wait()
    assert _gone(pids)


def test_a_server_that_ignores_the_polite_signal_is_ended_all_the_same(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "GRACE_S", 0.5)
    ignoring = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    fake.program.write_text(ignoring + FAKE, encoding="utf-8")
    server = vllm_server.VllmServer.start([*fake.serve, "m"], fake.folder / "log.txt")
    pids = fake.started["pids"]
    server.close()
    assert _gone(pids)


def test_several_processes_share_the_server_of_the_first(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.utils

    said: list[str] = []
    known: list[int] = []

    def accelerator(main: bool) -> Any:
        return SimpleNamespace(
            is_main_process=main, num_processes=2, wait_for_everyone=lambda: said.append(f"waited {main}")
        )

    def broadcast(objects: list[int]) -> list[int]:
        known.extend(objects)
        return known[:1]

    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", broadcast)
    monkeypatch.setattr(vllm_engine, "weight_transfer", lambda *parts: lambda: said.append("sent"))
    first, second = (fake.engine(accelerator=accelerator(main)) for main in (True, False))
    assert second.server.process is None
    assert second.server.port == first.server.port
    assert _sample(first, 5, 6) == _sample(second, 5, 6)
    second.push(1)
    assert said == ["sent", "waited False"]
    second.close()
    assert not _gone(fake.started["pids"], 0.1), "only the process that started it ends it"


# Choosing


@pytest.mark.parametrize(
    ("mode", "snapshot", "message", "todo"),
    [
        ("server", False, "not installed", "pip install 'act-assets[gpu]'"),
        ("colocated", False, "not installed", "pip install 'act-assets[gpu]'"),
        ("colocated", True, "rollout_lag 1", "mode to server"),
    ],
)
def test_an_engine_that_cannot_run_here_is_an_error_that_says_what_to_do(
    tmp_path: Path, mode: str, snapshot: bool, message: str, todo: str
) -> None:
    chat: Any = SimpleNamespace(tokenizer=None, end_id=END, pad_id=0)
    settings = Engine.model_validate({"name": "vllm", "mode": mode})
    with pytest.raises(TrainingError, match=message) as caught:
        make_engine(
            settings,
            None,
            chat,
            batch_size=8,
            mixed_precision=False,
            snapshot=snapshot,
            model_path="m",
            logs=tmp_path,
            max_length=1280,
            accelerator=ALONE,
        )
    assert todo in caught.value.todo
