"""What the page of a training asset shows: where its time went, its curves, and where its event files are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from act_assets.defs.metadata import metadata_of
from act_assets.pipeline.stage import StageResult
from act_assets.rows import write_rows
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact, Key

FACTS = {
    "share_generate": 0.5,
    "share_update": 0.25,
    "share_save": 0.0,
    "share_other": 0.25,
    "overlapped_simulate": 0.125,
    "seconds": 400.0,
    "pairs_per_second": 2.5,
    "model_flops_utilisation": None,
}


def shown(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    key = Key("sft_checkpoint", "pacific", 50)
    artifact = Artifact(key, folder, {}, "id", "content", facts, 412.5, "2025-01-01T00:00:00Z")
    return metadata_of(StageResult(artifact, False))


def test_phases_are_a_table_of_shares_and_seconds(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    metadata = shown(tmp_path, FACTS)
    assert metadata["time"].value.splitlines()[2:] == [
        "| generate | 50.0% | 200.0 |",
        "| update | 25.0% | 100.0 |",
        "| other | 25.0% | 100.0 |",
        "| simulate, beside the training | 12.5% | 50.0 |",
        "| all |  | 400.0 |",
    ]
    assert not [name for name in metadata if name.startswith(("share_", "overlapped_"))]
    assert metadata["seconds"] == 412.5, "the making of the artifact, start-up included"
    assert metadata["pairs_per_second"] == 2.5
    assert "model_flops_utilisation" not in metadata


def test_a_training_that_measured_nothing_shows_nothing(tmp_path: Path) -> None:
    metadata = shown(tmp_path, {"policy": "a Hugging Face model"})
    assert not {"time", "curves", "tensorboard"} & set(metadata)


def test_curves_and_the_event_files_path_are_shown_where_they_are(tmp_path: Path) -> None:
    write_rows(tmp_path / "history.parquet", [TrainingPoint(1, 1.0, "train", 0.5)], TrainingPoint)
    (tmp_path / "logs" / "tensorboard").mkdir(parents=True)
    metadata = shown(tmp_path, FACTS)
    assert metadata["curves"].value.startswith("![plot](data:image/png;base64,")
    assert Path(metadata["tensorboard"].value) == tmp_path / "logs" / "tensorboard"
