"""What the roles share: the subject of a question, asking a model, reading what it wrote."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from act_assets.conversation import ClearRequest, Conversation, TurnState, Utterance
from act_assets.profile import LLMRole
from act_assets.roles.prompt import (
    Example,
    Line,
    RoleName,
    conversation_lines,
    grounding_text,
    history_lines,
    load_template,
)
from act_assets.seeds import derive_seed
from act_assets.tasks.base import Task
from resources.errors import RoleError
from resources.llm.base import LLMFailure, LLMRequest, Sampling, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM

RoleResult = str | LLMFailure
"""What a role gives for one item."""

OnDone = Callable[[], None]


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
    """Label the last of the `utterances` since the prompt of `turn`, a sampled response."""

    turn: TurnState
    utterances: tuple[Utterance, ...]


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


class Role:
    """A role that a model plays for one task.

    A subclass has a method that makes the requests about its items and one that answers them, with
    one result per item, in order; a failed item is an `LLMFailure` and never a text. `examples` are
    conversations of the training side, for roles that show some in context: a turn sees the first
    `shown` of them (appendices F and G: 10) that are not of its own group. Without `send_seed` in
    its settings no seed is sent.
    """

    name: ClassVar[RoleName]
    stop: ClassVar[tuple[str, ...]] = ()
    wanted: str = "a text"  # what an answer has to be, in the message of one that is not

    def __init__(
        self,
        llm: LLM,
        settings: LLMRole,
        task: Task,
        examples: Sequence[Conversation] = (),
        *,
        seed: int = 0,
        shown: int = 10,
        prompts_dir: Path | None = None,
    ) -> None:
        self.llm, self.settings, self.task = llm, settings, task
        self.seed = seed if settings.send_seed else None
        self.template = load_template(self.name, task.name, prompts_dir)
        self.examples_shown = min(shown, len(examples))
        self._examples = [(c.group_id, self.example(c, i)) for i, c in enumerate(examples)]

    @property
    def usage(self) -> Usage:
        """What its model has used so far."""
        return self.llm.usage

    def example(self, conversation: Conversation, number: int) -> Example:
        """How a conversation is shown in context, as the `number`-th of all."""
        return Example(grounding_text(conversation.context), conversation_lines(self.task, conversation))

    def examples_apart_from(self, turn: TurnState) -> list[Example]:
        """The in-context examples for a turn, without its own group, which holds its reference."""
        return [example for group, example in self._examples if group != turn.group][: self.examples_shown]

    def request(self, label: str, context: object, draw: int | None = None, /, **variables: object) -> LLMRequest:
        """The question about one item. `draw` tells several samples of one prompt apart: it is the
        seed, or the sample index where the provider takes no seed.

        Greedy decoding draws nothing: at temperature 0 neither is sent, so that runs of several
        seeds share answers.
        """
        settings = self.settings
        greedy = settings.temperature == 0
        seed, draw = (None, None) if greedy else (self.seed, draw)
        sampling = Sampling(
            temperature=settings.temperature,
            max_output_tokens=settings.max_output_tokens,
            top_p=settings.top_p,
            seed=seed if seed is None or draw is None else draw,
            stop=self.stop if settings.stop else (),
            extra=settings.extra,
        )
        return LLMRequest(
            role=self.name,
            model=settings.model,
            messages=self.template.render(**variables),
            sampling=sampling,
            label=label,
            sample_index=draw if seed is None and draw is not None else 0,
            context=context,
        )

    def answers(self, requests: Sequence[LLMRequest], on_done: OnDone | None = None) -> list[RoleResult]:
        """One text or failure per request, in order; `on_done` is called after each."""
        results: list[RoleResult] = []
        for request, result in zip(requests, self.llm.complete_all(requests, on_done), strict=True):
            if isinstance(result, LLMFailure):
                results.append(result)
                continue
            text = self.read(result.text)
            reason = f"not {self.wanted}: {result.text[:80]!r}"
            results.append(LLMFailure("rejected", reason, False, request.label) if text is None else text)
        return results

    def read(self, text: str) -> str | None:
        """What an answer says; None where it is not what was `wanted`."""
        return text


class Labeller(Role):
    """A role whose answer names one action of a response."""

    @property
    def wanted(self) -> str:  # type: ignore[override]
        return f"exactly one of {', '.join(self.task.action_names)}"

    def question(self, turn: TurnState, said: Sequence[Line], context: object, **variables: object) -> LLMRequest:
        """Which action the last line takes of what was said since a turn's prompt."""
        return self.request(
            turn.where,
            context,
            actions=self.task.actions,
            grounding=grounding_text(turn.context),
            lines=(*history_lines(turn.history), *said),
            **variables,
        )

    def read(self, text: str) -> str | None:
        return parse_action(text, self.task)


class WithoutModel:
    """A role that no model plays: it asks nothing and uses nothing."""

    usage = Usage()


def require_all(results: Sequence[RoleResult], what: str) -> list[str]:
    """The texts, where every item has one. Raises RoleError naming the first five that have none.

    `what` names the work in the message, for example `intent summaries`.
    """
    failures = [r for r in results if isinstance(r, LLMFailure)]
    if failures:
        shown = "".join(f"\n    {f.label}: {f.kind}: {f.message}" for f in failures[:5])
        more = f"\n    and {len(failures) - 5} more" if len(failures) > 5 else ""
        kinds = {f.kind for f in failures}
        if "budget" in kinds:
            advice = "allow more (--max-cost, --max-calls) and run it again: what was paid is kept and not paid again"
        elif kinds == {"offline"}:
            advice = "run it without --memo offline, import the answers (act memo import), or see act memo why-miss KEY"
        elif all(f.retryable for f in failures):
            advice = "run it again: only these are asked, the other answers are kept"
        else:
            advice = (
                "see the messages: asking again as it is will not help all of them (edit the prompt or the role's "
                "settings; --memo refresh asks again for answers that came but are of no use); the other answers are "
                "kept"
            )
        raise RoleError(
            f"{what}: {len(failures)} of {len(results)} questions have no answer{shown}{more}",
            todo=advice,
            failures=failures,
        )
    return [r for r in results if isinstance(r, str)]


def spoken(text: str, speaker: Literal["User", "Assistant"]) -> str:
    """What a model wrote as the next utterance of `speaker`: without the speaker's name (and a
    bracketed stage direction) before it, and without the utterances it went on to invent."""
    text = re.sub(rf"^\s*(?:[(\[][^\n]*[)\]]\s*\n\s*)?{speaker}:", "", text, flags=re.IGNORECASE)
    return re.split(r"(?:^|\n)[ \t]*(?:User|Assistant):", text, maxsplit=1, flags=re.IGNORECASE)[0].strip()


def parse_action(text: str, task: Task) -> str | None:
    """The one action that a text names; None where it names none or several."""
    names = sorted(task.action_names, key=len, reverse=True)
    pattern = rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])"
    found = {match.upper() for match in re.findall(pattern, text, re.IGNORECASE)}
    named = [name for name in task.action_names if name.upper() in found]
    return named[0] if len(named) == 1 else None


def draw_in_context(conversations: Sequence[Conversation], number: int, seed: int) -> tuple[Conversation, ...]:
    """Up to `number` training conversations for prompts (appendix F), drawn with the seed."""
    number = min(number, len(conversations))
    return tuple(random.Random(derive_seed(seed, "in_context")).sample(conversations, number))
