"""What the roles share: settings, prompt templates, the typed subject of a request, results.

A prompt file has one section per message; `[[comment]]` may come first and is for the person who edits it:

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
import random
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from jinja2 import StrictUndefined, Template, TemplateSyntaxError, UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from act_assets.conversation import (
    Action,
    ClearRequest,
    ContextBlock,
    Conversation,
    Message,
    Turn,
    TurnState,
    Utterance,
)
from act_assets.seeds import derive_seed
from act_assets.tasks import all_tasks, is_own
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.errors import PromptError, RoleError
from resources.llm.base import ChatMessage, LLMFailure, LLMRequest, LLMResponse, Sampling, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM

RoleResult = str | LLMFailure
"""What a role gives for one item."""

OnDone = Callable[[], None]
RoleName = Literal["generator", "annotator", "classifier", "intent", "simulator", "perturbation"]
ROLES: tuple[RoleName, ...] = get_args(RoleName)

PROMPTS = Path(__file__).parent.parent / "prompts"
SectionName = Literal["system", "user", "assistant"]
_REQUIRED: tuple[SectionName, ...] = ("system", "user")
_COMMENT = "comment"
_SECTIONS = (_COMMENT, *get_args(SectionName))
_MARKER = re.compile(r"^\[\[\s*(\w+)\s*\]\]\s*$")
_ENVIRONMENT = SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """Which model plays a role, and how it decodes.

    `seed` None sends no seed, for providers that take none. `max_output_tokens` counts the provider's tokens; `extra`
    are further parameters of its API.
    """

    provider: str
    model: str
    temperature: float
    max_output_tokens: int
    seed: int | None
    top_p: float | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


# The typed subject of a request, which travels as LLMRequest.context beside the rendered prompt.


@dataclass(frozen=True, slots=True)
class GeneratorContext:
    """Respond to `turn` by `action`; draws are told apart by `seed`."""

    turn: TurnState
    action: str
    seed: int


@dataclass(frozen=True, slots=True)
class AnnotatorContext:
    """Label the reference response of `turn`."""

    turn: TurnState


@dataclass(frozen=True, slots=True)
class ClassifierContext:
    """Label a sampled `response` to `turn`."""

    turn: TurnState
    response: str


@dataclass(frozen=True, slots=True)
class IntentContext:
    """Summarise what the user of `conversation` wants to know."""

    conversation: Conversation


@dataclass(frozen=True, slots=True)
class SimulatorContext:
    """Speak next as the user of `turn`, after `utterances`, wanting what `intent` says."""

    turn: TurnState
    intent: str
    utterances: tuple[Utterance, ...]


@dataclass(frozen=True, slots=True)
class PerturbationContext:
    """Write the ambiguous twin of a clear request."""

    clear: ClearRequest


# What templates loop over.


@dataclass(frozen=True, slots=True)
class Line:
    """One utterance of a transcript. `action` is that of an Assistant utterance, None where it is not given."""

    speaker: Literal["User", "Assistant"]
    text: str
    action: Action | None = None


@dataclass(frozen=True, slots=True)
class Example:
    """An in-context conversation."""

    grounding: str
    lines: tuple[Line, ...]


def grounding_text(blocks: Iterable[ContextBlock]) -> str:
    """Grounding as text: one block a line, under a heading for each section in order of appearance."""
    sections: dict[str, list[str]] = {}
    for block in blocks:
        sections.setdefault(block.section, []).append(one_line(block.text))
    return "\n".join("\n".join([f"[{name}]", *texts]) for name, texts in sections.items())


def history_lines(history: Iterable[Message]) -> tuple[Line, ...]:
    """A prompt's history as a transcript, without actions."""
    return tuple(Line("User" if m.role == "user" else "Assistant", one_line(m.content)) for m in history)


def conversation_lines(task: Task, conversation: Conversation, turns: Iterable[Turn] | None = None) -> tuple[Line, ...]:
    """A conversation (or its first turns) as a transcript, with the action of every annotated Assistant utterance."""
    lines = list(history_lines(conversation.history))
    for turn in conversation.turns if turns is None else turns:
        lines.append(Line("User", one_line(turn.user)))
        lines.append(Line("Assistant", one_line(turn.response.text), task.action(turn.action)))
    return tuple(lines)


def trajectory_lines(utterances: Iterable[Utterance]) -> tuple[Line, ...]:
    """A simulated trajectory as a transcript."""
    return tuple(Line("User" if u.speaker == "user" else "Assistant", one_line(u.text)) for u in utterances)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A prompt file, compiled. `hash` is the sha256 of the file as it lies (hex)."""

    path: Path
    hash: str
    sections: tuple[tuple[SectionName, Template], ...]

    def render(self, **variables: object) -> tuple[ChatMessage, ...]:
        """The messages, in the order of the file. Raises PromptError naming file, line and variable."""
        messages = []
        for name, template in self.sections:
            try:
                text = template.render(**variables).strip()
            except UndefinedError as error:
                raise PromptError(
                    f"prompt section [[{name}]] uses something undefined: {error.message}",
                    where=f"{self.path}, line {_template_line(error)}",
                    todo=f"use the variables of this prompt: {', '.join(sorted(variables)) or 'none'}",
                ) from error
            except Exception as error:  # an expression of a template can raise anything
                raise PromptError(
                    f"prompt section [[{name}]] cannot be rendered: {error}",
                    where=f"{self.path}, line {_template_line(error)}",
                    todo="mend the expression on that line",
                ) from error
            messages.append(ChatMessage(name, text))
        return tuple(messages)


def prompt_path(role: str, task: str, prompts_dir: Path | None = None) -> Path:
    """Where the prompt of a role for a task lies.

    A task of another package may keep its prompts in a folder of its own, `<role>.md`, and where it has none the
    role's `default.md` serves; a file in `prompts_dir` goes before both.
    """
    chosen = (prompts_dir or PROMPTS) / role / f"{task}.md"
    foreign = None if is_own(task) else all_tasks().get(task)
    if foreign is None or chosen.is_file():
        return chosen
    brought = foreign.prompts / f"{role}.md" if foreign.prompts else None
    return brought if brought and brought.is_file() else PROMPTS / role / "default.md"


def prompt_hash(role: str, task: str, prompts_dir: Path | None = None) -> str:
    """sha256 of a prompt file (hex), the data version of its asset; `not asked` where the task never asks that role.

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
    sections: list[tuple[SectionName, Template]] = []
    for name, first_line, body in _split(text, path):
        try:
            # Leading line breaks (stripped after rendering) make Jinja count lines as the file does.
            sections.append((name, _ENVIRONMENT.from_string("\n" * (first_line - 1) + body)))
        except TemplateSyntaxError as error:
            raise PromptError(
                f"prompt section [[{name}]] has a syntax error: {error.message}",
                where=f"{path}, line {error.lineno}",
                todo="mend that line (the syntax is Jinja2's)",
            ) from error
    return PromptTemplate(path, hashlib.sha256(raw).hexdigest(), tuple(sections))


def _read(role: str, task: str, prompts_dir: Path | None) -> bytes:
    path = prompt_path(role, task, prompts_dir)
    try:
        return path.read_bytes()
    except OSError as error:
        shipped = prompt_path(role, task)
        todo = (
            f"copy {shipped} there and edit it" if shipped.is_file() else "write it, after the model of another task's"
        )
        raise PromptError(
            f"prompt file cannot be read: {error.strerror or error}",
            where=f"role {role}, task {task}, {path}",
            todo=todo,
        ) from error


def _split(text: str, path: Path) -> list[tuple[SectionName, int, str]]:
    """Sections as (name, number of the body's first line, body), without comments."""
    found: list[tuple[str, int, list[str]]] = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", text), start=1):
        marker = _MARKER.match(line)
        if marker:
            name = marker.group(1)
            where = f"{path}, line {number}"
            if name not in _SECTIONS:
                raise PromptError(
                    f"unknown prompt section [[{name}]]",
                    where=where,
                    todo=f"use one of: {_listed(_SECTIONS)}",
                )
            if any(name == earlier for earlier, _, _ in found):
                raise PromptError(
                    f"prompt section [[{name}]] appears twice", where=where, todo="merge the two into one"
                )
            if name == _COMMENT and found:
                raise PromptError("[[comment]] must come first", where=where, todo="move it to the top of the file")
            found.append((name, number + 1, []))
        elif found:
            found[-1][2].append(line)
        elif line.strip():
            raise PromptError(
                "text before the first section of a prompt",
                where=f"{path}, line {number}",
                todo="begin the file with [[comment]] or [[system]] on a line of its own",
            )
    bodies = [(name, first, "\n".join(body)) for name, first, body in found]
    filled = {name for name, _, body in bodies if body.strip()}
    missing = [name for name in _REQUIRED if name not in filled]
    if missing:
        raise PromptError(
            f"prompt file has no text in {_listed(missing)}",
            where=str(path),
            todo=f"add {_listed(missing)} on a line of its own, and the text of the message below it",
        )
    return [(name, first, body) for name, first, body in bodies if name != _COMMENT and name in filled]  # type: ignore[misc]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"[[{name}]]" for name in names)


def _template_line(error: Exception) -> int | str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == "<template>"]
    return lines[-1] or "?" if lines else "?"


class Prompted:
    """The part of a role that asks a model: its template, its settings, its requests."""

    def __init__(
        self,
        role: RoleName,
        llm: LLM,
        settings: RoleSettings,
        task: Task,
        prompts_dir: Path | None,
        *,
        stop: tuple[str, ...] = (),
    ) -> None:
        self.role, self.llm, self.settings, self.stop = role, llm, settings, stop
        self.template = load_template(role, task.name, prompts_dir)

    def request(self, label: str, context: object, draw: int | None = None, /, **variables: object) -> LLMRequest:
        """The question about one item. `draw` tells several samples of one prompt apart: it is the seed, or the
        sample index where the provider takes no seed.

        Greedy decoding draws nothing: at temperature 0 neither is sent, so that runs of several seeds share answers.
        """
        settings = self.settings
        greedy = settings.temperature == 0
        seed = None if greedy else settings.seed
        draw = None if greedy else draw
        sampling = Sampling(
            temperature=settings.temperature,
            max_output_tokens=settings.max_output_tokens,
            top_p=settings.top_p,
            seed=seed if seed is None or draw is None else draw,
            stop=self.stop,
            extra=settings.extra,
        )
        return LLMRequest(
            role=self.role,
            model=self.settings.model,
            messages=self.template.render(**variables),
            sampling=sampling,
            label=label,
            sample_index=draw if seed is None and draw is not None else 0,
            context=context,
        )

    def ask(self, requests: Sequence[LLMRequest], on_done: OnDone | None = None) -> list[RoleResult]:
        """The texts, or why there is none, in order."""
        return ask(self.llm, requests, on_done)


def ask(llm: LLM, requests: Sequence[LLMRequest], on_done: OnDone | None = None) -> list[RoleResult]:
    """One text or failure per request, in order; `on_done` is called after each."""
    return [r.text if isinstance(r, LLMResponse) else r for r in llm.complete_all(requests, on_done)]


def require_all(results: Sequence[RoleResult], what: str) -> list[str]:
    """The texts, where every item has one. Raises RoleError naming the first five of those that have none.

    `what` names the work in the message, for example `intent summaries`.
    """
    failures = [r for r in results if isinstance(r, LLMFailure)]
    if failures:
        shown = "".join(f"\n    {f.label}: {f.kind}: {f.message}" for f in failures[:5])
        more = f"\n    and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise RoleError(
            f"{what}: {len(failures)} of {len(results)} questions have no answer{shown}{more}",
            todo=_advice(failures),
            failures=failures,
        )
    return [r for r in results if isinstance(r, str)]


def _advice(failures: Sequence[LLMFailure]) -> str:
    kinds = {f.kind for f in failures}
    if "budget" in kinds:
        return "allow more (--max-cost, --max-calls) and run it again: what was paid is kept and not paid again"
    if kinds == {"offline"}:
        return "run it without --memo offline, import the answers (act memo import), or see act memo why-miss KEY"
    if all(f.retryable for f in failures):
        return "run it again: only these are asked, the other answers are kept"
    return (
        "see the messages: asking again as it is will not help all of them (edit the prompt or the role's settings; "
        "--memo refresh asks anew for answers that came but are of no use); the other answers are kept"
    )


def usage_of(prompted: Prompted | None) -> Usage:
    """What a role's model has used so far; nothing for a role that asks none."""
    return prompted.llm.usage if prompted else Usage()


def spoken(text: str, speaker: Literal["User", "Assistant"]) -> str:
    """What a model wrote as the next utterance of `speaker`: without the speaker's name (and a bracketed stage
    direction) before it, and without the utterances it went on to invent."""
    text = re.sub(rf"^\s*(?:[(\[][^\n]*[)\]]\s*\n\s*)?{speaker}:", "", text, flags=re.IGNORECASE)
    return re.split(r"(?:^|\n)[ \t]*(?:User|Assistant):", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def usable(
    results: Iterable[RoleResult], labels: Iterable[str], read: Callable[[str], str | None], wanted: str
) -> list[RoleResult]:
    """Texts as `read` reads them; one in which it finds nothing becomes a failure saying what was `wanted`."""
    out: list[RoleResult] = []
    for result, label in zip(results, labels, strict=True):
        if isinstance(result, str):
            excerpt = repr(result[:80])
            out.append(read(result) or LLMFailure("rejected", f"not {wanted}: {excerpt}", False, label))
        else:
            out.append(result)
    return out


def parse_action(text: str, task: Task) -> str | None:
    """The one action that a text names; None where it names none or several."""
    names = sorted(task.action_names, key=len, reverse=True)
    pattern = rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])"
    found = {match.upper() for match in re.findall(pattern, text, re.IGNORECASE)}
    named = [name for name in task.action_names if name.upper() in found]
    return named[0] if len(named) == 1 else None


def labelled(results: Iterable[RoleResult], labels: Iterable[str], task: Task) -> list[RoleResult]:
    """Texts read as action names, strictly."""
    wanted = f"exactly one of {', '.join(task.action_names)}"
    return usable(results, labels, lambda text: parse_action(text, task), wanted)


def draw_in_context(conversations: Sequence[Conversation], number: int, seed: int) -> tuple[Conversation, ...]:
    """Up to `number` training conversations for prompts (appendix F), seeded; fewer where there are fewer."""
    chosen = random.Random(derive_seed(seed, "in_context")).sample(
        range(len(conversations)), min(number, len(conversations))
    )
    return tuple(conversations[i] for i in chosen)


def examples_apart_from(turn: TurnState, examples: Sequence[tuple[str, Example]], shown: int) -> list[Example]:
    """The first `shown` in-context examples, without the turn's own group, which holds its reference."""
    others = [example for group, example in examples if group != turn.group]
    return others[:shown]
