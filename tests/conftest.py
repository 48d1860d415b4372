"""What many tests start from: the bundled sample, read once, and a tiny policy trained for a few steps."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import ContextBlock, Conversation, Message, Reading, Turn, TurnState
from act_assets.home import PACKAGE
from act_assets.profile import Profile, load_profile
from act_assets.progress import quiet
from act_assets.run import Run
from act_assets.tasks import get_task
from act_assets.tasks.base import Task, TaskData
from act_assets.tasks.pacific.answer import reference
from resources.artifacts import ArtifactStore
from resources.llm.service import CallSettings

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core each: threads of two workers would wait for each other

REPO = Path(__file__).resolve().parent.parent
SAMPLE = REPO / "datasets" / "sample" / "pacific"
TINY = REPO / "tests" / "tiny.yaml"


@pytest.hookimpl(tryfirst=True)  # before -m looks at markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has no other tier is of the tier `unit`. What takes longest comes first, so that no worker waits at the
    end for the other's last file."""
    for item in items:
        if not any(map(item.get_closest_marker, ("integration", "end_to_end"))):
            item.add_marker("unit")
    items.sort(key=lambda item: [item.get_closest_marker(tier) is None for tier in ("end_to_end", "integration")])


def beside(path: Path) -> Any:
    """A module of helpers that lies beside the tests; one of it in a process."""
    if path.stem not in sys.modules:
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[path.stem] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[path.stem])
    return sys.modules[path.stem]


@pytest.fixture(scope="session")
def checkpoints(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ACT_HOME with made-up checkpoints that are up to date; only to be read."""
    home = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ACT_HOME", str(home))
        environment.delenv("ACT_DATA_DIR", raising=False)
        beside(REPO / "tests" / "checkpoints.py").fill(tiny_tokenizer)
    return home


@pytest.fixture(scope="session")
def run_below(pacific: Task, tiny_profile: Profile) -> Callable[..., Run]:
    """Makes a run with the tiny profile over the bundled sample, whose artifacts lie below a folder."""

    def make(root: Path, **changes: Any) -> Run:
        run = Run(
            task=pacific,
            train_size=50,
            seed=0,
            profile=tiny_profile,
            store=ArtifactStore(root / "artifacts", "tiny-seed0"),
            data_dir=SAMPLE,
            data_origin="bundled sample",
            prompts_dir=PACKAGE / "prompts",
            reports_dir=root / "reports",
            progress=quiet,
            launch=lambda job: None,
            calls=CallSettings(root / "memo"),
        )
        return replace(run, **changes)

    return make


@pytest.fixture
def checkpoint_run(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The run of the tiny profile that made them, in their ACT_HOME and with nothing else from the environment."""
    from act_assets.run import make_run

    for name in ("ACT_DATA_DIR", "ACT_PROMPTS_DIR", "ACT_DEBUG", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACT_HOME", str(checkpoints))
    return make_run(str(TINY), 0, "pacific", 50)


@pytest.fixture(scope="session")
def packages() -> Any:
    return beside(REPO / "tests" / "packages.py")


@pytest.fixture(scope="session")
def whole_graph() -> Any:
    return beside(REPO / "tests" / "whole_graph.py")


@pytest.fixture(scope="session")
def small() -> Any:
    return beside(REPO / "tests" / "training" / "small_training.py")


@pytest.fixture(scope="session")
def pacific() -> Task:
    return get_task("pacific")


@pytest.fixture(scope="session")
def sample(pacific: Task) -> TaskData:
    return pacific.reader.read(SAMPLE)


@pytest.fixture(scope="session")
def every_conversation(sample: TaskData) -> list[Conversation]:
    return [*sample.train, *sample.validation]


@pytest.fixture(scope="session")
def every_turn(pacific: Task, every_conversation: list[Conversation]) -> list[TurnState]:
    return [t for c in every_conversation for t in pacific.turn_states(c)]


@pytest.fixture(scope="session")
def tiny_profile() -> Profile:
    return load_profile(str(TINY))


@pytest.fixture(scope="session")
def few_turns(pacific: Task, sample: TaskData) -> list[TurnState]:
    """Sixteen turns of training conversations, clarifications among them."""
    chosen = random.Random(5).sample(list(sample.train), 6)
    turns = [t for c in chosen for t in pacific.turn_states(c)]
    clarify = [t for t in turns if t.action == "CLARIFY"][:6]
    return [*clarify, *[t for t in turns if t.action == "ANSWER"][: 16 - len(clarify)]]


@pytest.fixture(scope="session")
def ambiguous() -> Conversation:
    """A conversation in PACIFIC's form that begins with a history, and whose request may be meant in three ways."""
    goals = [reference([text], "million", "span", "") for text in ("5", "6", "7")]
    years = ("2018", "2019", "2020")
    asks = reference(["Which year are you asking about?"], "", "question", "")
    readings = tuple(
        Reading(f"In {year}.", f"What were the sales in {year}?", goal) for year, goal in zip(years, goals, strict=True)
    )
    return Conversation(
        "pacific",
        "sales",
        (ContextBlock("table", " : 2018 | 2019 | 2020", True), ContextBlock("table", "Sales : 5 | 6 | 7")),
        (Turn("sales-1", "What were the sales?", "What were the sales?", asks, "CLARIFY", readings),),
        (Message("user", "What does it sell?"), Message("assistant", "bread")),
        "a bakery",
    )


@pytest.fixture(scope="session")
def tiny_tokenizer(pacific: Task, sample: TaskData) -> Any:
    from act_assets.training.base_policy import train_tokenizer, warm_up_texts

    return train_tokenizer([m.content for g in warm_up_texts(pacific, sample.train[:60]) for m in g], 1024)


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty-two training and six validation conversations of the sample."""
    return first_conversations(tmp_path_factory.mktemp("data"), train=52, validation=6)


def first_conversations(folder: Path, **counts: int) -> Path:
    """The first conversations of each side of PACIFIC's sample, as raw files in a folder."""
    for side, count in counts.items():
        items = json.loads(gzip.decompress((SAMPLE / f"{side}.json.gz").read_bytes()))
        (folder / f"{side}.json").write_text(json.dumps(items[:count]))
    return folder


@pytest.fixture(scope="session")
def middling_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `small_data`, with validation conversations enough for some hundred questions."""
    return first_conversations(tmp_path_factory.mktemp("data"), train=52, validation=40)
