"""A running training to look at: TensorBoard event files, and a live file whose last line says how it stands.

    board = Board(folder / "logs")              # logs/tensorboard/events.*, logs/live.jsonl
    board.scalars(step, {"train/loss": 0.69, **meter.rates()})
    board.close()

    tensorboard --logdir .../logs/tensorboard --host 127.0.0.1

Looking on never stops a training: where a file cannot be written, that is said once and nothing more is written.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from act_assets.training.history import History, TrainingPoint

TENSORBOARD = "tensorboard"  # folder of event files, in an artifact's logs/
LIVE = "live.jsonl"  # beside it, one JSON object a line: `step`, and the newest value of every measure
EVERY_S = 5.0


def point_scalars(point: TrainingPoint) -> dict[str, float | None]:
    """What was measured at a point, each measure below the name of its split: `train/loss`, `validation/kl`."""
    measures = {name: value for name, value in asdict(point).items() if name not in ("step", "epoch", "split")}
    return {f"{point.split}/{name}": value for name, value in measures.items() if value is not None}


class Board:
    """Writes scalars of one training below its `logs` folder; Board(None) writes nothing (all processes but the first).

    `run` names a folder of event files of its own, where a job trains several times (SFT: once a learning rate).
    The live file gets a line at most every `every_s` seconds, and one on `close`. `resumed_at` hides from TensorBoard
    what event files of the same folder say of that step and later ones: they are made again.
    """

    def __init__(
        self,
        logs: Path | None,
        *,
        run: str = "",
        every_s: float = EVERY_S,
        resumed_at: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._every_s, self._clock = every_s, clock
        self._newest: dict[str, float] = {}
        self._step = 0
        self._written_at = -math.inf
        self._unwritten = False
        self._events: Any = None
        self._live: TextIO | None = None
        if logs is None:
            return
        try:
            logs.mkdir(parents=True, exist_ok=True)
            self._live = (logs / LIVE).open("a", encoding="utf-8")
            self._events = _event_writer(logs / TENSORBOARD / run, resumed_at)
        except OSError as error:
            self._give_up(error)

    def scalars(self, step: int, values: Mapping[str, float | None]) -> None:
        """Writes what was measured at a step. What is None, NaN or infinite is left out."""
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
            if self._clock() - self._written_at >= self._every_s:
                self._write_live()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Writes the last line, and what TensorBoard's files have not got yet. May be called twice."""
        live, events = self._live, self._events
        try:
            if self._unwritten:
                self._write_live()
            if events is not None:
                events.close()
            if live is not None:
                live.close()
        except OSError as error:
            self._give_up(error)
        self._live = self._events = None

    def __enter__(self) -> Board:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write_live(self) -> None:
        if self._live is not None:
            self._live.write(json.dumps({"step": self._step, **self._newest}, allow_nan=False) + "\n")
            self._live.flush()
        self._written_at, self._unwritten = self._clock(), False

    def _give_up(self, error: OSError) -> None:
        self._live = self._events = None
        self._unwritten = False
        print(f"    the training goes on without its live figures: {error}", file=sys.stderr, flush=True)


def _event_writer(folder: Path, resumed_at: int | None) -> Any:
    """TensorBoard's writer, or None where the package is not there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print("    no TensorBoard files: pip install tensorboard to have them", file=sys.stderr, flush=True)
        return None
    return SummaryWriter(str(folder), purge_step=resumed_at, flush_secs=10)


def replay(points: Iterable[Mapping[str, Any]], history: History, board: Board) -> None:
    """Puts back the points that a state holds: into the curve, and into event files that begin anew."""
    for figures in points:
        point = TrainingPoint(**figures)
        history.points.append(point)
        board.scalars(point.step, point_scalars(point))


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
