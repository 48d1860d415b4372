"""The page: right with any part missing, safe with any text, the same bytes for the same artifacts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from act_assets.conversation import Trajectory, Utterance
from act_assets.evaluation.evaluate import (
    EvaluatedTurn,
    Metric,
    Provenance,
    Said,
    evaluate_actions,
    read_report,
    score_trajectories,
    summarise,
    write_report,
)
from act_assets.evaluation.report.evidence import Comparison, Evidence, compare, missing_parts, parts
from act_assets.evaluation.report.html import trajectory_data, write_html
from act_assets.methods.registry import PREDICTORS
from act_assets.methods.registry import TRAINED as METHODS
from act_assets.metrics.actions import paired_bootstrap_macro_f1_difference
from act_assets.profile import load_profile
from act_assets.roles.build import describe
from act_assets.rows import write_rows
from act_assets.tasks.pacific.task import PACIFIC
from act_assets.training.act import Rollout
from act_assets.training.logging import TrainingPoint
from resources.artifacts import Artifact, Key

pytestmark = pytest.mark.integration

SAMPLE = Path(__file__).parents[2] / "datasets" / "sample" / "pacific"
TURNS = [t for c in PACIFIC.reader.read(SAMPLE).validation[:6] for t in PACIFIC.turn_states(c)]
PROFILE = load_profile("laptop")
SIZES = (50, 100, 250)
PAIR_FACTS = {"turns": 417, "pairs": 409, "identical": 3, "wrong_action": 5, "pairs_clarify": 61, "pairs_answer": 348}
EVIL = """</script><img src=x onerror="alert(1)"><!--<script>&amp;\u2028'"""


def evaluated(method: str, wrong_every: int) -> list[EvaluatedTurn]:
    """Every turn of six conversations; the action of every n-th is wrong (0: none is)."""
    trajectories = []
    for i, turn in enumerate(TURNS):
        wrong = wrong_every and i % wrong_every == 0
        if (turn.action == "CLARIFY") != bool(wrong):
            said = [(f"{method} asks?", "CLARIFY"), ("The year 2019.", ""), (turn.goal.text, "ANSWER")]
        else:
            said = [(f"{method} says {i}", "ANSWER")]
        utterances = [Utterance("user" if k % 2 else "assistant", *line) for k, line in enumerate(said)]
        trajectories.append(Trajectory(turn.turn_id, tuple(utterances), "settled"))
    return score_trajectories(PACIFIC, TURNS, trajectories)


class Workshop:
    """Makes artifacts and pages of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[tuple[str, int], Artifact] = {}

    def put(self, asset: str, size: int, facts: Any = None, **identity: Any) -> Path:
        """The folder of a new artifact, to be filled."""
        path = self.folder / f"{asset}-{size}"
        path.mkdir(exist_ok=True)
        key = Key(asset, "pacific", size)
        self.found[asset, size] = Artifact(key, path, identity, "", "", facts or {}, 1.0, "2026-01-01T00:00:00Z")
        return path

    def provenance(self, method: str, size: int, side: str = "validation") -> Provenance:
        simulator = describe(PROFILE.roles.simulator)
        who = (method, "pacific", size, 3, "laptop", "scratch (1 M)")
        return Provenance(*who, simulator, "rule", "DROP F1", side, "gold")

    def evaluation(
        self, method: str, rows: list[EvaluatedTurn], size: int = 50, side: str = "validation", **identity: Any
    ) -> None:
        folder = self.put(f"evaluation_{method}", size, **identity)
        write_report(folder / "report.json", summarise(PACIFIC, rows, self.provenance(method, size, side), 200))
        write_rows(folder / "trajectories.parquet", rows, EvaluatedTurn)

    def baselines(self, size: int) -> None:
        folder = self.put("evaluation_baselines", size)
        for name, predicted in {
            "always answer": ["ANSWER"] * len(TURNS),
            "always clarify": ["CLARIFY"] * len(TURNS),
            "question-only logistic regression": [t.action for t in TURNS[:-5]] + ["CLARIFY"] * 5,
        }.items():
            report = evaluate_actions(PACIFIC, TURNS, predicted, self.provenance(name, size), bootstrap_samples=200)
            write_report(folder / f"{name.replace(' ', '_')}.json", report)

    def checkpoint(self, method: str, size: int) -> None:
        folder = self.put(f"{method}_checkpoint", size, {"kept_epoch": 2.0})
        reward = 0.1 if method == "act" else None
        splits = [(step, split) for step in (1, 2) for split in ("train", "validation")]
        points = [TrainingPoint(s, s / 2, split, 1 / s, reward, reward) for s, split in splits]
        write_rows(folder / "history.parquet", points, TrainingPoint)
        if method == "act":
            (folder / "rollouts").mkdir()
            for epoch, verdicts in {1: ["good_outcome", "wrong_action"], 2: ["good_outcome"]}.items():
                turn = (epoch, 0, 0, "c", "t", "ANSWER", "ANSWER", "settled", "", "1", 1.0)
                rows = [Rollout(*turn, verdict, "winner", "1", "2", 3) for verdict in verdicts]
                write_rows(folder / "rollouts" / f"epoch-{epoch:02d}.parquet", rows, Rollout)

    def fill(self, size: int = 50) -> None:
        for method, wrong_every in (("sft", 4), ("act", 9)):
            self.evaluation(method, evaluated(method, wrong_every), size)
            self.checkpoint(method, size)
        self.baselines(size)
        self.put("contrastive_pairs", size, {**PAIR_FACTS, "in_context_conversations": 10})

    def evidence(self, **changes: Any) -> Evidence:
        return replace(Evidence(PACIFIC, PROFILE, 3, SIZES, self.found, METHODS, PREDICTORS), **changes)

    def page(self, **changes: Any) -> Page:
        facts = write_html(self.evidence(**changes), self.folder / "page.html")
        page = Page((self.folder / "page.html").read_text(encoding="utf-8"))
        reports = {(r.method, r.train_size) for r in self.evidence(**changes).reports}
        assert facts == {"methods": len(reports), "trajectories": len(page.data["rows"])}
        return page

    def comparison(self) -> Comparison:
        return compare(self.evidence(), *METHODS, 50)


class Page(HTMLParser):
    """Tags with their attributes, visible words, and the contents of the scripts."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source, self.text = source, ""
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(source)
        self.words = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("code", "em", "span"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append(data)
        elif self.cdata_elem is None:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return dict(json.loads(self.scripts[0], parse_constant=lambda name: pytest.fail(f"{name} is no JSON")))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture
def drawing(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


@pytest.fixture
def workshop(drawing: Workshop, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """Without real figures, which take most of the time (test_figures.py is about them)."""
    for name in ("macro_f1_bars", "rollout_verdicts", "training_curves"):
        monkeypatch.setattr(f"act_assets.evaluation.report.html.{name}", lambda *_: b"a figure")
    return drawing


def test_a_full_page_says_what_was_run_and_what_came_out_and_is_always_the_same(drawing: Workshop) -> None:
    drawing.fill()
    page = drawing.page()
    assert len(page.data["rows"]) == 2 * len(TURNS)
    said = (
        *("PACIFIC", "profile laptop, seed 3", "50 (conversations)", "embedded (embedded-rules-1)", "scratch (1 M)"),
        f"{len(TURNS)} turns of 6 conversations of the validation side",
        *("Scored by DROP F1", "Action supervision gold", "Checkpoints are chosen on the validation conversations"),
        *("rule-based", "say nothing about the paper's", "Zephyr 7B-beta in table 1"),
        *(
            "question-only logistic regression",
            "ACT minus SFT",
            "ACT, 50 conversations: 2 steps",
            "of epoch 2 was kept",
        ),
        *("3 rollouts; 3 winners and 0 losers were replaced", "0 trajectories never settled", "What became of ACT's"),
        *("0.690", "0.578", "0.613", "0.435", "0.822", "0.628", "0.619", "0.572"),  # the paper's
        *(f" {count} " for count in PAIR_FACTS.values()),
    )
    assert [text for text in said if text not in page.words] == []
    assert len(page.all("img")) == 4
    assert all(i["alt"] and str(i["src"]).startswith("data:image/png;base64,") for i in page.all("img"))

    later = {k: replace(a, seconds=99.0, created_at="2031-01-01T00:00:00Z") for k, a in drawing.found.items()}
    assert drawing.page(artifacts=dict(reversed(later.items()))).source == page.source
    assert "T00:00:00Z" not in page.source


def test_the_page_loads_nothing_runs_its_own_script_only_and_fits_together(workshop: Workshop) -> None:
    workshop.fill()
    page = workshop.page()
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert all(str(attrs.get("src", "data:")).startswith("data:") for _, attrs in page.tags)
    script = page.scripts[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [str(a["content"]) for a in page.all("meta") if "http-equiv" in a]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy

    ids = [str(attrs["id"]) for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert all(str(a["href"]).startswith("#") for a in page.all("a"))
    pointed = {str(a["href"])[1:] for a in page.all("a")}
    pointed |= {str(a["aria-labelledby"]) for _, a in page.tags if "aria-labelledby" in a}
    wanted = set(re.findall(r'get\("([a-z-]+)"\)', script)) | {"filter-method", "filter-size", "filter-type"}
    assert pointed | (wanted - {"filter-"}) <= set(ids)
    assert all("scope" in attrs for attrs in page.all("th"))


@pytest.mark.parametrize("asset", parts(METHODS, PREDICTORS))
def test_one_missing_asset_is_named(workshop: Workshop, asset: str) -> None:
    workshop.fill()
    del workshop.found[asset, 50]
    what = parts(METHODS, PREDICTORS)[asset][0]
    assert missing_parts(workshop.evidence(train_sizes=(50,))) == {50: [(asset, what)]}
    page = workshop.page(train_sizes=(50,))
    assert f"{asset}: {what}" in page.words
    assert "act run --task pacific --train-size 50" in page.words


def test_a_file_that_an_artifact_lacks_is_named(workshop: Workshop) -> None:
    workshop.fill()
    workshop.found["act_checkpoint", 50].file("history.parquet").unlink()
    workshop.found["evaluation_act", 50].file("trajectories.parquet").unlink()
    missing = missing_parts(workshop.evidence())
    assert [(asset, name in what) for (asset, what), name in zip(missing[50], ("traj", "hist"), strict=True)] == [
        ("evaluation_act", True),
        ("act_checkpoint", True),
    ]
    assert "act_checkpoint: its artifact holds no history.parquet" in workshop.page().words


def test_only_sft_at_50(workshop: Workshop) -> None:
    workshop.evaluation("sft", evaluated("sft", 4))
    page = workshop.page()
    assert workshop.comparison().verdict == "not compared"
    assert "50 conversations: not compared (evaluation_act missing)" in page.words
    assert page.words.count("nothing has been made for this train size yet") == len(SIZES) - 1
    assert {row[0] for row in page.data["rows"]} == {0}


def test_nothing_and_everything(workshop: Workshop) -> None:
    assert missing_parts(workshop.evidence()) == {size: [] for size in SIZES}
    page = workshop.page()
    assert page.words.count("nothing has been made for this train size yet") == len(SIZES)
    assert page.all("img") == page.data["rows"] == []
    for size in SIZES:
        workshop.fill(size)
    assert missing_parts(workshop.evidence()) == {}
    assert "missing" not in {attrs.get("id") for _, attrs in workshop.page().tags}


def test_what_was_run_is_as_the_profile_has_it(workshop: Workshop) -> None:
    workshop.evaluation("sft", evaluated("sft", 4), side="test")
    words = workshop.page(profile=load_profile("paper")).words
    assert "rule-based" not in words
    assert "say nothing about the paper's" not in words
    assert "the profile now names" in words, "the evaluation was made with the embedded simulator"
    assert f"{len(TURNS)} turns of 6 conversations of the test side" in words
    assert "Checkpoints are chosen" not in words, "not on the test side"
    pseudo = PROFILE.model_copy(update={"action_supervision": "pseudo"})
    assert "Action supervision pseudo: rule" in workshop.page(profile=pseudo).words


def test_a_request_with_several_readings_is_one_turn_and_several_trajectories(workshop: Workshop) -> None:
    rows = evaluated("sft", 4)
    meant = [replace(rows[0], turn_id=f"{rows[0].turn_id}#{k}") for k in (1, 2)]
    workshop.evaluation("sft", [*meant, *rows[1:]])
    page = workshop.page()
    assert f"{len(TURNS)} turns of 6 conversations of the validation side" in page.words
    assert len(page.data["rows"]) == len(page.data["turns"]) == len(TURNS) + 1


def test_null_metrics_are_dashes_with_a_count_of_0(workshop: Workshop) -> None:
    workshop.evaluation("sft", [replace(r, clarified=False) for r in evaluated("sft", 0)])
    words = workshop.page().words
    assert "– n 0" in words
    assert not {"nan", "none"} & set(re.findall(r"[a-z]+", words.lower().replace("none: u is told", "")))


def test_nan_never_reaches_the_page(workshop: Workshop) -> None:
    rows = evaluated("sft", 0)
    workshop.evaluation("sft", rows)
    rows[0] = replace(rows[0], scores=tuple(replace(s, value=math.nan) for s in rows[0].scores))
    write_rows(workshop.found["evaluation_sft", 50].file("trajectories.parquet"), rows, EvaluatedTurn)
    with pytest.raises(ValueError, match="JSON"):
        workshop.page()


def test_texts_of_models_and_data_cannot_become_markup(workshop: Workshop) -> None:
    evil = dict.fromkeys(("request", "reference", "goal", "response", "outcome", "answer_type"), EVIL)
    said = (Said("assistant", EVIL, "ANSWER", False),)
    workshop.evaluation("sft", [replace(r, utterances=said, **evil) for r in evaluated("sft", 0)])
    page = workshop.page(profile=PROFILE.model_copy(update={"name": EVIL}))
    assert "onerror" not in {name for _, attrs in page.tags for name in attrs}
    assert len(page.all("script")) == page.source.count("</script>") == 2
    assert not any(i["src"] == "x" for i in page.all("img"))
    assert page.data["turns"][0][2] == EVIL
    assert page.data["rows"][0][4:6] == [[EVIL], EVIL]


def test_the_difference_is_the_paired_bootstrap_of_the_trajectories(workshop: Workshop) -> None:
    workshop.fill()
    sft, act = evaluated("sft", 4), evaluated("act", 9)
    found = workshop.comparison()
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
    assert found.difference is not None and found.difference > 0
    assert found.paper == pytest.approx(0.822 - 0.690)
    assert f"{found.difference:+.3f} [{found.interval.low:+.3f}, " in workshop.page().words


def test_equal_policies_are_within_noise(workshop: Workshop) -> None:
    for method in ("sft", "act"):
        workshop.evaluation(method, evaluated(method, 4))
    found = workshop.comparison()
    assert (found.verdict, found.difference) == ("within noise", 0.0)


@pytest.mark.parametrize(
    ("act", "verdict"),
    [
        (Metric("macro F1", 0.7, 40, 0.6, 0.8), "within noise"),
        (Metric("macro F1", 0.9, 40, 0.8, 1.0), "outside noise"),
        (Metric("macro F1", 0.7, 40), "not judged"),
        (Metric("macro F1", None, 0), "not compared"),
    ],
)
def test_without_trajectories_the_intervals_decide(workshop: Workshop, act: Metric, verdict: str) -> None:
    for method, metric in (("sft", Metric("macro F1", 0.6, 40, 0.5, 0.7)), ("act", act)):
        workshop.evaluation(method, evaluated(method, 4))
        evaluation = workshop.found[f"evaluation_{method}", 50]
        evaluation.file("trajectories.parquet").unlink()
        report = read_report(evaluation.file("report.json"))
        write_report(evaluation.file("report.json"), replace(report, metrics=(metric,)))
    found = workshop.comparison()
    assert (found.verdict, found.interval) == (verdict, None)
    assert (found.difference is None) == (act.value is None)


def test_what_was_evaluated_otherwise_is_not_compared(workshop: Workshop) -> None:
    workshop.evaluation("sft", evaluated("sft", 4))
    for what, rows, settings in (("turns", evaluated("act", 4)[:-1], {}), ("settings", evaluated("act", 4), {"n": 5})):
        workshop.evaluation("act", rows, **({"settings": settings} if settings else {}))
        found = workshop.comparison()
        assert (found.verdict, found.difference) == ("not compared", None)
        assert f"different {what}" in found.reason


def test_turns_are_stored_once_and_methods_of_a_turn_stand_together(workshop: Workshop) -> None:
    workshop.fill()
    workshop.fill(100)
    data = trajectory_data(workshop.evidence())
    assert len(data["turns"]) == len(TURNS)
    assert [row[:3] for row in data["rows"][:4]] == [(0, 50, 0), (1, 50, 0), (0, 50, 1), (1, 50, 1)]
    assert len(data["rows"]) == 4 * len(TURNS)
    row, shown, turn = data["rows"][1], evaluated("act", 9)[0], TURNS[0]
    assert row[7:9] == tuple(round(shown.scores[i].value, 4) for i in (0, 3)), "of the main form"
    assert data["turns"][row[2]][1:5] == (turn.turn_id, turn.request, turn.action, turn.response.text)


def test_utterances_are_shown_as_they_were_said(workshop: Workshop) -> None:
    said = ["Which year?\nUser: 2019\nAssistant: 5", "", "12.5\n"]
    spoken = tuple(Said(("assistant", "user")[i % 2], text, "", False) for i, text in enumerate(said))
    row = replace(evaluated("sft", 0)[0], utterances=spoken, outcome=None, ended="max_clarifications")
    workshop.evaluation("sft", [row])
    assert workshop.page().data["rows"][0][4:7] == [said, None, "max_clarifications"]
    assert row.trajectory == "Assistant: Which year?\nUser: 2019\nAssistant: 5\nUser: \nAssistant: 12.5\n"
