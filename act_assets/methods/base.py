"""What a method is: one frozen record, declared in a file of its own (docs/adding-a-method.md).

The graph, the assets, the command line's choices, leaderboard, report, plan and model card follow from
these records; nothing else names a method.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from act_assets.evaluation.leaderboard import MethodRow
from act_assets.profile import Optimisation, Profile
from act_assets.roles.prompt import RoleName
from act_assets.run import Run
from act_assets.tasks import modules_hash
from act_assets.training.logging import TrainingPoint

Trained = tuple[dict[str, Any], list[TrainingPoint]]
"""The facts of a training, and its curve."""


@dataclass(frozen=True, kw_only=True)
class Method(MethodRow):
    """A row of the result table, and how it comes about.

    A method that is trained has `train`, which writes `model/` into a folder, in a process of its own; it makes
    the assets `<name>_checkpoint` and `evaluation_<name>`. One that only names actions has `predict`, which gives
    a list of actions, one for each evaluated turn, by the name of each row; it makes `evaluation_<name>`.
    """

    summary: str  # one sentence for the asset's page
    section: str  # of the paper; empty where the method is not in it
    pairs: str = ""  # how its contrastive pairs arise; empty for a method without
    loss: str = ""
    needs: tuple[str, ...] = ()  # assets it trains on beside its start, the train subset and the conversations
    asks: tuple[RoleName, ...] = ()  # roles it asks while it trains
    settings: Callable[[Profile], Any] = lambda profile: None  # what it reads of the profile
    optimisation: Callable[[Profile], Optimisation] | None = None  # of these, for the model card
    details: Callable[[Run], list[tuple[str, Any]]] = lambda run: []  # further lines of the model card
    fingerprint: Callable[[Run], Any] = lambda run: None  # what else changes its outcome
    train: Callable[[Run, Path], Trained] | None = None
    predict: Callable[[Run, Sequence[Any]], Mapping[str, Sequence[str]]] | None = None
    version: int = 1  # raise it when the code changes what comes out

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", self.name):
            raise ValueError(f"method {self.name!r}: its name is of small letters, digits and underscores")
        if not isinstance(self.needs, tuple) or not isinstance(self.asks, tuple):
            raise ValueError(f"method {self.name}: `needs` and `asks` are tuples")
        if (self.train is None) == (self.predict is None) or bool(self.starts_from) != (self.train is not None):
            raise ValueError(f"method {self.name}: it either trains, from what `starts_from` names, or predicts")

    @property
    def source(self) -> str | None:
        """A hash of the module of another package's method; `version` stands for the code of this one's."""
        module = str((self.train or self.predict).__module__)
        return None if module.startswith("act_assets.") else modules_hash([module])

    @property
    def start(self) -> str:
        """The asset of what it starts from."""
        return self.starts_from if self.starts_from == "base_policy" else f"{self.starts_from}_checkpoint"
