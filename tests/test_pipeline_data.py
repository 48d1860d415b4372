"""From the raw files to the pairs, on the bundled sample: subsets, labels, intents, Algorithm 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from act_assets import checks
from act_assets.conversation import ActionLabel, Conversation, IntentSummary, PreferencePair
from act_assets.errors import DataError
from act_assets.home import PACKAGE, PROJECT
from act_assets.pipeline import STAGES, build_train_subset
from act_assets.profile import Profile, load_profile
from act_assets.progress import quiet
from act_assets.roles import generator
from act_assets.rows import read_rows, write_rows
from act_assets.stages import StageRun, run_stage
from act_assets.tasks import get_task
from act_assets.tasks.base import TaskData, messages_of
from resources.artifacts import Artifact, ArtifactStore
from resources.llm.service import CallSettings

PREPARED = ("raw_dataset", "conversations", "action_labels", "validation_intents", "validation_pairs")
SIZED = ("train_subset", "intent_summaries", "contrastive_pairs")
TINY = Path(__file__).parent / "tiny.yaml"


def no_training(job: Path) -> None:
    raise AssertionError("nothing is trained here")


def run_in(root: Path, *, size: int | None = None, seed: int = 0, profile: Profile | None = None) -> StageRun:
    profile = profile or load_profile(str(TINY))
    return StageRun(
        task=get_task("pacific"),
        train_size=size,
        seed=seed,
        profile=profile,
        store=ArtifactStore(root, f"{profile.name}-seed{seed}"),
        data_dir=PROJECT / "datasets" / "sample" / "pacific",
        data_origin="bundled sample",
        prompts_dir=PACKAGE / "prompts",
        reports_dir=root / "reports",
        progress=quiet,
        launch=no_training,
        calls=CallSettings(root / "memo"),
    )


def made(run: StageRun, *names: str) -> Artifact:
    """Makes stages in order; the last one's artifact."""
    return [run_stage(STAGES, name, run).artifact for name in names][-1]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with everything that is made once per task, for seed 0."""
    root = tmp_path_factory.mktemp("store")
    made(run_in(root), *PREPARED)
    return root


@pytest.fixture(scope="module")
def pairs(store: Path) -> Artifact:
    return made(run_in(store, size=50), *SIZED)


def subset(store: Path, size: int, seed: int) -> list[Conversation]:
    """A train subset of a seed, with the seed's labels."""
    artifact = made(run_in(store, size=size, seed=seed), *PREPARED[:3], "train_subset")
    return read_rows(artifact.file("train.parquet"), Conversation)


def test_conversations_are_what_the_reader_reads(store: Path, sample: TaskData) -> None:
    artifact = made(run_in(store), "conversations")
    for side, expected in (("train", sample.train), ("validation", sample.validation)):
        assert read_rows(artifact.file(f"{side}.parquet"), Conversation) == list(expected)


def test_gold_labels_agree_with_gold_on_every_turn(store: Path, sample: TaskData) -> None:
    artifact = made(run_in(store), "action_labels")
    labels = read_rows(artifact.file("validation.parquet"), ActionLabel)
    assert [(x.turn_id, x.label) for x in labels] == [(t.turn_id, t.action) for c in sample.validation for t in c.turns]
    assert artifact.facts["agreement_with_gold"] == 1.0


@pytest.mark.parametrize("seed", [0, 1, 2, 2**40])
def test_50_lie_inside_100_inside_250(store: Path, seed: int) -> None:
    small, middle, all_of_them = (subset(store, size, seed) for size in (50, 100, 250))
    assert (len(small), len(middle), len(all_of_them)) == (50, 100, 250)
    assert small == middle[:50]
    assert middle == all_of_them[:100]
    assert len({c.conversation_id for c in all_of_them}) == 250, "nobody twice"


def test_another_seed_is_another_order_of_the_same_conversations(store: Path, sample: TaskData) -> None:
    orders = [[c.conversation_id for c in subset(store, 250, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    in_file_order = [c.conversation_id for c in sample.train]
    assert in_file_order not in orders
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(in_file_order)
    assert set(orders[0][:50]) != set(orders[1][:50])


@pytest.mark.parametrize("size", [251, 100_000, 0, -1])
def test_a_size_that_the_data_does_not_have_is_refused(store: Path, tmp_path: Path, size: int) -> None:
    run = run_in(store, size=size)
    inputs = {name: made(run, name) for name in STAGES["train_subset"].inputs}
    with pytest.raises(DataError, match=f"{size} conversations, but there are 250") as caught:
        build_train_subset(replace(run, inputs=inputs), tmp_path)
    assert caught.value.where == f"task pacific, train size {size}"
    assert "at most 250" in caught.value.todo
    assert list(tmp_path.iterdir()) == []


def test_every_conversation_of_the_subset_has_an_intent(store: Path, pairs: Artifact) -> None:
    intents = read_rows(made(run_in(store, size=50), "intent_summaries").file("intents.parquet"), IntentSummary)
    assert [i.conversation_id for i in intents] == [c.conversation_id for c in subset(store, 50, 0)]
    assert all(i.summary.startswith("The user wants to know: 1. ") for i in intents)


def pairs_of(artifact: Artifact) -> list[PreferencePair]:
    return read_rows(artifact.file("pairs.parquet"), PreferencePair)


def test_pairs_are_gold_against_the_other_action_for_every_turn(store: Path, pairs: Artifact) -> None:
    task = get_task("pacific")
    turns = {t.turn_id: t for c in subset(store, 50, 0) for t in task.reader.turn_states(c)}
    made_of = pairs_of(pairs)
    assert {p.turn_id for p in made_of} == set(turns)
    assert len(made_of) == pairs.facts["pairs"] == pairs.facts["turns"] == len(turns)
    assert (pairs.facts["identical"], pairs.facts["wrong_action"]) == (0, 0), (
        "the embedded generator does as it is told"
    )
    for pair in made_of:
        turn = turns[pair.turn_id]
        assert (pair.action, pair.chosen, pair.goal) == (turn.action, turn.response.text, turn.goal.text)
        assert pair.prompt == messages_of(task, turn)
        assert pair.rejected_action != pair.action
        assert task.judge.rule_action(pair.rejected) == pair.rejected_action


def test_pairs_go_in_both_directions(pairs: Artifact) -> None:
    directions = [(p.action, p.rejected_action) for p in pairs_of(pairs)]
    counts = {d: directions.count(d) for d in set(directions)}
    assert set(counts) == {("CLARIFY", "ANSWER"), ("ANSWER", "CLARIFY")}
    assert counts["CLARIFY", "ANSWER"] == pairs.facts["pairs_clarify"]
    assert counts["ANSWER", "CLARIFY"] == pairs.facts["pairs_answer"]


@pytest.mark.parametrize("name", ["contrastive_pairs", "validation_pairs"])
def test_all_blocking_checks_pass(store: Path, pairs: Artifact, sample: TaskData, name: str) -> None:
    found = pairs_of(made(run_in(store, size=50), name))
    every = [*sample.train, *sample.validation]
    for finding in (
        checks.no_leak(found, every),
        checks.no_empty_response(found),
        checks.chosen_differs(found),
        checks.covers_actions(found, get_task("pacific")),
    ):
        assert finding.passed, finding


def test_validation_pairs_are_of_the_validation_side(store: Path, sample: TaskData) -> None:
    found = {p.conversation_id for p in pairs_of(made(run_in(store), "validation_pairs"))}
    assert found == {c.conversation_id for c in sample.validation}


def test_the_same_seed_gives_the_same_bytes_in_another_store_and_another_seed_others(
    tmp_path: Path, pairs: Artifact
) -> None:
    again, other = (
        made(run_in(tmp_path / str(seed), size=50, seed=seed), *PREPARED[:3], "train_subset", "contrastive_pairs")
        for seed in (0, 1)
    )
    assert again.path != pairs.path
    assert again.file("pairs.parquet").read_bytes() == pairs.file("pairs.parquet").read_bytes()
    assert again.content_hash == pairs.content_hash
    assert other.content_hash != pairs.content_hash
    same_turn = {p.turn_id: p.rejected for p in pairs_of(pairs)}
    both = [(same_turn[p.turn_id], p.rejected) for p in pairs_of(other) if p.turn_id in same_turn]
    assert both
    assert any(a != b for a, b in both), "a seed is more than another subset"


@dataclass
class InContext:
    """The in-context conversations that the generator was given, and how many went into its prompts."""

    ids: list[str] = field(default_factory=list)
    shown: set[int] = field(default_factory=set)


@pytest.fixture
def in_context(monkeypatch: pytest.MonkeyPatch) -> InContext:
    seen = InContext()
    apart = generator.examples_apart_from

    class Recorder(generator.Generator):
        def __init__(self, llm: Any, settings: Any, task: Any, examples: Sequence[Conversation], *a: Any, **k: Any):
            seen.ids += [c.conversation_id for c in examples]
            super().__init__(llm, settings, task, examples, *a, **k)

    def counted(*arguments: Any) -> Any:
        examples = apart(*arguments)
        seen.shown.add(len(examples))
        return examples

    monkeypatch.setattr("act_assets.roles.cast.Generator", Recorder)
    monkeypatch.setattr(generator, "examples_apart_from", counted)
    return seen


def with_examples(number: int) -> Profile:
    profile = load_profile(str(TINY))
    return profile.model_copy(update={"roles": profile.roles.model_copy(update={"in_context_conversations": number})})


@pytest.mark.parametrize("number", [10, 3])
def test_in_context_conversations_of_the_validation_side_come_from_the_training_side(
    store: Path, sample: TaskData, in_context: InContext, number: int, tmp_path: Path
) -> None:
    inputs = {name: made(run_in(store), name) for name in STAGES["validation_pairs"].inputs}
    run = replace(run_in(store, profile=with_examples(number)), inputs=inputs)
    STAGES["validation_pairs"].build(run, tmp_path)
    assert in_context.shown == {number}, "every prompt holds as many as the profile says"
    assert len(set(in_context.ids)) == len(in_context.ids) >= number
    assert set(in_context.ids) <= {c.conversation_id for c in sample.train}
    assert not set(in_context.ids) & {c.conversation_id for c in sample.validation}


def test_in_context_conversations_of_a_subset_come_from_the_subset(
    store: Path, in_context: InContext, tmp_path: Path
) -> None:
    inputs = {"train_subset": made(run_in(store, size=50), "train_subset")}
    STAGES["contrastive_pairs"].build(replace(run_in(store, size=50), inputs=inputs), tmp_path)
    assert in_context.shown == {10}, "a turn's own conversation is replaced by another"
    assert set(in_context.ids) <= {c.conversation_id for c in subset(store, 50, 0)}


@pytest.mark.parametrize("name", ["contrastive_pairs", "validation_pairs", "act_checkpoint", "evaluation_act"])
def test_the_number_of_in_context_conversations_is_part_of_what_they_go_into(name: str) -> None:
    settings = STAGES[name].settings
    assert settings(with_examples(10)) != settings(with_examples(3))


def test_the_annotators_labels_take_the_place_of_gold_in_the_subset(store: Path, tmp_path: Path) -> None:
    """Pseudo labels (section 5.4), here the wrong one everywhere."""
    labels = made(run_in(store), "action_labels")
    swap = {"CLARIFY": "ANSWER", "ANSWER": "CLARIFY"}
    wrong = [replace(x, label=swap[x.gold]) for x in read_rows(labels.file("train.parquet"), ActionLabel)]
    write_rows(tmp_path / "train.parquet", wrong, ActionLabel)
    inputs = {"conversations": made(run_in(store), "conversations"), "action_labels": replace(labels, path=tmp_path)}
    out = tmp_path / "out"
    out.mkdir()
    build_train_subset(replace(run_in(store, size=50), inputs=inputs), out)
    gold = {t.turn_id: t.action for c in subset(store, 50, 0) for t in c.turns}
    labelled = [t for c in read_rows(out / "train.parquet", Conversation) for t in c.turns]
    assert [t.action for t in labelled] == [swap[gold[t.turn_id]] for t in labelled]
