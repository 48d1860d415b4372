"""What one memo exports another imports, the same to the byte; and no row gets in that is not sound."""

from __future__ import annotations

import json
import random
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import folded, paid

from resources.errors import ActError
from resources.llm.memo import import_export as exchange
from resources.llm.memo import report as view
from resources.llm.memo.import_export import Imported, export, import_
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, key_of, to_json
from resources.llm.memo.report import Filters, age_s
from resources.llm.memo.schema import ANSWERS, to_arrow

pytestmark = pytest.mark.integration

ALL = Filters()
FORMATS = ["parquet", "jsonl"]


@pytest.fixture
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Memo]]:
    """Makes memos with some answers."""
    made: list[Memo] = []

    def make(*answers: Answer) -> Memo:
        folder = tmp_path_factory.mktemp("memo")
        if answers:
            folded(folder, *answers)
        made.append(Memo(folder))
        return made[-1]

    yield make
    for memo in made:
        memo.close()


Fresh = Callable[..., Memo]


def rows(memo: Memo, table: str) -> list[tuple[Any, ...]]:
    return memo.database.query(f"SELECT * FROM {table} ORDER BY ALL")


TEXTS = st.text(st.characters(codec=None), max_size=30) | st.sampled_from(
    ["\x00", "\n", "\r\n", "\ud800", "\u2028", "é漢😀"]
)
ANSWERS_MADE = st.builds(
    lambda asked, said, at, cost, label: paid(asked, said, at, cost, label=label),
    st.sampled_from(["a", "b\x00", "c\ud800"]) | TEXTS,
    TEXTS,
    st.integers(1, 4_000_000_000_000_000).map(lambda us: min(us, int(time.time() * 1e6)) / 1e6),
    st.none() | st.floats(0, 1e6),
    TEXTS,
)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(ANSWERS_MADE, min_size=1, max_size=12))
def test_a_round_trip_changes_nothing(fresh: Fresh, tmp_path: Path, suffix: str, answers: list[Answer]) -> None:
    one, other = fresh(*answers), fresh()
    files = [tmp_path / f"{number}.{suffix}" for number in range(2)]
    written = export(one, files[0], ALL, history=True)
    assert (written.answers, written.history) == (len(rows(one, "answers")), len(rows(one, "history")))
    counts = import_(other, files[0])
    assert counts == Imported(added=written.answers, to_history=written.history)
    export(other, files[1], ALL, history=True)
    assert files[0].read_bytes() == files[1].read_bytes()
    for table in ("answers", "history"):
        assert rows(one, table) == rows(other, table)
    assert import_(other, files[1]) == Imported(present=written.answers + written.history)


@pytest.mark.parametrize("suffix", FORMATS)
def test_many_portions_and_batches(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr(view, "PORTION", 7)
    monkeypatch.setattr(exchange, "BATCH_ROWS", 10)
    rng = random.Random(0)
    answers = [paid(f"question {n % 40}", at=float(rng.randrange(1, 12))) for n in range(100)]
    one, other = fresh(*answers), fresh()
    file = tmp_path / f"all.{suffix}"
    assert export(one, file, ALL, history=True).answers == 40
    counts = import_(other, file)
    assert (counts.added, counts.to_history, counts.rejected) == (40, 60, 0)
    assert rows(one, "answers") == rows(other, "answers")
    assert rows(one, "history") == rows(other, "history")
    times = [json.loads(line)["created_at"] for line in file.read_text().splitlines()] if suffix == "jsonl" else []
    assert times == sorted(times[:40]) + sorted(times[40:])


def test_the_file_is_private_whole_and_alone(fresh: Fresh, tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    file.write_text("something older")
    written = export(fresh(paid()), file, ALL)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert written.bytes == file.stat().st_size
    assert list(tmp_path.iterdir()) == [file]
    assert pq.read_table(file).schema.equals(ANSWERS)


def test_an_export_that_fails_leaves_what_was_there(
    fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("something older")

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exchange, "to_json", full)
    with pytest.raises(ActError, match="No space left") as error:
        export(fresh(paid()), file, ALL)
    assert error.value.where == str(file)
    assert [(p, p.read_text()) for p in tmp_path.iterdir()] == [(file, "something older")]


@pytest.mark.parametrize("name", ["x.csv", "x", "no/such/folder/x.jsonl"])
def test_files_that_cannot_be_written(fresh: Fresh, tmp_path: Path, name: str) -> None:
    with pytest.raises(ActError) as error:
        export(fresh(paid()), tmp_path / name, ALL)
    assert error.value.todo


@pytest.mark.parametrize(
    ("text", "seconds"), [("90d", 7_776_000.0), ("36h", 129_600.0), ("0.5d", 43_200.0), (" 1d ", 86_400.0)]
)
def test_ages(text: str, seconds: float) -> None:
    assert age_s(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "d", "-1d", "1w", "1d2h", "nand", "9999999999d", "1e3d"])
def test_ages_that_are_none(text: str) -> None:
    with pytest.raises(ActError, match="is not an age"):
        age_s(text)


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_still_in_a_journal_is_exported(fresh: Fresh, tmp_path: Path, suffix: str) -> None:
    memo = fresh(paid("a", at=1.0), paid("b", at=1.0))
    newer, new = paid("a", "newer", at=2.0), paid("c", at=3.0)
    memo.append([newer, new])
    written = export(memo, tmp_path / f"x.{suffix}", ALL, history=True)
    assert (written.answers, written.history) == (3, 1)
    other = fresh()
    assert import_(other, tmp_path / f"x.{suffix}").added == 3
    assert other.look_up([newer.key]).answers[newer.key].text == "newer"


def test_without_history_only_current_answers_that_pass_the_filters(fresh: Fresh, tmp_path: Path) -> None:
    memo = fresh(paid(at=1.0), paid(at=50.0), paid("b", role="intent"))
    for filters, number in ((ALL, 2), (Filters(roles=("intent", "x")), 1), (Filters(before=50.0), 1)):
        written = export(memo, tmp_path / "x.jsonl", filters)
        assert (written.answers, written.history) == (number, 0)
        assert len((tmp_path / "x.jsonl").read_text().splitlines()) == number


# --- importing ---------------------------------------------------------------------------------------------------


def test_the_newer_answer_of_a_key_wins(fresh: Fresh, tmp_path: Path) -> None:
    ours, older, newer = paid(said="ours", at=5.0), paid(said="older", at=4.0), paid(said="newer", at=6.0)
    memo = fresh(ours)

    def given_to(memo: Memo, *answers: Answer) -> Imported:
        export(fresh(*answers), tmp_path / "x.jsonl", ALL, history=True)
        return import_(memo, tmp_path / "x.jsonl")

    assert given_to(memo, older) == Imported(to_history=1)
    assert memo.look_up([ours.key]).answers[ours.key].text == "ours"
    assert given_to(memo, newer, older) == Imported(added=1, present=1)
    assert memo.look_up([ours.key]).answers[ours.key].text == "newer"
    assert memo.database.query("SELECT text FROM history ORDER BY text") == [("older",), ("ours",)]


def test_imported_answers_survive_the_loss_of_the_database(fresh: Fresh, tmp_path: Path) -> None:
    export(fresh(paid()), tmp_path / "x.parquet", ALL)
    memo = fresh()
    import_(memo, tmp_path / "x.parquet")
    memo.database.path.unlink()
    assert memo.look_up([paid().key]).answers[paid().key].text == "This."


def line(answer: Answer | None = None, **changed: Any) -> str:
    raw = {**to_json(answer or paid("unsound")), **changed}
    return json.dumps({name: value for name, value in raw.items() if value is not ...})


GOOD = paid("unsound")
OTHER_QUESTION = GOOD.question.replace("unsound", "another")
LIST = "[1]"
UNSOUND: dict[str, tuple[str, str]] = {
    "not JSON": ("{", "Expecting property name"),
    "cut off": (line()[:50], "line 1 column 5"),
    "not UTF-8": ("\udcff", "can't decode"),
    "not an object": ("[1, 2]", "not a JSON object"),
    "null": ("null", "not a JSON object"),
    "too deep": ("[" * 100_000, "maximum recursion depth"),
    "of another kind": (line(kind="use"), "missing"),
    "of no kind": (line(kind=...), "kind is None"),
    "a field is missing": (line(text=...), "missing: ['text']"),
    "a field is unknown": (line(more=1), "unknown: ['more']"),
    "text is a number": (line(text=1), "text is a int, not str"),
    "text is null": (line(text=None), "text is a NoneType, not str"),
    "tokens are a float": (line(prompt_tokens=1.5), "prompt_tokens is a float, not int"),
    "tokens are a truth": (line(prompt_tokens=True), "prompt_tokens is a bool, not int"),
    "negative tokens": (line(output_tokens=-1), "output_tokens is -1"),
    "tokens beyond 64 bits": (line(output_tokens=2**63), "output_tokens is 9223372036854775808"),
    "tokens beyond all floats": (line(output_tokens=10**400), "output_tokens is 1000000"),
    "cost is NaN": (line(cost_usd=float("nan")), "NaN is not JSON"),
    "latency is infinite": (line(latency_s=float("inf")), "Infinity is not JSON"),
    "cost overflows": (line().replace('"cost_usd": 0.5', '"cost_usd": 1e999'), "cost_usd is inf"),
    "negative cost": (line(cost_usd=-0.5), "cost_usd is -0.5"),
    "from before 1970": (line(created_at=-1.0), "created_at is -1.0"),
    "from the future": (line(created_at=time.time() + 1e6), "created in the future"),
    "a lone surrogate": (line(label="\ud800"), "label has a lone surrogate"),
    "an answer cut off": (line(finish_reason="length"), "finish_reason is length"),
    "another key": (line(key="0" * 64), "the key is not that of the question"),
    "the key in capitals": (line(key=GOOD.key.upper()), "the key is not that of the question"),
    "another question": (line(question=OTHER_QUESTION), "the key is not that of the question"),
    "a question not in ASCII": (line(question="é"), "the key is not that of the question"),
    "a question that is no object": (line(question=LIST, key=key_of(LIST)), "the question is not a JSON object"),
    "a question that is not JSON": (line(question="{", key=key_of("{")), "Expecting property name"),
    "another model": (line(model="model-2"), "model is 'model-2', in the question 'model-1'"),
    "another server": (line(base_url="https://y.example"), "base_url is 'https://y.example'"),
    "another provider": (line(provider="gemini"), "provider is 'gemini'"),
    "another sample": (line(sample_index=1), "sample_index is 1, in the question 0"),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_an_unsound_row_is_left_out_and_named(fresh: Fresh, tmp_path: Path, fault: str) -> None:
    unsound, why = UNSOUND[fault]
    file = tmp_path / "x.jsonl"
    content = "\n".join([line(paid("before")), unsound, "", line(paid("after"))])
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    memo = fresh()
    counts = import_(memo, file)
    assert (counts.added, counts.present, counts.to_history, counts.rejected) == (2, 0, 0, 1)
    (reason,) = counts.reasons
    assert reason.startswith("line 2: ")
    assert why in reason
    assert memo.look_up([GOOD.key]).answers == {}
    assert len(memo.look_up([paid("before").key, paid("after").key]).answers) == 2


def test_ten_rejected_rows_are_named_and_all_counted(fresh: Fresh, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("{\n" * 25 + line(paid()) + "\n")
    counts = import_(fresh(), tmp_path / "x.jsonl")
    assert (counts.added, counts.rejected, len(counts.reasons)) == (1, 25, 10)


def test_an_answer_twice_in_a_file(fresh: Fresh, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text((line(GOOD) + "\n") * 3)
    assert import_(fresh(), tmp_path / "x.jsonl") == Imported(added=1, present=2)


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"key": "0" * 64}, "the key is not"),
        ({"text": None}, "text is a NoneType"),
        ({"prompt_tokens": -1}, "prompt_tokens is -1"),
    ],
)
def test_unsound_rows_of_parquet(fresh: Fresh, tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    answers = [paid("before"), replace(GOOD, **changed), paid("after")]
    pq.write_table(to_arrow(answers, ANSWERS), tmp_path / "x.parquet")
    counts = import_(fresh(), tmp_path / "x.parquet")
    assert (counts.added, counts.rejected) == (2, 1)
    assert counts.reasons[0].startswith("row 2: ")
    assert why in counts.reasons[0]


def test_times_that_no_calendar_has(fresh: Fresh, tmp_path: Path) -> None:
    table = to_arrow([paid("before"), GOOD], ANSWERS)
    far = pa.array([1_000_000, 2**62], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(
        table.set_column(table.schema.get_field_index("created_at"), "created_at", far), tmp_path / "x.parquet"
    )
    counts = import_(fresh(), tmp_path / "x.parquet")
    assert (counts.added, counts.rejected) == (1, 1)
    assert "created in the future" in counts.reasons[0]


def test_a_parquet_file_of_other_types_that_mean_the_same(fresh: Fresh, tmp_path: Path) -> None:
    table = to_arrow([paid("a"), paid("b")], ANSWERS)
    types = [
        pa.large_string() if f.type == pa.string() else pa.int32() if f.type == pa.int64() else f.type for f in ANSWERS
    ]
    schema = pa.schema([pa.field(f.name, t) for f, t in zip(ANSWERS, types, strict=True)])
    pq.write_table(table.cast(schema).select(reversed(ANSWERS.names)), tmp_path / "x.parquet")
    assert import_(fresh(), tmp_path / "x.parquet") == Imported(added=2)


def test_a_damaged_part_of_a_parquet_file(fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(view, "PORTION", 20)
    rng = random.Random(0)
    file = tmp_path / "x.parquet"
    export(fresh(*(paid(f"{n}", rng.randbytes(300).hex(), at=float(n + 1)) for n in range(60))), file, ALL)
    group = pq.ParquetFile(file).metadata.row_group(1)
    text = next(group.column(n) for n in range(group.num_columns) if group.column(n).path_in_schema == "text")
    content = bytearray(file.read_bytes())
    content[text.dictionary_page_offset + text.total_compressed_size // 2] ^= 1
    file.write_bytes(content)
    counts = import_(fresh(), file)
    assert (counts.added, counts.rejected) == (40, 20)
    assert counts.reasons[0].startswith("row 21: cannot be read")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.parquet", b"", "cannot be read"),
        ("x.parquet", b"PAR1 and so on", "cannot be read"),
        ("x.csv", b"", "cannot import x.csv"),
        ("x.jsonl", None, "cannot be read"),
        ("x.parquet", None, "cannot be read"),
    ],
)
def test_files_that_are_not_of_answers(
    fresh: Fresh, tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ActError, match=said) as error:
        import_(fresh(), tmp_path / name)
    assert error.value.where == str(tmp_path / name)
    assert error.value.todo


def test_a_parquet_file_with_other_columns(fresh: Fresh, tmp_path: Path) -> None:
    table = to_arrow([paid()], ANSWERS).drop(["text"])
    pq.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(ActError, match="missing or unknown: text"):
        import_(fresh(), tmp_path / "x.parquet")


def test_anyone_can_query_an_exported_file(fresh: Fresh, tmp_path: Path) -> None:
    export(fresh(paid("a"), paid("b", cost=None)), tmp_path / "x.parquet", ALL)
    found = duckdb.execute(f"SELECT count(*), sum(cost_usd) FROM '{tmp_path / 'x.parquet'}'").fetchall()
    assert found == [(2, 0.5)]
