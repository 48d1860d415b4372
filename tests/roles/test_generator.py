"""The generator M: its prompt, its cleaning, and the embedded rules over every turn of the sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, Message, Reference, TurnState
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.role import GeneratorContext, RoleSettings
from act_assets.tasks.pacific.task import PACIFIC
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
TURNS = [t for c in (*SAMPLE.train, *SAMPLE.validation) for t in PACIFIC.turn_states(c)]
SETTINGS = RoleSettings("embedded", MODEL, 0.7, 96, 7)


class Script:
    """Answers by what `reply` makes of a request; notes every request."""

    name = "script"

    def __init__(self, reply) -> None:
        self.reply, self.requests = reply, []

    async def complete(self, request: LLMRequest) -> LLMResponse:
        self.requests.append(request)
        return LLMResponse(self.reply(request), "m")


def generator(provider=None, examples=(), settings=SETTINGS) -> Generator:
    return Generator(LLM(provider or EmbeddedProvider()), settings, PACIFIC, examples)


def other_action(turn: TurnState) -> str:
    return ANSWER.name if turn.action == CLARIFY.name else CLARIFY.name


# The prompt.


def marked(turn: TurnState) -> tuple[TurnState, list[str]]:
    """The turn with every block and utterance replaced by a mark of its own, and those marks."""
    context = tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(turn.context))
    history = tuple(Message(m.role, f"«utterance {i}»") for i, m in enumerate(turn.history))
    marks = [*(b.text for b in context), *(m.content for m in history)]
    gold = Reference("«gold»", '"«gold»"', "", "span")
    changed = replace(
        turn,
        context=context,
        history=history,
        response=gold,
        goal=gold,
        clear_request="«gold»",
        gold_replies=("«gold»",),
    )
    return changed, marks


def text_of(request: LLMRequest) -> str:
    return "\n".join(m.content for m in request.messages)


def test_prompts_hold_grounding_and_history_once_and_no_gold():
    turns = [marked(t) for t in TURNS]
    requests = generator(examples=SAMPLE.train[:1]).requests(
        [t for t, _ in turns], [other_action(t) for t in TURNS], [0] * len(turns)
    )
    for request, (_, marks) in zip(requests, turns, strict=True):
        text = text_of(request)
        assert [m for m in marks if text.count(m) != 1] == []
        assert "«gold»" not in text


def test_prompt_ends_with_the_announcement_of_the_wanted_action():
    turn = next(t for t in TURNS if t.position >= 2)
    for action in PACIFIC.actions:
        (request,) = generator().requests([turn], [action.name], [0])
        *_, user, announcement, cue = request.messages[-1].content.splitlines()
        assert user == f"User: {turn.request}"
        assert action.description in announcement
        assert cue == "Assistant:"


def test_every_assistant_utterance_is_announced():
    examples, turn = SAMPLE.train[:3], TURNS[-1]
    (request,) = generator(examples=examples).requests([turn], [CLARIFY.name], [0])
    lines = request.messages[-1].content.splitlines()
    spoken = [i for i, line in enumerate(lines) if line.startswith("Assistant:")]
    gold = [(t.response.text, t.action) for c in examples for t in c.turns]
    gold += [(m.content, PACIFIC.judge.rule_action(m.content)) for m in turn.history if m.role == "assistant"]
    assert len(spoken) == len(gold) + 1
    for i, (text, action) in zip(spoken, gold, strict=False):
        assert lines[i] == f"Assistant: {' '.join(text.split())}"
        assert PACIFIC.action(action).description in lines[i - 1]
    assert CLARIFY.description in lines[spoken[-1] - 1]


def test_a_turn_never_sees_its_own_conversation_as_an_example():
    turn = PACIFIC.turn_states(SAMPLE.train[0])[0]
    own, other = SAMPLE.train[0].turns[-1], SAMPLE.train[1].turns[-1]
    (request,) = generator(examples=SAMPLE.train[:2]).requests([turn], [ANSWER.name], [0])
    assert own.response.text not in text_of(request)
    assert other.response.text in text_of(request)


def test_settings_seeds_and_context_travel():
    turns = TURNS[:2]
    requests = generator().requests(turns, [CLARIFY.name, ANSWER.name], [11, 12])
    for request, turn, action, seed in zip(requests, turns, ["CLARIFY", "ANSWER"], [11, 12], strict=True):
        assert (request.role, request.model, request.label) == ("generator", MODEL, turn.where)
        assert request.context == GeneratorContext(turn, action, seed)
        sampling = request.sampling
        assert (sampling.temperature, sampling.max_output_tokens, sampling.seed) == (0.7, 96, seed)
        assert sampling.stop == ("\nUser:",)
        assert request.sample_index == 0


def test_without_a_seed_draws_differ_by_sample_index():
    one, two = generator(settings=replace(SETTINGS, seed=None)).requests([TURNS[0]] * 2, [CLARIFY.name] * 2, [3, 4])
    assert one.sampling.seed is None and two.sampling.seed is None
    assert (one.sample_index, two.sample_index) == (3, 4)


def test_greedy_decoding_sends_neither_seed_nor_sample_index():
    for seed in (7, None):
        settings = replace(SETTINGS, temperature=0.0, seed=seed)
        requests = generator(settings=settings).requests([TURNS[0]] * 2, [CLARIFY.name] * 2, [3, 4])
        assert {(r.sampling.seed, r.sample_index) for r in requests} == {(None, 0)}


# Results.


def test_texts_are_cleaned_but_not_cut_at_a_question_mark():
    texts = iter(["  Assistant: Which year? Or which quarter?\nUser: 2019", "(9.8) (in millions)\n", "User: 2019"])
    provider = Script(lambda _: next(texts))
    llm = LLM(provider, max_concurrency=1)
    results = Generator(llm, SETTINGS, PACIFIC, ()).generate(TURNS[:3], [CLARIFY.name] * 3, [0] * 3)
    assert results[:2] == ["Which year? Or which quarter?", "(9.8) (in millions)"]
    assert isinstance(results[2], LLMFailure)
    assert (results[2].kind, results[2].label) == ("rejected", TURNS[2].where)


def test_failures_keep_their_place_and_usage_counts_them():
    bad = {TURNS[1].where, TURNS[4].where}

    def reply(request):
        if request.label in bad:
            raise ProviderError("blocked", "content filter", retryable=False)
        return f"answer to {request.label}"

    m, done = generator(Script(reply)), []
    results = m.generate(TURNS[:6], [ANSWER.name] * 6, range(6), lambda: done.append(1))
    for turn, result in zip(TURNS[:6], results, strict=True):
        if turn.where in bad:
            assert result == LLMFailure("blocked", "content filter", False, turn.where)
        else:
            assert result == f"answer to {turn.where}"
    assert (m.usage.calls, m.usage.failures, len(done)) == (6, 2, 6)


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        generator().generate(TURNS[:2], [CLARIFY.name], [0, 0])
