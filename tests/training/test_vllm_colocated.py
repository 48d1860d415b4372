"""vLLM within the training process, with a vllm module and TRL's class as they are called."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from act_assets.profile import Engine
from act_assets.training import vllm_engine

pytestmark = pytest.mark.integration

END = 7


@pytest.fixture
def colocated(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    import trl.generation.vllm_generation as trl_vllm

    said: list[Any] = []

    class Llm:
        def wake_up(self, tags: list[str]) -> None:
            said.append(("wake", tags))

        def sleep(self, level: int) -> None:
            said.append(("sleep", level))

        def generate(self, prompts: list[Any], sampling_params: list[Any], use_tqdm: bool) -> list[Any]:
            said.append(("generate", prompts, [vars(p) for p in sampling_params]))
            if any(p["prompt_token_ids"] == [0] for p in prompts):
                raise RuntimeError("out of memory")
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=(p.seed, END))]) for p in sampling_params]

    class Generation(trl_vllm.VLLMGeneration):
        def _init_vllm(self) -> None:
            said.append(("made", self.mode, self.gpu_memory_utilization, self.max_model_length, self.enable_sleep_mode))
            self.llm = Llm()

        def sync_weights(self) -> None:
            said.append("sync")

    monkeypatch.setattr(trl_vllm, "VLLMGeneration", Generation)
    monkeypatch.setattr(vllm_engine, "require_vllm", lambda: None)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(SamplingParams=SimpleNamespace))
    return said


def test_a_colocated_engine_takes_the_present_weights_before_it_samples_and_sleeps_afterwards(
    colocated: list[Any],
) -> None:
    from accelerate import Accelerator

    engine = vllm_engine.VllmColocatedEngine(
        Engine(name="vllm", memory_share=0.25), None, None, END, max_length=1280, accelerator=Accelerator(cpu=True)
    )
    assert colocated == [("made", "colocate", 0.25, 1280, True)]
    colocated.clear()
    assert engine.sample([[1, 2], [3]], [5, 6], max_new_tokens=9, temperature=0.5) == [[5, END], [6, END]]
    asked = colocated[2]
    assert [c if isinstance(c, str) else c[0] for c in colocated] == ["sync", "wake", "generate", "sleep"]
    assert asked[1] == [{"prompt_token_ids": [1, 2]}, {"prompt_token_ids": [3]}]
    common = {"max_tokens": 9, "temperature": 0.5, "stop_token_ids": [END], "ignore_eos": True, "detokenize": False}
    assert asked[2] == [{"seed": 5, **common}, {"seed": 6, **common}]
    engine.push(2)
    assert engine.version == 2
    colocated.clear()
    assert engine.sample([], [], max_new_tokens=9, temperature=0.5) == []
    assert "sync" in colocated, "gathering sharded weights needs every process"
    with pytest.raises(RuntimeError, match="out of memory"):
        engine.sample([[0]], [5], max_new_tokens=9, temperature=0.5)
    assert colocated[-1] == ("sleep", 2), "the memory is given back after an error, too"
    engine.close()
