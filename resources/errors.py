"""The errors that people see: what happened, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resources.llm.base import LLMFailure


class ActError(Exception):
    """An error whose message is complete by itself: what, where, what to do.

    The command line prints it without a traceback and ends with exit code 1.
    """

    def __init__(self, what: str, *, where: str = "", todo: str = "") -> None:
        self.what, self.where, self.todo = what, where, todo
        further = (where and f"  where: {where}", todo and f"  to do: {todo}")
        super().__init__("\n".join([what, *filter(None, further)]))


class DataError(ActError):
    """A dataset file is missing, truncated or malformed."""


class ProfileError(ActError):
    """A profile has mistakes; the message lists all of them."""


class PromptError(ActError):
    """A prompt template is missing, malformed, or does not fit its budget."""


class RoleError(ActError):
    """Calls of an LLM role failed; the message names the first examples, `failures` has all of them."""

    def __init__(self, what: str, *, where: str = "", todo: str = "", failures: Sequence[LLMFailure] = ()) -> None:
        super().__init__(what, where=where, todo=todo)
        self.failures = tuple(failures)


class TrainingError(ActError):
    """Training could not continue; what was finished before is intact."""


def mistake_of(error: Any, whole: str = "") -> str:
    """One of pydantic's errors as a sentence; `whole` names what has it where it is of no single key."""
    key = ".".join(str(part) for part in error["loc"]) or whole
    if error["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if error["type"] == "missing":
        return f"{key}: missing"
    message = str(error["msg"]).removeprefix("Value error, ")
    given = f" (given: {error['input']!r})" if isinstance(error["input"], str | int | float | bool) else ""
    return f"{key}: {message[0].lower()}{message[1:]}{given}"


def all_mistakes(what: str, mistakes: Sequence[str]) -> str:
    """The mistakes of a file, one a line."""
    number = f"{len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}"
    return f"{what} has {number}:\n" + "\n".join(f"  - {m}" for m in mistakes)
