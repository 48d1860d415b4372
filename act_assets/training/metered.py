"""The policy and the roles with their time measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from act_assets.conversation import TurnState, Utterance
from act_assets.training.generation import RolloutEngine
from act_assets.training.meter import Meter
from act_assets.trajectory import ActionClassifier, UserSimulator
from resources.llm.base import LLMFailure


@dataclass
class MeteredEngine:
    """A rollout engine whose time is `generate`."""

    engine: RolloutEngine
    meter: Meter
    version: int = 0

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], *, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        with self.meter.phase("generate"):
            result = self.engine.sample(prompts, seeds, max_new_tokens=max_new_tokens, temperature=temperature)
        self.meter.count_own(prompt_tokens=sum(map(len, prompts)), generated_tokens=sum(map(len, result)))
        return result

    def push(self, version: int) -> None:
        with self.meter.phase("generate"):
            self.engine.push(version)
        self.version = self.engine.version

    def close(self) -> None:
        self.engine.close()


@dataclass
class MeteredClassifier:
    """A; its time is `classify`."""

    classifier: ActionClassifier
    meter: Meter

    def classify(self, turns: Sequence[TurnState], responses: Sequence[str]) -> list[str | LLMFailure]:
        with self.meter.phase("classify"):
            return self.classifier.classify(turns, responses)


@dataclass
class MeteredSimulator:
    """U; its time is `simulate`."""

    simulator: UserSimulator
    meter: Meter

    def reply(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[Any]:
        with self.meter.phase("simulate"):
            return self.simulator.reply(turns, intents, trajectories)
