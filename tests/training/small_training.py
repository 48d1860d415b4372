"""A small SFT or ACT on real PACIFIC turns, in this process or in one that kills itself after some updates.

python tests/training/small_training.py JOB.json          # as a launcher starts it: {"variants": ..., "compute": ...}
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from act_assets.profile import LLMRole, Lora, Profile, load_profile
from resources.settings import Compute

TESTS = Path(__file__).resolve().parent.parent
SAMPLE = TESTS.parent / "datasets" / "sample" / "pacific"


@dataclass(frozen=True)
class Variant:
    stage: str
    act: dict[str, Any]
    lora: bool = False
    mixed_precision: bool = False
    compute: Compute = field(default_factory=lambda: Compute(save_every_steps=2))


VARIANTS = {
    "sft": Variant("sft", {}),
    "sft-lora": Variant("sft", {}, lora=True),
    "act": Variant("act", {}),
    "act-ahead": Variant("act", {"rollout_group": 24, "rollout_lag": 1}),
    "act-lora": Variant("act", {}, lora=True),
    "act-bf16": Variant("act", {}, mixed_precision=True),
    "act-bf16-lora": Variant("act", {}, lora=True, mixed_precision=True),
}


def profile_of(variant: Variant) -> Profile:
    tiny = load_profile(str(TESTS / "tiny.yaml"))
    policy = tiny.policy.model_copy(update={"lora": Lora(r=4, alpha=8, sft=True)}) if variant.lora else tiny.policy
    policy = policy.model_copy(update={"mixed_precision": variant.mixed_precision})
    sft = tiny.sft.model_copy(update={"epochs": 2, "batch_size": 8, "further_learning_rates": (1e-3,)})
    act = tiny.act.model_copy(update={"epochs": 2, "batch_size": 8, **variant.act})
    return tiny.model_copy(update={"policy": policy, "sft": sft, "act": act, "compute": variant.compute})


def write_base(folder: Path) -> None:
    """The model that training starts from, in `folder/base`."""
    from act_assets.tasks import get_task
    from act_assets.training.base_policy import build_model, train_tokenizer, warm_up_texts
    from act_assets.training.chat_template import ChatFormat
    from act_assets.training.policy import save_model

    if (folder / "base").exists():
        return
    task, tiny = get_task("pacific"), load_profile(str(TESTS / "tiny.yaml"))
    assert tiny.policy.scratch is not None
    texts = [m.content for group in warm_up_texts(task, task.reader.read(SAMPLE).train[:60]) for m in group]
    chat = ChatFormat(train_tokenizer(texts, 1024))
    save_model(
        build_model(tiny.policy.scratch, len(chat.tokenizer), 1280, chat, seed=1), chat.tokenizer, folder / "base"
    )


def train(variant: Variant, folder: Path) -> tuple[dict[str, Any], list[Any]]:
    """Trains into `folder/out`, resuming from `folder/work`; gives facts and points."""
    from act_assets.preference import build_pairs
    from act_assets.roles import EmbeddedProvider, Generator, RuleClassifier, Simulator
    from act_assets.tasks import get_task
    from act_assets.training.act_trainer import train_act
    from act_assets.training.sft import train_sft
    from resources.llm.client import LLM

    task = get_task("pacific")
    data = task.reader.read(SAMPLE)
    profile = profile_of(variant)
    write_base(folder)
    out = folder / "out"
    out.mkdir(exist_ok=True)
    turns = [t for c in data.train[:8] for t in task.turn_states(c)][:40]
    if variant.stage == "sft":
        return train_sft(task, turns, turns[:8], (str(folder / "base"), None), profile, 3, out, folder / "work")
    embedded = LLMRole(provider="embedded", model="embedded-rules-1")
    pairs = build_pairs(task, turns, Generator(LLM(EmbeddedProvider()), embedded, task, ()), 0)[0]
    by_id = {t.turn_id: t for t in turns}
    return train_act(
        task,
        by_id,
        pairs,
        by_id,
        pairs[:8],
        {t.intent_id: t.clear_request for t in turns},
        RuleClassifier(task),
        Simulator(LLM(EmbeddedProvider()), embedded, task),
        folder / "base",
        profile,
        3,
        out,
        folder / "work",
    )


def train_until_killed(variant: str, folder: Path, updates: int) -> None:
    """This process ends itself, as kill -9 does, in the middle of update number `updates` + 1 of those made here."""
    from act_assets.training.optimizer import Updater

    step, made = Updater.step, [0]

    def dying(self: Any, *arguments: Any) -> Any:
        if made[0] == updates:
            os.kill(os.getpid(), signal.SIGKILL)
        made[0] += 1
        return step(self, *arguments)

    Updater.step = dying  # type: ignore[method-assign]
    train(VARIANTS[variant], folder)


def launched(job: Path) -> None:
    """One process of a launch: trains each variant; the first leaves the losses, and where processes listen."""
    import deepspeed
    import psutil

    from resources.compute import end_with_launcher, join_processes

    end_with_launcher()
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled for a minute
    join_processes()
    wanted = json.loads(job.read_text())
    compute = Compute.model_validate(wanted["compute"])
    for variant in wanted["variants"]:
        folder = job.parent / variant
        _, points = train(replace(VARIANTS[variant], compute=compute), folder)
        if os.environ["RANK"] == "0":
            (folder / "points.json").write_text(json.dumps([asdict(p) for p in points]))
    if os.environ["RANK"] == "0":
        family = [psutil.Process(), psutil.Process().parent()]
        listening = [c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        job.with_name("listening.json").write_text(json.dumps(listening))


if __name__ == "__main__":
    launched(Path(sys.argv[1]))
