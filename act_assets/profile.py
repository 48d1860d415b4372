"""The one dial: a profile names every setting of a run, and is validated as a whole.

    profile = load_profile("laptop")            # or "paper", or a path to a YAML file

Defaults stand here once, with their source; a profile states what depends on the machine and the model.
Numbers of the paper are cited by section in `profiles/paper.yaml`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from act_assets.home import PACKAGE
from resources.errors import ProfileError, all_mistakes, mistake_of
from resources.llm.models import refused_parameters
from resources.settings import Compute, Positive, Rate, Settings, Share, Temperature

REPLY_TOKENS = 64  # room for one reply of the user in the length check; replies are a few words


def _refuse(mistakes: dict[str, object]) -> None:
    """Raises ValueError naming every mistake that holds."""
    if found := [mistake for mistake, holds in mistakes.items() if holds]:
        raise ValueError("; ".join(found))


class LLMRole(Settings):
    """Which model plays a role: where it answers, how it decodes, and how it may be asked."""

    provider: Literal["embedded", "gemini", "openai"]
    model: str
    base_url: str | None = None  # another server of the same protocol; vLLM's: provider openai, http://host:8000/v1

    # Parameters that control decoding; all of them are part of the memo's key.
    # null: not sent. Where a model is known to refuse one (resources/llm/models.py), that is the default.
    temperature: Temperature | None = 0.0
    max_output_tokens: Positive = 256  # of a reasoning model its thoughts included
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: bool = True  # send the role's stop sequences; what they would cut off is cut off anyway
    send_seed: bool = True  # unless at temperature 0; switch it off where the server takes none
    extra: dict[str, Any] = Field(default={})  # further parameters of the provider's API, sent as they are

    # Parameters that control the transport; none of them changes an answer.
    max_concurrency: Positive = 8
    requests_per_minute: Positive | None = None
    tokens_per_minute: Positive | None = None
    timeout_s: Rate | None = None  # of one attempt; the defaults of these three: resources/llm/retry.py
    attempts: Positive | None = None
    patience_s: Rate | None = None
    accept_models: tuple[str, ...] = ()  # further names that answers may report: aliases of this model
    max_tokens_name: Literal["max_tokens", "max_completion_tokens"] | None = None  # default: the server's usual one

    @model_validator(mode="before")
    @classmethod
    def _known_refusals(cls, given: Any) -> Any:
        """Leaves out what the model refuses, where nothing else is said."""
        if not isinstance(given, dict):
            return given
        provider, url, model = (given.get(name) for name in ("provider", "base_url", "model"))
        refused = refused_parameters(str(provider), url if isinstance(url, str) else None, str(model))
        unsaid = {"temperature": None, "stop": False}
        return {**{name: value for name, value in unsaid.items() if name in refused}, **given}

    @model_validator(mode="after")
    def _nothing_refused(self) -> LLMRole:
        refused = refused_parameters(self.provider, self.base_url, self.model)
        said = {"temperature": self.temperature, "top_p": self.top_p, "stop": self.stop or None, **self.extra}
        why = f"{self.model} takes no {{}}: write {{}}"
        off = {"stop": "stop: false", "top_k": "no top_k in extra", "candidate_count": "no candidate_count in extra"}
        _refuse({why.format(n, off.get(n, f"{n}: null")): said.get(n) is not None for n in sorted(refused)})
        return self


TRANSPORT = (
    *("max_concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "attempts", "patience_s"),
    *("accept_models", "max_tokens_name"),
)


class SourcedRole(Settings):
    """A role that a model plays, or the task's rule, which costs no call and is right for all 1,982
    gold responses of PACIFIC."""

    source: Literal["rule", "llm"] = "rule"
    llm: LLMRole | None = None

    @model_validator(mode="after")
    def _llm_is_named(self) -> SourcedRole:
        if (self.source == "llm") != (self.llm is not None):
            raise ValueError("source 'llm' and an 'llm' block that names provider and model go together")
        return self


class Roles(Settings):
    """The LLM roles of section 3.1."""

    generator: LLMRole
    intent: LLMRole
    simulator: LLMRole
    perturbation: LLMRole | None = None  # writes the ambiguous twins of appendix C; by default the generator's model
    annotator: SourcedRole = SourcedRole()  # G, which makes the labels where action_supervision is `pseudo` (5.4)
    classifier: SourcedRole = SourcedRole()  # A, appendix G
    in_context_conversations: Positive = 10  # appendices F and G

    def played(self) -> dict[str, LLMRole]:
        """The roles that a model plays, by name."""
        named = {
            "generator": self.generator,
            "intent": self.intent,
            "simulator": self.simulator,
            "annotator": self.annotator.llm,
            "classifier": self.classifier.llm,
            "perturbation": self.perturbation or self.generator,
        }
        return {name: role for name, role in named.items() if role is not None}


class ScratchModel(Settings):
    """A Llama-architecture policy built from scratch, for machines without weights."""

    vocab_size: Annotated[int, Field(ge=300)]
    hidden_size: Positive
    layers: Positive
    heads: Positive
    warm_up_epochs: Positive
    warm_up_learning_rate: Rate
    warm_up_batch_size: Positive
    warm_up_block_tokens: Positive = 256


class Lora(Settings):
    """LoRA adapters for ACT; the reference is the base with the adapter off. SFT trains all weights unless `sft`."""

    r: Positive
    alpha: Positive
    sft: bool = False  # SFT trains an adapter, too; what it keeps is merged with the base
    quantized: bool = False  # QLoRA: the base in 4 bits (bitsandbytes, extra `gpu`)


class Policy(Settings):
    """The model that is trained. `model` is `scratch`, a Hugging Face id, or a folder."""

    model: str
    revision: str | None = None
    scratch: ScratchModel | None = None
    lora: Lora | None = None
    mixed_precision: bool = False  # bf16 autocast; weights stay fp32, for updates at lr 5e-7 vanish in pure bf16
    max_prompt_tokens: Positive
    max_length: Positive = 1280  # appendix J.2
    max_new_tokens: Positive

    @model_validator(mode="after")
    def _consistent(self) -> Policy:
        needed = self.max_prompt_tokens + 2 * self.max_new_tokens + REPLY_TOKENS
        scratch = self.scratch
        uneven = "scratch.hidden_size must be a multiple of scratch.heads"
        too_long = (
            f"max_prompt_tokens {self.max_prompt_tokens} + 2 x max_new_tokens {self.max_new_tokens} + "
            f"{REPLY_TOKENS} for a reply exceed max_length {self.max_length}: no room to clarify once"
        )
        _refuse(
            {
                "model 'scratch' and the 'scratch' block go together": (self.model == "scratch") != bool(scratch),
                too_long: needed > self.max_length,
                "revision is of a Hugging Face model; a policy from scratch has none": self.revision and scratch,
                uneven: scratch and scratch.hidden_size % scratch.heads,
            }
        )
        return self


class Optimisation(Settings):
    """Parameters that control the optimiser, for SFT and ACT alike (AdamW, linear decay).

    `batch_size` is what one update sees, whatever the number of processes.
    """

    epochs: Positive
    learning_rate: Rate
    batch_size: Positive
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warm_up_ratio: Share = 0.1
    max_grad_norm: Rate = 1.0


class Sft(Optimisation):
    """Section 4.3. Every learning rate is tried, and the model with the lowest validation loss kept (J.2)."""

    further_learning_rates: tuple[Rate, ...] = ()
    packing: bool = True  # the turns of a conversation in one sequence that shares what they have in common

    @property
    def candidates(self) -> tuple[float, ...]:
        """The learning rates to try, in order."""
        return (self.learning_rate, *self.further_learning_rates)


class Act(Optimisation):
    """Algorithm 2. `beta` is by task; where it names none, and for `tolerance`, the task's own holds."""

    prefix_sharing: bool = True  # the prompt of winner and loser is computed once; the gradients are the same
    rollout_group: Positive | None = None  # turns sampled per version of the policy; default: one batch, as the paper
    rollout_lag: Literal[0, 1] = 0  # 1: the next group is sampled while this one trains, from the policy before it
    beta: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
    temperature: Temperature = 1.0  # the paper is silent; 1.0 samples pi_theta itself
    max_clarifications: Positive = 3  # a trajectory that asks more often has failed
    mask_user_tokens: bool = True  # tokens that the user wrote carry no loss
    tolerance: Annotated[float, Field(ge=0, le=1)] | None = None  # epsilon; default: the task's

    @model_validator(mode="after")
    def _groups_of_batches(self) -> Act:
        if self.rollout_group is not None and self.rollout_group % self.batch_size:
            raise ValueError(f"rollout_group {self.rollout_group} is no multiple of batch_size {self.batch_size}")
        return self


class Engine(Settings):
    """What samples the policy in training: transformers, or vLLM (extra `gpu`) on 127.0.0.1."""

    name: Literal["transformers", "vllm"] = "transformers"
    mode: Literal["colocated", "server"] = "colocated"  # of vLLM: within the training process, or a server of its own
    memory_share: Annotated[float, Field(gt=0, lt=1)] = 0.3  # of the GPU's memory, for vLLM
    devices: str | None = None  # the server's CUDA_VISIBLE_DEVICES; pushed full weights need a GPU of their own

    @model_validator(mode="after")
    def _of_vllm(self) -> Engine:
        changed = self.model_dump(exclude_defaults=True)
        if self.name == "transformers" and changed:
            raise ValueError(f"{', '.join(changed)}: of the engine vllm only")
        if self.devices is not None and self.mode != "server":
            raise ValueError("devices is of vllm's mode server")
        return self


class Evaluation(Settings):
    """Greedy decoding unless a temperature is set; intervals by bootstrap over conversations."""

    batch_size: Positive
    temperature: Temperature = 0.0
    bootstrap_samples: Positive = 1000


class AmbiguousRequests(Settings):
    """How many clear requests of each split get an ambiguous twin, where a task makes its own; null: all of them.

    A train size of 250 conversations needs 125 pairs; twins that cannot be used are dropped afterwards. The paper makes
    all 7,000 (table A10), of which such a train size sees the fewest.
    """

    train: Positive | None = 150
    validation: Positive | None = 50
    test: Positive | None = None


class Profile(Settings):
    """Everything a run is made with, apart from task, train size and seed."""

    name: Annotated[str, Field(pattern=r"^[^/]+$")]  # a part of file names
    action_supervision: Literal["gold", "pseudo"] = "gold"  # section 5.4: annotated actions, or G's labels
    roles: Roles
    policy: Policy
    sft: Sft
    act: Act
    engine: Engine = Engine()
    compute: Compute = Compute()
    evaluation: Evaluation
    ambiguous_requests: AmbiguousRequests = AmbiguousRequests()
    embedder: str = "all-MiniLM-L6-v2"  # appendix D (Risch et al., 2021); another is a Hugging Face id or a folder
    rollout_batch_size: Positive  # conversations sampled together

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        strategy, vllm = self.compute.strategy, self.engine.name == "vllm"
        sharded = strategy in ("zero3", "fsdp")
        unasked = (
            "action_supervision is gold, so roles.annotator.llm would never be asked: set action_supervision to "
            "pseudo, or remove it"
        )
        lag = (
            f"act.rollout_lag 1 samples a copy of the policy, which compute.strategy {strategy} spreads: "
            "use zero2 or ddp, or rollout_lag: 0"
        )
        colocated = f"engine.mode colocated does not go with compute.strategy {strategy}: use server"
        quantized = f"policy.lora.quantized does not go with compute.strategy {strategy}: use ddp"
        weights = "engine vllm needs a policy.model with weights; one from scratch samples in transformers"
        _refuse(
            {
                unasked: self.action_supervision == "gold" and self.roles.annotator.llm,
                quantized: sharded and self.policy.lora and self.policy.lora.quantized,
                lag: sharded and self.act.rollout_lag,
                colocated: sharded and vllm and self.engine.mode == "colocated",
                weights: vllm and self.policy.model == "scratch",
            }
        )
        return self

    @property
    def labels_from(self) -> Literal["gold", "rule", "llm"]:
        """Where the actions that training sees come from."""
        return "gold" if self.action_supervision == "gold" else self.roles.annotator.source

    def digest(self) -> str:
        """A hash of all settings."""
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()


def profile_names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(p.stem for p in (PACKAGE / "profiles").glob("*.yaml"))


def load_profile(name_or_path: str) -> Profile:
    """A shipped profile by name, or one of your own by path. Raises ProfileError listing ALL mistakes."""
    own = name_or_path.endswith((".yaml", ".yml")) or "/" in name_or_path
    path = Path(name_or_path).expanduser() if own else PACKAGE / "profiles" / f"{name_or_path}.yaml"
    if not path.is_file():
        raise ProfileError(
            f"there is no profile {name_or_path!r}",
            where=str(path),
            todo=f"choose one of: {', '.join(profile_names())}, or give the path of a YAML file",
        )
    try:
        content: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ProfileError(f"the profile is not valid YAML: {error}", where=str(path), todo="fix the file") from error
    if not isinstance(content, dict):
        raise ProfileError("the profile holds no settings", where=str(path), todo="start from profiles/laptop.yaml")
    try:
        return Profile.model_validate({"name": path.stem, **content})
    except ValidationError as error:
        mistakes = [mistake_of(e, "(whole profile)") for e in error.errors()]
        todo = "fix all of them, then run again"
        raise ProfileError(all_mistakes("the profile", mistakes), where=str(path), todo=todo) from error
