"""The embedded provider as a provider: what it refuses, counts and repeats."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.role import AnnotatorContext, RoleSettings
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, ProviderError, Sampling
from resources.llm.client import LLM

REPO = Path(__file__).parents[2]
SAMPLE = PACIFIC.reader.read(REPO / "datasets" / "sample" / "pacific")
TURN = PACIFIC.turn_states(SAMPLE.train[0])[1]


def request(context: object, model: str = MODEL) -> LLMRequest:
    messages = (ChatMessage("system", "one two"), ChatMessage("user", " three\nfour  five "))
    return LLMRequest("annotator", model, messages, Sampling(), "a label", context=context)


def test_it_names_itself_and_counts_words():
    assert EmbeddedProvider.name == "embedded"
    response = asyncio.run(EmbeddedProvider().complete(request(AnnotatorContext(TURN))))
    assert response.text == "CLARIFY"
    assert (response.model, response.finish_reason) == ("embedded-rules-1", "stop")
    assert (response.prompt_tokens, response.output_tokens) == (5, 1)


@pytest.mark.parametrize("context", [None, "a text", TURN])
def test_a_request_without_a_role_context_is_rejected(context):
    with pytest.raises(ProviderError) as error:
        asyncio.run(EmbeddedProvider().complete(request(context)))
    assert (error.value.kind, error.value.retryable) == ("rejected", False)
    assert type(context).__name__ in str(error.value)


def test_another_model_is_rejected_by_name():
    (result,) = LLM(EmbeddedProvider()).complete_all([request(AnnotatorContext(TURN), "gemini-1.5-pro")])
    assert isinstance(result, LLMFailure)
    assert (result.kind, result.label) == ("rejected", "a label")
    assert MODEL in result.message and "gemini-1.5-pro" in result.message


def test_an_action_without_a_rule_fails():
    task = replace(PACIFIC, actions=(*PACIFIC.actions, replace(ANSWER, name="REFUSE")))
    settings = RoleSettings("embedded", MODEL, 0.7, 96, 7)
    (result,) = Generator(LLM(EmbeddedProvider()), settings, task, ()).generate([TURN], ["REFUSE"], [0])
    assert isinstance(result, LLMFailure) and "REFUSE" in result.message


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from act_assets.conversation import Utterance
from act_assets.roles import EmbeddedProvider, Generator, IntentSummarizer, RoleSettings, Simulator
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.client import LLM

conversations = PACIFIC.reader.read(Path("datasets/sample/pacific")).validation
turns = [t for c in conversations for t in PACIFIC.turn_states(c)]
settings = RoleSettings("embedded", "embedded-rules-1", 0.0, 64, 0)
llm = LLM(EmbeddedProvider(), max_concurrency=int(sys.argv[1]))
generator = Generator(llm, settings, PACIFIC, ())
texts = generator.generate(turns, ["CLARIFY"] * len(turns), range(len(turns)))
texts += generator.generate(turns, ["ANSWER"] * len(turns), range(len(turns)))
intents = dict(zip((c.conversation_id for c in conversations),
                   IntentSummarizer(llm, settings, PACIFIC).summarize(conversations), strict=True))
asked = [(Utterance("assistant", "Which year?", "CLARIFY"),)] * len(turns)
texts += Simulator(llm, settings, PACIFIC).reply(turns, [intents[t.conversation_id] for t in turns], asked)
print(hashlib.sha256(json.dumps(texts).encode()).hexdigest())
"""


def test_the_hash_seed_and_the_order_of_calls_change_nothing():
    digests = set()
    for hash_seed, concurrency in (("1", "1"), ("2", "32")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPO)}
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, concurrency],
            cwd=REPO,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        digests.add(run.stdout)
    assert len(digests) == 1
    assert digests != {hashlib.sha256(json.dumps([]).encode()).hexdigest() + "\n"}
