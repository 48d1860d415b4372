"""The embedded provider as a provider: what it refuses, counts and repeats."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, TurnState
from act_assets.profile import LLMRole
from act_assets.roles import EmbeddedProvider, Generator
from act_assets.roles.embedded import MODEL
from act_assets.roles.role import AnnotatorContext
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.client import LLM

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2]


def answer(context: object, model: str = MODEL) -> LLMResponse:
    messages = (ChatMessage("system", "one two"), ChatMessage("user", " three\nfour  five "))
    request = LLMRequest("annotator", model, messages, Sampling(), "a label", context=context)
    return asyncio.run(EmbeddedProvider().complete(request))


def test_it_answers_by_rule_and_counts_words(every_turn: list[TurnState]) -> None:
    turn = next(t for t in every_turn if t.action == "CLARIFY")
    assert answer(AnnotatorContext(turn)) == LLMResponse("CLARIFY", "embedded-rules-1", "stop", 5, 1)


@pytest.mark.parametrize("model", [MODEL, "gemini-1.5-pro"])
@pytest.mark.parametrize("context", [None, "a text"])
def test_a_request_without_a_role_context_or_of_another_model_is_rejected(context: object, model: str) -> None:
    with pytest.raises(ProviderError) as error:
        answer(context, model)
    assert (error.value.kind, error.value.retryable) == ("rejected", False)
    assert (type(context).__name__ if model == MODEL else model) in str(error.value)


def test_an_action_without_a_rule_fails(every_turn: list[TurnState]) -> None:
    task = replace(PACIFIC, actions=(*PACIFIC.actions, replace(ANSWER, name="REFUSE")))
    generator = Generator(LLM(EmbeddedProvider()), LLMRole(provider="embedded", model=MODEL), task)
    (result,) = generator.generate(every_turn[:1], ["REFUSE"], [0])
    assert isinstance(result, LLMFailure)
    assert (result.kind, "REFUSE" in result.message) == ("rejected", True)


SCRIPT = """
import hashlib, json, sys
from pathlib import Path
from act_assets.conversation import Utterance
from act_assets.profile import LLMRole
from act_assets.roles import EmbeddedProvider, Generator, IntentSummarizer, Simulator
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.client import LLM

conversations = PACIFIC.reader.read(Path("datasets/sample/pacific")).validation
turns = [t for c in conversations for t in PACIFIC.turn_states(c)]
llm = LLM(EmbeddedProvider(), max_concurrency=int(sys.argv[1]))
role = llm, LLMRole(provider="embedded", model="embedded-rules-1"), PACIFIC
texts = [Generator(*role).generate(turns, [a] * len(turns), range(len(turns))) for a in ("CLARIFY", "ANSWER")]
summaries = IntentSummarizer(*role).summarize(conversations)
intents = dict(zip((c.conversation_id for c in conversations), summaries, strict=True))
asked = [(Utterance("assistant", "Which year?", "CLARIFY"),)] * len(turns)
texts.append(Simulator(*role).reply(turns, [intents[t.conversation_id] for t in turns], asked))
print(len(turns), hashlib.sha256(json.dumps(texts).encode()).hexdigest())
"""


def test_the_hash_seed_and_the_order_of_calls_change_nothing() -> None:
    said = []
    for hash_seed, concurrency in (("1", "1"), ("2", "32")):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(REPO)}
        command = [sys.executable, "-c", SCRIPT, concurrency]
        said.append(
            subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=True).stdout
        )
    assert said[0] == said[1]
    assert int(said[0].split()[0]) > 0
