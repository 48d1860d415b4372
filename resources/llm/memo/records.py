"""What the memo holds, and the key of a question.

The key is the SHA-256 of canonical JSON of everything that can change the answer. What is absent
stays absent, so that absent, null and 0 are three different things; timeouts, retries, concurrency
and credentials are not in it.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

from resources.errors import ActError
from resources.llm.base import LLMRequest, LLMResponse, Usage
from resources.llm.thoughts import UnfinishedThought, split_thoughts

KEY_VERSION = 1  # raise it when the same question would be written otherwise; old keys stay what they are

LARGEST = 2**63 - 1

_SAMPLING_NUMBERS = {"temperature": float, "top_p": float, "max_output_tokens": int, "seed": int}


def canonical(value: Any) -> str:
    """JSON with sorted keys, without spaces, ASCII only. Raises ValueError for what JSON cannot hold (NaN)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def question_of(provider: str, base_url: str, request: LLMRequest, fingerprint: str | None = None) -> str:
    """Everything that can change the answer, as canonical JSON. Raises ActError where it is not plain JSON."""
    chosen = request.sampling
    sampling: dict[str, Any] = {}
    for name, kind in _SAMPLING_NUMBERS.items():
        if (number := getattr(chosen, name)) is not None:
            sampling[name] = kind(number)
    if chosen.stop:
        sampling["stop"] = list(chosen.stop)
    question: dict[str, Any] = {
        "key_version": KEY_VERSION,
        "provider": provider,
        "base_url": base_url,
        "model": request.model,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "sampling": sampling,
        "sample_index": request.sample_index,
    }
    if chosen.extra:
        question["extra"] = dict(chosen.extra)
    if fingerprint is not None:
        question["fingerprint"] = fingerprint
    try:
        return canonical(question)
    except (TypeError, ValueError) as error:
        raise ActError(
            f"a request is not plain JSON: {error}",
            where=f"role {request.role}, {request.label}",
            todo="use only texts, finite numbers, lists and mappings in the role's `extra`",
        ) from error


def key_of(question: str) -> str:
    """The key of a question as canonical JSON: 64 hex digits."""
    return hashlib.sha256(question.encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: the asset, its partition, the Dagster run, and whose budget pays."""

    asset: str = ""
    partition: str = ""
    run: str = ""
    budget: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One paid answer: a row of the memo and a line of a journal.

    `question` is the canonical JSON behind `key`; latency in seconds; `cost_usd` None where no price is known;
    `created_at` in seconds since 1970 (UTC). What has a default came later: older rows lack it.
    """

    id: str
    key: str
    question: str
    provider: str
    base_url: str
    model: str
    sample_index: int
    role: str
    label: str
    asset: str
    partition: str
    run: str
    budget: str
    text: str
    finish_reason: str
    reported_model: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    cost_usd: float | None
    created_at: float
    thoughts: str = ""
    thinking_tokens: int = 0
    cached_tokens: int = 0

    def stored(self) -> Stored:
        """What a look-up gives of it."""
        return Stored(*(getattr(self, name) for name in Stored._fields))


class Stored(NamedTuple):
    """What a look-up needs of an answer."""

    key: str
    text: str
    reported_model: str
    prompt_tokens: int
    output_tokens: int
    latency_s: float
    cost_usd: float | None
    created_at: float

    def response(self) -> LLMResponse:
        """The answer; of a row that was kept before thoughts were told apart, without them."""
        try:
            text = split_thoughts(self.text)[1]
        except UnfinishedThought:
            text = ""
        return LLMResponse(text, self.reported_model, "stop", self.prompt_tokens, self.output_tokens, self.latency_s)


@dataclass(frozen=True, slots=True)
class Use:
    """What one batch of questions came to beside its answers: a row of the ledger, of a `Usage`'s
    counts those that no answer's row says."""

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    noted_at: float = field(default_factory=time.time)
    provider: str = ""
    base_url: str = ""
    model: str = ""
    role: str = ""
    asset: str = ""
    partition: str = ""
    run: str = ""
    budget: str = ""
    hits: int = 0
    saved_prompt_tokens: int = 0
    saved_output_tokens: int = 0
    saved_usd: float = 0.0
    failures: int = 0
    lost_calls: int = 0
    lost_prompt_tokens: int = 0
    lost_output_tokens: int = 0
    lost_usd: float = 0.0


Record = Answer | Use
ANSWER_FIELDS = tuple(f.name for f in fields(Answer))
USE_FIELDS = tuple(f.name for f in fields(Use))
LATER = {f.name: f.default for f in fields(Answer) if f.default is not MISSING}  # fields that older rows lack


def new_answer(
    provider: str,
    base_url: str,
    request: LLMRequest,
    question: str,
    response: LLMResponse,
    asker: Asker,
    cost_usd: float | None,
) -> Answer:
    """The record of an answer that has just come in; `stored()` of it is what will be read again."""
    return Answer(
        id=uuid.uuid4().hex,
        key=key_of(question),
        question=question,
        provider=provider,
        base_url=base_url,
        model=request.model,
        sample_index=request.sample_index,
        role=request.role,
        label=request.label,
        **asdict(asker),
        text=storable(response.text),
        finish_reason=response.finish_reason,
        reported_model=storable(response.model),
        prompt_tokens=storable(response.prompt_tokens),
        output_tokens=storable(response.output_tokens),
        latency_s=round(response.latency_s, 6),
        cost_usd=cost_usd,
        created_at=time.time(),
        thoughts=storable(response.thoughts),
        thinking_tokens=storable(response.thinking_tokens),
        cached_tokens=storable(response.cached_tokens),
    )


def new_use(provider: str, base_url: str, first: LLMRequest, asker: Asker, usage: Usage) -> Use:
    """The ledger's row for questions like `first` that came to `usage`."""
    counts = {name: getattr(usage, name) for name in USE_FIELDS if name in Usage.__dataclass_fields__}
    return Use(provider=provider, base_url=base_url, model=first.model, role=first.role, **{**asdict(asker), **counts})


def storable(value: Any) -> Any:
    """What the database can hold too: in a text that UTF-8 cannot hold, a question mark for each
    lone surrogate; of a number of more than 64 bits, the largest."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    return max(-LARGEST - 1, min(value, LARGEST)) if isinstance(value, int) else value


def to_json(record: Record) -> dict[str, Any]:
    """A record as a JSON object; `kind` tells which."""
    kind, names = ("answer", ANSWER_FIELDS) if isinstance(record, Answer) else ("use", USE_FIELDS)
    return {"kind": kind, **{name: storable(getattr(record, name)) for name in names}}


def from_json(raw: Mapping[str, Any]) -> Record:
    """The record of a JSON object. Raises ValueError naming what is missing, unknown or of a wrong type."""
    given = dict(raw)
    kind = given.pop("kind", None)
    if kind not in ("answer", "use"):
        raise ValueError(f"kind is {kind!r}, not answer or use")
    made: type[Answer] | type[Use] = Answer if kind == "answer" else Use
    if made is Answer:
        given = {**LATER, **given}
    types = {f.name: str(f.type) for f in fields(made)}
    if given.keys() != types.keys():
        missing, unknown = sorted(types.keys() - given.keys()), sorted(given.keys() - types.keys())
        raise ValueError(f"missing: {missing}, unknown: {unknown}")
    for name, declared in types.items():
        if not isinstance(value := given[name], _TYPES[declared]) or isinstance(value, bool):
            raise ValueError(f"{name} is a {type(value).__name__}, not {declared}")
    return made(**given)


_TYPES: dict[str, Any] = {"str": str, "int": int, "float": float | int, "float | None": float | int | None}
