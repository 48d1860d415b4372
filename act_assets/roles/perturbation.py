"""Writes the ambiguous twin of a clear request, and the question that resolves it (appendix C)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from act_assets.conversation import ClearRequest
from act_assets.roles.role import OnDone, PerturbationContext, Prompted, RoleResult, RoleSettings, usage_of
from act_assets.tasks.base import Task
from resources.llm.base import LLMRequest, Usage

if TYPE_CHECKING:
    from resources.llm.client import LLM


class Perturber:
    """Makes requests ambiguous by the strategy that each of them names."""

    def __init__(self, llm: LLM, settings: RoleSettings, task: Task, prompts_dir: Path | None = None) -> None:
        self._prompted = Prompted("perturbation", llm, settings, task, prompts_dir)

    @property
    def usage(self) -> Usage:
        return usage_of(self._prompted)

    def requests(self, clear: Sequence[ClearRequest]) -> list[LLMRequest]:
        """The requests that `perturb` sends, for previews."""
        return [
            self._prompted.request(
                request.where,
                PerturbationContext(request),
                strategy=request.strategy,
                schema=request.grounding,
                query=request.target,
                request=request.request,
            )
            for request in clear
        ]

    def perturb(self, clear: Sequence[ClearRequest], on_done: OnDone | None = None) -> list[RoleResult]:
        """What the model wrote for each request, in order; `TwinMaker.read_reply` reads it."""
        return self._prompted.ask(self.requests(clear), on_done)
