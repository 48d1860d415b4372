"""Stages: made once per identity, made again for exactly what they depend on, and not for more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from act_assets.home import PACKAGE
from act_assets.pipeline.stage import Stage, announcing, run_stage, up_to_date
from act_assets.profile import TRANSPORT, LLMRole
from act_assets.run import Run
from resources.artifacts import Artifact, Key
from resources.errors import ActError, PromptError


def build_lines(run: Run, folder: Path) -> dict[str, Any]:
    (folder / "lines.txt").write_text((run.data_dir / "source.txt").read_text())
    return {}


def build_number(run: Run, folder: Path) -> dict[str, Any]:
    """Its content is the number of lines alone, whatever they say."""
    (folder / "number.txt").write_text(str(len(run.inputs["lines"].file("lines.txt").read_text().splitlines())))
    return {}


def build_draw(run: Run, folder: Path) -> dict[str, Any]:
    number = run.inputs["number"].file("number.txt").read_text()
    (folder / "draw.txt").write_text(f"{run.train_size} of {number} with seed {run.seed}")
    return {}


def build_page(run: Run, folder: Path) -> dict[str, Any]:
    texts = [a.file(f"{a.key.asset}.txt").read_text() for a in run.inputs.values()]
    (folder / "page.txt").write_text("\n".join(texts))
    return {"inputs": sorted(run.inputs)}


# lines -> number -> draw (per train size, seeded) -> page, which reads lines as well
STAGES = {
    s.name: s
    for s in (
        Stage("lines", False, (), build_lines, seeded=False, fingerprint=lambda run: _source(run).read_text()),
        Stage("number", False, ("lines",), build_number, seeded=False, settings=lambda p: {"roles": p.roles}),
        Stage("draw", True, ("number",), build_draw, prompts=("generator",)),
        Stage("page", True, ("draw", "lines"), build_page, seeded=False, settings=lambda p: p.sft.epochs),
    )
}


def _source(run: Run) -> Path:
    return run.data_dir / "source.txt"


@pytest.fixture
def run(run_below: Callable[..., Run], tmp_path: Path) -> Run:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "source.txt").write_text("one\ntwo\n")
    shutil.copytree(PACKAGE / "prompts", tmp_path / "prompts")
    return run_below(tmp_path, data_dir=tmp_path / "data", data_origin="test", prompts_dir=tmp_path / "prompts")


def made(run: Run, stages: dict[str, Stage] = STAGES) -> list[str]:
    """Runs all stages; the names of those that were not found."""
    return [name for name in stages if not run_stage(stages, name, run).reused]


def same(run: Run) -> Run:
    return run


def with_source(text: str) -> Callable[[Run], Run]:
    return lambda run: (_source(run).write_text(text), run)[1]


def with_prompt(role: str) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        with (run.prompts_dir / role / "pacific.md").open("a") as prompt:
            prompt.write("Be brief.\n")
        return run

    return change


def with_generator(**values: object) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        roles = run.profile.roles
        changed = roles.model_copy(update={"generator": roles.generator.model_copy(update=values)})
        return replace(run, profile=run.profile.model_copy(update={"roles": changed}))

    return change


def with_epochs(section: str) -> Callable[[Run], Run]:
    def change(run: Run) -> Run:
        changed = getattr(run.profile, section).model_copy(update={"epochs": 99})
        return replace(run, profile=run.profile.model_copy(update={section: changed}))

    return change


CHANGES: dict[str, tuple[Callable[[Run], Run], list[str]]] = {
    "nothing": (same, []),
    "other lines, as many": (with_source("three\nfour\n"), ["lines", "number", "page"]),
    "more lines": (with_source("one\ntwo\nthree\n"), ["lines", "number", "draw", "page"]),
    "the seed": (lambda run: replace(run, seed=1), ["draw", "page"]),
    "the train size": (lambda run: replace(run, train_size=100), ["draw", "page"]),
    "a prompt that is rendered": (with_prompt("generator"), ["draw"]),
    "a prompt that is not": (with_prompt("simulator"), []),
    "a setting that is read": (with_epochs("sft"), ["page"]),
    "a setting that is not": (with_epochs("act"), []),
    "a setting of a role": (with_generator(temperature=0.5), ["number"]),
    "the model of a role": (with_generator(model="another"), ["number"]),
    "how many are asked at once": (with_generator(max_concurrency=1), []),
    "where reports go": (lambda run: replace(run, reports_dir=run.reports_dir / "x"), []),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_makes_exactly_what_depends_on_it(run: Run, what: str) -> None:
    change, expected = CHANGES[what]
    assert made(run) == list(STAGES)
    assert made(change(run)) == expected


@pytest.mark.parametrize("what", CHANGES)
def test_nothing_is_called_up_to_date_that_a_run_would_make(run: Run, what: str) -> None:
    change, expected = CHANGES[what]
    made(run)
    changed = change(run)
    current = {name for name in STAGES if up_to_date(STAGES, name, changed)}
    assert not current & set(expected)
    assert current == set(STAGES) or expected
    made(changed)
    assert all(up_to_date(STAGES, name, changed) for name in STAGES)


def test_what_hangs_on_something_stale_is_not_up_to_date_and_asking_makes_nothing(run: Run) -> None:
    assert [up_to_date(STAGES, name, run) for name in STAGES] == [None] * len(STAGES)
    assert not run.store.root.exists()
    made(run)
    changed = with_generator(temperature=0.5)(run)
    assert [name for name in STAGES if up_to_date(STAGES, name, changed)] == ["lines"], "draw hangs on number"
    assert up_to_date(STAGES, "draw", run) == run.store.require(Key("draw", "pacific", 50))


def test_a_stage_publishes_whether_made_or_found(run: Run) -> None:
    published: list[str] = []

    def publish(run: Run, artifact: Artifact) -> dict[str, Any]:
        published.append(artifact.file("lines.txt").read_text())
        return {"copy": len(published)}

    stages = {"lines": replace(STAGES["lines"], publish=publish)}
    outcomes = [run_stage(stages, "lines", run) for _ in range(2)]
    assert [(o.reused, o.published) for o in outcomes] == [(False, {"copy": 1}), (True, {"copy": 2})]
    assert published == ["one\ntwo\n"] * 2


def test_going_back_to_earlier_settings_makes_nothing(run: Run) -> None:
    made(run)
    assert made(replace(run, seed=1)) == ["draw", "page"]
    assert made(run) == []


@pytest.mark.parametrize("name", STAGES)
def test_a_new_version_makes_its_own_stage_and_stops_where_the_content_is_the_same(run: Run, name: str) -> None:
    made(run)
    assert made(run, {**STAGES, name: replace(STAGES[name], version=2)}) == [name]


def test_a_damaged_artifact_is_made_again_and_nothing_after_it(run: Run) -> None:
    made(run)
    run.store.require(Key("number", "pacific")).file("number.txt").write_text("99")
    assert made(run) == ["number"]
    assert run.store.require(Key("number", "pacific")).file("number.txt").read_text() == "2"


def test_a_stage_sees_its_inputs_by_name(run: Run) -> None:
    made(run)
    page = run.store.require(Key("page", "pacific", 50))
    assert page.facts == {"inputs": ["draw", "lines"]}
    assert page.file("page.txt").read_text() == "50 of 2 with seed 0\none\ntwo\n"


def test_sized_stages_have_a_key_per_train_size_and_others_one_per_task(run: Run) -> None:
    made(run)
    made(replace(run, train_size=100))
    assert run.store.require(Key("draw", "pacific", 50)).file("draw.txt").read_text().startswith("50 of")
    assert run.store.require(Key("draw", "pacific", 100)).file("draw.txt").read_text().startswith("100 of")
    assert run_stage(STAGES, "number", replace(run, train_size=None)).reused
    with pytest.raises(ActError, match="draw needs a train size") as caught:
        run_stage(STAGES, "draw", replace(run, train_size=None))
    assert "50, 100, 250" in caught.value.todo


def test_a_missing_input_is_an_error_that_names_the_asset_that_makes_it(run: Run) -> None:
    with pytest.raises(ActError, match=r"number pacific has not been materialized") as caught:
        run_stage(STAGES, "draw", run)
    assert "materialize the asset number for partition pacific first" in caught.value.todo


def test_a_missing_prompt_is_an_error_that_names_role_and_task(run: Run) -> None:
    made(run)
    (run.prompts_dir / "generator" / "pacific.md").unlink()
    with pytest.raises(PromptError) as caught:
        run_stage(STAGES, "draw", run)
    assert "role generator, task pacific" in caught.value.where


def test_the_identity_says_what_an_artifact_was_made_from(run: Run) -> None:
    made(run)
    draw = run.store.require(Key("draw", "pacific", 50)).identity
    assert (draw["asset"], draw["partition"], draw["version"], draw["seed"]) == ("draw", "pacific|50", 1, 0)
    assert draw["inputs"] == {"number": run.store.require(Key("number", "pacific")).content_hash}
    assert set(draw["prompts"]) == {"generator"}
    roles = run.store.require(Key("number", "pacific")).identity["settings"]["roles"]
    assert set(roles["generator"]) == set(LLMRole.model_fields) - set(TRANSPORT) - {"stop"}, "stop is at its default"


def test_what_a_stage_finds_is_part_of_its_identity(run: Run) -> None:
    stages = {**STAGES, "page": replace(STAGES["page"], finds=("draw",))}
    assert made(run, stages) == list(stages)
    made(replace(run, train_size=100), STAGES)
    assert made(run, stages) == ["page"]
    inputs = ["draw", "draw@100", "draw@50", "lines"]
    assert run.store.require(Key("page", "pacific", 50)).facts == {"inputs": inputs}
    assert made(run, stages) == []


def test_listeners_hear_of_what_is_made_and_of_what_is_there(run: Run) -> None:
    heard: list[object] = []
    with announcing(
        lambda key: heard.append(("began", str(key))), lambda key, reused, s: heard.append((str(key), reused))
    ):
        run_stage(STAGES, "lines", run)
        run_stage(STAGES, "lines", run)
    run_stage(STAGES, "number", run)
    assert heard == [("began", "lines pacific"), ("lines pacific", False), ("lines pacific", True)]


# --- stages that go on where they were cut short ---


def build_long(run: Run, folder: Path) -> dict[str, Any]:
    """Counts in `work` how often it was begun; is cut short the first time."""
    run.work.mkdir(parents=True, exist_ok=True)
    begun = run.work / "begun.txt"
    begun.write_text((begun.read_text() if begun.exists() else "") + "x")
    if begun.read_text() == "x":
        raise ActError("cut short")
    (folder / "long.txt").write_text(begun.read_text())
    return {}


LONG = {"long": Stage("long", False, (), build_long, resumable=True)}


def _work(run: Run) -> list[Path]:
    folder = run.store.root.parent / "unfinished"
    return [p for p in folder.rglob("*") if p.is_dir() and len(p.name) >= 16]


def test_a_resumable_stage_goes_on_in_its_folder_which_goes_when_it_is_done(run: Run) -> None:
    with pytest.raises(ActError, match="cut short"):
        run_stage(LONG, "long", run)
    assert len(_work(run)) == 1
    other = run_with_seed(run, 1)
    with pytest.raises(ActError, match="cut short"):
        run_stage(LONG, "long", other)  # another identity begins anew
    assert run_stage(LONG, "long", run).artifact.file("long.txt").read_text() == "xx"
    assert len(_work(run)) == 1, "the other's stays"
    assert run_stage(LONG, "long", run).reused


def run_with_seed(run: Run, seed: int) -> Run:
    return replace(run, seed=seed)


def test_what_a_killed_run_could_not_clear_up_goes_with_the_next(run: Run) -> None:
    with pytest.raises(ActError):
        run_stage(LONG, "long", run)
    (work,) = _work(run)
    run_stage(LONG, "long", run)
    work.mkdir(parents=True)
    (work / "state").write_text("left")
    assert run_stage(LONG, "long", run).reused
    assert not work.exists()


def test_one_run_at_a_time_makes_a_resumable_artifact(run: Run) -> None:
    refused: list[str] = []

    def build(inner: Run, folder: Path) -> dict[str, Any]:
        with pytest.raises(ActError, match="being made by another run") as raised:
            run_stage(stages, "long", run)
        refused.append(str(raised.value))
        (folder / "long.txt").write_text("alone")
        return {}

    stages = {"long": Stage("long", False, (), build, resumable=True)}
    assert not run_stage(stages, "long", run).reused
    assert len(refused) == 1
