"""The roles M, G, A, U and the intent summariser: what their prompts hold, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from act_assets.conversation import (
    ANSWER,
    CLARIFY,
    ContextBlock,
    Conversation,
    Message,
    Reference,
    TurnState,
    Utterance,
)
from act_assets.profile import LLMRole
from act_assets.roles import (
    Annotator,
    Classifier,
    EmbeddedProvider,
    Generator,
    GoldAnnotator,
    GoldUser,
    IntentSummarizer,
    RuleAnnotator,
    RuleClassifier,
    Simulator,
)
from act_assets.roles.role import (
    AnnotatorContext,
    ClassifierContext,
    GeneratorContext,
    IntentContext,
    Role,
    SimulatorContext,
)
from act_assets.tasks.base import TaskData
from act_assets.tasks.pacific.task import PACIFIC
from act_assets.tasks.rules import intent_items
from resources.llm.base import LLMFailure, LLMRequest, LLMResponse, ProviderError, Usage
from resources.llm.client import LLM

pytestmark = pytest.mark.integration

EMBEDDED = LLMRole(provider="embedded", model="embedded-rules-1")
GOLD = Reference("«gold»", '"«gold»"', "", "span")
ASKED = (Utterance("assistant", "Which one?", "CLARIFY"),)
TALK = (
    Utterance("assistant", "«question 1»", "CLARIFY"),
    Utterance("user", "«reply»", ""),
    Utterance("assistant", "«question 2»\nUser: 2019", "CLARIFY"),
)
SAID = "«response»\nUser: 2019"


def said(*responses: str) -> list[tuple[Utterance, ...]]:
    """Trajectories that are one response long."""
    return [(Utterance("assistant", text, ""),) for text in responses]


# Each role that is asked about turns: what it is given beside them, and how it answers.
ROLES: dict[type[Role], tuple[Callable[[int], tuple[Sequence[Any], ...]], str]] = {
    Generator: (lambda n: (["CLARIFY"] * n, range(n)), "generate"),
    Annotator: (lambda n: (), "label"),
    Classifier: (lambda n: (said(SAID) * n,), "classify"),
    Simulator: (lambda n: (["«intent»"] * n, [TALK] * n), "reply"),
}


class Script:
    """Answers each request by what `reply` makes of it: a text, or a ProviderError to raise."""

    name = "script"

    def __init__(self, reply: Callable[[LLMRequest], str | ProviderError]) -> None:
        self.reply = reply

    async def complete(self, request: LLMRequest) -> LLMResponse:
        text = self.reply(request)
        if isinstance(text, ProviderError):
            raise text
        return LLMResponse(text, request.model)


def made(kind: type[Role], provider: Any = None, settings: LLMRole = EMBEDDED, **options: Any) -> Any:
    return kind(LLM(provider or EmbeddedProvider()), settings, PACIFIC, **options)


def text_of(request: LLMRequest) -> str:
    return "\n".join(m.content for m in request.messages)


# The prompts.


@pytest.mark.parametrize("kind", ROLES, ids=lambda kind: kind.name)
def test_prompts_hold_what_they_are_about_once_and_no_gold(
    kind: type[Role], sample: TaskData, every_turn: list[TurnState]
) -> None:
    """A policy that writes lines of the user's into its response does not put words into the user's mouth."""
    label = ("«response»",), "\nAssistant: «response» User: 2019\n\nLabel of the last Assistant utterance:"
    own = {
        Generator: ((), "\nAssistant:"),
        Annotator: label,
        Classifier: label,
        Simulator: (
            ("«intent»", "«question 1»", "«reply»", "«question 2»"),
            "User: «reply»\nAssistant: «question 2» User: 2019\nUser:",
        ),
    }
    marks, ends_with = own[kind]
    response = replace(GOLD, text=SAID) if kind is Annotator else GOLD
    turns = [
        replace(
            turn,
            context=tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(turn.context)),
            history=tuple(Message(m.role, f"«utterance {i}»") for i, m in enumerate(turn.history)),
            response=response,
            goal=GOLD,
            clear_request="«gold»",
            gold_replies=("«gold»",),
        )
        for turn in every_turn
    ]
    examples = sample.train[:1] if kind in (Generator, Classifier) else ()
    requests = made(kind, examples=examples).requests(turns, *ROLES[kind][0](len(turns)))
    for request, turn in zip(requests, turns, strict=True):
        text = text_of(request)
        expected = [*(b.text for b in turn.context), *(m.content for m in turn.history), *marks]
        assert [m for m in expected if text.count(m) != 1] == []
        assert "«gold»" not in text
        assert text.endswith(ends_with), "nothing in the request's own part tells its label"


def test_an_intent_prompt_holds_the_page_and_every_utterance_once(every_conversation: list[Conversation]) -> None:
    conversation = every_conversation[0]
    turns = [
        replace(t, user=f"«user {i}»", response=replace(GOLD, text=f"«response {i}»"), clear_request="«clear request»")
        for i, t in enumerate(conversation.turns)
    ]
    blocks = tuple(ContextBlock(b.section, f"«block {i}»") for i, b in enumerate(conversation.context))
    marked = replace(conversation, context=blocks, turns=tuple(turns))
    (request,) = made(IntentSummarizer).requests([marked])
    text = text_of(request)
    marks = [*(b.text for b in blocks), *(m for t in turns for m in (t.user, t.response.text))]
    assert [m for m in marks if text.count(m) != 1] == []
    assert "«clear request»" not in text, "a model has to find it out"
    assert (request.role, request.context) == ("intent", IntentContext(marked))
    assert request.label == f"task pacific, conversation {conversation.conversation_id}"


def test_a_request_carries_its_settings_and_its_subject(every_turn: list[TurnState]) -> None:
    settings = LLMRole(
        provider="openai", model="m", temperature=0.7, max_output_tokens=96, top_p=0.9, extra={"top_k": 5}
    )
    turns = every_turn[:2]
    subjects: dict[type[Role], list[object]] = {
        Generator: [GeneratorContext(t, "CLARIFY", i) for i, t in enumerate(turns)],
        Annotator: [AnnotatorContext(t) for t in turns],
        Classifier: [ClassifierContext(t, *said(SAID)) for t in turns],
        Simulator: [SimulatorContext(t, "«intent»", TALK) for t in turns],
    }
    stops = {Generator: ("\nUser:",), Simulator: ("\nAssistant:",)}
    for kind, expected in subjects.items():
        requests = made(kind, settings=settings, seed=7).requests(turns, *ROLES[kind][0](2))
        assert [r.context for r in requests] == expected
        for i, (request, turn) in enumerate(zip(requests, turns, strict=True)):
            assert (request.role, request.model, request.label) == (kind.name, "m", turn.where)
            sampling = request.sampling
            assert (sampling.temperature, sampling.max_output_tokens, sampling.top_p) == (0.7, 96, 0.9)
            assert (sampling.extra, sampling.stop) == ({"top_k": 5}, stops.get(kind, ()))
            assert (sampling.seed, request.sample_index) == (i if kind is Generator else 7, 0)


@pytest.mark.parametrize(
    ("temperature", "send_seed", "drawn"),
    [(0.7, True, [(3, 0), (4, 0)]), (0.7, False, [(None, 3), (None, 4)]), (0.0, True, [(None, 0)] * 2)],
    ids=["seeded", "without seeds", "greedy"],
)
def test_draws_are_told_apart_by_seed_or_by_sample_index_unless_decoding_is_greedy(
    every_turn: list[TurnState], temperature: float, send_seed: bool, drawn: list[tuple[int | None, int]]
) -> None:
    settings = EMBEDDED.model_copy(update={"temperature": temperature, "send_seed": send_seed})
    requests = made(Generator, settings=settings).requests(every_turn[:1] * 2, ["CLARIFY"] * 2, [3, 4])
    assert [(r.sampling.seed, r.sample_index) for r in requests] == drawn


def test_every_assistant_utterance_is_announced_and_the_last_one_by_the_wanted_action(
    sample: TaskData, every_turn: list[TurnState]
) -> None:
    examples, turn = sample.train[:3], every_turn[-1]
    (request,) = made(Generator, examples=examples).requests([turn], [CLARIFY.name], [0])
    lines = request.messages[-1].content.splitlines()
    spoken = [i for i, line in enumerate(lines) if line.startswith("Assistant:")]
    gold = [(t.response.text, t.action) for c in examples for t in c.turns]
    gold += [(m.content, PACIFIC.judge.rule_action(m.content)) for m in turn.history if m.role == "assistant"]
    assert len(spoken) == len(gold) + 1
    for i, (text, action) in zip(spoken, gold, strict=False):
        assert lines[i] == f"Assistant: {' '.join(text.split())}"
        assert PACIFIC.action(action).description in lines[i - 1]
    assert (lines[-3], lines[-1]) == (f"User: {turn.request}", "Assistant:")
    assert CLARIFY.description in lines[-2]


def test_a_classifiers_examples_show_both_actions_by_their_last_utterance(
    sample: TaskData, every_turn: list[TurnState]
) -> None:
    examples = sample.train[:10]
    (request,) = made(Classifier, examples=examples).requests([every_turn[-1]], said("«response»"))
    lines = request.messages[-1].content.splitlines()
    labels = [i for i, line in enumerate(lines) if line.startswith("Label of the last Assistant utterance: ")]
    for i, conversation in zip(labels, examples, strict=True):
        shown = (lines[i - 2].removeprefix("Assistant: "), lines[i].split(": ")[1])
        assert shown in [(" ".join(t.response.text.split()), t.action) for t in conversation.turns]
    assert {lines[i].split(": ")[1] for i in labels} == {"CLARIFY", "ANSWER"}


@pytest.mark.parametrize("kind", [Generator, Classifier], ids=lambda kind: kind.name)
def test_a_turn_never_sees_an_example_of_its_own_group(kind: type[Role], sample: TaskData) -> None:
    """Its twin holds the same reference, and leaves open what the turn must be asked for."""
    pool = [replace(c, group="pair" if i < 2 else "") for i, c in enumerate(sample.train[:6])]
    (turn, *_) = PACIFIC.turn_states(pool[0])
    role = made(kind, examples=pool, shown=3)
    assert role.examples_apart_from(turn) == [role.example(c, i) for i, c in enumerate(pool)][2:5]
    assert role.examples_apart_from(replace(turn, group="")) == [role.example(c, i) for i, c in enumerate(pool)][:3]
    (request,) = role.requests([turn], *ROLES[kind][0](1))
    assert request.messages[-1].content.count("=== Conversation") == 4
    assert text_of(request).count(" ".join(turn.context[0].text.split())) == 1


# The answers.


def test_the_rules_name_the_action_of_every_gold_response(every_turn: list[TurnState]) -> None:
    gold, responses = [t.action for t in every_turn], [t.response.text for t in every_turn]
    annotator = made(Annotator)
    assert annotator.label(every_turn) == gold
    assert annotator.usage.calls == len(every_turn)
    assert GoldAnnotator().label(every_turn) == RuleAnnotator(PACIFIC).label(every_turn) == gold
    assert made(Classifier).classify(every_turn, said(*responses)) == gold
    assert RuleClassifier(PACIFIC).classify(every_turn, said(*responses)) == gold


def test_the_classifier_sees_the_whole_trajectory(every_turn: list[TurnState]) -> None:
    """Appendix G: what a later response answers is the reply to a clarifying question."""
    talk = (*ASKED, Utterance("user", "The one of 2019.", ""), Utterance("assistant", "12", ""))
    (request,) = made(Classifier).requests(every_turn[:1], [talk])
    text = request.messages[-1].content
    places = [text.rindex(line) for line in ("Assistant: Which one?", "User: The one of 2019.", "Assistant: 12\n")]
    assert places == sorted(places)


def test_the_response_is_judged_and_not_the_turn(every_turn: list[TurnState]) -> None:
    turns = every_turn[:20]
    swapped = ["12 (in millions)" if t.action == "CLARIFY" else "Which year?" for t in turns]
    expected = ["ANSWER" if t.action == "CLARIFY" else "CLARIFY" for t in turns]
    trajectories = said(*swapped)
    assert made(Classifier).classify(turns, trajectories) == expected
    assert RuleClassifier(PACIFIC).classify(turns, trajectories) == expected
    changed = [replace(t, response=replace(t.response, text=text)) for t, text in zip(turns, swapped, strict=True)]
    assert RuleAnnotator(PACIFIC).label(changed) == expected
    assert GoldAnnotator().label(changed) == [t.action for t in turns]


@pytest.mark.parametrize(
    ("kind", "usable", "useless"),
    [
        (
            Generator,
            {
                "  Assistant: Which year? Or which quarter?\nUser: 2019": "Which year? Or which quarter?",
                "(9.8) (in millions)\n": "(9.8) (in millions)",
            },
            ["User: 2019"],
        ),
        (Annotator, {"CLARIFY": "CLARIFY", "Answer.": "ANSWER"}, ["It is a question.", "CLARIFY or ANSWER"]),
        (Classifier, {"clarify": "CLARIFY", "ANSWER": "ANSWER"}, ["a clarifying question", "ANSWER or CLARIFY"]),
        (
            Simulator,
            {"User: In 2019.\nAssistant: 12": "In 2019.", "The audit\nfees.\n\nI hope this helps.": "The audit fees."},
            ["Assistant: 12"],
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_answers_are_read_strictly_and_failures_keep_their_place(
    every_turn: list[TurnState], kind: type[Role], usable: dict[str, str], useless: list[str]
) -> None:
    texts = [*usable, *useless]
    turns = every_turn[: len(texts) + 1]
    blocked = ProviderError("blocked", "filtered", retryable=False)
    answers = dict(zip((t.where for t in turns), [*texts, blocked], strict=True))
    role, done = made(kind, Script(lambda request: answers[request.label])), []
    given, verb = ROLES[kind]
    counted = [lambda: done.append(1)] if kind is Generator else []
    results = getattr(role, verb)(turns, *given(len(turns)), *counted)
    assert results[: len(usable)] == list(usable.values())
    for turn, text, result in zip(turns[len(usable) :], useless, results[len(usable) :], strict=False):
        assert isinstance(result, LLMFailure)
        assert (result.kind, result.retryable, result.label) == ("rejected", False, turn.where)
        assert text in result.message
    assert results[-1] == LLMFailure("blocked", "filtered", False, turns[-1].where)
    assert (role.usage.calls, role.usage.failures, len(done)) == (len(turns), 1, len(turns) * len(counted))


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("1. What it was. 2. Why.", "The user wants to know: 1. What it was. 2. Why."),
        ("The user wants to know: 1. What.\n2. Why.", "The user wants to know: 1. What. 2. Why."),
        ("[Information] The User wants to know:\n1. What.", "The user wants to know: 1. What."),
        ("I cannot tell.", None),
        ("The user wants to know: nothing", None),
        ("2. Why.", None),
    ],
)
def test_summaries_are_brought_into_one_form_or_fail(
    every_conversation: list[Conversation], text: str, summary: str | None
) -> None:
    (result,) = made(IntentSummarizer, Script(lambda request: text)).summarize(every_conversation[:1])
    if summary is None:
        assert isinstance(result, LLMFailure)
        assert (result.kind, result.label.split()[-1]) == ("rejected", every_conversation[0].conversation_id)
    else:
        assert result == summary


def test_embedded_summaries_list_the_settled_requests_and_do_not_depend_on_any_answer(
    every_conversation: list[Conversation],
) -> None:
    """The same conversation with every response replaced has the same summary: none can be in it."""
    changed = [replace(c, turns=tuple(replace(t, response=GOLD) for t in c.turns)) for c in every_conversation]
    summaries = made(IntentSummarizer).summarize(every_conversation)
    assert summaries == made(IntentSummarizer).summarize(changed)
    for conversation, summary in zip(every_conversation, summaries, strict=True):
        wanted = [t.clear_request for t in conversation.turns if t.action == ANSWER.name]
        assert summary.startswith("The user wants to know: 1. ")
        assert intent_items(summary) == [" ".join(w.split()) for w in wanted], conversation.conversation_id


@pytest.mark.parametrize(
    "ask",
    [
        lambda turns: made(Generator).generate(turns, ["CLARIFY"], [0, 0]),
        lambda turns: made(Classifier).classify(turns, said("one")),
        lambda turns: RuleClassifier(PACIFIC).classify(turns, said("one")),
        lambda turns: made(Simulator).reply(turns, ["1. What?"], [ASKED]),
        lambda turns: GoldUser().reply(turns, ["1. What?"], [ASKED]),
    ],
)
def test_lists_of_different_lengths_are_refused(every_turn: list[TurnState], ask: Callable[[Any], Any]) -> None:
    with pytest.raises(ValueError):
        ask(every_turn[:2])


def test_the_gold_user_gives_the_gold_replies_then_the_clear_request(every_turn: list[TurnState]) -> None:
    turn = replace(every_turn[0], gold_replies=("first", "second"), clear_request="all of it")
    trajectories = [ASKED, *(ASKED + n * (Utterance("user", "x", ""), *ASKED) for n in (1, 2, 3))]
    assert GoldUser().reply([turn] * 4, [""] * 4, trajectories) == ["first", "second", "all of it", "all of it"]
    for turn in every_turn:
        (reply,) = GoldUser().reply([turn], [""], [ASKED])
        assert reply == (turn.gold_replies[0] if turn.action == CLARIFY.name else turn.clear_request)


@pytest.mark.parametrize(
    ("role", "verb", "given"),
    [
        (GoldAnnotator(), "label", ()),
        (RuleAnnotator(PACIFIC), "label", ()),
        (RuleClassifier(PACIFIC), "classify", (said("a", "b"),)),
        (GoldUser(), "reply", (["", ""], [ASKED] * 2)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_role_without_a_model_has_an_answer_for_each_item_and_uses_nothing(
    every_turn: list[TurnState], role: Any, verb: str, given: Any
) -> None:
    assert (len(getattr(role, verb)(every_turn[:2], *given)), role.usage) == (2, Usage())
