"""The embedded provider: plays every role by rule, without a network or a key, and always the same way.

It answers from the typed subject of a request (`LLMRequest.context`), so that a run with it takes the path of a real
one: template -> request -> provider. The rules are the task's (act_assets/tasks/). It stands in for a language model
where none is configured; it is no baseline. The simulator never sees the references.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from act_assets import tasks
from act_assets.roles.intent import OPENING
from act_assets.roles.role import (
    AnnotatorContext,
    ClassifierContext,
    GeneratorContext,
    IntentContext,
    PerturbationContext,
    SimulatorContext,
)
from act_assets.tasks import get_task
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest, LLMResponse, ProviderError

MODEL = "embedded-rules-1"


class EmbeddedProvider:
    """Rule-based answers for the roles; a request without one of their contexts is rejected."""

    name = "embedded"
    base_url = ""

    async def complete(self, request: LLMRequest) -> LLMResponse:
        """The answer by rule. Raises ProviderError('rejected') for a request it has no rule for."""
        if request.model != MODEL:
            raise _rejected(f"the embedded provider has one model, {MODEL!r}, not {request.model!r}")
        text = answer_by_rule(request.context)
        return LLMResponse(
            text=text,
            model=MODEL,
            prompt_tokens=sum(len(m.content.split()) for m in request.messages),
            output_tokens=len(text.split()),
        )

    def fingerprint(self, request: LLMRequest) -> str:
        """The subject of the request and the rules as they stand: answers depend on them, not on the messages."""
        digest = _rules_of(task.name) if (task := _task(request.context)) else ""
        return hashlib.sha256(f"{digest}\n{request.context!r}".encode("utf-8", "replace")).hexdigest()


@functools.cache
def _rules_of(task: str) -> str:
    """A hash of the source of a task's rules, so that an answer of older rules is not taken for one of these."""
    own = {type(part).__module__ for part in (get_task(task).rules, get_task(task).judge)}
    files = {Path(str(sys.modules[name].__file__)) for name in (*own, __name__)}
    files |= set(Path(str(tasks.__file__)).parent.rglob("*.py"))  # rules read what tasks write
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _task(context: object) -> Task | None:
    match context:
        case GeneratorContext() | AnnotatorContext() | ClassifierContext() | SimulatorContext():
            return get_task(context.turn.task)
        case IntentContext(conversation=conversation):
            return get_task(conversation.task)
        case PerturbationContext(clear=clear):
            return get_task(clear.task)
    return None


def answer_by_rule(context: object) -> str:
    """What the task's rules say to a typed request. Raises ProviderError where they have no answer."""
    task = _task(context)
    if task is None:
        raise _rejected(f"the embedded provider answers typed role requests only, not {type(context).__name__}")
    text: str | None = None
    match context:
        case GeneratorContext(turn, action, seed):
            text = task.rules.generate(turn, action, seed)
        case AnnotatorContext(turn):
            text = task.judge.rule_action(turn.response.text)
        case ClassifierContext(_, utterances):
            text = task.judge.rule_action(utterances[-1].text)
        case IntentContext(conversation):
            # A turn that clarifies is skipped, for the turn that ends its trajectory carries the whole request.
            last = conversation.turns[-1]
            ending = [t for t in conversation.turns if t is last or task.action(t.action).ends_trajectory]
            items = (f"{i}. {one_line(t.clear_request)}" for i, t in enumerate(ending, start=1))
            text = " ".join([OPENING, *items])
        case SimulatorContext(turn, intent, utterances):
            text = task.rules.reply(turn, intent, utterances)
        case PerturbationContext(clear):
            text = task.rules.perturb(clear)
    if text is None:
        role = type(context).__name__.removesuffix("Context").lower()
        action = f" under {context.action}" if isinstance(context, GeneratorContext) else ""
        raise _rejected(
            f"the embedded provider has no rule for the {role} of task {task.name} that fits this request{action}"
        )
    return text


def _rejected(message: str) -> ProviderError:
    return ProviderError("rejected", message, retryable=False)
