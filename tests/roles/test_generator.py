"""The generator M: its prompt, its cleaning, and the embedded rules over every turn of the sample."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, ContextBlock, Message, Reference, TurnState
from act_assets.roles.base import GeneratorContext, RoleSettings
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.tasks.pacific import PACIFIC
from act_assets.tasks.pacific_answer import SCALE_NOTES, parse
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError
from resources.llm.client import LLM

SAMPLE = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific")
TURNS = [t for c in (*SAMPLE.train, *SAMPLE.validation) for t in PACIFIC.reader.turn_states(c)]
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


def generate(turns, actions, seed=0) -> list[str]:
    results = generator().generate(turns, actions, [seed] * len(turns))
    assert all(isinstance(r, str) for r in results)
    return results


@pytest.fixture(scope="module")
def losing() -> list[str]:
    """A response to every turn under the action that it does not take (Algorithm 1)."""
    return generate(TURNS, [other_action(t) for t in TURNS])


@pytest.fixture(scope="module")
def questions() -> list[str]:
    return generate(TURNS, [CLARIFY.name] * len(TURNS))


@pytest.fixture(scope="module")
def answers() -> list[str]:
    return generate(TURNS, [ANSWER.name] * len(TURNS))


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
    turn = PACIFIC.reader.turn_states(SAMPLE.train[0])[0]
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


# The embedded rules.


def test_every_losing_response_takes_its_action_and_is_not_gold(losing):
    assert len(losing) == 1982
    for turn, text in zip(TURNS, losing, strict=True):
        assert PACIFIC.judge.rule_action(text) == other_action(turn), turn.where
        assert text not in (turn.response.text, turn.goal.text), turn.where


def test_the_right_action_gives_no_reference_either(questions, answers):
    for turn, question, answer in zip(TURNS, questions, answers, strict=True):
        assert "?" in question and "?" not in answer
        assert turn.response.text not in (question, answer) and turn.goal.text != answer, turn.where


@pytest.mark.parametrize("seed", [1, 2])
def test_that_holds_for_other_seeds(seed):
    for turn, text in zip(TURNS[::5], generate(TURNS[::5], [other_action(t) for t in TURNS[::5]], seed), strict=True):
        assert PACIFIC.judge.rule_action(text) == other_action(turn)
        assert text not in (turn.response.text, turn.goal.text)


def test_the_same_request_gives_the_same_text_and_seeds_vary_it(losing):
    actions = [other_action(t) for t in TURNS]
    assert generate(TURNS, actions) == losing
    assert sum(a != b for a, b in zip(generate(TURNS, actions, 1), losing, strict=True)) > 600


def test_references_are_read_only_to_avoid_them(losing):
    """With other references the text is the same, unless it would repeat the real ones."""
    blank = Reference("«gold»", '"«gold»"', "", "span")
    turns = [replace(t, response=blank, goal=blank) for t in TURNS]
    blind = generate(turns, [other_action(t) for t in TURNS])
    changed = 0
    for turn, text, seeing in zip(TURNS, blind, losing, strict=True):
        if text != seeing:
            changed += 1
            assert parse(text).answer in (parse(turn.response.text).answer, parse(turn.goal.text).answer)
    assert 0 < changed < 200


def test_questions_have_the_form_and_the_mix_of_the_annotated_ones(questions):
    gold = [t.response.text for t in TURNS if t.action == CLARIFY.name]
    made = [q for t, q in zip(TURNS, questions, strict=True) if t.action == ANSWER.name]
    form = re.compile(r"[A-Z0-9].* are you asking about\?")
    assert all(form.fullmatch(q) for q in gold)
    assert all(form.fullmatch(q) and "  " not in q for q in made)

    def share(texts, start):
        return sum(t.startswith(start) for t in texts) / len(texts)

    for start in ("What kind of", "Which year", "Which period"):
        assert abs(share(made, start) - share(gold, start)) < 0.15, start
    assert len(set(made)) > 400
    words = [sum(len(t.split()) for t in texts) / len(texts) for texts in (made, gold)]
    assert abs(words[0] - words[1]) < 1


def test_answers_have_the_form_of_the_annotated_ones(answers):
    notes = tuple(note for note in SCALE_NOTES.values() if note)
    made = [a for t, a in zip(TURNS, answers, strict=True) if t.action == CLARIFY.name]
    gold = [t.goal.text for t in TURNS if t.action == CLARIFY.name]
    for texts in (made, gold):
        assert 0.3 < sum(" = " in a for a in texts) / len(texts) < 0.55
        assert 0.04 < sum(" | " in a for a in texts) / len(texts) < 0.2
        assert 0.55 < sum(a.endswith(notes) for a in texts) / len(texts) < 0.85


def test_arithmetic_is_right(answers):
    checked = 0
    for text in answers:
        if " = " not in text:
            continue
        parsed = parse(text)
        assert isinstance(parsed.answer, int | float), text
        left = text.split(" = ")[0].replace(",", "")
        assert re.fullmatch(r"[\d.()+\-/ ]+", left), text
        value = eval(left)  # digits and operators only
        # A share is given in percent; a difference or an average of percentages is in percent already.
        is_share = "/" in left and not re.search(r"\+.*\) ?/ ?2$", left)
        shown = value * 100 if is_share and parsed.scale == "percent" else value
        assert abs(parsed.answer - shown) <= 0.005 + 1e-9, text
        checked += 1
    assert checked > 300


def test_figures_come_from_the_page(answers):
    for turn, text in zip(TURNS, answers, strict=True):
        page = " ".join(" ".join(b.text.split()) for b in turn.context)
        written = text.split(" = ")[0] if " = " in text else text
        assert [n for n in re.findall(r"\d[\d,.]*\d", written) if n not in page] == [], (turn.where, text)


def test_a_page_without_a_table_still_gets_both_actions():
    turn = replace(
        TURNS[0],
        context=(ContextBlock("story", "The fox left the den before dawn and came back wet."),),
        history=(Message("user", "When did it leave?"),),
        open_request=0,
    )
    question, answer = generate([turn, turn], [CLARIFY.name, ANSWER.name])
    assert question.endswith("are you asking about?")
    assert answer and "?" not in answer


def test_codes_in_a_table_are_no_figures():
    rows = (f"Change in code : {'9' * 40} | 12 | 9", "Cost : 0.00001 | 0 | 3")
    turn = replace(
        TURNS[0],
        context=tuple(ContextBlock("table", row) for row in rows),
        history=(Message("user", "What was the percentage change in code?"),),
        open_request=0,
    )
    (answer,) = generate([turn], [ANSWER.name])
    assert answer in ("(12-9)/9 = 33.33 (in percent)", "(12 - 9) / 9 = 33.33 (in percent)")


def test_an_action_without_a_rule_fails():
    task = replace(PACIFIC, actions=(*PACIFIC.actions, replace(ANSWER, name="REFUSE")))
    (result,) = Generator(LLM(EmbeddedProvider()), SETTINGS, task, ()).generate(TURNS[:1], ["REFUSE"], [0])
    assert isinstance(result, LLMFailure) and "REFUSE" in result.message
