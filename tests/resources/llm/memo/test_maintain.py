"""What is pruned stays gone and nothing else goes; `verify` sees any damage, and `repair` mends what can be fixed."""

from __future__ import annotations

import logging
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from scripted import folded, paid

from resources.errors import ActError
from resources.llm.memo import maintain
from resources.llm.memo.database import Database
from resources.llm.memo.journal import Journal, to_line
from resources.llm.memo.maintain import Pruned, Verdict, prune, verify
from resources.llm.memo.memo import Memo, close_memos
from resources.llm.memo.records import Use
from resources.llm.memo.report import Filters
from resources.llm.memo.schema import ANSWERS, USES, to_arrow

pytestmark = pytest.mark.integration


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A memo's folder; memos that `verify` opens are closed again."""
    yield tmp_path / "memo"
    close_memos()


@pytest.fixture
def memo(folder: Path) -> Iterator[Memo]:
    made = Memo(folder)
    yield made
    made.close()


def texts(memo: Memo, table: str = "answers") -> list[str]:
    return [row[0] for row in memo.database.query(f"SELECT text FROM {table} ORDER BY text")]


def lose_the_database(memo: Memo, how: str) -> None:
    if how == "deleted":
        memo.database.path.unlink()
    else:
        content = bytearray(memo.database.path.read_bytes())
        content[: len(content) // 2] = bytes(len(content) // 2)
        memo.database.path.write_bytes(content)


# --- pruning -----------------------------------------------------------------------------------------------------

MIXED = (
    paid("a", "a old", at=1.0),
    paid("a", "a", at=200.0),
    paid("b", "b", at=100.0, role="intent", cost=None),
    paid("c", "c", at=100.0, asset="labels"),
    paid("d", "d", at=50.0, partition="all"),
)


@pytest.mark.parametrize(
    ("filters", "history_only", "gone", "restored"),
    [
        (Filters(keys=(MIXED[0].key,)), False, {"a", "a old"}, 0),
        (Filters(keys=(MIXED[0].key, MIXED[2].key)), False, {"a", "a old", "b"}, 0),
        (Filters(models=("model-1",)), False, {"a", "a old", "b", "c", "d"}, 0),
        (Filters(models=("model-2",)), False, set(), 0),
        (Filters(roles=("intent",)), False, {"b"}, 0),
        (Filters(assets=("labels",)), False, {"c"}, 0),
        (Filters(partitions=("all", "none")), False, {"d"}, 0),
        (Filters(before=100.0), False, {"a old", "d"}, 0),
        (Filters(before=100.0, assets=("labels",)), False, set(), 0),
        (Filters(), True, {"a old"}, 0),
        (Filters(keys=(MIXED[2].key,)), True, set(), 0),
    ],
)
@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_what_is_pruned_stays_gone_and_nothing_else_goes(
    memo: Memo, filters: Filters, history_only: bool, gone: set[str], restored: int, how: str
) -> None:
    use = Use(hits=3)
    folded(memo.folder, *MIXED[:2], use)
    folded(memo.folder, *MIXED[2:])
    would = prune(memo, filters, history_only=history_only)
    everything = [*texts(memo), *texts(memo, "history")]
    assert sorted(everything) == sorted(a.text for a in MIXED), "only said, not done"
    done = prune(memo, filters, history_only=history_only, dry_run=False)
    assert done == replace(would, dry_run=False)
    chosen = [a for a in MIXED if a.text in gone]
    known = [a.cost_usd for a in chosen if a.cost_usd is not None]
    assert done.answers + done.history == len(gone)
    assert (done.prompt_tokens, done.output_tokens) == (10 * len(gone), 3 * len(gone))
    assert (done.cost_usd, done.unpriced) == (sum(known) if known or not gone else None, len(gone) - len(known))
    left = sorted({a.text for a in MIXED} - gone)
    assert sorted([*texts(memo), *texts(memo, "history")]) == left
    lose_the_database(memo, how)
    assert sorted([*texts(memo), *texts(memo, "history")]) == left, "after a rebuild"
    assert memo.database.query("SELECT id, hits FROM uses") == [(use.id, 3)]
    found = memo.look_up([a.key for a in MIXED]).answers
    assert {stored.text for stored in found.values()} == set(left) - {"a old"}
    verdict = verify(memo.folder)
    assert verdict.problems == ()
    aside = " ".join(path.read_bytes().decode("latin-1") for path in memo.folder.glob("archive/*"))
    assert not any(a.key in aside for a in chosen if not any(k.key == a.key and k.text in left for k in MIXED))


def test_without_a_filter_nothing_is_pruned(memo: Memo) -> None:
    folded(memo.folder, paid())
    with pytest.raises(ActError, match="nothing is chosen") as error:
        prune(memo, Filters(), dry_run=False)
    assert "--older-than" in error.value.todo
    assert texts(memo) == ["This."]


def test_an_earlier_answer_is_current_again(memo: Memo) -> None:
    folded(
        memo.folder, *(paid("a", f"at {at}", at=at, asset="labels" if at == 3.0 else "pairs") for at in (1.0, 2.0, 3.0))
    )
    done = prune(memo, Filters(assets=("labels",)), dry_run=False)
    assert (done.answers, done.history, done.restored) == (1, 0, 1)
    assert (texts(memo), texts(memo, "history")) == (["at 2.0"], ["at 1.0"])
    lose_the_database(memo, "deleted")
    assert (texts(memo), texts(memo, "history")) == (["at 2.0"], ["at 1.0"])


def test_finished_journals_are_folded_first_and_running_ones_counted(memo: Memo) -> None:
    folded(memo.folder, paid("a", "a"))
    journal = Journal(memo.journal_folder)
    journal.append([to_line(paid("b", "b"))])
    journal.seal()
    running = Memo(memo.folder)
    running.append([paid("c", "c"), paid("d", "d", role="intent")])
    journal = Journal(memo.journal_folder)
    done = prune(memo, Filters(roles=("generator",)), dry_run=False)
    assert (done.answers, done.unfolded) == (2, 1)
    assert texts(memo) == []
    running.close()
    assert texts(memo) == ["c", "d"]
    assert prune(memo, Filters(roles=("generator",)), dry_run=False).answers == 1
    assert texts(memo) == ["d"]


def test_pruning_an_empty_memo(memo: Memo) -> None:
    assert prune(memo, Filters(roles=("generator",)), dry_run=False) == Pruned(False)
    assert not memo.database.path.exists()


def test_all_that_was_pruned_leaves_an_empty_archive(memo: Memo) -> None:
    folded(memo.folder, paid())
    prune(memo, Filters(models=("model-1",)), dry_run=False)
    assert memo.database.archive.segments("answers") == []
    assert verify(memo.folder) == Verdict()


@pytest.mark.parametrize("step", ["write_answers", "unlink", "sync"])
def test_a_prune_that_is_killed_loses_nothing_that_was_to_stay(folder: Path, step: str) -> None:
    """In a process of its own, which ends at once at one step."""
    folded(folder, paid("a", "a"), paid("b", "b", role="intent"))
    folded(folder, paid("c", "c"))
    code = (
        "import os, sys; from pathlib import Path; from resources.llm.memo import maintain;"
        "from resources.llm.memo.memo import Memo; from resources.llm.memo.report import Filters;"
        "die = lambda *_: os.kill(os.getpid(), 9);"
        f"setattr(Path if {step!r} == 'unlink' else maintain, {step!r}, die);"
        f"maintain.prune(Memo(Path({str(folder)!r})), Filters(roles=('intent',)), dry_run=False)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == -signal.SIGKILL
    for how in ("as it is", "rebuilt"):
        memo = Memo(folder)
        if how == "rebuilt":
            lose_the_database(memo, "deleted")
        assert {"a", "c"} <= set(texts(memo))
        memo.close()
    memo = Memo(folder)
    prune(memo, Filters(roles=("intent",)), dry_run=False)
    lose_the_database(memo, "deleted")
    assert texts(memo) == ["a", "c"]
    assert [p for p in memo.database.archive.folder.iterdir() if not p.name.startswith("answers-")] == []
    memo.close()


def test_a_prune_that_fails_changes_nothing(memo: Memo, monkeypatch: pytest.MonkeyPatch) -> None:
    folded(memo.folder, paid("a", "a"), paid("b", "b"))

    def full(*_: object) -> None:
        raise ActError("no space left")

    monkeypatch.setattr(maintain, "write_answers", full)
    with pytest.raises(ActError, match="no space left"):
        prune(memo, Filters(keys=(paid("a").key,)), dry_run=False)
    assert texts(memo) == ["a", "b"]
    assert verify(memo.folder).problems == ()


def test_rows_that_only_the_archive_has_are_not_lost_by_a_prune(memo: Memo) -> None:
    folded(memo.folder, paid("a", "a"))
    only = [paid("b", "b"), paid("c", "c", role="intent")]
    memo.database.archive.add("answers", to_arrow(only, ANSWERS))
    done = prune(memo, Filters(roles=("intent",)), dry_run=False)
    assert done.answers == 1
    assert texts(memo) == ["a", "b"]
    lose_the_database(memo, "deleted")
    assert texts(memo) == ["a", "b"]


def test_a_damaged_segment_is_set_aside_by_a_prune(memo: Memo) -> None:
    folded(memo.folder, paid("a", "a"), paid("b", "b", role="intent"))
    (segment,) = memo.database.archive.segments("answers")
    spoil(segment)
    done = prune(memo, Filters(roles=("intent",)), dry_run=False)
    assert done.aside == (f"{segment.name}.damaged",)
    lose_the_database(memo, "deleted")
    assert texts(memo) == ["a"]


def spoil(path: Path) -> None:
    """Damages the middle of a file."""
    content = path.read_bytes()
    start = len(content) // 3
    path.write_bytes(content[:start] + bytes(b ^ 1 for b in content[start : start + 64]) + content[start + 64 :])


# --- verifying ---------------------------------------------------------------------------------------------------


@pytest.fixture
def many(folder: Path) -> Path:
    """A folder with answers, history and uses, in two segments of each kind."""
    rng = random.Random(0)
    for number in range(2):
        answers = [paid(f"{n}", rng.randbytes(400).hex(), at=float(number + 1)) for n in range(number * 100, 300)]
        folded(folder, *answers, *(Use(role=rng.randbytes(40).hex()) for _ in range(100)))
    return folder


def test_a_sound_memo_is_only_read(many: Path) -> None:
    before = {p: p.read_bytes() for p in many.rglob("*") if p.is_file()}
    verdict = verify(many)
    assert verdict == Verdict(answers=300, history=200, segments=4)
    assert {p: p.read_bytes() for p in many.rglob("*") if p.is_file()} == before
    assert verify(many, repair=True) == verdict


def test_one_bit_of_the_database(many: Path) -> None:
    """Most are noticed; the others are in blocks that are not in use."""
    everything = "SELECT sum(hash(a)) FROM (FROM answers UNION ALL FROM history) a"
    path, rng, noticed = many / "memo.duckdb", random.Random(1), 0
    before, whole = Database(many).query(everything), path.read_bytes()
    for _ in range(12):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        problems = verify(many).problems
        assert path.read_bytes() == content, "verify changes nothing"
        noticed += bool(problems)
        if problems and noticed < 4:
            assert "the database cannot be read" in problems[0]
            fixed = verify(many, repair=True)
            assert fixed.problems == () and fixed.repaired == ("the database was rebuilt from the archive",)
            assert (fixed.answers, fixed.history) == (300, 200)
            assert any(note.startswith("memo.duckdb.damaged-") for note in fixed.notes)
        if not problems or noticed < 4:
            assert Database(many).query(everything) == before
    assert noticed >= 6


@pytest.mark.parametrize("seed", range(4))
def test_one_bit_of_a_segment(many: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = rng.choice(sorted((many / "archive").glob("answers-*")))
    content = bytearray(path.read_bytes())
    whole = pq.read_table(path)
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    verdict = verify(many)
    if not verdict.problems:  # a byte of the footer that says nothing of the rows
        assert pq.read_table(path, page_checksum_verification=True).equals(whole)
        return
    assert any("archive" in problem for problem in verdict.problems)
    fixed = verify(many, repair=True)
    assert fixed.problems == ()
    assert fixed.repaired
    assert (fixed.answers, fixed.history) == (300, 200)
    (many / "memo.duckdb").unlink()
    assert verify(many, repair=True).answers == 300


@pytest.mark.parametrize(("kind", "rows"), [("answers", 300), ("uses", 200)])
def test_segments_that_are_gone(many: Path, kind: str, rows: int) -> None:
    gone = Database(many).archive.segments(kind)
    for path in gone[:1] if kind == "answers" else gone:
        path.unlink()
    assert verify(many).problems == (f"{rows} {kind} of the database are not in the archive: --repair fixes it",)
    fixed = verify(many, repair=True)
    assert fixed.problems == ()
    assert fixed.repaired == (f"{rows} {kind} that only the database had were added to the archive",)
    (many / "memo.duckdb").unlink()
    assert verify(many, repair=True).history == 200


@pytest.mark.parametrize("kind", ["answers", "uses"])
def test_rows_that_only_the_archive_has(many: Path, kind: str) -> None:
    rows = to_arrow([paid("new")], ANSWERS) if kind == "answers" else to_arrow([Use(hits=2)], USES)
    Database(many).archive.add(kind, rows)
    assert verify(many).problems == (f"1 {kind} of the archive are not in the database: --repair fixes it",)
    fixed = verify(many, repair=True)
    assert fixed.problems == ()
    assert fixed.repaired == (f"1 {kind} that only the archive had were added to the database",)
    assert fixed.answers == 300 + (kind == "answers")


def test_an_answer_that_is_not_the_same_in_the_archive(folder: Path) -> None:
    folded(folder, paid("a"), paid("b"))
    database = Database(folder)
    with database.writing() as connection:
        connection.execute("UPDATE answers SET text = 'That.' WHERE key = ?", [paid("a").key])
    assert verify(folder).problems == (
        "1 answers are not the same in the archive as in the database: --repair fixes it",
    )
    assert verify(folder, repair=True).problems == ()
    database.path.unlink()
    assert database.query("SELECT text FROM answers ORDER BY text") == [("That.",), ("This.",)]


def test_a_key_that_is_not_that_of_its_question(folder: Path) -> None:
    strange = replace(paid("a"), key="0" * 64)
    folded(folder, strange, paid("b"))
    (problem,) = verify(folder).problems
    assert problem.startswith(f"in answers the key is not that of the question: 1 rows ({'0' * 16})")
    memo = Memo(folder)
    prune(memo, Filters(keys=("0" * 64,)), dry_run=False)
    assert verify(folder).problems == ()
    memo.close()


def test_a_key_that_is_there_twice(folder: Path) -> None:
    folded(folder, paid("a"))
    with Database(folder).writing() as connection:
        connection.execute("INSERT INTO answers SELECT * REPLACE ('other' AS id) FROM answers")
    problems = verify(folder).problems
    assert problems[0].startswith(f"in answers the key is there more than once: 1 rows ({paid('a').key[:16]})")


def test_a_row_of_the_archive_that_cannot_be_true(folder: Path) -> None:
    folded(folder, paid("a"))
    Database(folder).archive.add("answers", to_arrow([replace(paid("b"), key="0" * 64)], ANSWERS))
    assert verify(folder).problems == ("1 answers of the archive are not in the database: --repair fixes it",)
    fixed = verify(folder, repair=True)
    assert (fixed.problems, fixed.answers, len(fixed.notes)) == ((), 1, 2), "both segments are set aside"
    Database(folder).path.unlink()
    assert verify(folder, repair=True).answers == 1


def test_a_database_that_is_gone(many: Path) -> None:
    (many / "memo.duckdb").unlink()
    spoil(sorted((many / "archive").glob("uses-*"))[0])
    verdict = verify(many)
    assert verdict.problems[0].startswith("the database is gone")
    assert "archive/uses-" in verdict.problems[1]
    assert not (many / "memo.duckdb").exists()
    fixed = verify(many, repair=True)
    assert fixed.problems == ()
    assert fixed.repaired[0] == "the database was rebuilt from the archive"
    assert fixed.answers == 300


def test_a_database_of_a_newer_version(many: Path) -> None:
    with duckdb.connect(str(many / "memo.duckdb")) as connection:
        connection.execute("UPDATE schema_version SET version = 99")
    (problem,) = verify(many).problems
    assert "the memo has schema 99" in problem
    assert "upgrade" in problem


def test_an_empty_folder(folder: Path) -> None:
    assert verify(folder) == Verdict()
    assert not (folder / "memo.duckdb").exists()
    assert verify(folder, repair=True).problems == ()


def left_behind(folder: Path, content: bytes) -> Path:
    """The journal of a process that has been killed."""
    journal = Journal(folder / "journal")
    (folder / "journal").mkdir(parents=True, exist_ok=True)
    journal.append([content])
    assert journal.path is not None
    path = journal.path
    journal.seal()
    return path


def test_a_torn_tail_of_a_killed_process_is_only_noted(folder: Path) -> None:
    folded(folder, paid("a"))
    path = left_behind(folder, to_line(paid("b")) + to_line(paid("c"))[:100])
    verdict = verify(folder)
    assert verdict.problems == ()
    assert any(path.name in note and "torn last line" in note for note in verdict.notes)
    assert "1 records are in journals and not yet in the database" in verdict.notes
    assert (verdict.answers, verdict.journals) == (1, 1)
    assert path.exists()
    fixed = verify(folder, repair=True)
    assert (fixed.answers, fixed.journals, fixed.problems) == (2, 0, ())


def test_a_damaged_line_is_a_problem_until_somebody_has_looked(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    folded(folder, paid("a"))
    lines = [bytearray(to_line(paid(text))) for text in "bcd"]
    lines[1][200] ^= 1
    path = left_behind(folder, b"".join(lines))
    (problem,) = verify(folder).problems
    assert problem.startswith(f"journal {path.name}, byte {len(lines[0])}: a damaged line")
    with caplog.at_level(logging.CRITICAL):
        fixed = verify(folder, repair=True)
    assert fixed.answers == 3
    (problem,) = fixed.problems
    assert problem.startswith(f"journal/{path.name}.damaged ({sum(map(len, lines))} bytes): 1 lines of a journal")
    path.with_name(path.name + ".damaged").unlink()
    assert verify(folder).problems == ()


def test_what_a_running_process_is_writing_is_no_damage(folder: Path) -> None:
    folded(folder, paid("a"))
    journal = Journal(folder / "journal")
    journal.append([to_line(paid("b")), to_line(paid("c"))[:50]])
    verdict = verify(folder)
    assert verdict.problems == ()
    assert verdict.notes == ("1 records are in journals and not yet in the database",)
    journal.seal()


def test_rows_that_a_journal_brings_again_are_not_missed(folder: Path) -> None:
    """A process was killed after it had written to the archive, and before it had written to the database."""
    folded(folder, paid("a"))
    answer, use = paid("b"), Use(hits=1)
    left_behind(folder, to_line(answer) + to_line(use))
    Database(folder).archive.add("answers", to_arrow([answer], ANSWERS))
    Database(folder).archive.add("uses", to_arrow([use], USES))
    assert verify(folder).problems == ()


def test_files_set_aside_are_listed_with_their_sizes(many: Path) -> None:
    (many / "memo.duckdb.damaged-20260101T000000-abcd").write_bytes(b"x" * 1234)
    (many / "archive" / "answers-1-abc.parquet.damaged").write_bytes(b"x" * 99)
    verdict = verify(many)
    assert verdict.problems == ()
    assert [note.split(":")[0] for note in verdict.notes] == [
        "archive/answers-1-abc.parquet.damaged (99 bytes)",
        "memo.duckdb.damaged-20260101T000000-abcd (1234 bytes)",
    ]


def test_a_repair_is_kept(many: Path) -> None:
    """Each kind of damage at once."""
    segments = Database(many).archive.segments("answers")
    spoil(segments[0])
    Database(many).archive.add("answers", to_arrow([paid("new")], ANSWERS))
    Database(many).archive.segments("uses")[0].unlink()
    assert len(verify(many).problems) >= 3
    fixed = verify(many, repair=True)
    assert fixed.problems == ()
    assert (fixed.answers, fixed.history) == (301, 200)
    assert verify(many) == replace(fixed, repaired=())
