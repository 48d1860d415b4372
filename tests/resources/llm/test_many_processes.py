"""Many processes at once, and processes that are killed: every question is paid once, and nothing paid is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from resources.llm.base import ChatMessage, LLMRequest, Sampling
from resources.llm.memo.journal import journals, read_journal
from resources.llm.memo.maintain import verify
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, key_of, question_of

pytestmark = pytest.mark.integration

TESTS = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("asking_program.py")


class Askers:
    """The program that starts processes."""

    def __init__(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
        self.program = subprocess.Popen([sys.executable, str(PROGRAM)], text=True, env=environment, **pipes)

    def start(self, **order: Any) -> list[int]:
        """The ids of the processes that this order makes."""
        given = {"processes": 1, "threads": 1, "key": "some-key", "seed": 0, "fold_records": 5000, **order}
        assert self.program.stdin
        self.program.stdin.write(json.dumps(given) + "\n")
        self.program.stdin.flush()
        return self._line()

    def ended(self) -> list[int]:
        """How they ended."""
        return self._line()

    def _line(self) -> list[int]:
        assert self.program.stdout
        return [int(number) for number in json.loads(self.program.stdout.readline())]


@pytest.fixture
def askers() -> Iterator[Askers]:
    made = Askers()
    yield made
    made.program.communicate()


@contextmanager
def served(*options: str) -> Iterator[int]:
    """The loopback server as a process of its own: its port."""
    program = [sys.executable, str(TESTS / "loopback.py"), *options]
    process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield json.loads(process.stdout.readline())["port"]
    finally:
        process.communicate()


def right_answers(loopback: Any, number: int) -> list[str]:
    return [loopback.answer_to([("user", f"question {i}")]) for i in range(number)]


@pytest.mark.parametrize("fold_records", [5000, 40])
def test_eight_processes_of_eight_threads_pay_each_question_once(
    loopback: Any, askers: Askers, tmp_path: Path, fold_records: int
) -> None:
    results = tmp_path / "results"
    results.mkdir()
    with served("--latency", "0.003") as port:
        order = {"memo": str(tmp_path / "memo"), "base_url": f"http://127.0.0.1:{port}/v1", "results": str(results)}
        askers.start(**order, processes=8, threads=8, questions=500, max_concurrency=8, fold_records=fold_records)
        assert askers.ended() == [0] * 8
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/stats") as answer:
            stats = json.load(answer)
    assert (stats["requests"], stats["questions"], stats["answers"]) == (500, 500, {"ok": 500})
    right = right_answers(loopback, 500)
    answered = [texts for path in sorted(results.iterdir()) for texts in json.loads(path.read_text())]
    assert len(answered) == 64 and all(texts == right for texts in answered)
    assert sound(tmp_path / "memo", 500) == (500, 500, 0)


def sound(folder: Path, number: int) -> tuple[Any, ...]:
    """Rows, different keys and rows of the history of a memo that holds the answers to all the questions."""
    memo = Memo(folder)
    keys = question_keys(f"http://127.0.0.1:{port_of(memo)}/v1", number)
    assert memo.look_up(keys).answers.keys() == set(keys)
    verdict = verify(folder)
    assert not verdict.problems, verdict.problems
    assert not journals(memo.journal_folder)
    query = "SELECT count(*), count(DISTINCT key), (SELECT count(*) FROM history) FROM answers"
    return memo.database.query(query)[0]


def port_of(memo: Memo) -> int:
    [[base_url]] = memo.database.query("SELECT DISTINCT base_url FROM answers")
    return int(base_url.rpartition(":")[2].partition("/")[0])


def question_keys(base_url: str, number: int) -> list[str]:
    """The keys of the questions, in their order."""
    asked = [LLMRequest("any", "m", (ChatMessage("user", f"question {i}"),), Sampling(), "any") for i in range(number)]
    return [key_of(question_of("openai", base_url, request)) for request in asked]


class Durable:
    """Which questions' answers are on disk, seen from outside and without touching anything."""

    def __init__(self, folder: Path, places: Mapping[str, int]) -> None:
        self.folder, self.places = folder, places
        self._segments: dict[Path, set[int]] = {}

    def questions(self) -> set[int]:
        found: set[int] = set()
        for path in journals(self.folder / "journal"):
            found |= {self.places[r.key] for r in read_journal(path)[0] if isinstance(r, Answer)}
        for path in (self.folder / "archive").glob("answers-*.parquet"):
            if path not in self._segments:
                keys = pq.read_table(path, columns=["key"]).column("key").to_pylist()
                self._segments[path] = {self.places[key] for key in keys}
            found |= self._segments[path]
        return found


AT_ONCE = 16


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_process_killed_again_and_again_pays_twice_only_for_what_was_on_its_way(
    loopback: Any, askers: Askers, tmp_path: Path, kills: int
) -> None:
    number = 200 + 36 * kills
    rng = random.Random(20)
    memo, results = tmp_path / "memo", tmp_path / "results"
    results.mkdir()
    with loopback.Loopback(loopback.always(latency_s=0.008)) as server:
        order = {
            "memo": str(memo),
            "base_url": f"{server.url}/v1",
            "results": str(results),
            "questions": number,
        }
        order |= {"max_concurrency": AT_ONCE, "fold_records": 100}
        durable = Durable(memo, {key: i for i, key in enumerate(question_keys(f"{server.url}/v1", number))})
        known: set[int] = set()
        wasted = 0
        for round_ in range(kills):
            before = len(server.calls)
            [pid] = askers.start(**order, key=f"key-{round_}", seed=round_)
            calls, seconds = (before + rng.randrange(75), 30.0) if round_ % 5 else (before + 45, rng.random() * 0.3)
            deadline = time.monotonic() + seconds  # at times while it still starts, or folds
            while len(server.calls) < calls and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.004)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)
            assert askers.ended() == [-9], "it was to be killed while it worked"
            now = durable.questions()
            asked = asked_with(server, f"key-{round_}")
            assert known <= now, "an answer that was on disk is gone"
            assert not known & asked.keys(), "an answer that was on disk was asked for again"
            assert max(asked.values(), default=1) == 1, "asked twice by one process"
            assert now - known <= asked.keys()
            assert len(asked.keys() - now) <= AT_ONCE, "more was lost than was on its way"
            wasted += len(asked.keys() - now)
            known = now
        assert 4 * kills < len(known) < number
        askers.start(**order, key="last-key")
        assert askers.ended() == [0]
        last = asked_with(server, "last-key")
        assert last.keys() == set(range(number)) - known and max(last.values()) == 1
        assert len(server.calls) == number + wasted
        [answered] = json.loads((results / "0.json").read_text())
        assert answered == right_answers(loopback, number)
    assert sound(memo, number) == (number, number, 0)


def asked_with(server: Any, key: str) -> Counter[int]:
    """How often each question was asked with an API key."""
    calls = [call.request for call in server.calls if call.request.key == key]
    return Counter(int(call.messages[0][1].removeprefix("question ")) for call in calls)
