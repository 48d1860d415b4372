"""Roles from a profile: which provider plays which role, with which settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from act_assets.conversation import Conversation
from act_assets.profile import LLMRole, Profile
from act_assets.roles.annotator import Annotator, GoldAnnotator, RuleAnnotator
from act_assets.roles.classifier import Classifier, RuleClassifier
from act_assets.roles.embedded import MODEL, EmbeddedProvider
from act_assets.roles.generator import Generator
from act_assets.roles.intent import IntentSummarizer
from act_assets.roles.perturbation import Perturber
from act_assets.roles.role import Role, draw_in_context
from act_assets.roles.simulator import Simulator
from act_assets.tasks.base import Task
from resources.errors import ActError, ProfileError
from resources.llm.base import Usage
from resources.llm.client import LLM
from resources.llm.keys import api_keys
from resources.llm.rate_limit import Limits
from resources.llm.retry import RetrySettings
from resources.llm.service import CallSettings, Endpoint, key_variables, open_llm, price_table, served_at

R = TypeVar("R", bound=Role)


@dataclass(frozen=True, slots=True)
class RoleFactory:
    """Makes the roles of one task, as a profile names them. In-context conversations are drawn from
    `pool`, which is training data."""

    profile: Profile
    task: Task
    prompts_dir: Path
    seed: int
    calls: CallSettings
    open_role: Callable[[LLMRole], LLM] | None = None  # in the place of `open_llm`

    def generator(self, pool: Sequence[Conversation]) -> Generator:
        return self._made(Generator, self.profile.roles.generator, pool)

    def intent_summarizer(self) -> IntentSummarizer:
        return self._made(IntentSummarizer, self.profile.roles.intent)

    def perturber(self) -> Perturber:
        return self._made(Perturber, self.profile.roles.played()["perturbation"])

    def simulator(self) -> Simulator:
        return self._made(Simulator, self.profile.roles.simulator)

    def annotator(self) -> Annotator | RuleAnnotator | GoldAnnotator:
        if self.profile.labels_from == "gold":
            return GoldAnnotator()
        role = self.profile.roles.annotator.llm
        return self._made(Annotator, role) if role else RuleAnnotator(self.task)

    def classifier(self, pool: Sequence[Conversation]) -> Classifier | RuleClassifier:
        role = self.profile.roles.classifier.llm
        return self._made(Classifier, role, pool) if role else RuleClassifier(self.task)

    def llm(self, role: LLMRole) -> LLM:
        """The model that plays a role, with this run's memo, rate limit and budget."""
        if self.open_role is not None:
            return self.open_role(role)
        return open_llm(endpoint_of(role), self.calls, EmbeddedProvider)

    def _made(self, kind: type[R], role: LLMRole, pool: Sequence[Conversation] = ()) -> R:
        # More are drawn than are shown, for a turn never sees a conversation of its own group (itself, its twin).
        shown = self.profile.roles.in_context_conversations
        largest = max(Counter(c.group_id for c in pool).values(), default=1)
        examples = draw_in_context(pool, shown + largest, self.seed)
        llm = self.llm(role)
        return kind(llm, role, self.task, examples, seed=self.seed, shown=shown, prompts_dir=self.prompts_dir)


def check_roles(profile: Profile, *, max_cost_usd: float | None = None) -> None:
    """Raises ProfileError, before anything is made, listing every role that cannot be played as it is written.

    A missing key is no such mistake: what the memo holds needs none.
    """
    mistakes = []
    for name, role in profile.roles.played().items():
        if name == "perturbation" and profile.roles.perturbation is None:
            continue  # the generator's model, whose mistakes stand there
        where = f"roles.{name}" + (".llm" if name in ("annotator", "classifier") else "")
        mistakes += [f"{where}: {why}" for why in _unplayable(role, max_cost_usd)]
    if mistakes:
        raise ProfileError(
            "the profile names roles that cannot be played:\n" + "\n".join(f"  - {m}" for m in mistakes),
            where=f"profile {profile.name}",
            todo="fix all of them, then run again",
        )


def _unplayable(role: LLMRole, max_cost_usd: float | None) -> list[str]:
    if role.provider == "embedded":
        named = [n for n in ("base_url", "top_p", "extra") if getattr(role, n)]
        mistakes = [f"the embedded provider takes no {n}" for n in named]
        if role.model != MODEL:
            mistakes.append(f"the embedded provider has no model {role.model!r}, only {MODEL}")
        return mistakes
    try:
        base_url = served_at(endpoint_of(role))
        price = price_table().price(role.provider, base_url, role.model)
    except ActError as error:
        return [error.what]
    if max_cost_usd is not None and price is None:
        return [
            f"the price of {role.model} at {base_url} is not known, which a budget in dollars needs: "
            "name it in a file and set ACT_PRICES to its path, or limit the number of calls instead"
        ]
    return []


def endpoint_of(role: LLMRole) -> Endpoint:
    """Where a role's model answers, and how it may be asked."""
    tries = {n: v for n in ("timeout_s", "attempts", "patience_s") if (v := getattr(role, n)) is not None}
    return Endpoint(
        role.provider,
        role.model,
        role.base_url,
        Limits(role.max_concurrency, role.requests_per_minute, role.tokens_per_minute),
        RetrySettings(**tries),
        role.accept_models,
        role.max_tokens_name,
    )


def missing_keys(providers: Iterable[str]) -> list[str]:
    """A sentence for each provider whose key is not set; local servers of the openai protocol may need none."""
    named = [(p, key_variables(p)) for p in dict.fromkeys(providers)]
    return [f"{p}: {names[0]} is not set in the environment" for p, names in named if names and not api_keys(*names)]


def describe(role: LLMRole | None, source: str = "llm") -> str:
    """A role in a report: `embedded (embedded-rules-1)`, or the rule that stands in its place."""
    return f"{role.provider} ({role.model})" if role is not None else source


def describe_labels(profile: Profile) -> str:
    """Where the actions that training sees come from, in a report: `gold`, or who plays G."""
    return describe(profile.roles.annotator.llm, profile.labels_from)


def usage_facts(usage: Usage) -> dict[str, Any]:
    """What the calls of some roles came to, as facts of an artifact; dollars are rounded to a millionth."""
    names = ("calls", "hits", "failures", "retries", "prompt_tokens", "output_tokens", "cost_usd", "saved_usd")
    facts: dict[str, Any] = {f"llm_{name}": round(getattr(usage, name), 6) for name in names}
    if usage.samples:
        facts["llm_sample"] = [asdict(s) for s in usage.samples]
    return facts
