"""What the user of a conversation wants to know, which is what U is grounded in (appendix H)."""

from __future__ import annotations

from collections.abc import Sequence

from act_assets.conversation import Conversation
from act_assets.roles.prompt import conversation_lines, grounding_text
from act_assets.roles.role import IntentContext, OnDone, Role, RoleResult
from act_assets.tasks.rules import one_line
from resources.llm.base import LLMRequest

OPENING = "The user wants to know:"


class IntentSummarizer(Role):
    """Summarises the information-seeking intents of whole conversations."""

    name = "intent"
    wanted = "a list numbered from 1."

    def requests(self, conversations: Sequence[Conversation]) -> list[LLMRequest]:
        """The requests that `summarize` sends."""
        return [
            self.request(
                f"task {conversation.task}, conversation {conversation.conversation_id}",
                IntentContext(conversation),
                grounding=grounding_text(conversation.context),
                lines=conversation_lines(self.task, conversation),
            )
            for conversation in conversations
        ]

    def summarize(self, conversations: Sequence[Conversation], on_done: OnDone | None = None) -> list[RoleResult]:
        """`The user wants to know: 1. ... 2. ...` for each conversation, in order."""
        return self.answers(self.requests(conversations), on_done)

    def read(self, text: str) -> str | None:
        """The summary on one line, from its opening on; None where it holds no numbered list."""
        text = one_line(text)
        start = text.lower().find(OPENING.lower())
        body = text[start + len(OPENING) :].strip() if start >= 0 else text
        return f"{OPENING} {body}" if body.startswith("1. ") else None
