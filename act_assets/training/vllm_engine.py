"""vLLM as the rollout engine (extra `gpu`), in two modes of the profile's `engine.mode`.

`server`: a process of its own (vllm_server.py). Each row is a request with its own seed, all under way at once. A
LoRA policy is pushed as an adapter file under a new name, full weights over NCCL to the server's own GPU.
`colocated`: vLLM within the training process; it gives its memory back after every `sample` (sleep mode) and takes
the policy's present weights before the next.

vLLM's kernels round differently in different batches; VLLM_BATCH_INVARIANT=1 in the environment makes its samples
independent of them on GPUs that support it. Until the first push a server samples the weights at `model_path`.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from act_assets.profile import Engine
from act_assets.training.vllm_server import HOST, VllmServer
from resources.compute import free_port
from resources.errors import TrainingError

SERVE = (sys.executable, "-m", "vllm.entrypoints.cli.main", "serve")
AT_ONCE = 256  # requests under way; vLLM's own default for sequences of one batch
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # of which vLLM's --max-lora-rank has to be one


def require_vllm() -> None:
    """Raises TrainingError where vLLM is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise TrainingError(
            "engine.name is vllm, and vLLM is not installed",
            todo="install the extra: pip install 'act-assets[gpu]', or set engine.name to transformers",
        )


def serve_command(
    settings: Engine, model: Any, model_path: str | Path, max_length: int, serve: Sequence[str] = SERVE
) -> list[str]:
    """`vllm serve` for this policy, without host and port."""
    command = [
        *serve,
        str(model_path),
        *("--dtype", "bfloat16", "--seed", "0"),
        *("--gpu-memory-utilization", str(settings.memory_share)),
        *("--generation-config", "vllm"),  # what a model ships (a repetition penalty, say) is not pi_theta
        *("--uvicorn-log-level", "warning"),
        *("--max-model-len", str(max_length)),
    ]
    if (rank := _lora_rank(model)) is not None:
        allowed = next((r for r in LORA_RANKS if r >= rank), rank)
        command += ["--enable-lora", "--max-lora-rank", str(allowed), "--max-loras", "1", "--max-cpu-loras", "2"]
    else:
        command += ["--weight-transfer-config", '{"backend": "nccl"}']
    if getattr(model, "is_loaded_in_4bit", False):
        command += ["--quantization", "bitsandbytes"]
    return command


def _lora_rank(model: Any) -> int | None:
    """The rank of the policy's adapter; None where all weights are trained."""
    configs = getattr(model, "peft_config", None)
    return None if not configs else int(configs[model.active_adapter].r)


class VllmServerEngine:
    """Samples from a server. With several processes the first one starts it, and all of them ask it.

    `accelerator` is the training's. `serve` replaces the command that is run.
    """

    def __init__(
        self,
        settings: Engine,
        model: Any,
        tokenizer: Any,
        end_id: int,
        model_path: str | Path,
        logs: Path,
        *,
        max_length: int,
        accelerator: Any,
        serve: Sequence[str] | None = None,
    ) -> None:
        if serve is None:
            require_vllm()
        self.model, self.tokenizer, self.end_id, self.accelerator = model, tokenizer, end_id, accelerator
        self.version = 0
        self._base = self._name = str(model_path)
        self._pushes = 0
        self._adapters = logs / "vllm-adapter"
        self._send_weights: Callable[[], None] | None = None
        self._is_main = bool(accelerator.is_main_process)
        log = logs / "vllm.txt"
        if self._is_main:
            command = serve_command(settings, model, model_path, max_length, serve or SERVE)
            own = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_HOST_IP": HOST}
            own |= {} if settings.devices is None else {"CUDA_VISIBLE_DEVICES": settings.devices}
            self.server = VllmServer.start(command, log, own)
        if accelerator.num_processes > 1:
            from accelerate.utils import broadcast_object_list

            port = broadcast_object_list([self.server.port if self._is_main else 0])[0]
            if not self._is_main:
                self.server = VllmServer(port, log)

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `RolloutEngine`. Raises TrainingError where the server is gone or refuses."""
        if not prompts:
            return []
        name = self._name

        def one(prompt: Sequence[int], seed: int) -> list[int]:
            body = {
                "model": name,
                "prompt": list(prompt),
                "seed": seed,
                "max_tokens": max_new_tokens,
                "temperature": temperature,
                "stop_token_ids": [self.end_id],
                "ignore_eos": True,  # the chat format's end of turn alone ends it
                "return_token_ids": True,
                "top_p": 1.0,
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
            }
            answer = self.server.post("/v1/completions", body)
            try:
                choice = answer["choices"][0]
                ids, why = [int(i) for i in choice["token_ids"]], choice["finish_reason"]
            except (KeyError, IndexError, TypeError) as error:
                raise TrainingError(
                    f"the vLLM server's answer has no token ids: {str(answer)[:300]}",
                    where=str(self.server.log),
                    todo="install a vLLM version of the extra: pip install 'act-assets[gpu]'",
                ) from error
            return [*ids, self.end_id] if why == "stop" and ids[-1:] != [self.end_id] else ids

        with ThreadPoolExecutor(min(AT_ONCE, len(prompts))) as pool:
            return list(pool.map(one, prompts, seeds))

    def push(self, version: int) -> None:
        """Called in every process; sharded adapters are made whole by the caller."""
        if _lora_rank(self.model) is not None:
            # A new name for each push: the server keeps what it computed for a prompt by the name of the adapter.
            before, self._pushes = self._name, self._pushes + 1
            name = f"policy-{version}" if f"policy-{version}" != before else f"policy-{version}-{self._pushes}"
            if self._is_main:
                folder = self._adapters / name
                shutil.rmtree(folder, ignore_errors=True)
                self.model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
                self.server.post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder.resolve())})
                if before != self._base:
                    self.server.post("/v1/unload_lora_adapter", {"lora_name": before})
                    shutil.rmtree(self._adapters / before, ignore_errors=True)
            self._name = name
        else:
            if self._send_weights is None:
                self._send_weights = weight_transfer(self.model, self.accelerator, self.tokenizer, self.server)
            self._send_weights()
        self.accelerator.wait_for_everyone()
        self.version = version

    def close(self) -> None:
        self.server.close()
        if self._is_main:
            shutil.rmtree(self._adapters, ignore_errors=True)


def weight_transfer(model: Any, accelerator: Any, tokenizer: Any, server: VllmServer) -> Callable[[], None]:
    """What sends all weights to the server: TRL's client over NCCL, of which the training process is rank 0.

    Sharded weights are gathered by TRL one at a time. Raises TrainingError where the GPUs do not allow it.
    """
    os.environ["VLLM_HOST_IP"] = HOST  # where the two meet; otherwise the machine's address in its network
    from trl.generation.vllm_generation import VLLMGeneration

    try:
        generation = VLLMGeneration(
            model,
            accelerator,
            tokenizer,
            mode="server",
            server_base_url=server.url,
            group_port=free_port(),
        )
    except Exception as error:
        raise TrainingError(
            f"the vLLM server cannot take the policy's weights: {type(error).__name__}: {error}",
            where=str(server.log),
            todo="give the server a GPU of its own (engine.devices), or set engine.mode to colocated",
        ) from error
    sync: Callable[[], None] = generation.sync_weights
    return sync


class VllmColocatedEngine:
    """Samples within the training process, on its GPU."""

    def __init__(
        self,
        settings: Engine,
        model: Any,
        tokenizer: Any,
        end_id: int,
        *,
        max_length: int,
        accelerator: Any,
    ) -> None:
        require_vllm()
        from trl.generation.vllm_generation import VLLMGeneration

        self.end_id, self.version = end_id, 0
        os.environ.setdefault("VLLM_HOST_IP", HOST)
        self._generation: Any = VLLMGeneration(
            model,
            accelerator,
            tokenizer,
            mode="colocate",
            gpu_memory_utilization=settings.memory_share,
            max_model_length=max_length,
            max_num_seqs=AT_ONCE,
            enable_sleep_mode=True,
        )

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """See `RolloutEngine`. Called in every process, also without prompts: weights may have to be gathered."""
        from vllm import SamplingParams

        llm = self._generation.llm
        self._generation.sync_weights()  # asleep, vLLM has forgotten them
        llm.wake_up(tags=["kv_cache"])
        try:
            outputs = (
                llm.generate(
                    [{"prompt_token_ids": list(prompt)} for prompt in prompts],
                    sampling_params=[
                        SamplingParams(
                            seed=seed,
                            max_tokens=max_new_tokens,
                            temperature=temperature,
                            stop_token_ids=[self.end_id],
                            ignore_eos=True,
                            detokenize=False,
                        )
                        for seed in seeds
                    ],
                    use_tqdm=False,
                )
                if prompts
                else []
            )
        finally:
            llm.sleep(level=2)
        return [list(output.outputs[0].token_ids) for output in outputs]

    def push(self, version: int) -> None:
        """The weights themselves go over at the next `sample`."""
        self.version = version

    def close(self) -> None:
        import gc

        self._generation = None
        gc.collect()
