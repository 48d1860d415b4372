"""Where the time of a training goes, how fast it is, and what share of the GPU's arithmetic it uses.

meter = Meter(parameters=7_241_732_096)
with meter.phase("generate"):
    ...                                     # a phase entered in here stops the outer one's clock
meter.count(pairs=4, trained_tokens=2_048)
meter.facts()                               # shares, rates, utilisation, memory
"""

from __future__ import annotations

import math
import re
import resource
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from act_assets.conversation import TurnState, Utterance
from act_assets.training.generation import RolloutEngine
from act_assets.trajectory import ActionClassifier, UserSimulator
from resources.llm.base import LLMFailure

Phase = Literal["generate", "classify", "simulate", "score", "update", "save", "validate"]
PHASES: tuple[Phase, ...] = get_args(Phase)
COUNTED = ("pairs", "turns", "trained_tokens", "scored_tokens", "generated_tokens", "prompt_tokens")

# Dense bf16 tensor-core peaks in FLOP/s, by what torch.cuda.get_device_name says; the first that matches. Data sheets
# print twice as much for sparse matrices. A laptop's chip or a part of a GPU (MIG) is another device of like name.
_PEAKS: tuple[tuple[str, float], ...] = (
    (r"\bA100\b", 312e12),  # NVIDIA A100 data sheet, SXM and PCIe
    (r"\bH100 PCIe\b", 756e12),  # NVIDIA H100 data sheet, PCIe
    (r"\bH[12]00 NVL\b", 835e12),  # NVIDIA H100 NVL and H200 data sheets
    (r"\bG?H[12]00\b", 989e12),  # NVIDIA H100, H200 and GH200 data sheets, SXM
    (r"\bL40S\b", 362e12),  # NVIDIA L40S data sheet
    (r"\bA10\b", 125e12),  # NVIDIA A10 data sheet; the A10G is another
    (r"\bRTX 4090\b(?! (Laptop|D)\b)", 165e12),  # NVIDIA Ada GPU architecture, appendix A; fp32 accumulation
)


def peak_flops(device: str) -> float | None:
    """The dense bf16 peak of a GPU by its name, in FLOP/s; None where it is not known."""
    if re.search(r"\bMIG\b", device):
        return None
    return next((peak for pattern, peak in _PEAKS if re.search(pattern, device)), None)


def gpu_name() -> str | None:
    """The name of the GPU that this process computes on; None without one."""
    import torch

    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else None


def peak_memory_mb() -> int:
    """The most memory this process has held, in MiB: torch's on the GPU, or resident memory without one."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated() / 2**20)
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20)


@dataclass
class _Track:
    """The phases that one thread is in, innermost last, and since when the innermost has not been charged."""

    owner: bool
    mark: float
    stack: list[Phase] = field(default_factory=list)


class Meter:
    """Times and amounts of one training process, cumulative over its resumptions.

    Phases are exclusive within a thread. Those of the thread that made the meter add up, with `other`, to the whole
    time; those of further threads (sampling for the next group) run beside it and are reported as `overlapped_*`.
    On a GPU the thread waits, where a phase begins or ends, for what it has queued: phases are for whole steps.
    """

    def __init__(
        self,
        parameters: int,
        device: str | None = None,
        clock: Callable[[], float] = time.perf_counter,
        *,
        trainable: int | None = None,
        processes: int = 1,
    ) -> None:
        """`parameters` are those of the whole model, `trainable` those that get gradients (default: all); `device` is
        the GPU's name (default: of the one this process computes on); `processes` train together, one a device."""
        import torch

        self.parameters = parameters
        self.trainable = parameters if trainable is None else trainable
        self.processes = processes
        device = gpu_name() if device is None else device
        self._peak = None if device is None else peak_flops(device)
        # A thread that this one starts would be told the first GPU.
        self._gpu = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._clock = clock
        self._lock = threading.Lock()
        self._owner = threading.get_ident()
        self._tracks: dict[int, _Track] = {}  # of the threads that are in a phase now
        self._started = clock()
        self._before = 0.0  # seconds before this process
        self._memory_before = 0.0
        self._times: defaultdict[Phase, float] = defaultdict(float)
        self._overlapped: defaultdict[Phase, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Charges the time inside to `name`, apart from phases entered within."""
        if name not in PHASES:
            raise ValueError(f"no phase {name!r}: one of {', '.join(PHASES)}")
        thread = threading.get_ident()
        self._wait_for_gpu()
        with self._lock:
            track = self._tracks.setdefault(thread, _Track(thread == self._owner, self._clock()))
            self._charge(track)
            track.stack.append(name)
        try:
            yield
        finally:
            try:
                self._wait_for_gpu()  # raises what the queued work ran into
            finally:
                with self._lock:
                    self._charge(track)
                    track.stack.pop()
                    if not track.stack:
                        del self._tracks[thread]

    def count(self, **amounts: int) -> None:
        """Adds amounts of all processes together, by the names in COUNTED. Tokens are those computed: no padding, a
        shared prompt once."""
        unknown = sorted(set(amounts) - set(COUNTED))
        if unknown:
            raise ValueError(f"cannot count {', '.join(unknown)}: one of {', '.join(COUNTED)}")
        with self._lock:
            self._counts.update(amounts)

    def count_own(self, **amounts: int) -> None:
        """Adds amounts of this process alone; the other processes' equal shares are taken to be as large."""
        self.count(**{name: amount * self.processes for name, amount in amounts.items()})

    def snapshot(self) -> dict[str, float]:
        """Everything so far as flat JSON, open phases included; for the state of a resumable run."""
        with self._lock:
            self._charge_all()
            return {
                "seconds": self._seconds(),
                "peak_memory_mb": max(self._memory_before, float(peak_memory_mb())),
                **{f"time_{name}": value for name, value in self._times.items()},
                **{f"overlapped_{name}": value for name, value in self._overlapped.items()},
                **{f"count_{name}": float(value) for name, value in self._counts.items()},
            }

    def restore(self, snapshot: Mapping[str, float]) -> None:
        """Continues a snapshot. What was counted since this meter was made (loading, the steps that
        are done again) is dropped, and so are entries of another version."""

        def part(prefix: str, names: tuple[Any, ...]) -> dict[Any, float]:
            return {n: float(snapshot[f"{prefix}_{n}"]) for n in names if f"{prefix}_{n}" in snapshot}

        with self._lock:
            self._charge_all()
            self._started = self._clock()
            self._before = float(snapshot.get("seconds", 0.0))
            self._memory_before = float(snapshot.get("peak_memory_mb", 0.0))
            self._times = defaultdict(float, part("time", PHASES))
            self._overlapped = defaultdict(float, part("overlapped", PHASES))
            self._counts = Counter({name: round(value) for name, value in part("count", COUNTED).items()})

    def facts(self) -> dict[str, Any]:
        """Shares of the time, rates over all of it, utilisation and memory. None: not counted, or not known.

        `share_*` add up to 1. `tokens_per_second` are trained tokens. `model_flops_utilisation` is that of one device.
        """
        with self._lock:
            self._charge_all()
            seconds = self._seconds()
            shares = {name: self._times.get(name, 0.0) / seconds if seconds else 0.0 for name in PHASES}
            facts: dict[str, Any] = {f"share_{name}": round(share, 4) for name, share in shares.items()}
            facts["share_other"] = round(max(0.0, 1 - sum(shares.values())), 4)
            for name, time_beside in self._overlapped.items():
                facts[f"overlapped_{name}"] = round(time_beside / seconds, 4) if seconds else 0.0
            for counted in ("pairs", "turns", "trained_tokens", "generated_tokens"):
                rate = self._counts[counted] / seconds if counted in self._counts and seconds else math.nan
                # Four digits: a large model may do a hundredth of a pair a second.
                digits = float(f"{rate:.4g}") if math.isfinite(rate) else None
                facts[f"{counted.removeprefix('trained_')}_per_second"] = digits
            facts["model_flops_utilisation"] = (
                round(self.model_flops() / seconds / self.processes / self._peak, 4) if self._peak and seconds else None
            )
            facts["peak_memory_mb"] = int(max(self._memory_before, peak_memory_mb()))
            facts["seconds"] = round(seconds, 2)
            return facts

    def rates(self) -> dict[str, float]:
        """The figures of `facts` as scalars to plot: `time/<phase>`, `overlapped/<phase>`, `speed/<rate>`."""
        plotted = {}
        for name, value in self.facts().items():
            if name == "seconds" or value is None:
                continue
            kind, _, rest = name.partition("_")
            tag = {"share": f"time/{rest}", "overlapped": f"overlapped/{rest}"}.get(kind, f"speed/{name}")
            plotted[tag] = float(value)
        return plotted

    def model_flops(self) -> float:
        """Floating-point operations that the counted tokens need (Kaplan et al. 2020, section 2.1).

        2 a parameter forward, 2 backward for the activations' gradients, and 2 for a trained parameter's own: 6 where
        all are trained, close to 4 with adapters. Attention over the context is not in it, nor is what gradient
        checkpointing computes again: this is utilisation of MODEL FLOPs (Chowdhery et al. 2022, appendix B).
        """
        forward = sum(self._counts[name] for name in ("scored_tokens", "generated_tokens", "prompt_tokens"))
        trained = self._counts["trained_tokens"]
        return 2.0 * self.parameters * forward + (4.0 * self.parameters + 2.0 * self.trainable) * trained

    def _seconds(self) -> float:
        return self._before + self._clock() - self._started

    def _charge(self, track: _Track) -> None:
        now = self._clock()
        if track.stack:
            (self._times if track.owner else self._overlapped)[track.stack[-1]] += now - track.mark
        track.mark = now

    def _charge_all(self) -> None:
        for track in self._tracks.values():
            self._charge(track)

    def _wait_for_gpu(self) -> None:
        """GPU work is queued: without waiting, its time would be charged to whatever asks for a result."""
        if self._gpu is not None:
            import torch

            torch.cuda.current_stream(self._gpu).synchronize()


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
class MeteredRoles:
    """A and U; their time is `classify` and `simulate`."""

    classifier: ActionClassifier
    simulator: UserSimulator
    meter: Meter

    def classify(
        self, turns: Sequence[TurnState], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[str | LLMFailure]:
        with self.meter.phase("classify"):
            return self.classifier.classify(turns, trajectories)

    def reply(
        self, turns: Sequence[TurnState], intents: Sequence[str], trajectories: Sequence[tuple[Utterance, ...]]
    ) -> list[Any]:
        with self.meter.phase("simulate"):
            return self.simulator.reply(turns, intents, trajectories)
