"""Figures of a run as PNG bytes: training curves, rollout verdicts, macro F1 of the methods.

The same input gives the same bytes (with the same matplotlib). Colours are Okabe and Ito's, which people with
any colour vision can tell apart. matplotlib's figure objects are used without pyplot, so that nothing global
remains; the import takes a moment and is made when a figure is drawn.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from act_assets.evaluation.leaderboard import LeaderboardRow, MethodRow, by_method
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 110
WIDTH = 900 / DPI  # inches

BLUE, VERMILION, GREEN, SKY, ORANGE, PURPLE = "#0072B2", "#D55E00", "#009E73", "#56B4E9", "#E69F00", "#CC79A7"
GREY, INK = "#8C8C8C", "#222222"
METHOD_COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)  # in the order of the methods
# In the order in which they are stacked: what the policy did right comes first.
VERDICT_COLOURS = {
    "good_outcome": GREEN,
    "already_winner": SKY,
    "bad_outcome": ORANGE,
    "wrong_action": VERMILION,
    "no_contrast": PURPLE,
    "no_room": GREY,
}

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "text.usetex": False,
    "axes.edgecolor": "#666666",
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": False,
    "path.simplify": False,
}


def training_curves(points: Sequence[TrainingPoint], title: str) -> bytes:
    """Loss over steps; reward margin, reward accuracy and KL where they were measured. ValueError for no points."""
    if not points:
        raise ValueError(f"no training points to draw for {title!r}")
    measures = (("reward_margin", "reward margin"), ("reward_accuracy", "reward accuracy"), ("kl", "KL to reference"))
    panels = [(name, label) for name, label in measures if any(getattr(p, name) is not None for p in points)]
    with _figure(max(3.4, 1.7 * len(panels))) as (figure, output):
        if panels:
            grid = figure.add_gridspec(len(panels), 2, width_ratios=(3, 2))
            loss = figure.add_subplot(grid[:, 0])
        else:
            loss = figure.add_subplot()
        _curve(loss, points, "loss", "loss")
        loss.set_title(title)
        loss.set_xlabel("step")
        loss.legend(loc="best")
        for position, (name, label) in enumerate(panels):
            axes = figure.add_subplot(grid[position, 1], sharex=loss)
            _curve(axes, points, name, label)
            if name == "reward_accuracy":
                axes.set_ylim(-0.03, 1.03)
            if position == len(panels) - 1:
                axes.set_xlabel("step")
            else:
                axes.tick_params(labelbottom=False)
    return output.getvalue()


def _curve(axes: Axes, points: Sequence[TrainingPoint], name: str, label: str) -> None:
    """One measure: training as a thin line, validation as dots with a line."""
    looks: dict[str, dict[str, Any]] = {
        "train": {"color": GREY, "linewidth": 0.9},
        "validation": {"color": BLUE, "linewidth": 1.6, "marker": "o", "markersize": 5},
    }
    for split, look in looks.items():
        measured = [(p.step, getattr(p, name)) for p in points if p.split == split and getattr(p, name) is not None]
        if not measured:
            continue
        if len(measured) == 1:
            look |= {"marker": "o"}  # a line of one point cannot be seen
        steps, values = zip(*measured, strict=True)
        axes.plot(steps, values, label=split, **look)
    axes.set_ylabel(label)


def rollout_verdicts(rollouts: Sequence[Rollout]) -> bytes:
    """The share of each verdict per epoch, stacked. Raises ValueError for no rollouts."""
    if not rollouts:
        raise ValueError("no rollouts to draw")
    counts = verdict_counts(rollouts)
    totals = {epoch: sum(count.values()) for epoch, count in counts.items()}
    epochs = range(len(counts))
    with _figure(0.9 + 0.42 * len(counts) + 0.7) as (figure, output):
        axes = figure.add_subplot()
        left = [0.0] * len(counts)
        for verdict, colour in VERDICT_COLOURS.items():
            shares = [counts[epoch][verdict] / total for epoch, total in totals.items()]
            if not any(shares):
                continue
            label = verdict.replace("_", " ")
            bars = axes.barh(epochs, shares, left=left, height=0.66, color=colour, edgecolor="white", label=label)
            texts = [f"{share * 100:.0f} %" if share >= 0.06 else "" for share in shares]
            axes.bar_label(bars, texts, label_type="center", fontsize=9, color="black")
            left = [a + b for a, b in zip(left, shares, strict=True)]
        axes.set_yticks(epochs, [f"epoch {epoch}\nn = {total}" for epoch, total in totals.items()])
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(False)
        axes.set_xlabel("share of rollouts")
        figure.legend(loc="outside upper center", ncols=6, fontsize=9, handlelength=1.2, columnspacing=1.4)
    return output.getvalue()


def verdict_counts(rollouts: Sequence[Rollout]) -> dict[int, Counter[str]]:
    """How often each verdict occurred, per epoch in order."""
    counts: dict[int, Counter[str]] = {}
    for rollout in rollouts:
        counts.setdefault(rollout.epoch, Counter())[rollout.verdict] += 1
    return dict(sorted(counts.items()))


def macro_f1_bars(rows: Sequence[LeaderboardRow], methods: Sequence[MethodRow]) -> bytes:
    """Macro F1 by train size, with its interval: baselines grey, `methods` in colour, constant
    predictors as lines.

    Raises ValueError where no method has a macro F1.
    """
    figures = {key: metrics["macro F1"] for key, metrics in by_method(rows).items() if "macro F1" in metrics}
    measured = {key: row for key, row in figures.items() if row.value is not None}
    if not measured:
        raise ValueError("no macro F1 to draw")
    constant = {method: row.value or 0.0 for (method, _), row in measured.items() if method.startswith("always ")}
    looks = {m.name: (m.title, METHOD_COLOURS[i % len(METHOD_COLOURS)]) for i, m in enumerate(methods)}
    names = list(dict.fromkeys(m for m, _ in measured if m not in constant))
    names.sort(key=lambda m: list(looks).index(m) + 1 if m in looks else 0)
    sizes = list(dict.fromkeys(size for _, size in measured))
    width = 0.8 / max(len(names), 1)
    with _figure(4.0) as (figure, output):
        axes = figure.add_subplot()
        for position, method in enumerate(names):
            title, colour = looks.get(method, (method, GREY))
            shift = (position - (len(names) - 1) / 2) * width
            here = [(i + shift, measured[method, size]) for i, size in enumerate(sizes) if (method, size) in measured]
            heights = [row.value or 0.0 for _, row in here]
            axes.bar([i for i, _ in here], heights, width * 0.9, label=title, color=colour, edgecolor="white")
            for place, row in here:
                top = value = row.value or 0.0
                if row.low is not None and row.high is not None:
                    # Not an error bar: a percentile interval need not contain the value itself.
                    axes.plot([place] * 2, [row.low, row.high], color=INK, linewidth=1.3, marker="_", markersize=9)
                    top = max(value, row.high)
                axes.annotate(f"{value:.3f}", (place, top), (0, 4), textcoords="offset points", ha="center", fontsize=9)
        for position, (method, value) in enumerate(constant.items()):
            dashes = (0, (1.5, 2.5) if position else (6, 3))
            axes.axhline(value, color=INK, linewidth=1.1, linestyle=dashes, label=f"{method} ({value:.3f})")
        axes.set_xticks(range(len(sizes)), ["no training" if s is None else f"{s} conversations" for s in sizes])
        room = 0.6 + 0.3 * max(3 - len(sizes), 0)  # bars of one or two train sizes stay narrow
        axes.set_xlim(-room, len(sizes) - 1 + room)
        axes.set_ylim(0, 1.06)
        axes.set_ylabel("macro F1")
        figure.legend(loc="outside upper left", ncols=3, fontsize=9)
    return output.getvalue()


@contextmanager
def _figure(height: float) -> Iterator[tuple[Figure, io.BytesIO]]:
    """A light figure 900 pixels wide; its PNG is in the buffer once the block is left."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    output = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained", facecolor="white")
        canvas = FigureCanvasAgg(figure)
        yield figure, output
        # No `Software` entry: it names the version of matplotlib.
        canvas.print_figure(output, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
