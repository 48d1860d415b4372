"""Training curves as typed rows, and progress that a person can read while a run goes on."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass, field

from resources.errors import TrainingError


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """One logged moment of a training run. `split` is `train` or `validation`; what was not measured is None.

    `kl` estimates KL(policy || reference) in nats a response, on sampled responses. `winner_share` and `loser_share`
    are the pairs whose side a rollout replaced; `staleness` counts the updates between the policy that sampled a pair
    and the update it is used in.
    """

    step: int
    epoch: float
    split: str
    loss: float
    reward_margin: float | None = None
    reward_accuracy: float | None = None
    kl: float | None = None
    gradient_norm: float | None = None
    learning_rate: float | None = None
    winner_share: float | None = None
    loser_share: float | None = None
    staleness: float | None = None


@dataclass
class History:
    """Collects points; refuses a loss that is not finite."""

    stage: str
    where: str
    total_steps: int = 0
    points: list[TrainingPoint] = field(default_factory=list)
    _started: float = field(default_factory=time.monotonic)
    _shown: float = 0.0

    def point(self, point: TrainingPoint) -> None:
        """Takes one point. Raises TrainingError where its loss is NaN or infinite."""
        if not math.isfinite(point.loss):
            raise TrainingError(
                f"the {point.split} loss became {point.loss} at step {point.step}",
                where=self.where,
                todo="lower the learning rate in the profile; what was finished before is intact",
            )
        self.points.append(point)
        self._show(point)

    def _show(self, point: TrainingPoint) -> None:
        now = time.monotonic()
        if point.split == "train" and now - self._shown < 5 and point.step < self.total_steps:
            return
        self._shown = now
        margin = "" if point.reward_margin is None else f"  reward margin {point.reward_margin:+.4f}"
        print(
            f"    {self.stage:<12} step {point.step}/{self.total_steps}  {point.split} loss {point.loss:.4f}{margin}"
            f"  {now - self._started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
