"""What the user of a conversation wants to know, which is what U is grounded in (appendix H)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_assets.conversation import Conversation
from act_assets.roles.role import (
    IntentContext,
    OnDone,
    Prompted,
    RoleResult,
    RoleSettings,
    conversation_lines,
    grounding_text,
    usable,
    usage_of,
)
from act_assets.tasks.base import Task
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM

OPENING = "The user wants to know:"


class IntentSummarizer:
    """Summarises the information-seeking intents of whole conversations."""

    def __init__(self, llm: LLM, settings: RoleSettings, task: Task, prompts_dir: Path | None = None) -> None:
        self.task = task
        self._prompted = Prompted("intent", llm, settings, task, prompts_dir)

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(self, conversations: Sequence[Conversation]) -> list[LLMRequest]:
        """The requests that `summarize` sends, for previews."""
        return [
            self._prompted.request(
                _where(conversation),
                IntentContext(conversation),
                grounding=grounding_text(conversation.context),
                lines=conversation_lines(self.task, conversation),
            )
            for conversation in conversations
        ]

    def summarize(self, conversations: Sequence[Conversation], on_done: OnDone | None = None) -> list[RoleResult]:
        """`The user wants to know: 1. ... 2. ...` for each conversation, in order."""
        results = self._prompted.ask(self.requests(conversations), on_done)
        return usable(results, map(_where, conversations), _numbered, "a list numbered from 1.")


def _numbered(text: str) -> str:
    """The summary on one line, from its opening on; nothing where it holds no numbered list."""
    text = one_line(text)
    start = text.lower().find(OPENING.lower())
    body = text[start + len(OPENING) :].strip() if start >= 0 else text
    return f"{OPENING} {body}" if body.startswith("1. ") else ""


def _where(conversation: Conversation) -> str:
    return f"task {conversation.task}, conversation {conversation.conversation_id}"
