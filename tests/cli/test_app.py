"""The `act` command: every mistake ends with exit code 1 and a message that says what, where and what to do."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from act_assets.cli import app as cli
from act_assets.cli import run as run_screen
from act_assets.home import PROJECT
from act_assets.pipeline import data as pipeline
from act_assets.pipeline.graph import STAGES
from act_assets.pipeline.stage import run_stage
from act_assets.roles.prompt import ROLES
from act_assets.run import make_run
from act_assets.tasks import all_tasks

pytestmark = pytest.mark.integration

SAMPLE = PROJECT / "datasets" / "sample" / "pacific"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Act = Callable[..., Ended]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ACT_HOME of its own, and nothing else from the environment."""
    for name in ("ACT_DATA_DIR", "ACT_PROMPTS_DIR", "ACT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DAGSTER_HOME", "")  # set by `act`; put back afterwards
    monkeypatch.setenv("DAGSTER_DISABLE_TELEMETRY", "1")
    return tmp_path / "home"


@pytest.fixture(scope="module")
def used_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ACT_HOME for runs that make nothing: Dagster takes seconds to set up its databases in a new one."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def act(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Act:
    """Runs `act` with arguments, as its entry point does."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["act", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


def refused(ended: Ended, *said: str) -> None:
    """It ended with a whole message and nothing else."""
    assert ended.code == 1
    assert "error:" in ended.err
    assert "unexpected" not in ended.err
    assert "Traceback" not in ended.out + ended.err
    for text in said:
        assert text in ended.err


@pytest.mark.parametrize(
    ("arguments", "example"),
    [
        (["--help"], "act run --task pacific --train-size 50"),
        (["run", "--help"], "Example: act run --task pacific"),
        (["report", "--help"], "Example: act report --task pacific"),
        (["export", "--help"], "Example: act export messages --task pacific"),
        (["doctor", "--help"], "Example: act doctor"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_help_shows_an_example(act: Act, arguments: list[str], example: str) -> None:
    ended = act(*arguments)
    assert ended.code == 0
    assert example in " ".join(ended.out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "--task", "pacifc"], ["unknown task 'pacifc'", "to do: choose one of: pacific"]),
        (["run", "--train-size", "51"], ["unknown train size 51", "where: task pacific", "choose one of 50, 100, 250"]),
        (["run", "--method", "dpo"], ["unknown method 'dpo'", "to do: choose sft or act"]),
        (["run", "--profile", "desktop"], ["no profile 'desktop'", "to do: choose one of: laptop, paper"]),
        (["run", "--profile", "./mine.yaml"], ["no profile './mine.yaml'", "where: mine.yaml"]),
        (["report", "--task", "pacifc"], ["unknown task 'pacifc'"]),
        (["export", "tables", "--out", "x"], ["cannot export 'tables'", "to do: choose messages or preferences"]),
        (["export", "messages", "--out", "x", "--train-size", "3"], ["unknown train size 3"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value) > 1 else "",
)
def test_a_wrong_option_says_the_choices_and_touches_nothing(
    act: Act, home: Path, arguments: list[str], said: list[str]
) -> None:
    refused(act(*arguments), *said)
    assert not home.exists()


@pytest.mark.parametrize("arguments", [["fly"], ["run", "--train-size", "many"], ["run", "--sede", "1"], ["export"]])
def test_usage_errors_end_with_code_2(act: Act, arguments: list[str]) -> None:
    ended = act(*arguments)
    assert ended.code == 2
    assert "Traceback" not in ended.err


def test_all_mistakes_of_a_profile_are_shown(act: Act, tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("roles: {}\nsede: [1]\n")
    refused(act("run", "--profile", str(profile)), "sede: unknown key", "roles.generator: missing", "policy: missing")


@pytest.mark.parametrize("command", [["run"], ["report"], ["export", "messages", "--out", "x.jsonl"]], ids=" ".join)
def test_an_act_home_that_cannot_be_written(
    act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    (tmp_path / "file").write_text("a regular file")
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "file" / "home"))
    refused(act(*command), "ACT_HOME cannot be written", str(tmp_path / "file"), "to do: set ACT_HOME")


def test_a_data_folder_that_is_missing(
    act: Act, used_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_HOME", str(used_home))
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path / "gone"))
    refused(act("run"), "ACT_DATA_DIR is not a folder", str(tmp_path / "gone"), "to do: create it, or unset")


def packed(items: object) -> bytes:
    return gzip.compress(json.dumps(items).encode())


def official_test_items() -> object:
    """The sample's validation side as the official test.json has it: without answers."""
    items = json.loads(gzip.decompress((SAMPLE / "validation.json.gz").read_bytes()))
    keys = ("uid", "question", "original_question", "order")
    return [{**i, "questions": [{k: q[k] for k in keys} for q in i["questions"]]} for i in items]


BAD_FILES: dict[str, tuple[Callable[[], bytes | None], list[str]]] = {
    "missing": (lambda: None, ["dataset file validation.json is missing", "to do: put the official validation.json"]),
    "truncated": (
        lambda: (SAMPLE / "validation.json.gz").read_bytes()[:5000],
        ["dataset file cannot be read", "validation.json.gz", "fetch it again"],
    ),
    "a malformed item": (lambda: packed([{"table": {}}]), ["missing key 'uid'", "item 1", "fix this item"]),
    "official test.json": (
        lambda: packed(official_test_items()),
        ["looks like the official test.json", "item 1 (1c9e6c58", "question ", "use the official train.json"],
    ),
}


@pytest.mark.parametrize("fault", BAD_FILES)
def test_a_data_file_that_is_wrong(
    act: Act, used_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setenv("ACT_HOME", str(used_home))
    content, said = BAD_FILES[fault]
    folder = tmp_path / "data" / "pacific"
    shutil.copytree(SAMPLE, folder)
    made = content()
    if made is None:
        (folder / "validation.json.gz").unlink()
    else:
        (folder / "validation.json.gz").write_bytes(made)
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path / "data"))
    ended = act("run")
    refused(ended, "pacific", "where: ", *said)
    assert ended.err.count("to do:") == 1, "it is said once"


def test_a_report_before_any_evaluation(act: Act, used_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACT_HOME", str(used_home))
    refused(act("report"), "nothing has been evaluated yet", "where: task pacific", "act run --task")


def test_an_export_before_any_run(act: Act, tmp_path: Path) -> None:
    out = tmp_path / "x.jsonl"
    refused(
        act("export", "preferences", "--out", str(out)),
        "contrastive_pairs pacific|50 has not been materialized for laptop-seed0",
        "act run --task pacific --train-size 50",
    )
    assert not out.exists()


def test_exports_of_what_a_run_has_made(act: Act, tmp_path: Path) -> None:
    settings = make_run("laptop", 3, "pacific", 50, launch=lambda job: None)
    for stage in (
        "raw_dataset",
        "ambiguous_requests",
        "conversations",
        "action_labels",
        "train_subset",
        "contrastive_pairs",
    ):
        pairs = run_stage(STAGES, stage, settings).artifact
    lines: dict[str, list[dict[str, object]]] = {}
    for what, number in (("messages", 50), ("preferences", pairs.facts["pairs"])):
        path = tmp_path / f"{what}.jsonl"
        ended = act("export", what, "--out", str(path), "--seed", "3")
        assert (ended.code, ended.err) == (0, "")
        assert f"{number} lines in" in ended.out
        lines[what] = [json.loads(line) for line in path.read_text().splitlines()]
        assert len(lines[what]) == number
    assert set(lines["messages"][0]) == {"messages"}
    assert len(lines["preferences"][0]) == 9


def test_an_export_that_cannot_be_written(act: Act, tmp_path: Path) -> None:
    for stage in ("raw_dataset", "ambiguous_requests", "conversations", "action_labels", "train_subset"):
        run_stage(STAGES, stage, make_run("laptop", 0, "pacific", 50))
    refused(act("export", "messages", "--out", str(tmp_path)), "the export cannot be written", "choose another --out")


def test_doctor_shows_what_is_there_and_never_a_key(act: Act, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("HF_TOKEN", "hf-secret")
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.setattr(cli.out, "width", 300)
    ended = act("doctor")
    assert (ended.code, ended.err) == (0, "")
    lines = {line.split()[1]: line for line in ended.out.splitlines() if line.split()[1:]}
    assert "secret" not in ended.out
    assert lines["OPENAI_API_KEY"].split()[-1] == "set"
    assert "not set" in lines["GEMINI_API_KEY"]
    assert "250 + 27 conversations" in ended.out
    assert str(home) in lines["ACT_HOME"]
    assert "problem" not in ended.out
    assert "no training that was cut short" in lines["unfinished"]
    assert lines["torch"].split()[0] == "ok"


def test_doctor_names_every_problem_and_fails(act: Act, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "file" / "home"))
    monkeypatch.setenv("ACT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("ACT_PROMPTS_DIR", str(tmp_path))
    ended = act("doctor")
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err
    said = " ".join(ended.out.split())
    for text in ("ACT_HOME cannot be written", "train.json is missing", "prompt file cannot be read"):
        assert text in said
    prompts = [(task.name, role) for task in all_tasks().values() for role in ROLES if task.asks(role)]
    assert len([role for name, role in prompts if name == "pacific"]) == 5
    assert ended.out.count("problem ") == 1 + len(all_tasks()) + len(prompts), "the home, the data, the prompts"


def test_an_interrupt_keeps_what_is_finished_and_says_so(
    act: Act, used_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACT_HOME", str(used_home))

    def interrupted(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)

    monkeypatch.setattr(pipeline, "source_files", interrupted)
    ended = act("run")
    assert ended.code == 130
    assert ended.err.rstrip().endswith("interrupted: finished artifacts are kept, run again to go on")
    assert "Traceback" not in ended.err
    assert "failed" not in ended.err


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_of_ours_shows_its_traceback_only_when_asked(
    act: Act, monkeypatch: pytest.MonkeyPatch, debug: bool
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no [/bold] such [thing]")

    monkeypatch.setattr(run_screen, "check_options", broken)
    if debug:
        monkeypatch.setenv("ACT_DEBUG", "1")
        with pytest.raises(RuntimeError, match="such"):
            act("run")
        return
    ended = act("run")
    assert ended.code == 1
    assert "unexpected error: RuntimeError: no [/bold] such [thing]" in ended.err
    assert "ACT_DEBUG=1" in ended.err
    assert "Traceback" not in ended.err


def test_the_installed_command_refuses_before_anything_heavy_is_imported(home: Path) -> None:
    """The real program, in a process of its own."""
    code = (
        "import atexit, sys; from act_assets.cli.app import main; sys.argv = ['act', 'run', '--task', 'pacifc'];"
        "atexit.register(lambda: print({'dagster', 'torch', 'sklearn', 'matplotlib'} & set(sys.modules))); main()"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    refused(Ended(ended.returncode, ended.stdout, ended.stderr), "unknown task 'pacifc'")
    assert ended.stdout.strip() == "set()"
    assert not home.exists()
