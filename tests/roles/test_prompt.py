"""Prompt files: what they may hold, where they lie, and what is said of a file that has a mistake."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import pytest

from act_assets.conversation import ANSWER, CLARIFY, ClearRequest, Conversation, Message, Utterance
from act_assets.profile import LLMRole
from act_assets.roles import Annotator, Classifier, EmbeddedProvider, Generator, IntentSummarizer, Simulator
from act_assets.roles.perturbation import Perturber
from act_assets.roles.prompt import (
    PROMPTS,
    ROLES,
    Line,
    PromptTemplate,
    conversation_lines,
    load_template,
    prompt_hash,
    prompt_path,
)
from act_assets.tasks import all_tasks, get_task, is_own
from act_assets.tasks.base import Task
from act_assets.tasks.pacific.task import PACIFIC
from resources.errors import PromptError
from resources.llm.base import ChatMessage
from resources.llm.client import LLM

# (role, task) for every prompt of this package that is ever asked, and the neutral ones for tasks of others.
ASKED = [(role, t.name) for t in all_tasks().values() if is_own(t.name) for role in ROLES if t.asks(role)]
NEUTRAL = [(role, "default") for role in ROLES if role != "perturbation"]
SMALL = "[[system]]\ns\n[[user]]\nu\n"


def write(path: Path, text: str | bytes = SMALL) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def template(folder: Path, text: str | bytes) -> PromptTemplate:
    write(folder / "simulator" / "pacific.md", text)
    return load_template("simulator", "pacific", folder)


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        (
            "[[comment]]\n{{ no }}\n[[system]]\nBe brief.\n[[assistant]]\nYes?\n[[user]]\n\nHello {{ name }}.\n",
            [("system", "Be brief."), ("assistant", "Yes?"), ("user", "Hello <b>Ann</b>.")],
        ),
        (
            "[[system]]\ns\n[[user]]\n{% for line in lines %}\n  {% if true %}\n{{ line.speaker }}: {{ line.text }}\n"
            "  {% endif %}\n{% endfor %}\nend\n",
            [("system", "s"), ("user", "User: a\nAssistant: b\nend")],
        ),
        ("[[system]]\ns\n[[user]]\n{{ code }}\n", [("system", "s"), ("user", "{{ 7 * 7 }}\n[[system]]\n{% if %}")]),
        ("[[system]]\ns\n[[user]]\n£{{ n }}\n".replace("\n", "\r\n"), [("system", "s"), ("user", "£1")]),
        ("[[system]]\ns\n[[user]]\n£{{ n }}\n".encode("utf-8-sig"), [("system", "s"), ("user", "£1")]),
    ],
    ids=["sections in order", "block tags leave no lines", "values are no templates", "of Windows", "with a mark"],
)
def test_sections_become_messages(tmp_path: Path, text: str | bytes, messages: list[tuple[str, str]]) -> None:
    given = {"name": "<b>Ann</b>", "code": "{{ 7 * 7 }}\n[[system]]\n{% if %}", "n": 1}
    lines = (Line("User", "a"), Line("Assistant", "b", ANSWER))
    assert template(tmp_path, text).render(lines=lines, **given) == tuple(ChatMessage(*m) for m in messages)  # type: ignore[arg-type]


def test_hash_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    first = template(tmp_path, SMALL).hash
    assert first == prompt_hash("simulator", "pacific", tmp_path) == hashlib.sha256(SMALL.encode()).hexdigest()
    assert template(tmp_path, SMALL + "!").hash == prompt_hash("simulator", "pacific", tmp_path) != first


# The prompts of this package.


@pytest.mark.parametrize(("role", "name"), [*ASKED, *NEUTRAL])
def test_shipped_prompts_load(monkeypatch: pytest.MonkeyPatch, role: str, name: str) -> None:
    if name == "default":
        monkeypatch.setattr("act_assets.roles.prompt.all_tasks", lambda: {"tea": replace(PACIFIC, name="tea")})
    loaded = load_template(role, "tea" if name == "default" else name)
    assert [section for section, _ in loaded.sections] == ["system", "user"]
    assert loaded.path == PROMPTS / role / f"{name}.md"
    assert loaded.path.read_text().startswith("[[comment]]")


def documented(path: Path) -> set[str]:
    """The variables that a prompt file's comment names."""
    comment = path.read_text().split("[[system]]")[0].split("\nVariables\n")[1]
    return set(re.findall(r"^  (\w+)  +\S", comment, re.MULTILINE))


@pytest.mark.parametrize("name", sorted({task for _, task in ASKED}))
def test_shipped_prompts_document_exactly_the_variables_they_are_given(
    monkeypatch: pytest.MonkeyPatch, every_conversation: list[Conversation], name: str
) -> None:
    given: dict[str, set[str]] = {}

    def note(self: PromptTemplate, **variables: object) -> tuple[ChatMessage, ...]:
        given[self.path.parent.name] = set(variables)
        return ()

    monkeypatch.setattr(PromptTemplate, "render", note)
    (turn, *_) = PACIFIC.turn_states(every_conversation[0])
    role = LLM(EmbeddedProvider()), LLMRole(provider="embedded", model="embedded-rules-1"), get_task(name)
    Generator(*role).requests([turn], [CLARIFY.name], [0])
    Annotator(*role).requests([turn])
    Classifier(*role).requests([turn], [(Utterance("assistant", "12", ""),)])
    Simulator(*role).requests([turn], ["1. What?"], [()])
    if get_task(name).asks("intent"):
        IntentSummarizer(*role).requests(every_conversation[:1])
    if get_task(name).asks("perturbation"):
        clear = ClearRequest(name, "train", "r", "db", "a strategy", "How many?", "SELECT 1", "a schema")
        Perturber(*role).requests([clear])
    assert set(given) == {role for role, task in ASKED if task == name}
    for asked, names in given.items():
        assert documented(prompt_path(asked, name)) == names, asked
        assert asked == "perturbation" or documented(PROMPTS / asked / "default.md") == names, asked


# Where a prompt lies.


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """A task of another package that brings one prompt."""
    task = replace(PACIFIC, name="tea", prompts=write(tmp_path / "brought" / "generator.md").parent)
    monkeypatch.setattr("act_assets.roles.prompt.all_tasks", lambda: {"pacific": PACIFIC, "tea": task})
    return task


def test_a_task_of_another_package_uses_its_own_prompts_then_the_neutral_ones(foreign: Task, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    assert prompt_path("generator", "tea", mine) == tmp_path / "brought" / "generator.md", "mine holds nothing so far"
    assert prompt_path("simulator", "tea", mine) == PROMPTS / "simulator" / "default.md"
    for role in ("generator", "simulator"):
        path = write(mine / role / "tea.md")
        assert prompt_path(role, "tea", mine) == path
        assert load_template(role, "tea", mine).hash == prompt_hash(role, "tea", mine)


def test_a_task_of_this_package_never_falls_back_to_a_neutral_prompt(tmp_path: Path) -> None:
    assert prompt_path("simulator", "pacific", tmp_path) == tmp_path / "simulator" / "pacific.md"


def test_a_role_that_a_task_never_asks_has_a_fixed_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {role for role, task in ASKED if task == "pacific"} == set(ROLES) - {"perturbation"}
    assert prompt_hash("perturbation", "pacific") == "not asked"
    told_goals = replace(PACIFIC, grounding="goal")
    monkeypatch.setattr("act_assets.roles.prompt.all_tasks", lambda: {"pacific": told_goals})
    assert prompt_hash("intent", "pacific", tmp_path) == "not asked"
    with pytest.raises(PromptError):
        prompt_hash("simulator", "pacific", tmp_path)


# Mistakes: every message names the file, and the line where there is one.


@pytest.mark.parametrize(
    ("text", "says", "line"),
    [
        ("[[system]]\ns\n", "no text in [[user]]", None),
        ("[[system]]\n \n[[user]]\nu\n", "no text in [[system]]", None),
        ("", "no text in [[system]], [[user]]", None),
        ("[[system]]\ns\n[[use]]\nu\n", "unknown prompt section [[use]]", 3),
        (f"{SMALL}[[user]]\nu\n", "[[user]] appears twice", 5),
        (f"\nHello\n{SMALL}", "text before the first section", 2),
        (f"{SMALL}[[comment]]\nc\n", "[[comment]] must come first", 5),
        (f"{SMALL}{{% for x in %}}\n", "syntax error", 5),
        ("[[system]]\ns\n[[user]]\n{% if a %}\nu\n", "syntax error", None),
        (b"[[system]]\n\xff\n[[user]]\nu\n", "not UTF-8", None),
        (f"{SMALL}{{{{ intents }}}}", "'intents' is undefined", 5),
        (f"{SMALL}{{% for l in liens %}}x{{% endfor %}}", "'liens' is undefined", 5),
        (f"{SMALL}{{{{ line.speakr }}}}", "speakr", 5),
        (f"{SMALL}{{{{ 1 // 0 }}}}", "cannot be rendered", 5),
        (f"{SMALL}{{{{ ''.__class__.__mro__ }}}}", "unsafe", 5),
    ],
)
def test_mistakes_are_named_with_their_file_and_line(
    tmp_path: Path, text: str | bytes, says: str, line: int | None
) -> None:
    with pytest.raises(PromptError) as error:
        template(tmp_path, text).render(intent="i", line=Line("User", "a"))
    assert says in error.value.what
    assert error.value.where.startswith(str(tmp_path / "simulator" / "pacific.md"))
    assert error.value.todo
    if line:
        assert error.value.where.endswith(f", line {line}")
    if "undefined" in says:
        assert "intent, line" in error.value.todo, "the variables that there are"


def test_a_missing_file_says_what_to_copy(tmp_path: Path) -> None:
    with pytest.raises(PromptError) as error:
        load_template("simulator", "pacific", tmp_path)
    assert str(tmp_path / "simulator" / "pacific.md") in error.value.where
    assert str(prompt_path("simulator", "pacific")) in error.value.todo
    with pytest.raises(PromptError):
        prompt_hash("simulator", "no_such_task")


def test_a_transcript_begins_with_what_was_said_before_and_labels_the_annotated_utterances_alone(
    every_conversation: list[Conversation],
) -> None:
    plain = every_conversation[0]
    before = (Message("user", "Who is\nshe?"), Message("assistant", "A baker."))
    conversation = replace(plain, history=before)
    lines = conversation_lines(PACIFIC, conversation)
    assert lines[:2] == (Line("User", "Who is she?"), Line("Assistant", "A baker."))
    assert lines[2:] == conversation_lines(PACIFIC, plain)
    assert [x.action and x.action.name for x in lines[3::2]] == [t.action for t in plain.turns]
    assert len(conversation_lines(PACIFIC, conversation, conversation.turns[:1])) == 4
