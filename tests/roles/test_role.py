"""Templates, results and the small parsers that the roles share."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, Action, ClearRequest, Message
from act_assets.roles.annotator import Annotator
from act_assets.roles.classifier import Classifier
from act_assets.roles.generator import Generator
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.perturbation import Perturber
from act_assets.roles.role import (
    PROMPTS,
    ROLES,
    Example,
    Line,
    PromptTemplate,
    RoleSettings,
    ask,
    conversation_lines,
    examples_apart_from,
    load_template,
    parse_action,
    prompt_hash,
    prompt_path,
    require_all,
    spoken,
)
from act_assets.roles.simulator import Simulator
from act_assets.tasks import all_tasks, get_task, is_own
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import PromptError, RoleError
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, ProviderError, Sampling
from resources.llm.client import LLM
from resources.llm.retry import RetrySettings

CONVERSATION = PACIFIC.reader.read(Path(__file__).parents[2] / "datasets" / "sample" / "pacific").train[0]
PACIFIC_TURN = PACIFIC.turn_states(CONVERSATION)[0]
# (task, role) for every prompt of this package that is ever asked.
ASKED = [(t.name, role) for t in all_tasks().values() if is_own(t.name) for role in ROLES if t.asks(role)]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "simulator" / "pacific.md"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def load(folder: Path):
    return load_template("simulator", "pacific", folder)


# Templates that work.


def test_sections_become_messages_in_file_order_and_comments_do_not(tmp_path):
    write(
        tmp_path,
        "[[comment]]\n{{ not_rendered }}\n[[system]]\nBe brief.\n[[assistant]]\nYes?\n[[user]]\n\nHello {{ name }}.\n",
    )
    assert load(tmp_path).render(name="<b>Ann</b>") == (
        ChatMessage("system", "Be brief."),
        ChatMessage("assistant", "Yes?"),
        ChatMessage("user", "Hello <b>Ann</b>."),
    )


def test_block_tags_leave_no_empty_lines(tmp_path):
    write(
        tmp_path,
        "[[system]]\ns\n[[user]]\n{% for line in lines %}\n  {% if true %}\n{{ line.speaker }}: {{ line.text }}\n"
        "  {% endif %}\n{% endfor %}\nend\n",
    )
    rendered = load(tmp_path).render(lines=(Line("User", "a"), Line("Assistant", "b", ANSWER)))
    assert rendered[1].content == "User: a\nAssistant: b\nend"


def test_values_are_neither_templates_nor_sections(tmp_path):
    write(tmp_path, "[[system]]\ns\n[[user]]\n{{ text }}\n")
    text = "{{ 7 * 7 }}\n[[system]]\n{% if %}"
    assert load(tmp_path).render(text=text) == (ChatMessage("system", "s"), ChatMessage("user", text))


@pytest.mark.parametrize("encode", [lambda t: t.replace("\n", "\r\n").encode(), lambda t: t.encode("utf-8-sig")])
def test_files_saved_on_windows_work(tmp_path, encode):
    write(tmp_path, encode("[[system]]\ns\n[[user]]\nvalue: £{{ n }}\n"))
    assert load(tmp_path).render(n=1)[1].content == "value: £1"


def test_hash_is_the_sha256_of_the_file(tmp_path):
    path = write(tmp_path, "[[system]]\ns\n[[user]]\nu\n")
    before = prompt_hash("simulator", "pacific", tmp_path)
    assert before == load(tmp_path).hash == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text("[[system]]\ns\n[[user]]\nu!\n")
    assert prompt_hash("simulator", "pacific", tmp_path) != before


@pytest.mark.parametrize(("task", "role"), ASKED)
def test_shipped_prompts_load(task, role):
    template = load_template(role, task)
    assert [name for name, _ in template.sections] == ["system", "user"]
    assert template.path == prompt_path(role, task)
    assert template.path.relative_to(PROMPTS).as_posix() == f"{role}/{task}.md", "its own, not the default"
    assert template.path.read_text().startswith("[[comment]]")


def test_pacific_has_a_prompt_for_every_role_but_the_one_that_makes_twins():
    assert {role for task, role in ASKED if task == "pacific"} == set(ROLES) - {"perturbation"}


def documented(path: Path) -> set[str]:
    """The variables that a prompt file's comment names."""
    comment = path.read_text().split("[[system]]")[0].split("\nVariables\n")[1]
    return set(re.findall(r"^  (\w+)  +\S", comment, re.MULTILINE))


@pytest.mark.parametrize("name", sorted({task for task, _ in ASKED}))
def test_shipped_prompts_document_exactly_the_variables_they_are_given(monkeypatch, name):
    given: dict[str, set[str]] = {}

    def note(self, **variables):
        given[self.path.parent.name] = set(variables)
        return ()

    monkeypatch.setattr(PromptTemplate, "render", note)
    turn = PACIFIC_TURN
    llm, settings, task = LLM(Uneven()), RoleSettings("uneven", "m", 0.0, 8, None), get_task(name)
    Generator(llm, settings, task, ()).requests([turn], [CLARIFY.name], [0])
    Annotator(task, "llm", llm, settings).requests([turn])
    Classifier(task, "llm", llm, settings).requests([turn], ["12"])
    Simulator(llm, settings, task).requests([turn], ["1. What?"], [()])
    if task.asks("intent"):
        IntentSummarizer(llm, settings, task).requests([CONVERSATION])
    if task.asks("perturbation"):
        clear = ClearRequest(name, "train", "r", "db", "a strategy", "How many?", "SELECT 1", "a schema")
        Perturber(llm, settings, task).requests([clear])
    assert set(given) == {role for task, role in ASKED if task == name}
    for role, names in given.items():
        assert documented(prompt_path(role, name)) == names, role
        default = PROMPTS / role / "default.md"
        assert role == "perturbation" or documented(default) == names, default


# Where a prompt lies.


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """A task of another package that brings one prompt."""
    brought = tmp_path / "brought"
    brought.mkdir()
    (brought / "generator.md").write_text("[[system]]\ns\n[[user]]\nof the package\n")
    task = replace(PACIFIC, name="tea", prompts=brought)
    monkeypatch.setattr("act_assets.roles.role.all_tasks", lambda: {"pacific": PACIFIC, "tea": task})
    return task


def test_a_task_of_another_package_uses_its_own_prompts_then_the_neutral_ones(foreign, tmp_path):
    assert prompt_path("generator", "tea") == foreign.prompts / "generator.md"
    assert prompt_path("simulator", "tea") == PROMPTS / "simulator" / "default.md"
    mine = tmp_path / "mine"
    assert prompt_path("generator", "tea", mine) == foreign.prompts / "generator.md", "nothing of that name is there"
    for role in ("generator", "simulator"):
        (mine / role).mkdir(parents=True)
        (mine / role / "tea.md").write_text("[[system]]\ns\n[[user]]\nmine\n")
        assert prompt_path(role, "tea", mine) == mine / role / "tea.md"
        assert load_template(role, "tea", mine).hash == prompt_hash(role, "tea", mine)


def test_a_task_of_this_package_never_falls_back_to_a_neutral_prompt(tmp_path):
    assert prompt_path("simulator", "pacific", tmp_path) == tmp_path / "simulator" / "pacific.md"


@pytest.mark.parametrize("role", [r for r in ROLES if r != "perturbation"])
def test_neutral_prompts_load(monkeypatch, role):
    monkeypatch.setattr("act_assets.roles.role.all_tasks", lambda: {"tea": replace(PACIFIC, name="tea")})
    template = load_template(role, "tea")
    assert [name for name, _ in template.sections] == ["system", "user"]
    assert template.path == PROMPTS / role / "default.md"
    assert template.path.read_text().startswith("[[comment]]")


def test_a_role_that_a_task_never_asks_has_no_prompt_and_a_fixed_hash(foreign, tmp_path, monkeypatch):
    assert prompt_hash("perturbation", "pacific") == "not asked"
    told_goals = replace(PACIFIC, grounding="goal")
    monkeypatch.setattr("act_assets.roles.role.all_tasks", lambda: {"pacific": told_goals})
    assert prompt_hash("intent", "pacific", tmp_path) == "not asked"
    with pytest.raises(PromptError, match="cannot be read"):
        prompt_hash("simulator", "pacific", tmp_path)


# Templates that do not: every message names the file, and the line where there is one.


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("[[system]]\ns\n", "no text in [[user]]", None),
        ("[[system]]\n \n[[user]]\nu\n", "no text in [[system]]", None),
        ("", "no text in [[system]], [[user]]", None),
        ("[[system]]\ns\n[[use]]\nu\n", "unknown prompt section [[use]]", 3),
        ("[[system]]\ns\n[[user]]\nu\n[[user]]\nu\n", "[[user]] appears twice", 5),
        ("\nHello\n[[system]]\ns\n[[user]]\nu\n", "text before the first section", 2),
        ("[[system]]\ns\n[[user]]\nu\n[[comment]]\nc\n", "[[comment]] must come first", 5),
        ("[[system]]\ns\n[[user]]\nu\n{% for x in %}\n", "syntax error", 5),
        ("[[system]]\ns\n[[user]]\n{% if a %}\nu\n", "syntax error", None),
        (b"[[system]]\n\xff\n[[user]]\nu\n", "not UTF-8", None),
    ],
)
def test_malformed_files(tmp_path, text, says, line):
    path = write(tmp_path, text)
    with pytest.raises(PromptError) as error:
        load(tmp_path)
    assert says in error.value.what
    assert error.value.where.startswith(str(path))
    assert error.value.todo
    if line:
        assert error.value.where.endswith(f", line {line}")


def test_missing_file_says_what_to_copy(tmp_path):
    with pytest.raises(PromptError) as error:
        load(tmp_path)
    assert str(tmp_path / "simulator" / "pacific.md") in error.value.where
    assert str(prompt_path("simulator", "pacific")) in error.value.todo
    with pytest.raises(PromptError, match="cannot be read"):
        prompt_hash("simulator", "no_such_task")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("a\n{{ intents }}", "'intents' is undefined"),
        ("a\n{% for l in liens %}x{% endfor %}", "'liens' is undefined"),
        ("a\n{{ line.speakr }}", "speakr"),
        ("a\n{{ 1 // 0 }}", "cannot be rendered"),
        ("a\n{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_rendering_errors_name_line_and_variables(tmp_path, body, says):
    path = write(tmp_path, f"[[comment]]\nc\n[[system]]\ns\n[[user]]\n{body}\n")
    with pytest.raises(PromptError) as error:
        load(tmp_path).render(intent="i", line=Line("User", "a"))
    assert says in error.value.what
    assert error.value.where == f"{path}, line 7"
    if "undefined" in error.value.what:
        assert "intent, line" in error.value.todo


# Results.


def request(label: str) -> LLMRequest:
    return LLMRequest("simulator", "m", (ChatMessage("user", label),), Sampling(), label)


class Uneven:
    """Answers later requests sooner, and fails where the label says so."""

    name = "uneven"

    async def complete(self, request: LLMRequest) -> LLMResponse:
        number = int(request.label.split()[-1])
        await asyncio.sleep(0.02 / (number + 1))
        if request.label.startswith("fails"):
            raise ProviderError("timeout", "no answer in time", retryable=True)
        return LLMResponse(f"text {number}", "m")


def test_ask_keeps_order_and_types_failures():
    labels = [f"{'fails' if i % 3 == 0 else 'item'} {i}" for i in range(12)]
    done = []
    once = LLM(Uneven(), retry=RetrySettings(attempts=1))
    results = ask(once, [request(label) for label in labels], lambda: done.append(1))
    assert len(done) == 12
    for i, result in enumerate(results):
        if i % 3 == 0:
            assert result == LLMFailure("timeout", "no answer in time", True, f"fails {i}")
        else:
            assert result == f"text {i}"


def test_require_all_names_the_first_five_that_failed():
    failures = [LLMFailure("timeout", f"message {i}", True, f"turn {i}") for i in range(7)]
    with pytest.raises(RoleError) as error:
        require_all(["fine", *failures], "user replies")
    text = str(error.value)
    assert "user replies: 7 of 8 questions have no answer" in text
    assert "turn 4: timeout: message 4" in text and "turn 5" not in text and "and 2 more" in text
    assert error.value.todo == "run it again: only these are asked, the other answers are kept"


def test_require_all_does_not_promise_that_asking_again_helps():
    blocked = LLMFailure("blocked", "content filter", False, "turn 1")
    with pytest.raises(RoleError) as error:
        require_all([blocked, replace(blocked, retryable=True)], "responses")
    assert "more" not in error.value.what
    assert "run it again" not in error.value.todo


def test_require_all_gives_the_texts():
    assert require_all(["a", "b"], "responses") == ["a", "b"]
    assert require_all([], "responses") == []


# Parsers.


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Which year? ", "Which year?"),
        ("Assistant: Which year?", "Which year?"),
        ("assistant:  Which year?", "Which year?"),
        ("(Next, the Assistant asks.)\nAssistant: Which year?", "Which year?"),
        ("(9,819)", "(9,819)"),
        ("Which year?\nUser: 2019\nAssistant: 12", "Which year?"),
        ("Which year? Or which quarter?", "Which year? Or which quarter?"),
        ("Which\nyear?", "Which\nyear?"),
        ("12\nAssistant: 13", "12"),
        ("User: 2019", ""),
        ("Assistant:", ""),
        ("the User: a person", "the User: a person"),
    ],
)
def test_spoken(text, expected):
    assert spoken(text, "Assistant") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("CLARIFY", "CLARIFY"),
        (" answer.\n", "ANSWER"),
        ("**ANSWER**", "ANSWER"),
        ("Label: CLARIFY", "CLARIFY"),
        ("CLARIFY, CLARIFY", "CLARIFY"),
        ("CLARIFY or ANSWER", None),
        ("It answers the user.", None),
        ("CLARIFY_MORE", None),
        ("NON-ANSWER", None),
        ("", None),
    ],
)
def test_parse_action(text, expected):
    assert parse_action(text, PACIFIC) == expected


def test_parse_action_tells_overlapping_names_apart():
    more = Action("CLARIFY-MORE", False, "asks again")
    task = replace(PACIFIC, actions=(CLARIFY, ANSWER, more))
    assert parse_action("CLARIFY-MORE", task) == "CLARIFY-MORE"
    assert parse_action("CLARIFY", task) == "CLARIFY"
    assert parse_action("CLARIFY, then CLARIFY-MORE", task) is None


# What is shown.


def test_a_turn_never_sees_an_example_of_its_own_group():
    """Its twin holds the same reference, and leaves open what the turn must be asked for."""
    turn = replace(PACIFIC_TURN, conversation_id="clear", group="pair 1")
    examples = [(group, Example(name, ())) for group, name in (("pair 1", "itself"), ("pair 1", "its twin"))]
    examples += [(f"pair {n}", Example(f"other {n}", ())) for n in range(2, 6)]
    assert [e.grounding for e in examples_apart_from(turn, examples, 3)] == ["other 2", "other 3", "other 4"]
    assert [e.grounding for e in examples_apart_from(replace(turn, group="clear"), examples, 1)] == ["itself"]


def test_a_transcript_begins_with_what_was_said_before_and_labels_the_annotated_utterances_alone():
    before = (Message("user", "Who is\nshe?"), Message("assistant", "A baker."))
    conversation = replace(CONVERSATION, history=before)
    lines = conversation_lines(PACIFIC, conversation)
    assert lines[:2] == (Line("User", "Who is she?"), Line("Assistant", "A baker."))
    assert lines[2:] == conversation_lines(PACIFIC, CONVERSATION)
    assert [x.action.name for x in lines[2:] if x.speaker == "Assistant"] == [t.action for t in CONVERSATION.turns]
    assert len(conversation_lines(PACIFIC, conversation, conversation.turns[:1])) == 4
