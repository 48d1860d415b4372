"""What a training says while it runs: its curve, TensorBoard event files, a live file, and a printed line.

    with TrainingLog("act", where, folder / "logs") as log:   # logs/tensorboard/events.*, logs/live.jsonl
        log.point(TrainingPoint(1, 0.1, "train", 0.69), meter.rates())

    tensorboard --logdir .../logs/tensorboard --host 127.0.0.1

Watching never stops a training: where a file cannot be written, that is said once and nothing more
is written.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from resources.errors import TrainingError

TENSORBOARD = "tensorboard"  # folder of event files, in an artifact's logs/
LIVE = "live.jsonl"  # beside it, one JSON object a line: `step`, and the newest value of every measure
EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class TrainingPoint:
    """One logged moment of a training. `split` is `train` or `validation`; None: not measured.

    `kl` estimates KL(policy || reference) in nats a response, on sampled responses. `winner_share`
    and `loser_share` are the pairs whose side a rollout replaced; `staleness` counts the updates
    between the policy that sampled a pair and the update it is used in.
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

    @property
    def scalars(self) -> dict[str, float | None]:
        """Each measure below the name of its split: `train/loss`, `validation/kl`."""
        measures = {name: value for name, value in asdict(self).items() if name not in ("step", "epoch", "split")}
        return {f"{self.split}/{name}": value for name, value in measures.items() if value is not None}


class TrainingLog:
    """The points of one training, shown as they come; its files lie below `logs` (None: no files).

    `run` names a folder of event files of its own, where a job trains several times (SFT: once a
    learning rate). The live file gets a line at most every EVERY_S seconds, and one on `close`.
    """

    def __init__(
        self,
        stage: str,
        where: str,
        logs: Path | None = None,
        *,
        run: str = "",
        total_steps: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stage, self.where, self.total_steps, self._clock = stage, where, total_steps, clock
        self.points: list[TrainingPoint] = []
        self._started = clock()
        self._printed_at = self._written_at = -math.inf
        self._step, self._newest, self._unwritten = 0, dict[str, float](), False
        self._events: Any = None
        self._live: TextIO | None = None
        if logs is None:
            return
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._live = (logs / LIVE).open("a", encoding="utf-8")
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(logs / TENSORBOARD / run), flush_secs=10)
        except ImportError:
            print("    no TensorBoard files: pip install tensorboard to have them", file=sys.stderr, flush=True)
        except OSError as error:
            self._give_up(error)

    def point(self, point: TrainingPoint, further: Mapping[str, float | None] | None = None) -> None:
        """Takes one point, and `further` scalars to plot beside it.

        Raises TrainingError where its loss is NaN or infinite.
        """
        if not math.isfinite(point.loss):
            raise TrainingError(
                f"the {point.split} loss became {point.loss} at step {point.step}",
                where=self.where,
                todo="lower the learning rate in the profile; what was finished before is intact",
            )
        self.points.append(point)
        now = self._clock()
        if point.split != "train" or now - self._printed_at >= EVERY_S or point.step >= self.total_steps:
            self._printed_at = now
            margin = "" if point.reward_margin is None else f"  reward margin {point.reward_margin:+.4f}"
            print(
                f"    {self.stage:<12} step {point.step}/{self.total_steps}  {point.split} loss {point.loss:.4f}"
                f"{margin}  {now - self._started:.0f} s",
                file=sys.stderr,
                flush=True,
            )
        self._plot(point.step, {**point.scalars, **(further or {})})

    def replay(self, points: Iterable[Mapping[str, Any]]) -> None:
        """Puts back the points that a state holds: into the curve, and into the new event files."""
        for measures in points:
            point = TrainingPoint(**measures)
            self.points.append(point)
            self._plot(point.step, point.scalars)

    def close(self) -> None:
        """Writes the last line, and what TensorBoard's files have not got yet. May be called twice."""
        try:
            if self._unwritten:
                self._write_live()
            for stream in (self._events, self._live):
                if stream is not None:
                    stream.close()
        except OSError as error:
            self._give_up(error)
        self._live = self._events = None

    def __enter__(self) -> TrainingLog:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _plot(self, step: int, values: Mapping[str, float | None]) -> None:
        """What is None, NaN or infinite is left out."""
        if self._live is None and self._events is None:
            return
        for name, value in values.items():
            if value is None or not math.isfinite(value):
                self._newest.pop(name, None)  # a stale value would pass for the newest
            else:
                self._newest[name] = float(value)
        self._step, self._unwritten = step, True
        try:
            if self._events is not None:
                for name in values.keys() & self._newest.keys():
                    self._events.add_scalar(name, self._newest[name], step)
            if self._clock() - self._written_at >= EVERY_S:
                self._write_live()
        except OSError as error:
            self._give_up(error)

    def _write_live(self) -> None:
        if self._live is not None:
            self._live.write(json.dumps({"step": self._step, **self._newest}, allow_nan=False) + "\n")
            self._live.flush()
        self._written_at, self._unwritten = self._clock(), False

    def _give_up(self, error: OSError) -> None:
        self._live = self._events = None
        self._unwritten = False
        print(f"    the training continues without its live figures: {error}", file=sys.stderr, flush=True)


class LiveTail:
    """Follows a live file that another process writes, and that may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._rest = b""

    def newest(self) -> dict[str, float] | None:
        """The last whole line since the last call; None where there is none. Raises OSError, ValueError."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._place)
                read = stream.read()
        except FileNotFoundError:
            return None
        self._place += len(read)
        *lines, self._rest = (self._rest + read).split(b"\n")
        if not lines:
            return None
        values = json.loads(lines[-1])
        return {name: value for name, value in values.items() if isinstance(value, int | float)}
