"""Prompt files, and what their templates are rendered with.

A prompt file has one section per message; `[[comment]]` may come first and is for the person who
edits it:

    [[comment]]
    Variables: grounding (text), lines (each has .speaker and .text)
    [[system]]
    You label utterances.
    [[user]]
    {{ grounding }}
    {% for line in lines %}
    {{ line.speaker }}: {{ line.text }}
    {% endfor %}
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from act_assets.conversation import Action, ContextBlock, Conversation, Message, Turn, Utterance
from act_assets.home import PACKAGE
from act_assets.tasks import all_tasks, is_own
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.errors import PromptError
from resources.llm.base import ChatMessage

RoleName = Literal["generator", "annotator", "classifier", "intent", "simulator", "perturbation"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)

PROMPTS = PACKAGE / "prompts"
SectionName = Literal["system", "user", "assistant"]
_REQUIRED = ("system", "user")
_COMMENT = "comment"
_SECTIONS = (_COMMENT, *get_args(SectionName))
_MARKER = re.compile(r"^\[\[\s*(\w+)\s*\]\]\s*$")
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of a transcript. `action` is the Assistant's, None where it is not given."""

    speaker: Literal["User", "Assistant"]
    text: str
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An in-context conversation."""

    grounding: str
    lines: tuple[Line, ...]


def grounding_text(blocks: Iterable[ContextBlock]) -> str:
    """Grounding as text: one block a line, under a heading for each section, in order."""
    sections: dict[str, list[str]] = {}
    for block in blocks:
        sections.setdefault(block.section, []).append(one_line(block.text))
    return "\n".join("\n".join([f"[{name}]", *texts]) for name, texts in sections.items())


def history_lines(history: Iterable[Message]) -> tuple[Line, ...]:
    """A prompt's history as a transcript, without actions."""
    return tuple(Line("User" if m.role == "user" else "Assistant", one_line(m.content)) for m in history)


def trajectory_lines(utterances: Iterable[Utterance]) -> tuple[Line, ...]:
    """A simulated trajectory as a transcript, without actions."""
    return tuple(Line("User" if u.speaker == "user" else "Assistant", one_line(u.text)) for u in utterances)


def conversation_lines(task: Task, conversation: Conversation, turns: Iterable[Turn] | None = None) -> tuple[Line, ...]:
    """A conversation (or its first turns) as a transcript, with the annotated actions."""
    lines = list(history_lines(conversation.history))
    for turn in conversation.turns if turns is None else turns:
        lines.append(Line("User", one_line(turn.user)))
        lines.append(Line("Assistant", one_line(turn.response.text), task.action(turn.action)))
    return tuple(lines)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt file, compiled. `hash` is the sha256 of the file as it lies (hex)."""

    path: Path
    hash: str
    sections: tuple[tuple[SectionName, Template], ...]

    def render(self, **variables: object) -> tuple[ChatMessage, ...]:
        """The messages, in the file's order. Raises PromptError naming file, line and variable."""
        messages = []
        for name, template in self.sections:
            try:
                messages.append(ChatMessage(name, template.render(**variables).strip()))
            except Exception as error:  # an expression of a template can raise anything
                if isinstance(error, UndefinedError):
                    what = f"uses something undefined: {error.message}"
                    todo = f"use the variables of this prompt: {', '.join(sorted(variables)) or 'none'}"
                else:
                    what, todo = f"cannot be rendered: {error}", "fix the expression on that line"
                frames = traceback.extract_tb(error.__traceback__)
                lines = [f.lineno for f in frames if f.filename == "<template>"]
                where = f"{self.path}, line {lines[-1] or '?' if lines else '?'}"
                raise PromptError(f"prompt section [[{name}]] {what}", where=where, todo=todo) from error
        return tuple(messages)


def prompt_path(role: str, task: str, prompts_dir: Path | None = None) -> Path:
    """Where the prompt of a role for a task lies.

    A task of another package may keep its prompts in a folder of its own, `<role>.md`, and where it
    has none the role's `default.md` serves; a file in `prompts_dir` goes before both.
    """
    chosen = (prompts_dir or PROMPTS) / role / f"{task}.md"
    foreign = None if is_own(task) else all_tasks().get(task)
    if foreign is None or chosen.is_file():
        return chosen
    brought = foreign.prompts / f"{role}.md" if foreign.prompts else None
    return brought if brought and brought.is_file() else PROMPTS / role / "default.md"


def prompt_hash(role: str, task: str, prompts_dir: Path | None = None) -> str:
    """sha256 of a prompt file (hex); `not asked` where the task never asks that role.

    Raises PromptError where the file is missing.
    """
    known = all_tasks().get(task)
    if known and not known.asks(role):
        return "not asked"
    return hashlib.sha256(_read(role, task, prompts_dir)).hexdigest()


def load_template(role: str, task: str, prompts_dir: Path | None = None) -> PromptTemplate:
    """Reads and compiles `<prompts_dir>/<role>/<task>.md`, by default from the package's prompts.

    Raises PromptError naming the file and what is wrong with it.
    """
    path = prompt_path(role, task, prompts_dir)
    raw = _read(role, task, prompts_dir)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(f"prompt file is not UTF-8: {error}", where=str(path), todo="save it as UTF-8") from error
    sections = []
    for name, first_line, body in _split(text, path):
        try:
            # Leading line breaks (stripped after rendering) make Jinja count lines as the file does.
            sections.append((name, _ENVIRONMENT.from_string("\n" * (first_line - 1) + body)))
        except TemplateSyntaxError as error:
            raise PromptError(
                f"prompt section [[{name}]] has a syntax error: {error.message}",
                where=f"{path}, line {error.lineno}",
                todo="fix that line (the syntax is Jinja2's)",
            ) from error
    return PromptTemplate(path, hashlib.sha256(raw).hexdigest(), tuple(sections))


def _read(role: str, task: str, prompts_dir: Path | None) -> bytes:
    path = prompt_path(role, task, prompts_dir)
    try:
        return path.read_bytes()
    except OSError as error:
        shipped = prompt_path(role, task)
        copy = f"copy {shipped} there and edit it"
        raise PromptError(
            f"prompt file cannot be read: {error.strerror or error}",
            where=f"role {role}, task {task}, {path}",
            todo=copy if shipped.is_file() else "write it, after the model of another task's",
        ) from error


def _split(text: str, path: Path) -> list[tuple[SectionName, int, str]]:
    """Sections as (name, number of the body's first line, body), without comments."""
    found: dict[str, tuple[int, list[str]]] = {}
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        mistake = None
        if marker := _MARKER.match(line):
            name = marker.group(1)
            if name not in _SECTIONS:
                mistake = f"unknown prompt section [[{name}]]", f"use one of: {_listed(_SECTIONS)}"
            elif name in found:
                mistake = f"prompt section [[{name}]] appears twice", "merge the two into one"
            elif name == _COMMENT and found:
                mistake = "[[comment]] must come first", "move it to the top of the file"
            found[name] = number + 1, (body := [])
        elif found:
            body.append(line)
        elif line.strip():
            todo = "begin the file with [[comment]] or [[system]] on a line of its own"
            mistake = "text before the first section of a prompt", todo
        if mistake:
            raise PromptError(mistake[0], where=f"{path}, line {number}", todo=mistake[1])
    bodies = {name: (first, "\n".join(lines)) for name, (first, lines) in found.items() if any(map(str.strip, lines))}
    if missing := [name for name in _REQUIRED if name not in bodies]:
        raise PromptError(
            f"prompt file has no text in {_listed(missing)}",
            where=str(path),
            todo=f"add {_listed(missing)} on a line of its own, and the text of the message below it",
        )
    return [(name, *bodies[name]) for name in bodies if name != _COMMENT]  # type: ignore[misc]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"[[{name}]]" for name in names)
