"""From the raw files to the pairs, on the bundled sample: subsets, labels, intents, Algorithm 1."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from act_assets.conversation import (
    ActionLabel,
    AmbiguousTwin,
    ClearRequest,
    Conversation,
    IntentSummary,
    PreferencePair,
    Turn,
)
from act_assets.home import PACKAGE, PROJECT
from act_assets.pipeline import checks
from act_assets.pipeline import data as pipeline
from act_assets.pipeline import stage as stages
from act_assets.pipeline.data import build_train_subset
from act_assets.pipeline.evaluation import provenance
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.preference import annotate
from act_assets.profile import AmbiguousRequests, Profile, load_profile
from act_assets.progress import quiet
from act_assets.roles import Generator, GoldAnnotator
from act_assets.rows import read_rows, write_rows
from act_assets.run import Run, evaluated_turns, evaluation_side, intents_in, labelled_conversations, turns_of
from act_assets.tasks import get_task
from act_assets.tasks.base import TaskData, TwinMaker, messages_of
from act_assets.tasks.pacific.answer import reference
from act_assets.tasks.pacific.task import PacificReader
from resources.artifacts import Artifact, ArtifactStore
from resources.errors import DataError
from resources.llm.base import Usage
from resources.llm.service import CallSettings

pytestmark = pytest.mark.integration

PREPARED = (
    "raw_dataset",
    "ambiguous_requests",
    "conversations",
    "action_labels",
    "evaluation_intents",
    "validation_pairs",
)
SIZED = ("train_subset", "intent_summaries", "contrastive_pairs")
TINY = Path(__file__).parents[1] / "tiny.yaml"


def no_training(job: Path) -> None:
    raise AssertionError("nothing is trained here")


def run_in(root: Path, *, size: int | None = None, seed: int = 0, profile: Profile | None = None) -> Run:
    profile = profile or load_profile(str(TINY))
    return Run(
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


def made(run: Run, *names: str) -> Artifact:
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
    artifact = made(run_in(store, size=size, seed=seed), *PREPARED[:4], "train_subset")
    return read_rows(artifact.file("train.parquet"), Conversation)


def test_conversations_are_what_the_reader_reads(store: Path, sample: TaskData) -> None:
    artifact = made(run_in(store), "conversations")
    for side, expected in (("train", sample.train), ("validation", sample.validation), ("test", ())):
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


def inputs_with(store: Path, folder: Path, train: Sequence[Conversation]) -> dict[str, Artifact]:
    """The inputs of stages, with other training conversations and their gold labels."""
    run = run_in(store)
    inputs = {name: replace(made(run, name), path=folder / name) for name in ("conversations", "action_labels")}
    for artifact in inputs.values():
        artifact.path.mkdir(parents=True)
    write_rows(inputs["conversations"].path / "train.parquet", train, Conversation)
    write_rows(inputs["conversations"].path / "validation.parquet", train[:3], Conversation)
    write_rows(inputs["conversations"].path / "test.parquet", [], Conversation)
    for side, conversations in (("train", train), ("validation", train[:3])):
        labels = annotate(run.task, conversations, GoldAnnotator(), "gold")
        write_rows(inputs["action_labels"].path / f"{side}.parquet", labels, ActionLabel)
    return inputs


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_twins_stay_together_in_every_size_and_sizes_stay_nested(
    store: Path, sample: TaskData, tmp_path: Path, seed: int
) -> None:
    """Twins that stand far apart in the file: the n-th conversation and the n-th from the middle."""
    twins = [replace(c, group=f"pair {i % 125}") for i, c in enumerate(sample.train)]
    inputs = inputs_with(store, tmp_path / "in", twins)
    subsets: list[list[Conversation]] = []
    for size in (50, 100, 250):
        out = tmp_path / str(size)
        out.mkdir()
        facts = build_train_subset(replace(run_in(store, size=size, seed=seed), inputs=inputs), out)
        assert facts["train_conversations"] == size
        subsets.append(read_rows(out / "train.parquet", Conversation))
        groups = Counter(c.group for c in subsets[-1])
        assert set(groups.values()) == {2}, "nobody without a twin"
    small, middle, all_of_them = subsets
    assert small == middle[:50]
    assert middle == all_of_them[:100]
    assert sorted(c.conversation_id for c in all_of_them) == sorted(c.conversation_id for c in sample.train)


def test_groups_of_one_are_drawn_as_conversations_are(store: Path, sample: TaskData, tmp_path: Path) -> None:
    """Naming each conversation its own group changes nothing."""
    alone = [replace(c, group=c.conversation_id) for c in sample.train]
    out = tmp_path / "out"
    out.mkdir()
    build_train_subset(replace(run_in(store, size=50), inputs=inputs_with(store, tmp_path / "in", alone)), out)
    drawn = [c.conversation_id for c in read_rows(out / "train.parquet", Conversation)]
    assert drawn == [c.conversation_id for c in subset(store, 50, 0)]


def test_every_conversation_in_which_the_user_may_be_asked_has_an_intent(store: Path, pairs: Artifact) -> None:
    """Training rolls out only turns whose action waits for a reply: about the others nothing is asked."""
    intents = read_rows(made(run_in(store, size=50), "intent_summaries").file("intents.parquet"), IntentSummary)
    asking = [c for c in subset(store, 50, 0) if any(t.action == "CLARIFY" for t in c.turns)]
    assert 0 < len(asking) < 50
    assert [i.conversation_id for i in intents] == [c.conversation_id for c in asking]
    assert all(i.intent_id == i.conversation_id for i in intents)
    assert all(i.summary.startswith("The user wants to know: 1. ") for i in intents)


def pairs_of(artifact: Artifact) -> list[PreferencePair]:
    return read_rows(artifact.file("pairs.parquet"), PreferencePair)


def test_pairs_are_gold_against_the_other_action_for_every_turn(store: Path, pairs: Artifact) -> None:
    task = get_task("pacific")
    turns = {t.turn_id: t for c in subset(store, 50, 0) for t in task.turn_states(c)}
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
        made(run_in(tmp_path / str(seed), size=50, seed=seed), *PREPARED[:4], "train_subset", "contrastive_pairs")
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

    class Recorder(Generator):
        def __init__(self, llm: Any, settings: Any, task: Any, examples: Sequence[Conversation], *a: Any, **k: Any):
            seen.ids += [c.conversation_id for c in examples]
            super().__init__(llm, settings, task, examples, *a, **k)

        def examples_apart_from(self, turn: Any) -> Any:
            examples = super().examples_apart_from(turn)
            seen.shown.add(len(examples))
            return examples

    monkeypatch.setattr("act_assets.roles.build.Generator", Recorder)
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
    assert in_context.shown == {2}, "a turn's own conversation is replaced by another"
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


# --- requests with several readings ------------------------------------------------------------------------------


def build(run: Run, name: str, folder: Path) -> dict[str, Any]:
    """Builds a stage's files for a run whose inputs are given."""
    folder.mkdir()
    return STAGES[name].build(run, folder)


def test_a_request_with_several_readings_has_one_label_and_an_intent_for_each(
    store: Path, ambiguous: Conversation, tmp_path: Path
) -> None:
    inputs = inputs_with(store, tmp_path / "in", [ambiguous])
    run = replace(run_in(store, size=1), inputs=inputs)
    build(run, "action_labels", tmp_path / "labels")
    labels = read_rows(tmp_path / "labels" / "train.parquet", ActionLabel)
    assert [(x.turn_id, x.gold, x.label) for x in labels] == [("sales-1", "CLARIFY", "CLARIFY")]
    assert labelled_conversations(run, "train") == [ambiguous]

    build(run, "train_subset", tmp_path / "subset")
    subset_of = replace(inputs["conversations"], path=tmp_path / "subset")
    run = replace(run, inputs={**inputs, "train_subset": subset_of})
    facts = build(run, "intent_summaries", tmp_path / "intents")
    intents = read_rows(tmp_path / "intents" / "intents.parquet", IntentSummary)
    assert [(i.conversation_id, i.intent_id) for i in intents] == [("sales", f"sales-1#{k}") for k in (1, 2, 3)]
    assert [i.summary for i in intents] == [
        f"The user wants to know: 1. What were the sales in {year}?" for year in (2018, 2019, 2020)
    ]
    assert (facts["intents"], facts["llm_calls"] + facts["llm_hits"]) == (3, 3)
    states = turns_of(run, [ambiguous])
    assert set(intents_in(replace(subset_of, path=tmp_path / "intents"))) == {t.intent_id for t in states}

    facts = build(run, "contrastive_pairs", tmp_path / "pairs")
    found = read_rows(tmp_path / "pairs" / "pairs.parquet", PreferencePair)
    assert [p.turn_id for p in found] == [t.turn_id for t in states], "a pair for every trajectory"
    assert [p.goal for p in found] == [t.goal.text for t in states]
    assert len({(p.prompt, p.chosen) for p in found}) == 1
    assert checks.no_leak(found, [ambiguous]).passed


def test_grounded_in_the_goal_a_user_is_told_the_whole_request_and_its_target_without_a_call(
    store: Path, ambiguous: Conversation, tmp_path: Path
) -> None:
    """Table A27, for every turn: what is told of one never holds a later one."""
    last = Turn("b-2", "In 2019.", "The sales in 2019?", reference(["6"], "", "span", ""), "ANSWER")
    first = replace(ambiguous.turns[0], turn_id="b-1", readings=())
    whole = replace(ambiguous, conversation_id="b", turns=(first, last))
    run = run_in(store, size=2)
    run = replace(run, task=replace(run.task, grounding="goal"))
    inputs = {"train_subset": replace(made(run_in(store), "conversations"), path=tmp_path)}
    write_rows(tmp_path / "train.parquet", [ambiguous, whole], Conversation)
    facts = build(replace(run, inputs=inputs), "intent_summaries", tmp_path / "intents")
    assert facts == {"intents": 5}
    intents = read_rows(tmp_path / "intents" / "intents.parquet", IntentSummary)
    assert [(i.conversation_id, i.intent_id, i.summary) for i in intents] == [
        ("sales", "sales-1#1", "What were the sales in 2018?\n5 (in millions)"),
        ("sales", "sales-1#2", "What were the sales in 2019?\n6 (in millions)"),
        ("sales", "sales-1#3", "What were the sales in 2020?\n7 (in millions)"),
        ("b", "b-1", "The sales in 2019?\n6"),
        ("b", "b-2", "The sales in 2019?\n6"),
    ]


def test_examples_of_a_group_are_replaced_by_as_many_others(
    store: Path, sample: TaskData, in_context: InContext, tmp_path: Path
) -> None:
    """Groups of four: whichever are drawn, every prompt shows as many conversations as the profile says."""
    fours = [replace(c, group=f"story {i // 4}") for i, c in enumerate(sample.train[:16])]
    inputs = inputs_with(store, tmp_path / "in", fours)
    inputs["train_subset"] = inputs["conversations"]
    build(replace(run_in(store, size=50), inputs=inputs), "contrastive_pairs", tmp_path / "pairs")
    assert in_context.shown == {2}


# --- which side is evaluated -------------------------------------------------------------------------------------


def test_without_a_test_side_validation_is_evaluated(store: Path, sample: TaskData) -> None:
    run = run_in(store)
    run = replace(run, inputs={"conversations": made(run, "conversations")})
    assert evaluation_side(run) == "validation"
    assert [t.turn_id for t in evaluated_turns(run)] == [t.turn_id for c in sample.validation for t in c.turns]
    artifact = made(run_in(store), "evaluation_intents")
    assert set(intents_in(artifact)) == {c.conversation_id for c in sample.validation}
    assert not any(key.startswith("test_") for key in run.inputs["conversations"].facts)


def test_with_a_test_side_it_is_evaluated_and_what_is_only_trained_on_is_not(
    store: Path, sample: TaskData, tmp_path: Path
) -> None:
    inputs = inputs_with(store, tmp_path / "in", sample.train[:5])
    first, *others = sample.validation[:3]
    unevaluated = replace(first, turns=tuple(replace(t, evaluated=i > 0) for i, t in enumerate(first.turns)))
    write_rows(inputs["conversations"].path / "test.parquet", [unevaluated, *others], Conversation)
    run = replace(run_in(store), inputs=inputs)
    assert evaluation_side(run) == "test"
    expected = [t.turn_id for c in (first, *others) for t in c.turns]
    assert [t.turn_id for t in evaluated_turns(run)] == expected[1:]
    build(run, "evaluation_intents", tmp_path / "intents")
    intents = read_rows(tmp_path / "intents" / "intents.parquet", IntentSummary)
    assert [i.conversation_id for i in intents] == [c.conversation_id for c in (first, *others)]
    assert provenance(run, "sft").side == "test"


# --- twins (appendix C) ------------------------------------------------------------------------------------------


def test_data_that_brings_its_own_ambiguous_requests_has_no_twins_and_asks_nobody(store: Path) -> None:
    artifact = made(run_in(store), "ambiguous_requests")
    assert read_rows(artifact.file("twins.parquet"), AmbiguousTwin) == []
    assert artifact.facts == {"twins": 0}
    assert artifact.identity["prompts"] == {"perturbation": "not asked"}


class Maker(TwinMaker):
    """Four clear requests of each side; the target of the second does not run."""

    def requests(self, folder: Path, limits: dict[str, int | None]) -> list[ClearRequest]:
        return [
            ClearRequest("pacific", side, f"{side} {i}", "db", "columns", f"What is {i}?", f"SELECT {i}", "t(a)")
            for side in ("train", "validation", "test")
            for i in range(min(4, limits[side] or 4))
        ]

    def problem(self, folder: Path, request: ClearRequest) -> str | None:
        assert (folder / "train.json").is_file(), "the raw files as the artifact holds them"
        return "no such table" if request.request_id.endswith("1") else None

    def read_reply(self, text: str) -> tuple[str, str] | None:
        request, _, question = text.partition("|")
        return (request, question) if question else None

    def conversations(self, folder: Path, twins: Sequence[AmbiguousTwin]) -> TaskData:
        sides: dict[str, list[Conversation]] = {"train": [], "validation": [], "test": []}
        for twin in twins:
            name, request = twin.clear.request_id, twin.clear.request
            answer = Turn(f"{name}.", request, request, reference(["1"], "", "span", ""), "ANSWER")
            sides[twin.clear.side].append(Conversation("pacific", name, (), (answer,)))
        return TaskData(*map(tuple, sides.values()))


@dataclass
class Perturber:
    """Writes a twin, one that equals its original, and one that cannot be read."""

    usage: Usage = field(default_factory=Usage)
    asked: list[str] = field(default_factory=list)

    def perturb(self, clear: Sequence[ClearRequest], on_done: Any = None) -> list[str]:
        self.asked += [c.request_id for c in clear]
        texts = {"0": "Tell me something.|What?", "2": "what is 2|What?", "3": "I cannot do that."}
        return [texts[c.request_id[-1]] for c in clear]


@pytest.mark.parametrize("limit", [None, 1])
def test_twins_that_cannot_be_used_are_dropped_and_counted_by_reason(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    perturber = Perturber()
    monkeypatch.setattr(pipeline, "roles_of", lambda run: SimpleNamespace(perturber=lambda: perturber))
    run = run_in(store)
    limits = AmbiguousRequests(train=None, validation=limit, test=limit)
    run = replace(
        run,
        task=replace(run.task, twins=Maker()),
        profile=run.profile.model_copy(update={"ambiguous_requests": limits}),
        inputs={"raw_dataset": made(run, "raw_dataset")},
    )
    facts = build(run, "ambiguous_requests", tmp_path / "twins")
    twins = read_rows(tmp_path / "twins" / "twins.parquet", AmbiguousTwin)
    assert [(t.clear.request_id, t.request, t.clarifying_question) for t in twins] == [
        (f"{side} 0", "Tell me something.", "What?") for side in ("train", "validation", "test")
    ]
    rest = 2 if limit is None else 0  # of each of the two sides with a limit
    assert {k: v for k, v in facts.items() if not k.startswith("llm_")} == {
        "requests": 4 + 2 * (4 if limit is None else 1),
        "twins": 3,
        "twins_train": 1,
        "twins_validation": 1,
        "twins_test": 1,
        "twins_columns": 3,
        "dropped_target_fails": 1 + rest,
        "dropped_unreadable": 1 + rest,
        "dropped_identical": 1 + rest,
    }
    assert not [name for name in perturber.asked if name.endswith("1")], "nothing is spent on a target that fails"

    inputs = {**run.inputs, "ambiguous_requests": replace(run.inputs["raw_dataset"], path=tmp_path / "twins")}
    build(replace(run, inputs=inputs), "conversations", tmp_path / "conversations")
    for side in ("train", "validation", "test"):
        (conversation,) = read_rows(tmp_path / "conversations" / f"{side}.parquet", Conversation)
        assert conversation.conversation_id == f"{side} 0"


# --- settings of the task ----------------------------------------------------------------------------------------


def test_the_tasks_own_beta_and_tolerance_hold_where_the_profile_names_none(store: Path) -> None:
    """They are part of what a checkpoint is made from, wherever they come from."""
    run = run_in(store, size=50)
    fingerprint = STAGES["act_checkpoint"].fingerprint
    assert fingerprint(run) == ["DROP F1", 0.1, 0.9], "tiny.yaml names a beta for PACIFIC"
    silent = run.profile.model_copy(update={"act": run.profile.act.model_copy(update={"beta": {"another": 0.3}})})
    assert fingerprint(replace(run, profile=silent)) == ["DROP F1", 0.01, 0.9]
    assert fingerprint(replace(run, profile=silent, task=replace(run.task, beta=0.5))) == ["DROP F1", 0.5, 0.9]
    strict = run.profile.model_copy(update={"act": run.profile.act.model_copy(update={"tolerance": 1.0})})
    assert fingerprint(replace(run, profile=strict)) == ["DROP F1", 0.1, 1.0]


@pytest.mark.parametrize("name", ["evaluation_sft", "evaluation_act", "act_checkpoint"])
def test_what_is_scored_depends_on_the_raw_files_and_on_the_judge(name: str, store: Path) -> None:
    """An embedder's weights included; a task that embeds nothing does not care which embedder there is."""
    assert "raw_dataset" in STAGES[name].inputs
    run = run_in(store, size=50)
    run = replace(run, inputs={"raw_dataset": made(run, "raw_dataset")})
    fingerprint = STAGES[name].fingerprint
    stories = replace(run, task=get_task("abg_coqa"))
    assert "weights 53aa51172d14" in str(fingerprint(stories))
    other = replace(run, profile=run.profile.model_copy(update={"embedder": "another"}))
    assert fingerprint(other) == fingerprint(run)
    assert STAGES[name].settings(other.profile) == STAGES[name].settings(run.profile)


def test_a_prompt_that_no_model_renders_is_part_of_nothing(store: Path, tmp_path: Path) -> None:
    """tiny.yaml lets the rule classify: an edit of the classifier's prompt changes no identity."""
    shutil.copytree(PACKAGE / "prompts", tmp_path / "prompts")
    run = run_in(store, size=50)
    edited = replace(run, prompts_dir=tmp_path / "prompts")
    before = stages._identity(STAGES["act_checkpoint"], run)
    (tmp_path / "prompts" / "classifier" / "pacific.md").unlink()
    assert stages._identity(STAGES["act_checkpoint"], edited) == before
    (tmp_path / "prompts" / "simulator" / "pacific.md").write_text("[[system]]\nother\n[[user]]\nother\n")
    assert stages._identity(STAGES["act_checkpoint"], edited) != before


def test_not_one_usable_twin_is_an_error_that_counts_what_was_dropped(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreadable(Maker):
        def read_reply(self, text: str) -> None:
            return None

    monkeypatch.setattr(pipeline, "roles_of", lambda run: SimpleNamespace(perturber=Perturber))
    run = run_in(store)
    run = replace(run, task=replace(run.task, twins=Unreadable()), inputs={"raw_dataset": made(run, "raw_dataset")})
    with pytest.raises(DataError, match="side train and validation; dropped: 9 unreadable, 0 identical"):
        build(run, "ambiguous_requests", tmp_path / "out")


def test_raw_files_keep_the_folders_that_they_lie_in(store: Path, tmp_path: Path) -> None:
    class WithDatabases(PacificReader):
        def further_files(self, folder: Path) -> Sequence[str]:
            return ["database/a/a.sqlite"]

    data = tmp_path / "data"
    shutil.copytree(PROJECT / "datasets" / "sample" / "pacific", data)
    (data / "database" / "a").mkdir(parents=True)
    (data / "database" / "a" / "a.sqlite").write_bytes(b"SQLite")
    run = run_in(tmp_path / "store")
    run = replace(run, data_dir=data, task=replace(run.task, reader=WithDatabases()))
    artifact = made(run, "raw_dataset")
    assert artifact.file("database/a/a.sqlite").read_bytes() == b"SQLite"
    assert [f["name"] for f in artifact.facts["files"]] == ["train.json", "validation.json", "database/a/a.sqlite"]
    (data / "database" / "a" / "a.sqlite").write_bytes(b"SQLite 2")
    assert made(run, "raw_dataset").content_hash != artifact.content_hash
