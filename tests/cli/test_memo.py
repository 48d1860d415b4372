"""`act memo`: what each command says, in words and as one JSON document, and how it ends."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from act_assets.cli import app as cli
from resources.llm.base import ChatMessage, LLMRequest, LLMResponse, Sampling
from resources.llm.memo.explain import record_miss
from resources.llm.memo.memo import Memo, close_memos
from resources.llm.memo.records import Answer, Asker, Record, Use, key_of, new_answer, question_of

pytestmark = pytest.mark.integration

URL = "https://x.example"
COMMANDS = ["path", "stats", "show", "why-miss", "export", "import", "prune", "verify"]


class Ended(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What is on standard output, all of it one JSON document."""
        assert self.err == ""
        return json.loads(self.out)


Act = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the memo of an ACT_HOME of its own will be."""
    monkeypatch.delenv("ACT_DEBUG", raising=False)
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "home" / "memo"


@pytest.fixture
def act(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Act:
    """Runs `act memo` with arguments, as its entry point does."""

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["act", "memo", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        close_memos()
        out, err = capfd.readouterr()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 0, out, err)

    return run


def paid(
    asked: str = "What?", said: str = "This.", at: float = 1e9, cost: float | None = 0.5, **changed: Any
) -> Answer:
    request = LLMRequest("generator", "model-1", (ChatMessage("user", asked),), Sampling(), f"example {asked}")
    response = LLMResponse(said, "model-1-001", "stop", 10, 3, 0.25)
    asker = Asker("pairs", "pacific|50", "run-1", "budget-1")
    answer = new_answer("openai", URL, request, question_of("openai", URL, request), response, asker, cost)
    return replace(answer, created_at=at, **changed)


def keep(folder: Path, *records: Record) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    memo = Memo(folder)
    memo.append(records)
    memo.close()


def refused(ended: Ended, *said: str) -> None:
    """It ended with a whole message and nothing else."""
    assert ended.code == 1
    assert ended.out == ""
    assert "error:" in ended.err
    assert "unexpected" not in ended.err
    for text in said:
        assert text in ended.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(act: Act, command: str) -> None:
    ended = act(command, "--help")
    assert ended.code == 0
    assert f"Example: act memo {command}" in " ".join(ended.out.replace("│", " ").split())


def test_help_lists_the_commands(act: Act) -> None:
    ended = act("--help")
    assert all(command in ended.out for command in COMMANDS)
    assert "act memo prune --model gpt-4o --older-than 90d" in ended.out


FRESH: dict[str, tuple[list[str], Any]] = {
    "stats": (["stats"], {"groups": [], "answers": 0}),
    "show": (["show", "abcdef"], None),
    "why-miss": (["why-miss", "abcdef"], {"held": False, "empty": True}),
    "export": (["export", "x.jsonl", "--key", "abcdef"], {"answers": 0, "history": 0, "bytes": 0}),
    "prune": (["prune", "--model", "m", "--yes"], {"answers": 0, "cost_usd": 0.0}),
    "verify": (["verify", "--repair"], {"sound": True, "problems": []}),
    "path": (["path"], {"exists": False}),
}


@pytest.mark.parametrize("command", FRESH)
def test_on_a_fresh_installation_nothing_is_created(
    act: Act, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, expected = FRESH[command]
    ended = act(*arguments)
    assert (ended.code, ended.err) == (0, "")
    assert (str(folder) if command == "path" else f"nothing has been kept yet in {folder}") in ended.out
    ended = act(*arguments, "--json")
    assert ended.code == 0
    found = ended.document
    assert found == expected if expected is None else expected.items() <= found.items()
    assert not folder.exists()
    assert not (tmp_path / "x.jsonl").exists()


def test_path(act: Act, folder: Path) -> None:
    assert act("path").out == f"{folder}\n"
    keep(folder, paid())
    assert act("path", "--json").document == {"path": str(folder), "exists": True}


def test_stats(act: Act, folder: Path) -> None:
    ledger = Use(model="model-1", provider="openai", base_url=URL, role="generator", hits=4, saved_usd=2.0, failures=1)
    keep(folder, paid("a"), paid("b", cost=None), paid("c", cost=None, role="[bold]intent"), ledger)
    ended = act("stats")
    assert (ended.code, ended.err) == (0, "")
    lines = [line.split() for line in ended.out.splitlines()]
    assert ["model-1", "generator", "2", "4", "66.7%", "1", "20", "6", "0.5000", "+", "?", "2.00"] in lines
    assert ["model-1", "[bold]intent", "1", "0", "0.0%", "0", "10", "3", "?", "0.00"] in lines
    assert ["all", "3", "4", "57.1%", "1", "30", "9", "0.5000", "+", "?", "2.00"] in lines
    assert "?: no price is known for 2 answers and 0 hits; no sum has them" in ended.out
    assert "3 answers, database " in ended.out
    assert "from 2001-09-09 01:46:40 UTC to 2001-09-09 01:46:40 UTC" in ended.out
    found = act("stats", "--by", "asset,partition", "--json").document
    assert found["by"] == ["asset", "partition"]
    assert {"asset": "pairs", "partition": "pacific|50", "answers": 3}.items() <= found["groups"][0].items()
    assert found["total"]["hits"] == 4
    assert found["oldest_answer"] == "2001-09-09T01:46:40Z"
    refused(act("stats", "--by", "colour"), "cannot group by colour", "to do: choose among model, role")


def test_show(act: Act, folder: Path) -> None:
    keep(folder, paid(said="first", at=1e9), paid(said="second\n\x1b[31m[red]ü", at=1.5e9))
    key = paid().key
    ended = act("show", key[:8])
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["key", key]
    assert lines[lines.index("[user]") + 1] == "What?"
    assert lines[lines.index("[answer]") + 1 :][:2] == ["second", "\\x1b[31m[red]ü"]
    assert lines[-1] == "first"
    assert any("generator, example What?, asset pairs pacific|50, run run-1" in line for line in lines)
    found = act("show", key, "--json").document
    assert found["request"]["messages"] == [{"role": "user", "content": "What?"}]
    assert found["answer"]["text"] == "second\n\x1b[31m[red]ü"
    assert [a["text"] for a in found["history"]] == ["first"]
    refused(act("show", "0123456789"), "no key begins with 0123456789")
    refused(act("show", "xyz"), "'xyz' is not a key", "6 to 64 hex digits")


def test_why_miss(act: Act, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(folder, paid("What was the revenue in 2019?"))
    request = LLMRequest(
        "generator", "model-1", (ChatMessage("user", "What was the revenue in 2018?"),), Sampling(seed=0), "x"
    )
    asked = question_of("openai", URL, request)
    record_miss(folder, key_of(asked), asked, "generator", "example What was the revenue in 2019?")
    ended = act("why-miss", key_of(asked)[:6])
    assert (ended.code, ended.err) == (0, "")
    for text in (
        "asked by generator for example What was",
        "of the same example; its messages are",
        "    - What was the revenue in 2019?",
        "    + What was the revenue in 2018?",
        "sampling.seed: asked 0, stored absent",
    ):
        assert text in ended.out
    found = act("why-miss", key_of(asked), "--json").document
    assert [d["path"] for d in found["differences"]] == ["messages.0.content", "sampling.seed"]
    assert found["differences"][1] == {"path": "sampling.seed", "kind": "only asked", "asked": 0}
    (tmp_path / "question.json").write_text(json.dumps(json.loads(asked), indent=2))
    by_file = act("why-miss", "--request", str(tmp_path / "question.json"), "--json").document
    assert (by_file["key"], by_file["how"]) == (key_of(asked), "similar messages")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(asked.encode())))
    assert act("why-miss", "--request", "-", "--json").document == by_file
    held = act("why-miss", paid("What was the revenue in 2019?").key[:10])
    assert (held.code, "the memo holds it" in held.out) == (0, True)
    refused(
        act("why-miss", "0123456789"), "no key begins with 0123456789, and no offline run has missed one", "--request"
    )
    refused(act("why-miss"), "one question is needed")
    refused(act("why-miss", "abcdef", "--request", str(tmp_path / "question.json")), "one question is needed")
    (tmp_path / "bad.json").write_text("{")
    refused(act("why-miss", "--request", str(tmp_path / "bad.json")), "a question cannot be read")


def test_a_recorded_miss_before_any_answer(act: Act, folder: Path) -> None:
    folder.mkdir(parents=True)
    asked = json.loads(json.dumps(paid().question))
    record_miss(folder, key_of(asked), asked, "generator", "x")
    ended = act("why-miss", key_of(asked)[:8])
    assert ended.code == 0
    assert "it is empty" in ended.out


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_sharing_answers(act: Act, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    keep(folder, paid("a", at=1e9), paid("a", at=1.5e9), paid("b", role="intent"))
    file = str(tmp_path / f"shared.{suffix}")
    ended = act("export", file, "--history", "--role", "generator")
    assert (ended.code, ended.err) == (0, "")
    assert f"1 answers and 1 earlier ones in {file}" in ended.out
    assert "prompts and answers in clear" in ended.out
    assert act("export", file, "--key", paid("b").key[:9], "--older-than", "1d", "--json").document["answers"] == 1
    assert act("export", file, "--history", "--json").document["history"] == 1
    monkeypatch.setenv("ACT_HOME", str(tmp_path / "colleague"))
    ended = act("import", file)
    assert (ended.code, ended.out) == (0, "2 added, 0 there already, 1 older than what is there\n")
    assert act("import", file, "--json").document == {
        "added": 0,
        "present": 3,
        "to_history": 0,
        "rejected": 0,
        "reasons": [],
    }
    assert act("show", paid("b").key, "--json").document["answer"]["role"] == "intent"


def test_an_import_with_unsound_rows_ends_with_code_1(act: Act, folder: Path, tmp_path: Path) -> None:
    keep(folder, paid("a"))
    file = tmp_path / "shared.jsonl"
    act("export", str(file))
    file.write_text(file.read_text() + file.read_text().replace("This.", "That.").replace(paid("a").key, "0" * 64))
    ended = act("import", str(file))
    assert ended.code == 1
    assert "0 added, 1 there already" in ended.out
    assert "1 rows rejected:\n  line 2: the key is not that of the question" in ended.out
    ended = act("import", str(file), "--json")
    assert (ended.code, ended.document["rejected"]) == (1, 1)
    refused(act("import", str(tmp_path / "gone.jsonl")), "no such file")
    refused(act("export", str(tmp_path / "x.csv")), "cannot export to x.csv", "end the name with")


def test_prune(act: Act, folder: Path) -> None:
    keep(folder, paid("a", at=1e9), paid("a", at=1.5e9), paid("b", cost=None, role="intent"), paid("c"))
    ended = act("prune", "--key", paid("a").key[:7])
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        "would delete 1 answers and 1 earlier ones: 20 tokens in, 6 out, US$ 1.00 paid",
        "nothing was changed; --yes deletes them",
    ]
    assert act("stats", "--json").document["answers"] == 3
    ended = act("prune", "--key", paid("a").key, "--key", paid("b").key[:8], "--yes")
    assert ended.out == (
        "deleted 2 answers and 1 earlier ones: 30 tokens in, 9 out, US$ 1.00 paid (1 of them of unknown price)\n"
    )
    assert act("stats", "--json").document["answers"] == 1
    found = act("prune", "--older-than", "36h", "--model", "model-1", "--asset", "pairs", "--yes", "--json").document
    assert (found["answers"], found["dry_run"]) == (1, False)
    assert act("verify", "--json").document["sound"] is True


def test_prune_history(act: Act, folder: Path) -> None:
    keep(folder, paid("a", at=1e9), paid("a", at=1.5e9))
    assert "deleted 0 answers and 1 earlier ones" in act("prune", "--history", "--yes").out
    assert act("stats", "--json").document["history"] == 0


def test_prunes_that_are_refused(act: Act, folder: Path) -> None:
    keep(folder, paid("a"))
    refused(act("prune", "--yes"), "nothing is chosen to be deleted")
    refused(act("prune", "--older-than", "soon", "--yes"), "'soon' is not an age", "for example 90d")
    refused(act("prune", "--key", "0123456789", "--yes"), "no key begins with")
    assert act("stats", "--json").document["answers"] == 1


def test_verify(act: Act, folder: Path) -> None:
    keep(folder, paid("a"), paid("b"))
    ended = act("verify")
    assert (ended.code, ended.out) == (0, "sound: 2 answers, 1 files of the archive, 0 journals\n")
    (segment,) = (folder / "archive").iterdir()
    segment.write_bytes(segment.read_bytes()[:-300])
    ended = act("verify")
    assert ended.code == 1
    assert f"problem archive/{segment.name} cannot be read in full" in ended.out
    assert ended.out.endswith("not sound: 2 answers, 1 files of the archive, 0 journals\n")
    ended = act("verify", "--json")
    assert (ended.code, ended.document["sound"]) == (1, False)
    ended = act("verify", "--repair")
    assert ended.code == 0
    assert "done    the archive of answers was written again from the database" in ended.out
    assert "note    archive/" in ended.out
    assert act("verify").code == 0


def test_the_installed_command_needs_neither_torch_nor_a_provider(folder: Path) -> None:
    """The real program, in a process of its own."""
    keep(folder, paid())
    code = (
        "import atexit, sys; from act_assets.cli.app import main; sys.argv = ['act', 'memo', 'show', sys.argv[1]];"
        "heavy = {'torch', 'sklearn', 'openai', 'google.genai'};"
        "atexit.register(lambda: print(sorted(heavy & set(sys.modules)))); main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, paid().key[:6]], capture_output=True, text=True, timeout=60, check=True
    )
    assert "[answer]\nThis." in ended.stdout
    assert ended.stdout.splitlines()[-1] == "[]"
    assert ended.stderr == ""
