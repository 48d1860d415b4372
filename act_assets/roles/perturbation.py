"""Writes the ambiguous twin of a clear request, and the question that resolves it (appendix C)."""

from __future__ import annotations

from collections.abc import Sequence

from act_assets.conversation import ClearRequest
from act_assets.roles.role import OnDone, PerturbationContext, Role, RoleResult
from resources.llm.base import LLMRequest


class Perturber(Role):
    """Makes requests ambiguous by the strategy that each of them names."""

    name = "perturbation"

    def requests(self, clear: Sequence[ClearRequest]) -> list[LLMRequest]:
        """The requests that `perturb` sends."""
        return [
            self.request(
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
        return self.answers(self.requests(clear), on_done)
