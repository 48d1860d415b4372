"""Training processes of a Dagster run: their newest figures are observations of the asset while they run."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from act_assets.defs import resources as configured
from act_assets.defs.resources import _LiveFigures, _PipesLauncher
from resources.errors import TrainingError
from resources.settings import Compute

pytestmark = pytest.mark.integration

Tick = Callable[[], None]
Training = Callable[[Path, Tick], None]


def write(live: Path, *rows: Mapping[str, Any]) -> None:
    with live.open("a") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def instance() -> Any:
    with dg.DagsterInstance.ephemeral() as instance:
        yield instance


def observed(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """Metadata of the checkpoint's observations, oldest first."""
    records = instance.fetch_observations(dg.AssetKey("checkpoint"), limit=100).records
    found = [record.asset_observation for record in records if record.asset_observation]
    assert all(o.partition == "pacific" for o in found)
    return [{k: v.value for k, v in o.metadata.items()} for o in reversed(found)]


def materialize(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, folder: Path, training: Training
) -> dg.ExecuteInProcessResult:
    """An asset whose training process is played by `training(live file, on_tick)`."""

    def launched(
        compute: Compute, job: Path, environment: Mapping[str, str] | None = None, on_tick: Tick | None = None
    ) -> None:
        assert compute.processes == 2
        assert "DAGSTER_PIPES_CONTEXT" in (environment or {})
        assert on_tick is not None
        training(job.parent / "live.jsonl", on_tick)

    monkeypatch.setattr(configured, "launch", launched)

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["pacific"]))
    def checkpoint(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
        compute = Compute(launcher="accelerate", strategy="ddp", processes=2)
        _PipesLauncher(context, compute)(folder / "job.json")
        return dg.MaterializeResult()

    return dg.materialize([checkpoint], partition_key="pacific", instance=instance, raise_on_error=False)


def test_figures_can_be_seen_while_the_training_runs_and_the_last_ones_always(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    during: list[list[dict[str, Any]]] = []

    def training(live: Path, on_tick: Tick) -> None:
        on_tick()
        during.append(observed(instance))
        write(live, {"step": 1, "train/loss": 0.7})
        on_tick()
        during.append(observed(instance))
        write(live, {"step": 2, "train/loss": 0.6}, {"step": 3, "train/loss": 0.5, "speed/pairs_per_second": 2.5})
        on_tick()  # sooner than ten seconds after the first

    assert materialize(monkeypatch, instance, tmp_path, training).success
    first, last = (
        {"step": 1, "train/loss": 0.7},
        {"step": 3, "train/loss": 0.5, "speed/pairs_per_second": 2.5},
    )
    assert during == [[], [first]]
    assert observed(instance) == [first, last]


def test_what_a_failed_training_came_to_is_observed_and_its_error_stays(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    def training(live: Path, on_tick: Tick) -> None:
        write(live, {"step": 9, "train/loss": 0.1})
        raise TrainingError("the loss became nan")

    result = materialize(monkeypatch, instance, tmp_path, training)
    (failure,) = result.filter_events(lambda e: e.is_step_failure)
    assert "the loss became nan" in failure.step_failure_data.error.to_string()
    assert observed(instance) == [{"step": 9, "train/loss": 0.1}]


@pytest.mark.parametrize("damage", ['{"step": 1', "no JSON", "[]"])
def test_a_damaged_live_file_does_not_disturb_the_training(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, tmp_path: Path, damage: str
) -> None:
    ended = []

    def training(live: Path, on_tick: Tick) -> None:
        live.write_text(damage + "\n")
        on_tick()
        on_tick()
        ended.append(True)

    assert materialize(monkeypatch, instance, tmp_path, training).success
    assert ended
    assert observed(instance) == []


def test_a_live_file_that_is_never_written_is_no_observation(
    monkeypatch: pytest.MonkeyPatch, instance: dg.DagsterInstance, tmp_path: Path
) -> None:
    assert materialize(monkeypatch, instance, tmp_path, lambda live, on_tick: on_tick()).success
    assert observed(instance) == []


class Context:
    """As much of a context as the figures need; fails to log events if told to."""

    def __init__(self, failing: bool = False) -> None:
        self.asset_key, self.has_partition_key, self.failing = dg.AssetKey("checkpoint"), False, failing
        self.steps: list[Any] = []
        self.warnings: list[str] = []

    @property
    def log(self) -> "Context":
        return self

    def warning(self, message: str) -> None:
        self.warnings.append(message)

    def log_event(self, event: dg.AssetObservation) -> None:
        if self.failing:
            raise RuntimeError("the event log is locked")
        self.steps.append(event.metadata["step"].value)


def test_observations_are_ten_seconds_apart_and_none_is_made_twice(tmp_path: Path) -> None:
    context, now = Context(), [0.0]
    figures = _LiveFigures(context, tmp_path / "live.jsonl", clock=lambda: now[0])  # type: ignore[arg-type]
    for second in range(25):
        now[0] = float(second)
        if second < 15:
            write(tmp_path / "live.jsonl", {"step": second})
        figures.tick()
    assert context.steps == [0, 10, 14], "at 20 s the newest is that of 14 s"
    figures.tick(at_once=True)
    assert context.steps == [0, 10, 14]
    write(tmp_path / "live.jsonl", {"step": 25})
    figures.tick(at_once=True)
    assert context.steps == [0, 10, 14, 25]


def test_an_event_log_that_fails_is_warned_of_once(tmp_path: Path) -> None:
    context = Context(failing=True)
    figures = _LiveFigures(context, tmp_path / "live.jsonl", every_s=0)  # type: ignore[arg-type]
    for step in range(3):
        write(tmp_path / "live.jsonl", {"step": step})
        figures.tick()
    figures.tick(at_once=True)
    assert len(context.warnings) == 1
    assert "RuntimeError: the event log is locked" in context.warnings[0]
