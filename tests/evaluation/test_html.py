"""The page: right with any part missing, safe with any text, the same bytes for the same artifacts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Trajectory, Utterance
from act_assets.evaluation.evaluate import (
    EvaluatedTurn,
    NamedScore,
    Provenance,
    evaluate_actions,
    summarise,
    write_report,
)
from act_assets.evaluation.report.html import PARTS, Comparison, Evidence, chat, comparison, trajectory_data, write_html
from act_assets.metrics.actions import paired_bootstrap_macro_f1_difference
from act_assets.pipeline.stage import TRAIN_SIZES, StageRun
from act_assets.profile import load_profile
from act_assets.progress import quiet
from act_assets.roles.build import describe
from act_assets.rows import write_rows
from act_assets.tasks.pacific.task import PACIFIC
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact, ArtifactStore, Key
from resources.llm.service import CallSettings

REPO = Path(__file__).parents[2]
TURNS = [
    t
    for c in PACIFIC.reader.read(REPO / "datasets" / "sample" / "pacific").validation[:6]
    for t in PACIFIC.turn_states(c)
]
PROFILE = load_profile("laptop")
EVIL = """</script><img src=x onerror="alert(1)"><!--<script>&amp;\u2028'"""


def provenance(method: str, size: int, side: str = "validation") -> Provenance:
    simulator = describe(PROFILE.roles.simulator)
    return Provenance(method, size, 3, "laptop", "scratch (1 M)", simulator, "rule", "DROP F1", side)


def evaluated(method: str, wrong_every: int) -> list[EvaluatedTurn]:
    """Every turn of six conversations; the action of every n-th is wrong (0: none is)."""
    rows = []
    for i, turn in enumerate(TURNS):
        wrong = wrong_every and i % wrong_every == 0
        predicted = turn.action if not wrong else ("ANSWER" if turn.action == "CLARIFY" else "CLARIFY")
        asks = predicted == "CLARIFY"
        said = [Utterance("assistant", f"{method} asks?" if asks else f"{method} says {i}", predicted)]
        if asks:
            said += [Utterance("user", "The year 2019.", ""), Utterance("assistant", turn.goal.text, "ANSWER")]
        trajectory = Trajectory(turn.turn_id, tuple(said), "settled")
        rows.append(
            EvaluatedTurn(
                task="pacific",
                conversation_id=turn.conversation_id,
                group=turn.group,
                prompt_id=turn.prompt_id,
                turn_id=turn.turn_id,
                request=turn.request,
                action=turn.action,
                predicted_action=predicted,
                reference=turn.response.text,
                goal=turn.goal.text,
                answer_type=turn.response.answer_type,
                goal_answer_type=turn.goal.answer_type,
                response=trajectory.first.text,
                trajectory=trajectory.text,
                outcome=trajectory.outcome,
                ended="settled",
                clarified=asks,
                truncated=False,
                scores=tuple(NamedScore(x, f, 0.25) for x in ("turn", "trajectory") for f in ("official", "bag")),
            )
        )
    return rows


def evaluation(
    method: str, size: int, rows: list[EvaluatedTurn], side: str = "validation"
) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        write_report(folder / "report.json", summarise(PACIFIC, rows, provenance(method, size, side), 200))
        write_rows(folder / "trajectories.parquet", rows, EvaluatedTurn)
        return {"seconds_of_something": 1.0}

    return make


def baselines(size: int) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        for name, predicted in {
            "always answer": ["ANSWER"] * len(TURNS),
            "always clarify": ["CLARIFY"] * len(TURNS),
            "question-only logistic regression": [t.action for t in TURNS[:-5]] + ["CLARIFY"] * 5,
        }.items():
            report = evaluate_actions(PACIFIC, TURNS, predicted, provenance(name, size), bootstrap_samples=200)
            write_report(folder / f"{name.replace(' ', '_')}.json", report)
        return {}

    return make


def checkpoint(method: str) -> Callable[[Path], dict[str, Any]]:
    def make(folder: Path) -> dict[str, Any]:
        reward = 0.1 if method == "act" else None
        points = [
            TrainingPoint(s, s / 2, split, 1 / s, reward, reward) for s in (1, 2) for split in ("train", "validation")
        ]
        write_rows(folder / "history.parquet", points, TrainingPoint)
        if method == "act":
            (folder / "rollouts").mkdir()
            for epoch, verdicts in {1: ["good_outcome", "wrong_action"], 2: ["good_outcome"]}.items():
                rows = [
                    Rollout(epoch, 0, 0, "c", "t", *["ANSWER"] * 2, "settled", "", "1", 1.0, v, "winner", "1", "2", 3)
                    for v in verdicts
                ]
                write_rows(folder / "rollouts" / f"epoch-{epoch:02d}.parquet", rows, Rollout)
        return {"kept_epoch": 2.0}

    return make


PAIR_FACTS = {"turns": 417, "pairs": 409, "identical": 3, "wrong_action": 5, "pairs_clarify": 61, "pairs_answer": 348}


class Workshop:
    """Makes artifacts in a store and pages of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, ArtifactStore(folder / "artifacts", "laptop-seed3")
        self.inputs: dict[str, Artifact] = {}

    def put(self, asset: str, size: int, make: Callable[[Path], dict[str, Any]], **identity: Any) -> None:
        key = Key(asset, "pacific", size)
        self.inputs[f"{asset}@{size}"] = self.store.build(key, {"asset": asset, "size": size, **identity}, make)

    def fill(self, size: int) -> None:
        for method, wrong_every in (("sft", 4), ("act", 9)):
            self.put(f"evaluation_{method}", size, evaluation(method, size, evaluated(method, wrong_every)))
            self.put(f"{method}_checkpoint", size, checkpoint(method))
        self.put("evaluation_baselines", size, baselines(size))
        self.put("contrastive_pairs", size, lambda folder: {**PAIR_FACTS, "in_context_conversations": 10})

    def run(self, **changes: Any) -> StageRun:
        run = StageRun(
            task=PACIFIC,
            train_size=None,
            seed=3,
            profile=PROFILE,
            store=self.store,
            data_dir=self.folder,
            data_origin="bundled sample",
            prompts_dir=self.folder,
            reports_dir=self.folder,
            progress=quiet,
            launch=lambda job: None,
            calls=CallSettings(self.folder / "memo"),
            inputs=self.inputs,
        )
        return replace(run, **changes)

    def page(self, **changes: Any) -> str:
        write_html(self.run(**changes), self.folder / "page.html")
        return (self.folder / "page.html").read_text(encoding="utf-8")


@pytest.fixture
def drawing_workshop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def workshop(drawing_workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Without real figures, which take most of the time (test_figures.py is about them)."""
    for name in ("macro_f1_bars", "rollout_verdicts", "training_curves"):
        monkeypatch.setattr(f"act_assets.evaluation.report.html.{name}", lambda *_: b"a figure")
    return drawing_workshop


class Page(HTMLParser):
    """Tags with their attributes, visible text, and the contents of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("code", "em", "span"):
            self.text += " "
        if tag == "script":
            self.scripts.append((dict(attrs), ""))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script" and not self.scripts[-1][1] and data.strip():
            self.scripts[-1] = (self.scripts[-1][0], data)
        elif self.tags and self.tags[-1][0] != "style":
            self.text += data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    @property
    def data(self) -> dict[str, Any]:
        def refuse(constant: str) -> float:
            raise AssertionError(f"{constant} is not JSON")

        (text,) = [content for attrs, content in self.scripts if attrs.get("type") == "application/json"]
        return dict(json.loads(text, parse_constant=refuse))

    def images(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == "img"]


# --- the whole page -------------------------------------------------------------------------------------------


def test_a_full_page_states_what_was_run_and_what_came_out(drawing_workshop: Workshop) -> None:
    workshop = drawing_workshop
    workshop.fill(50)
    facts = write_html(workshop.run(), workshop.folder / "page.html")
    page = Page(workshop.page())
    assert facts == {"methods": 5, "trajectories": 2 * len(TURNS)}
    conversations = len({t.conversation_id for t in TURNS})
    for said in (
        "PACIFIC",
        "profile laptop, seed 3",
        "50 (conversations)",
        f"{len(TURNS)} turns of {conversations} conversations of the validation side",
        "Scored by DROP F1",
        "Action supervision gold",
        "Checkpoints are chosen on the validation conversations, which are the ones evaluated here",
        "embedded (embedded-rules-1)",
        "scratch (1 M)",
        "The embedded provider is rule-based",
        "say nothing about the paper's",
        "Zephyr 7B-beta in table 1",
        "question-only logistic regression",
        "ACT, 50 conversations: 2 steps",
        "the checkpoint of epoch 2 was kept",
        "3 rollouts; 3 winners and 0 losers were replaced",
        "0 trajectories never settled (they score 0)",
        "n 0",
    ):
        assert said in page.words, said
    for paper in ("0.690", "0.578", "0.613", "0.435", "0.822", "0.628", "0.619", "0.572"):
        assert paper in page.words, paper
    for count in PAIR_FACTS.values():
        assert f" {count} " in page.words, count
    assert len(page.images()) == 4
    assert all(i["alt"] and str(i["src"]).startswith("data:image/png;base64,") for i in page.images())


def test_the_same_artifacts_give_the_same_bytes(drawing_workshop: Workshop) -> None:
    workshop = drawing_workshop
    workshop.fill(50)
    first = workshop.page()
    later = {k: replace(a, seconds=99.0, created_at="2031-01-01T00:00:00Z") for k, a in workshop.inputs.items()}
    assert workshop.page(inputs=dict(reversed(later.items()))) == first
    assert "T00:00:00Z" not in first
    assert not any(a.created_at in first for a in workshop.inputs.values())


def test_the_page_loads_nothing_and_only_its_own_script_may_run(workshop: Workshop) -> None:
    workshop.fill(50)
    page = Page(workshop.page())
    assert not any(tag in ("link", "iframe", "object", "base") for tag, _ in page.tags)
    assert not any(attrs.get("src", "data:")[:5] != "data:" for _, attrs in page.tags if "src" in attrs)  # type: ignore[index]
    assert all(str(attrs["href"]).startswith("#") for tag, attrs in page.tags if tag == "a")
    (script,) = [content for attrs, content in page.scripts if "type" not in attrs]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert f"script-src 'sha256-{digest}'" in str(policy)
    assert "default-src 'none'" in str(policy)


def test_links_labels_and_ids_fit_together(workshop: Workshop) -> None:
    workshop.fill(50)
    page = Page(workshop.page())
    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    pointed = [str(a["href"])[1:] for t, a in page.tags if t == "a"]
    pointed += [str(a["aria-labelledby"]) for _, a in page.tags if "aria-labelledby" in a]
    assert set(pointed) <= set(ids)
    (script,) = [content for attrs, content in page.scripts if "type" not in attrs]
    wanted = set(re.findall(r'get\("([a-z-]+)"\)', script)) | {"filter-method", "filter-size", "filter-type"}
    assert wanted - {"filter-"} <= set(ids)
    assert all("scope" in attrs for tag, attrs in page.tags if tag == "th")


# --- missing parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asset", PARTS)
def test_one_missing_asset_is_named(workshop: Workshop, asset: str) -> None:
    workshop.fill(50)
    del workshop.inputs[f"{asset}@50"]
    page = Page(workshop.page())
    assert f"{asset}: {PARTS[asset]}" in page.words
    assert "act run --task pacific --train-size 50" in page.words
    assert sum(f"{other}: {what}" in page.words for other, what in PARTS.items()) == 1


def test_only_sft_at_50(workshop: Workshop) -> None:
    workshop.fill(50)
    workshop.inputs = {k: v for k, v in workshop.inputs.items() if k in ("evaluation_sft@50", "sft_checkpoint@50")}
    facts = write_html(workshop.run(), workshop.folder / "page.html")
    page = Page(workshop.page())
    assert facts == {"methods": 1, "trajectories": len(TURNS)}
    assert "50 conversations: not compared (evaluation_act missing)" in page.words
    assert "There are no rollouts" in page.words
    assert "No pairs have been made yet" in page.words
    assert page.words.count("nothing has been made for this train size yet") == 2
    assert {row[0] for row in page.data["rows"]} == {0}


def test_nothing_at_all(workshop: Workshop) -> None:
    facts = write_html(workshop.run(), workshop.folder / "page.html")
    page = Page(workshop.page())
    assert facts == {"methods": 0, "trajectories": 0}
    assert page.words.count("nothing has been made for this train size yet") == len(TRAIN_SIZES)
    assert page.images() == []
    assert page.data["rows"] == []


def test_everything_there_leaves_no_section_of_missing_parts(workshop: Workshop) -> None:
    for size in TRAIN_SIZES:
        workshop.fill(size)
    page = Page(workshop.page())
    assert "missing" not in {attrs.get("id") for _, attrs in page.tags}
    assert "What is missing" not in page.words


def test_a_file_that_an_artifact_lacks_is_named(workshop: Workshop) -> None:
    workshop.fill(50)
    workshop.inputs["act_checkpoint@50"].file("history.parquet").unlink()
    workshop.inputs["evaluation_act@50"].file("trajectories.parquet").unlink()
    page = Page(workshop.page())
    assert "act_checkpoint: its artifact holds no history.parquet: materialize it again" in page.words
    assert "evaluation_act: its artifact holds no trajectories.parquet: materialize it again" in page.words
    assert "there are no trajectories to pair" in page.words


def test_the_leaderboard_artifact_is_no_train_size(workshop: Workshop) -> None:
    workshop.fill(50)
    board = workshop.store.build(Key("leaderboard", "pacific"), {}, lambda folder: {})
    assert workshop.page(inputs={**workshop.inputs, "leaderboard": board}) == workshop.page()


def test_a_profile_with_models_is_not_called_rule_based(workshop: Workshop) -> None:
    workshop.fill(50)
    page = Page(workshop.page(profile=load_profile("paper")))
    assert "rule-based" not in page.words
    assert "say nothing about the paper's" not in page.words
    assert "the profile now names" in page.words  # the evaluations were made with the embedded simulator


def test_a_test_side_is_named_and_checkpoints_were_not_chosen_on_it(workshop: Workshop) -> None:
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, evaluated("sft", 4), side="test"))
    words = Page(workshop.page()).words
    assert f"{len(TURNS)} turns of 6 conversations of the test side" in words
    assert "Checkpoints are chosen" not in words


def test_a_request_with_several_readings_is_one_turn_and_several_trajectories(workshop: Workshop) -> None:
    rows = evaluated("sft", 4)
    meant = [replace(rows[0], turn_id=f"{rows[0].turn_id}#{k}") for k in (1, 2)]
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, [*meant, *rows[1:]]))
    page = Page(workshop.page())
    assert f"{len(TURNS)} turns of 6 conversations of the validation side" in page.words
    assert len(page.data["rows"]) == len(page.data["turns"]) == len(TURNS) + 1


def test_pseudo_labels_are_named_with_what_made_them(workshop: Workshop) -> None:
    workshop.fill(50)
    pseudo = PROFILE.model_copy(update={"action_supervision": "pseudo"})
    assert "Action supervision pseudo: rule" in Page(workshop.page(profile=pseudo)).words


# --- null and NaN ---------------------------------------------------------------------------------------------


def test_null_metrics_are_dashes_with_a_count_of_0(workshop: Workshop) -> None:
    never = [replace(r, predicted_action="ANSWER", clarified=False) for r in evaluated("sft", 0)]
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, never))
    words = Page(workshop.page()).words
    assert "– n 0" in words
    assert "nan" not in re.findall(r"[A-Za-z]+", words.lower())
    assert "None" not in words


def test_a_trajectory_that_never_settled_has_no_outcome(workshop: Workshop) -> None:
    rows = evaluated("sft", 0)
    rows[0] = replace(
        rows[0],
        response="A?",
        trajectory="Assistant: A?\nUser: b\nAssistant: C?",
        outcome=None,
        ended="max_clarifications",
    )
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, rows))
    row = Page(workshop.page()).data["rows"][0]
    assert row[4:7] == [["A?", "b", "C?"], None, "max_clarifications"]


def test_nan_never_reaches_the_page(workshop: Workshop) -> None:
    rows = evaluated("sft", 0)
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, rows))
    scores = tuple(replace(s, value=math.nan) for s in rows[0].scores)
    write_rows(
        workshop.inputs["evaluation_sft@50"].file("trajectories.parquet"),
        [replace(rows[0], scores=scores), *rows[1:]],
        EvaluatedTurn,
    )
    with pytest.raises(ValueError, match="JSON"):
        workshop.page()


# --- hostile texts --------------------------------------------------------------------------------------------


def test_texts_of_models_and_data_cannot_become_markup(workshop: Workshop) -> None:
    rows = [
        replace(
            r,
            request=EVIL,
            reference=EVIL,
            goal=EVIL,
            response=EVIL,
            trajectory=f"Assistant: {EVIL}",
            outcome=EVIL,
            answer_type=EVIL,
        )
        for r in evaluated("sft", 0)
    ]
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, rows))
    text = workshop.page(profile=PROFILE.model_copy(update={"name": EVIL}))
    page = Page(text)
    assert "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert len(page.scripts) == 2
    assert not any(i["src"] == "x" for i in page.images())
    assert text.count("</script>") == 2
    data = page.data
    assert data["turns"][0][2] == EVIL
    assert data["rows"][0][4] == [EVIL]
    assert data["rows"][0][5] == EVIL


# --- SFT against ACT ------------------------------------------------------------------------------------------


def compared(workshop: Workshop, **changes: Any) -> Comparison:
    return comparison(Evidence(workshop.run(**changes)), 50)


def test_the_difference_is_the_paired_bootstrap_of_the_trajectories(workshop: Workshop) -> None:
    workshop.fill(50)
    sft, act = evaluated("sft", 4), evaluated("act", 9)
    found = compared(workshop)
    assert found.interval == paired_bootstrap_macro_f1_difference(
        [r.action for r in sft],
        [r.predicted_action for r in act],
        [r.predicted_action for r in sft],
        [r.group for r in sft],
        PACIFIC.action_names,
        seed=3,
        samples=PROFILE.evaluation.bootstrap_samples,
    )
    assert found.interval.low > 0
    assert found.verdict == "outside noise"
    assert found.difference is not None
    assert found.difference > 0
    assert found.paper == pytest.approx(0.822 - 0.690)
    assert f"{found.difference:+.3f}" in Page(workshop.page()).words


def test_equal_policies_are_within_noise(workshop: Workshop) -> None:
    for method in ("sft", "act"):
        workshop.put(f"evaluation_{method}", 50, evaluation(method, 50, evaluated(method, 4)))
    found = compared(workshop)
    assert (found.verdict, found.difference) == ("within noise", 0.0)
    assert "within noise (paired bootstrap over conversations: the interval contains 0)" in Page(workshop.page()).words


def test_without_trajectories_the_intervals_decide(workshop: Workshop) -> None:
    workshop.fill(50)
    for method in ("sft", "act"):
        workshop.inputs[f"evaluation_{method}@50"].file("trajectories.parquet").unlink()
    found = compared(workshop)
    assert found.interval is None
    sft, act = (Evidence(workshop.run()).evaluated[m, 50].metric("macro F1") for m in ("sft", "act"))
    assert sft is not None
    assert act is not None
    overlap = sft.low <= act.high and act.low <= sft.high  # type: ignore[operator]
    assert found.verdict == ("within noise" if overlap else "outside noise")


def test_different_turns_are_not_compared(workshop: Workshop) -> None:
    workshop.put("evaluation_sft", 50, evaluation("sft", 50, evaluated("sft", 4)))
    workshop.put("evaluation_act", 50, evaluation("act", 50, evaluated("act", 4)[:-1]))
    found = compared(workshop)
    assert (found.verdict, found.difference) == ("not compared", None)
    assert "different turns" in found.reason


def test_evaluations_with_different_settings_are_not_compared(workshop: Workshop) -> None:
    for method in ("sft", "act"):
        settings = {"max_clarifications": 3 if method == "sft" else 5}
        workshop.put(f"evaluation_{method}", 50, evaluation(method, 50, evaluated(method, 4)), settings=settings)
    found = compared(workshop)
    assert (found.verdict, found.difference) == ("not compared", None)
    assert "different settings" in found.reason


# --- the browsable table --------------------------------------------------------------------------------------


def test_turns_are_stored_once_and_methods_of_a_turn_stand_together(workshop: Workshop) -> None:
    workshop.fill(50)
    workshop.fill(100)
    data = trajectory_data(Evidence(workshop.run()))
    assert len(data["turns"]) == len(TURNS)
    assert [row[:3] for row in data["rows"][:4]] == [[0, 50, 0], [1, 50, 0], [0, 50, 1], [1, 50, 1]]
    assert len(data["rows"]) == 4 * len(TURNS)
    assert data["rows"][0][7:9] == [0.25, 0.25]
    row, turn = data["rows"][1], TURNS[0]
    assert data["turns"][row[2]][1:5] == [turn.turn_id, turn.request, turn.action, turn.response.text]


def spoken(*texts: str, settled: bool = True) -> EvaluatedTurn:
    said = tuple(Utterance("user" if i % 2 else "assistant", t, "") for i, t in enumerate(texts))
    trajectory = Trajectory("t", said, "settled" if settled else "max_clarifications")
    return replace(
        evaluated("sft", 0)[0],
        response=texts[0],
        trajectory=trajectory.text,
        outcome=trajectory.outcome,
        ended=trajectory.ended,
    )


@pytest.mark.parametrize("settled", [True, False])
@pytest.mark.parametrize(
    "texts",
    [
        ("12.5",),
        ("",),
        ("Which year?", "2019", "12.5"),
        ("Which year?", "2019", "And\nwhich quarter?", "The first.\nThanks", "12.5\n"),
        ("Which year?\nUser: 2019\nAssistant: 5", "2018", "12.5"),
        ("same", "same", "same"),
        ("", "", ""),
    ],
)
def test_a_trajectory_comes_apart_into_its_utterances(texts: tuple[str, ...], settled: bool) -> None:
    assert tuple(chat(spoken(*texts, settled=settled))) == texts


def test_an_outcome_that_imitates_a_conversation_stays_whole() -> None:
    texts = ("Which year?", "2018", "a\nUser: b\nAssistant: c")
    assert tuple(chat(spoken(*texts))) == texts
