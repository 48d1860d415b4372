"""The sums of what was paid and saved hold wherever the records are, and an unknown price is never 0 dollars."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted import URL, folded, paid

from resources.errors import ActError
from resources.llm.memo.memo import Memo
from resources.llm.memo.records import Answer, Use
from resources.llm.memo.report import UsageGroup, show, shown_json, stats

pytestmark = pytest.mark.integration


def noted(**changed: Any) -> Use:
    asked = {"provider": "openai", "base_url": URL, "model": "model-1", "role": "generator", **changed}
    return Use(asset="pairs", partition="pacific|50", **asked)


@pytest.fixture
def memo(tmp_path: Path) -> Iterator[Memo]:
    made = Memo(tmp_path / "memo")
    yield made
    made.close()


def test_an_empty_memo(memo: Memo) -> None:
    found = stats(memo)
    assert (found.groups, found.answers, found.history, found.unfolded, found.oldest) == ((), 0, 0, 0, None)
    assert found.total == UsageGroup(())
    assert found.total.hit_rate is None
    assert not memo.database.path.exists()


def test_sums_by_model_and_role(memo: Memo) -> None:
    again = paid("one", at=2e9, cost=0.75)
    folded(
        memo.folder,
        paid("one", at=5.0),
        again,
        paid("two", at=6.0, role="intent"),
        noted(hits=3, saved_usd=1.5, saved_prompt_tokens=30),
        noted(failures=2, lost_prompt_tokens=7, lost_output_tokens=1, lost_usd=0.25, role="intent"),
    )
    found = stats(memo)
    assert found.by == ("model", "role")
    assert found.groups == (
        UsageGroup(("model-1", "generator"), 2, 3, 0, 20, 6, 1.25, 1.5),
        UsageGroup(("model-1", "intent"), 1, 0, 2, 17, 4, 0.75, 0.0),
    )
    assert found.total == UsageGroup((), 3, 3, 2, 37, 10, 2.0, 1.5)
    assert found.groups[0].hit_rate == 3 / 5
    assert (found.answers, found.history, found.oldest) == (2, 1, 5.0)
    assert found.newest == 2e9
    assert found.database_bytes == memo.database.path.stat().st_size


@pytest.mark.parametrize(
    "by", [c for n in range(5) for c in itertools.combinations(["model", "role", "asset", "partition"], n)]
)
def test_any_grouping_has_the_same_total(memo: Memo, by: tuple[str, ...]) -> None:
    folded(
        memo.folder,
        paid("one"),
        paid("two", asset="labels"),
        paid("three", role="intent", partition="all"),
        noted(hits=1, saved_usd=0.5),
    )
    found = stats(memo, by)
    assert found.by == by
    assert all(len(group.of) == len(by) for group in found.groups)
    assert found.total == UsageGroup((), 3, 1, 0, 30, 9, 1.5, 0.5)
    assert sum(g.answers for g in found.groups) == 3
    assert sum(g.hits for g in found.groups) == 1


def test_a_grouping_that_there_is_not(memo: Memo) -> None:
    with pytest.raises(ActError, match="cannot group by label") as error:
        stats(memo, ("label",))
    assert error.value.todo == "choose among model, role, asset, partition"


def test_an_unknown_price_is_not_0_dollars(memo: Memo) -> None:
    folded(
        memo.folder,
        paid("one", cost=None, model="new"),
        paid("two", cost=None),
        paid("three", cost=0.5),
        paid("free", cost=0.0, model="free"),
        noted(hits=4, model="new"),
        noted(hits=5, model="free"),
    )
    found = {group.of[0]: group for group in stats(memo, ("model",)).groups}
    assert (found["new"].cost_usd, found["new"].unpriced) == (None, 1)
    assert (found["new"].saved_usd, found["new"].unpriced_hits) == (None, 4)
    assert (found["model-1"].cost_usd, found["model-1"].unpriced) == (0.5, 1)
    assert (found["free"].cost_usd, found["free"].saved_usd, found["free"].unpriced_hits) == (0.0, 0.0, 0)
    whole = stats(memo).total
    assert (whole.cost_usd, whole.unpriced, whole.unpriced_hits) == (0.5, 2, 4)
    group = next(g for g in stats(memo).to_json()["groups"] if g["model"] == "new")
    assert group["cost_usd"] is None
    assert group["saved_usd"] is None


def test_what_a_running_process_has_written_counts_once(memo: Memo, tmp_path: Path) -> None:
    folded(memo.folder, paid("one", at=1.0))
    running = Memo(memo.folder)
    running.append([paid("one"), paid("two"), noted(hits=2, saved_usd=1.0)])
    before = stats(memo)
    assert (before.answers, before.history, before.unfolded) == (2, 1, 3)
    running.close()
    after = stats(memo)
    assert (after.answers, after.history, after.unfolded) == (2, 1, 0)
    assert after.groups == before.groups
    assert (after.oldest, after.newest) == (before.oldest, before.newest)


RECORDS = st.builds(
    lambda text, cost, role, at: paid(text, at=at, cost=cost, role=role),
    st.sampled_from(["a", "b", "c"]),
    st.sampled_from([None, 0.25, 1.0]),
    st.sampled_from(["generator", "intent"]),
    st.integers(1, 5).map(float),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(records=st.lists(RECORDS, max_size=12), cut=st.integers(0, 12))
def test_nothing_depends_on_what_is_folded(
    tmp_path_factory: pytest.TempPathFactory, records: list[Answer], cut: int
) -> None:
    memo = Memo(tmp_path_factory.mktemp("memo"))
    if records[:cut]:
        folded(memo.folder, *records[:cut])
    memo.append(records[cut:])
    found = stats(memo, ("role",))
    assert (found.answers, found.history) == (
        len({r.key for r in records}),
        len(records) - len({r.key for r in records}),
    )
    for group in found.groups:
        mine = [r for r in records if (r.role,) == group.of]
        known = [r.cost_usd for r in mine if r.cost_usd is not None]
        assert (group.answers, group.unpriced) == (len(mine), len(mine) - len(known))
        assert group.cost_usd == (sum(known) if known else None)
    for key in {r.key for r in records}:
        newest = max((r for r in records if r.key == key), key=lambda r: (r.created_at, r.id))
        assert show(memo, key)[0] == newest
    memo.close()


# --- one answer --------------------------------------------------------------------------------------------------


def test_everything_about_an_answer(memo: Memo) -> None:
    first, second, third = (paid("one", at=at, said=f"at {at}") for at in (1.0, 2.0, 3.0))
    folded(memo.folder, second)
    folded(memo.folder, first, third, paid("other"))
    found = show(memo, first.key)
    assert found == [third, second, first]
    shown = json.loads(json.dumps(shown_json(found)))
    assert shown["request"]["messages"] == [{"role": "user", "content": "one"}]
    assert shown["request"] == json.loads(first.question)
    assert shown["answer"]["text"] == "at 3.0"
    assert shown["answer"]["created_at"] == "1970-01-01T00:00:03Z"
    assert (shown["answer"]["asset"], shown["answer"]["label"]) == ("pairs", "example one")
    assert [a["text"] for a in shown["history"]] == ["at 2.0", "at 1.0"]


@pytest.mark.parametrize("where", ["in the database", "in a journal"])
def test_the_beginning_of_a_key_will_do(memo: Memo, where: str) -> None:
    answer = paid("one")
    if where == "in a journal":
        memo.append([answer])
    else:
        folded(memo.folder, answer)
    for digits in (6, 20, 64):
        assert show(memo, answer.key[:digits]) == [answer]
        assert show(memo, answer.key[:digits].upper()) == [answer]


def test_a_beginning_of_several_keys_is_refused(memo: Memo) -> None:
    seen: dict[str, str] = {}
    for number in itertools.count():  # some thousands are enough for two keys with the same six digits
        text = f"question {number}"
        key = paid(text).key
        if key[:6] in seen:
            break
        seen[key[:6]] = text
    one, other = paid(text), paid(seen[key[:6]])
    folded(memo.folder, one, other)
    with pytest.raises(ActError, match="several keys begin with") as error:
        show(memo, one.key[:6])
    assert one.key[:16] in str(error.value)
    assert other.key[:16] in str(error.value)
    assert show(memo, one.key) == [one]


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("abcdef0123", "no key begins with abcdef0123"),
        ("abcde", "not a key"),
        ("hello world", "not a key"),
        ("%%%%%%", "not a key"),
    ],
)
def test_a_key_that_there_is_not(memo: Memo, prefix: str, said: str) -> None:
    folded(memo.folder, paid("one"))
    with pytest.raises(ActError, match=said) as error:
        show(memo, prefix)
    assert error.value.todo
