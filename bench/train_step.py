"""What an update costs: ours, with the prompt of a pair computed once and in the plain form, against TRL's DPOTrainer.

    python bench/train_step.py                          # about four minutes

The same 64 PACIFIC pairs, the same policy of the laptop profile (random weights), the same batches, each in a process
of its own, turn by turn in one run. An update is: score the batch with the frozen reference, forward, backward, AdamW.
Nothing is scored before: what ours saves on texts that come again stands beside, as `cached`. Ends with one line of
JSON: every figure and its target.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAIRS, BATCH, EPOCHS, ROUNDS, BETA = 64, 16, 4, 3, 0.1
TARGETS = {
    "shared_over_trl": ("<=", 0.65),
    "plain_over_trl": ("<=", 1.05),
    "memory_shared_over_trl": ("<=", 1.0),
    "memory_plain_over_trl": ("<=", 1.0),
    "largest_difference_of_losses": ("<=", 1e-5),
}


def prepare(folder: Path) -> tuple[Any, Any, list[Any]]:
    """The policy's folder, its chat format, and the pairs as tokens; the same in every process."""
    from act_assets.conversation import PreferencePair
    from act_assets.preference import build_pairs
    from act_assets.profile import LLMRole, load_profile
    from act_assets.roles import EmbeddedProvider, Generator
    from act_assets.tasks import get_task
    from act_assets.training.act import initial_pair
    from act_assets.training.base_policy import build_model, train_tokenizer, warm_up_texts
    from act_assets.training.chat_template import ChatFormat
    from act_assets.training.policy import PromptEncoder, load_model, save_model
    from resources.llm.client import LLM

    task = get_task("pacific")
    data = task.reader.read(Path(__file__).resolve().parent.parent / "datasets" / "sample" / "pacific")
    profile = load_profile("laptop")
    scratch = profile.policy.scratch
    assert scratch is not None
    if not (folder / "model").exists():
        texts = [m.content for group in warm_up_texts(task, data.train) for m in group]
        chat = ChatFormat(train_tokenizer(texts, scratch.vocab_size))
        save_model(build_model(scratch, len(chat.tokenizer), 1280, chat, seed=0), chat.tokenizer, folder / "model")
    _, chat = load_model(folder / "model")
    turns = [t for c in data.train[:20] for t in task.turn_states(c)][:PAIRS]
    embedded = LLMRole(provider="embedded", model="embedded-rules-1")
    made: list[PreferencePair] = build_pairs(task, turns, Generator(LLM(EmbeddedProvider()), embedded, task, ()), 0)[0]
    prompts = PromptEncoder(task, chat, profile.policy.max_prompt_tokens)
    by_id = {t.turn_id: t for t in turns}
    return folder / "model", chat, [initial_pair(by_id[p.turn_id], p, prompts, 1280) for p in made]


def trl_trainer(model: Any, tokenizer: Any, pairs: list[Any], folder: Path, callback: Any, **settings: Any) -> Any:
    """TRL's DPOTrainer on pairs that are tokens already, in their order; test_optimizer.py has it too."""
    from torch.utils.data import SequentialSampler
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    from datasets import Dataset

    class InOrder(DPOTrainer):  # type: ignore[misc]
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return SequentialSampler(self.train_dataset)

    rows = [
        {
            "prompt_ids": list(p.prompt_ids),
            "chosen_ids": list(p.chosen.token_ids),
            "rejected_ids": list(p.rejected.token_ids),
        }
        for p in pairs
    ]
    trainer = InOrder(
        model=copy.deepcopy(model),
        ref_model=copy.deepcopy(model),
        args=DPOConfig(
            output_dir=str(folder),
            beta=BETA,
            max_length=None,
            lr_scheduler_type="linear",
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            optim="adamw_torch",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def with_trl(model_path: Path, chat: Any, pairs: list[Any], folder: Path) -> dict[str, Any]:
    from transformers import TrainerCallback

    from act_assets.training.policy import load_model

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.times: list[float] = []
            self.losses: list[float] = []

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.times.append(time.perf_counter() - self.began)

        def on_log(self, *args: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                self.losses.append(float(logs["loss"]))

    clock = Clock()
    trainer = trl_trainer(
        load_model(model_path)[0],
        chat.tokenizer,
        pairs,
        folder,
        clock,
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=BATCH,
        learning_rate=1e-4,
        warmup_steps=0,
    )
    return measured(lambda: trainer.train(), lambda: (clock.times, clock.losses))


def with_ours(model_path: Path, chat: Any, pairs: list[Any], *, share: bool, cached: bool) -> dict[str, Any]:
    import torch

    from act_assets.profile import Optimisation
    from act_assets.training.adapters import frozen
    from act_assets.training.logprobs import ReferenceScores, dpo_terms, sequence_log_probs, sizes
    from act_assets.training.optimizer import Updater
    from act_assets.training.packing import Batch, rows_of
    from act_assets.training.policy import load_model
    from resources.settings import Compute

    settings = Optimisation(epochs=EPOCHS, learning_rate=1e-4, batch_size=BATCH, warm_up_ratio=0.0)
    updater = Updater(load_model(model_path)[0], settings, Compute(), EPOCHS * PAIRS // BATCH, 0, "bench")
    reference_model = frozen(load_model(model_path)[0], updater.device, mixed_precision=False)
    reference = ReferenceScores(reference_model, chat.pad_id, updater.device, share=share)
    times, losses = [], []

    def update(batch: list[Any]) -> float:
        groups = [pair.rows for pair in batch]
        rows = [rows_of(group, share=share) for group in groups]
        reference(groups)

        def part(chosen: Any) -> Any:
            tensors = Batch.of([row for i in chosen for row in rows[i]], chat.pad_id)
            scores = torch.tensor(reference([groups[i] for i in chosen]))
            return dpo_terms(sequence_log_probs(updater.model, tensors), scores, BETA)[0].sum() / len(batch), {}

        return updater.step(sizes(rows), part).loss

    def train() -> None:
        for _ in range(EPOCHS):
            for start in range(0, PAIRS, BATCH):
                if not cached:
                    reference.known.clear()
                began = time.perf_counter()
                losses.append(update(pairs[start : start + BATCH]))
                times.append(time.perf_counter() - began)

    return measured(train, lambda: (times, losses))


def measured(train: Callable[[], Any], found: Callable[[], tuple[list[float], list[float]]]) -> dict[str, Any]:
    """Milliseconds a pair (median of the updates after the first), memory above what was there before, losses."""
    before, peak, done = resident_mb(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], resident_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train()
    finally:
        done.set()
        watcher.join()
    times, losses = found()
    return {
        "ms_per_pair": 1000 * statistics.median(times[1:]) / BATCH,
        "memory_mb": peak[0] - before,
        "losses": losses,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def resident_mb() -> float:
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def child(variant: str, folder: Path) -> None:
    import torch
    import trl  # noqa: F401  # in all of them, so that memory compares

    torch.manual_seed(0)
    model_path, chat, pairs = prepare(folder)
    if variant == "trl":
        facts = with_trl(model_path, chat, pairs, folder / "trl")
    else:
        facts = with_ours(model_path, chat, pairs, share=variant != "plain", cached=variant == "cached")
    print(json.dumps(facts))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--child")
    arguments.add_argument("--folder", type=Path)
    options = arguments.parse_args()
    if options.child:
        child(options.child, options.folder)
        return
    runs: dict[str, list[dict[str, Any]]] = {v: [] for v in ("trl", "shared", "plain", "cached")}
    with tempfile.TemporaryDirectory(prefix="act-bench-") as folder:
        prepare(Path(folder))
        for number in range(ROUNDS):
            for variant, results in runs.items():
                command = [sys.executable, __file__, "--child", variant, "--folder", folder]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                results.append(json.loads(printed.strip().splitlines()[-1]))
                print(f"round {number + 1}  {variant:<7} {results[-1]['ms_per_pair']:7.2f} ms a pair", flush=True)
    ms = {v: min(r["ms_per_pair"] for r in results) for v, results in runs.items()}
    memory = {v: statistics.median(r["memory_mb"] for r in results) for v, results in runs.items()}
    losses = {v: results[0]["losses"] for v, results in runs.items()}
    figures = {
        "shared_over_trl": ms["shared"] / ms["trl"],
        "plain_over_trl": ms["plain"] / ms["trl"],
        "cached_over_trl": ms["cached"] / ms["trl"],
        "memory_shared_over_trl": memory["shared"] / memory["trl"],
        "memory_plain_over_trl": memory["plain"] / memory["trl"],
        "largest_difference_of_losses": max(
            abs(a - b) for v in ("shared", "plain") for a, b in zip(losses[v], losses["trl"], strict=True)
        ),
        **{f"ms_per_pair_{v}": value for v, value in ms.items()},
        **{f"memory_mb_{v}": value for v, value in memory.items()},
    }
    print(f"\n{PAIRS} pairs, batches of {BATCH}, best of {ROUNDS} rounds; memory: median, above the loaded models\n")
    for v in runs:
        print(f"  {v:<7} {ms[v]:7.2f} ms a pair   {ms[v] / ms['trl']:.2f} x TRL   {memory[v]:7.0f} MB")
    result = {
        name: {"value": round(value, 8), **({"target": " ".join(map(str, TARGETS[name]))} if name in TARGETS else {})}
        for name, value in figures.items()
    }
    for name, (_, bound) in TARGETS.items():
        result[name]["met"] = figures[name] <= bound
    print(json.dumps(result))


if __name__ == "__main__":
    main()
