"""Rollouts of 64 PACIFIC turns with LLM roles that take 300 ms for an answer: ours against one response at a time.

    python bench/rollouts.py                            # about four minutes on two cores

The policy has the laptop profile's size (2,048 tokens, hidden 128, 4 layers, random weights, 48 new tokens); classifier
and user are models on a loopback server, a process of its own. Its classifier calls half of the responses CLARIFY, by
the hash of the question, so that trajectories take 0 to 3 rounds.

Ours: `simulate` with the engine, the roles asked concurrently (64 at a time) through the memo. Then the same group
once more, which finds every answer in the memo. The plain loop works as the published code does: a response at a time
by transformers' generate, each call waited for, and every trajectory simulated twice, for the policy and again for the
reference model. Both sides draw the same noise, so that they say, ask and are told the same; that is checked. Where
the published code is slower still (train mode without a KV cache, no seeds) the plain loop is given the faster way.

Ends with one line of JSON: every figure and its target.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from act_assets.conversation import Conversation, Trajectory, TurnState, Utterance
from act_assets.home import PACKAGE
from act_assets.profile import Profile, load_profile
from act_assets.roles.build import RoleFactory
from act_assets.roles.classifier import Classifier
from act_assets.roles.simulator import Simulator
from act_assets.seeds import derive_seed
from act_assets.tasks import get_task
from act_assets.tasks.base import Task, TaskData
from act_assets.training.base_policy import build_model, train_tokenizer, warm_up_texts
from act_assets.training.chat_template import ChatFormat
from act_assets.training.generation import TransformersEngine
from act_assets.training.noise import gumbel_noise, noise_keys
from act_assets.training.policy import ModelPolicy, PromptEncoder, SamplingSettings
from act_assets.trajectory import dialogue_seeds, simulate
from resources.llm.base import LLMRequest
from resources.llm.memo.memo import close_memos
from resources.llm.service import CallSettings

REPO = Path(__file__).resolve().parent.parent
LATENCY_S = 0.3
CONCURRENCY = 64
CLARIFIES = 0.5
MAX_CLARIFICATIONS = 3
LABEL_ASKED = "Label of the last Assistant utterance:"
TARGETS = {
    "plain_over_ours": (">=", 20.0),
    "trajectories_that_differ": ("<=", 0),
    "calls_of_second_pass": ("<=", 0),
}


# The server


def answer(messages: Sequence[tuple[str, str]]) -> str:
    """A label where one is asked for, else what the user says."""
    number = int.from_bytes(hashlib.sha256(json.dumps(messages).encode()).digest()[:4], "big") / 2**32
    if messages[-1][1].rstrip().endswith(LABEL_ASKED):
        return "CLARIFY" if number < CLARIFIES else "ANSWER"
    return f"I mean {2010 + int(number * 10)}."


def serve() -> None:
    """Answers on a free port, which it prints, until standard input closes."""
    spec = importlib.util.spec_from_file_location("loopback", REPO / "tests" / "loopback.py")
    assert spec is not None
    assert spec.loader is not None
    loopback = importlib.util.module_from_spec(spec)
    sys.modules["loopback"] = loopback
    spec.loader.exec_module(loopback)

    def plan(number: int, request: Any) -> Any:
        text = answer(request.messages)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": request.model, "usage": usage}
        return loopback.Behaviour("raw", latency_s=LATENCY_S, body=json.dumps({**body, "choices": [choice]}).encode())

    async def run() -> None:
        loop, closed = asyncio.get_running_loop(), asyncio.Event()
        server = loopback.Loopback(plan)
        listening = await server.serve()
        print(server.port, flush=True)

        def watch() -> None:
            sys.stdin.buffer.read()
            loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=watch, daemon=True).start()
        await closed.wait()
        await server.close(listening)

    asyncio.run(run())


@contextmanager
def server() -> Iterator[str]:
    """The server in a process of its own, ended with the block."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)


def calls_to(url: str) -> int:
    with urllib.request.urlopen(f"{url}/stats") as reply:
        return int(json.load(reply)["requests"])


# What both sides work on


@dataclass(frozen=True)
class Work:
    task: Task
    turns: list[TurnState]
    intents: list[str]
    seeds: list[int]
    model: Any
    chat: ChatFormat
    profile: Profile
    pool: Sequence[Conversation]

    def prompts(self) -> PromptEncoder:
        return PromptEncoder(self.task, self.chat, self.profile.policy.max_prompt_tokens)

    def roles(self, url: str, memo: Path) -> tuple[Classifier, Simulator]:
        """A and U as models of the server, with a memo of their own."""
        role = {"provider": "openai", "model": "m", "base_url": f"{url}/v1", "max_concurrency": CONCURRENCY}
        raw = self.profile.model_dump(mode="json", exclude_unset=True)
        raw["roles"] |= {"simulator": role, "classifier": {"source": "llm", "llm": role}}
        cast = RoleFactory(Profile.model_validate(raw), self.task, PACKAGE / "prompts", 0, CallSettings(memo))
        return cast.classifier(self.pool), cast.simulator()


def prepare(number: int) -> Work:
    task, profile = get_task("pacific"), load_profile("laptop")
    data: TaskData = task.reader.read(REPO / "datasets" / "sample" / "pacific")
    turns = [t for c in data.train for t in task.turn_states(c)][:number]
    texts = [m.content for group in warm_up_texts(task, data.train) for m in group]
    assert profile.policy.scratch is not None
    chat = ChatFormat(train_tokenizer(texts, profile.policy.scratch.vocab_size))
    model = build_model(profile.policy.scratch, len(chat.tokenizer), profile.policy.max_length, chat, seed=0).eval()
    intents = [f"The user wants to know: 1. {t.clear_request}" for t in turns]
    return Work(task, turns, intents, dialogue_seeds(0, turns, "rollout"), model, chat, profile, data.train)


# Ours


@dataclass
class Timed:
    """A part of the work, and the seconds spent in it."""

    inner: Any
    seconds: float = 0.0

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in ("sample", "classify", "reply"):
            return method

        def timed(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            try:
                return method(*args, **options)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


@dataclass(frozen=True)
class Run:
    trajectories: list[Trajectory]
    seconds: float
    shares: dict[str, float] = field(default_factory=dict)  # seconds by part


def ours(work: Work, url: str, memo: Path) -> Run:
    """All turns as one group."""
    policy = work.profile.policy
    began = time.perf_counter()
    classifier, simulator = (Timed(role) for role in work.roles(url, memo))
    engine = Timed(
        TransformersEngine(work.model, work.chat.end_id, work.chat.pad_id, batch_size=work.profile.rollout_batch_size)
    )
    settings = SamplingSettings(policy.max_length, policy.max_new_tokens, 1.0)
    trajectories = simulate(
        work.turns,
        work.seeds,
        ModelPolicy(engine, work.chat, work.prompts(), settings),
        classifier,
        simulator,
        work.intents,
        work.task,
        MAX_CLARIFICATIONS,
    )
    seconds = time.perf_counter() - began
    shares = {"generate": engine.seconds, "classify": classifier.seconds, "simulate": simulator.seconds}
    return Run(trajectories, seconds, shares)


# The plain loop


@dataclass
class Plain:
    """One response at a time, each call waited for; nothing is kept."""

    work: Work
    client: Any
    classifier: Classifier  # they only write the prompts here
    simulator: Simulator
    generating_s: float = 0.0
    calling_s: float = 0.0

    def call(self, request: LLMRequest) -> str:
        began = time.perf_counter()
        messages = [{"role": m.role, "content": m.content} for m in request.messages]
        completion = self.client.chat.completions.create(model="m", messages=messages)
        self.calling_s += time.perf_counter() - began
        return str(completion.choices[0].message.content)

    def respond(self, ids: list[int], seed: int) -> list[int]:
        import torch
        from transformers import LogitsProcessorList

        began = time.perf_counter()
        keys = noise_keys([seed])

        class Noise:  # the same sample as ours; cheaper than do_sample's own
            def __call__(self, input_ids: Any, scores: Any) -> Any:
                return scores + gumbel_noise(keys, input_ids.shape[1] - len(ids), scores.shape[-1])

        output = self.work.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
            max_new_tokens=self.work.profile.policy.max_new_tokens,
            do_sample=False,
            eos_token_id=self.work.chat.end_id,
            pad_token_id=self.work.chat.pad_id,
            logits_processor=LogitsProcessorList([Noise()]),
        )
        self.generating_s += time.perf_counter() - began
        return list(output[0, len(ids) :].tolist())

    def trajectory(self, i: int, prompts: ModelPolicy) -> Trajectory:
        turn = self.work.turns[i]
        utterances: tuple[Utterance, ...] = ()
        for step in range(MAX_CLARIFICATIONS + 1):
            ids = self.respond(prompts.dialogue_ids(turn, utterances), derive_seed(self.work.seeds[i], step))
            text = self.work.chat.text(ids)
            action = self.call(self.classifier.requests([turn], [text])[0])
            truncated = ids[-1] != self.work.chat.end_id
            utterances = (*utterances, Utterance("assistant", text, action, tuple(ids), truncated))
            if self.work.task.action(action).ends_trajectory:
                return Trajectory(turn.turn_id, utterances, "settled")
            if step < MAX_CLARIFICATIONS:
                reply = self.call(self.simulator.requests([turn], [self.work.intents[i]], [utterances])[0])
                utterances = (*utterances, Utterance("user", reply, ""))
        return Trajectory(turn.turn_id, utterances, "max_clarifications")


def plain(work: Work, url: str, memo: Path) -> Run:
    """Every trajectory twice, as the trainer's override runs for the policy and for the reference model."""
    from openai import OpenAI

    began = time.perf_counter()
    settings = SamplingSettings(work.profile.policy.max_length, work.profile.policy.max_new_tokens, 1.0)
    no_engine: Any = None
    prompts = ModelPolicy(no_engine, work.chat, work.prompts(), settings)
    with OpenAI(api_key="none", base_url=f"{url}/v1") as client:
        loop = Plain(work, client, *work.roles(url, memo))
        found: list[Trajectory] = []
        for i in range(len(work.turns)):
            found.append(loop.trajectory(i, prompts))
            loop.trajectory(i, prompts)  # of the reference model, which is the policy before the first update
    seconds = time.perf_counter() - began
    return Run(found, seconds, {"generate": loop.generating_s, "calls": loop.calling_s})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=64)
    parser.add_argument("--serve", action="store_true", help="be the server; the benchmark starts it itself")
    chosen = parser.parse_args()
    if chosen.serve:
        return serve()
    import openai  # noqa: F401  (libraries are imported before any clock starts)
    import torch

    work = prepare(chosen.turns)
    warm = TransformersEngine(work.model, work.chat.end_id, work.chat.pad_id, batch_size=8)
    warm.sample([[5, 6, 7]] * 8, range(8), max_new_tokens=4, temperature=1.0)
    with server() as url, tempfile.TemporaryDirectory(prefix="bench-rollouts-") as folder:
        first = ours(work, url, Path(folder) / "memo")
        calls = calls_to(url)
        second = ours(work, url, Path(folder) / "memo")
        again = calls_to(url) - calls
        print(
            f"{chosen.turns} turns, roles of {LATENCY_S} s, {CONCURRENCY} at a time, {torch.get_num_threads()} threads"
        )
        print(f"  ours: {first.seconds:.2f} s, {calls} calls; {parts(first)}")
        print(f"  ours once more, from the memo: {second.seconds:.2f} s, {again} calls; {parts(second)}", flush=True)
        loop = plain(work, url, Path(folder) / "plain")
        plain_calls = calls_to(url) - calls - again
        close_memos()
    print(f"  plain loop: {loop.seconds:.1f} s, {plain_calls} calls; {parts(loop)}")
    print(f"  the plain loop takes {loop.seconds / first.seconds:.1f} x as long")
    differ = sum(
        a != b or a != c for a, b, c in zip(first.trajectories, second.trajectories, loop.trajectories, strict=True)
    )
    rounds = Counter(sum(u.speaker == "user" for u in t.utterances) for t in first.trajectories)
    figures: dict[str, Any] = {
        "turns": chosen.turns,
        "max_concurrency": CONCURRENCY,
        "latency_s": LATENCY_S,
        "trajectories_by_rounds": {str(n): rounds[n] for n in sorted(rounds)},
        "ours_s": round(first.seconds, 2),
        "ours_parts_s": rounded(first),
        "ours_calls": calls,
        "second_pass_s": round(second.seconds, 2),
        "second_pass_parts_s": rounded(second),
        "calls_of_second_pass": again,
        "plain_s": round(loop.seconds, 1),
        "plain_parts_s": rounded(loop),
        "plain_calls": plain_calls,
        "plain_over_ours": round(loop.seconds / first.seconds, 1),
        "trajectories_that_differ": differ,
    }
    verdicts = {}
    for name, (sign, target) in TARGETS.items():
        met = figures[name] <= target if sign == "<=" else figures[name] >= target
        verdicts[name] = {"figure": figures[name], "target": f"{sign} {target:g}", "met": met}
    print(json.dumps({"bench": "rollouts", "targets": verdicts, "figures": figures}))


def parts(run: Run) -> str:
    return ", ".join(f"{name} {seconds:.2f} s" for name, seconds in run.shares.items())


def rounded(run: Run) -> dict[str, float]:
    return {name: round(seconds, 2) for name, seconds in run.shares.items()}


if __name__ == "__main__":
    main()
