"""Prices: which row holds for which model at which server, and every mistake of a price file at once."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from resources.errors import ActError
from resources.llm.prices import FREE, GEMINI_URL, OPENAI_URL, OWN_ENDPOINTS, SHIPPED, Price, PriceTable

SHIPPED_TABLE = PriceTable.load()


def own_file(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def row(**changes: object) -> str:
    values: dict[str, object] = {
        "provider": "openai", "model": "m", "input": 1, "output": 2, "as_of": "2026-01-01", "source": "a page",
        **changes,
    }  # fmt: skip
    return "- {" + ", ".join(f"{key}: {value}" for key, value in values.items() if value is not None) + "}\n"


@pytest.mark.parametrize(
    ("model", "prompt_usd", "output_usd"),
    [
        ("gemini-2.5-pro", 1.25, 10.0),
        ("gemini-2.5-flash", 0.3, 2.5),
        ("gemini-3.8-flash", 0.75, 3.75),
        ("gemini-4-argon", 2.0, 10.0),
        ("gpt-4o", 2.5, 10.0),
        ("gpt-5", 1.25, 10.0),
    ],
)
def test_the_shipped_prices(model: str, prompt_usd: float, output_usd: float) -> None:
    provider = "gemini" if model.startswith("gemini") else "openai"
    price = SHIPPED_TABLE.price(provider, OWN_ENDPOINTS[provider], model, datetime.date(2026, 11, 28))
    assert price is not None and (price.input, price.output) == (prompt_usd, output_usd)
    assert price.cost(1_000_000, 0) == pytest.approx(prompt_usd)
    assert price.cost(2_000_000, 500_000) == pytest.approx(2 * prompt_usd + output_usd / 2)
    assert price.as_of is not None and price.as_of >= datetime.date(2025, 1, 1) and price.source.startswith("https://")


def test_the_price_file_is_shipped_with_the_package() -> None:
    text = (SHIPPED.parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'resources = ["llm/*.yaml", ' in text and SHIPPED.parent.name == "llm"


@pytest.mark.parametrize(
    ("model", "prompt_usd"),
    [
        ("gpt-4o-2024-08-06", 2.5),
        ("gpt-4o-2024-05-13", 5.0),  # has a row of its own
        ("gpt-4o-mini-2024-07-18", 0.15),
        ("gpt-4o-0806", 2.5),
        ("gpt-4o-audio-preview", None),
        ("gpt-4o-2024-08-06-preview", None),
        ("gpt-5-2", None),  # another model, not a date
        ("gpt-5-", None),
        ("gpt-5.1", None),
        ("gpt-50", None),
        ("GPT-5", None),
        ("gpt", None),
        ("", None),
    ],
)
def test_a_date_after_a_listed_name_changes_nothing_and_anything_else_does(
    model: str, prompt_usd: float | None
) -> None:
    price = SHIPPED_TABLE.price("openai", OPENAI_URL, model)
    assert (price and price.input) == prompt_usd


@pytest.mark.parametrize(("model", "known"), [("gemini-2.0-flash-001", True), ("gemini-2.5-pro-preview-05-06", False)])
def test_dated_versions_of_gemini(model: str, known: bool) -> None:
    assert (SHIPPED_TABLE.price("gemini", GEMINI_URL, model) is not None) == known


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("https://api.openai.com/v1", True),
        ("https://api.openai.com/v1/", True),
        ("HTTPS://API.OpenAI.com/v1", True),
        ("https://api.openai.com", False),
        ("http://localhost:8000/v1", False),
        ("https://api.openai.com.example.org/v1", False),
        ("", False),
    ],
)
def test_shipped_prices_hold_at_the_providers_own_endpoint_only(url: str, known: bool) -> None:
    assert (SHIPPED_TABLE.price("openai", url, "gpt-4o") is not None) == known


def test_the_price_of_one_provider_is_not_that_of_another() -> None:
    assert SHIPPED_TABLE.price("gemini", OPENAI_URL, "gpt-4o") is None
    assert SHIPPED_TABLE.price("openai", GEMINI_URL, "gemini-2.5-pro") is None


@pytest.mark.parametrize(
    ("day", "argon", "flash"),
    [("2026-11-30", 2.0, 0.75), ("2026-12-01", 4.0, 0.75), ("2026-12-31", 4.0, 0.75), ("2027-01-01", 4.0, 1.5)],
)
def test_a_price_holds_from_its_day_on(day: str, argon: float, flash: float) -> None:
    on = datetime.date.fromisoformat(day)
    found = [SHIPPED_TABLE.price("gemini", GEMINI_URL, model, on) for model in ("gemini-4-argon", "gemini-3.8-flash")]
    assert [price.input for price in found if price] == [argon, flash]


def test_cached_tokens_have_a_price_of_their_own() -> None:
    assert Price(2.0, 10.0, cached_input=0.5).cost(1_000_000, 0, 400_000) == pytest.approx(1.2 + 0.2)
    assert Price(2.0, 10.0).cost(1_000_000, 0, 400_000) == pytest.approx(2.0), (
        "where none is stated, they cost as others"
    )
    assert Price(2.0, 10.0, cached_input=0.0).cost(100, 0, 10**9) == 0.0


def test_the_embedded_provider_is_free() -> None:
    assert SHIPPED_TABLE.price("embedded", "", "anything") == FREE
    assert FREE.cost(10**9, 10**9) == 0


def test_rows_of_your_own_win_and_hold_where_they_say(tmp_path: Path) -> None:
    path = own_file(
        tmp_path,
        row(model="gpt-4o", input=7, output=8.5)
        + row(model="gpt-4o", base_url="http://localhost:8000/v1/", input=0, output=0)
        + row(provider="vllm", base_url="http://host/v1"),
    )
    table = PriceTable.load(path)
    today = datetime.date(2026, 1, 1)
    assert table.price("openai", OPENAI_URL, "gpt-4o") == Price(7, 8.5, today, "a page")
    assert table.price("openai", OPENAI_URL, "gpt-4o-2024-08-06") == Price(7, 8.5, today, "a page")
    assert table.price("openai", "http://localhost:8000/v1", "gpt-4o") == Price(0, 0, today, "a page")
    assert table.price("vllm", "http://host/v1", "m-20260101") == Price(1, 2, today, "a page")
    assert table.price("openai", OPENAI_URL, "gpt-5") == SHIPPED_TABLE.price("openai", OPENAI_URL, "gpt-5")
    assert SHIPPED_TABLE.price("openai", OPENAI_URL, "gpt-4o") != table.price("openai", OPENAI_URL, "gpt-4o")


def test_all_mistakes_of_a_file_are_told_at_once(tmp_path: Path) -> None:
    path = own_file(
        tmp_path,
        row(provider="vllm", input=-1, output="true")
        + row(provider="embedded", cached=1, input="'1'", output=".inf")
        + "- 7\n"
        + row(model=None, source=None, base_url="localhost")
        + row()
        + row(base_url=OPENAI_URL + "/"),
    )
    with pytest.raises(ActError) as error:
        PriceTable.load(path)
    assert error.value.where == str(path) and "fix" in error.value.todo
    headline, *mistakes = error.value.what.splitlines()
    assert headline == "the price file has 12 mistakes:"
    expected = [
        ("row 1 (vllm m): input", "greater than or equal to 0 (given: -1)"),
        ("row 1 (vllm m): output", "valid number (given: True)"),
        ("row 1 (vllm m): base_url", "only gemini and openai have an endpoint of their own"),
        ("row 2 (embedded m): provider", "costs nothing"),
        ("row 2 (embedded m): input", "valid number (given: '1')"),
        ("row 2 (embedded m): output", "finite"),
        ("row 2 (embedded m): cached", "unknown key"),
        ("row 3", "not a row"),
        ("row 4 (openai ?): model", "missing"),
        ("row 4 (openai ?): source", "missing"),
        ("row 4 (openai ?): base_url", "a URL like"),
        ("row 6 (openai m)", "there is a row for this provider, base_url and model before"),
    ]
    assert len(mistakes) == len(expected)
    for mistake, (where, what) in zip(mistakes, expected, strict=True):
        assert mistake.startswith(f"  - {where}: ") and what in mistake


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "no list of prices"),
        ("prices: []", "no list of prices"),
        ("- {provider: openai", "not valid YAML"),
        (row(as_of="2026-13-45"), "not valid YAML"),
        (row(as_of="yesterday"), "as_of"),
        ("- {1: 2}\n", "1: keys should be strings"),
    ],
)
def test_files_that_are_no_price_files(tmp_path: Path, text: str, what: str) -> None:
    path = own_file(tmp_path, text)
    with pytest.raises(ActError) as error:
        PriceTable.load(path)
    assert what in error.value.what
    assert error.value.where == str(path) and error.value.todo


def test_a_price_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(ActError, match="cannot be read") as error:
        PriceTable.load(tmp_path / "none.yaml")
    assert "ACT_PRICES" in error.value.todo
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ActError, match="not valid YAML"):
        PriceTable.load(tmp_path / "bytes.yaml")
