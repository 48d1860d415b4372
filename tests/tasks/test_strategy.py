"""Strategies, the facts of a query, and reading a model's twin, on hand-written queries and texts."""

from collections import Counter

import pytest

from act_assets.tasks.ambig_sql.strategy import Perturbed, query_facts, read_perturbation, strategy_of


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name FROM kite ORDER BY length",
        "SELECT count(*) , maker FROM kite GROUP BY maker",
        "SELECT name FROM kite LIMIT 3",
        "SELECT name FROM kite WHERE length > = 3 ORDER BY length DESC LIMIT 1",
        "SELECT maker FROM kite GROUP BY maker HAVING count(*) ! = 2",
        "SELECT name FROM kite UNION SELECT name FROM balloon ORDER BY name",
    ],
)
def test_an_outermost_select_that_orders_groups_or_limits_is_presentation(query: str) -> None:
    assert {strategy_of(query, f"r{i}", 0) for i in range(10)} == {"presentation"}


@pytest.mark.parametrize(
    "query",
    [
        "SELECT name FROM kite",
        "SELECT name FROM kite WHERE length = (SELECT length FROM kite ORDER BY length LIMIT 1)",
        "SELECT count(*) FROM (SELECT maker FROM kite GROUP BY maker)",
        "SELECT maker FROM kite GROUP BY maker INTERSECT SELECT maker FROM balloon GROUP BY maker",
        "SELECT name FROM kite WHERE id IN (SELECT kite_id FROM flight GROUP BY kite_id HAVING count(*) > 1)",
    ],
)
def test_clauses_of_nested_queries_do_not_count(query: str) -> None:
    assert {strategy_of(query, f"r{i}", 0) for i in range(40)} == {"information", "population"}


def test_the_draw_depends_on_seed_and_request_alone_and_is_even() -> None:
    def strategies(seed: int) -> list[str]:
        return [strategy_of("SELECT name FROM kite", f"r{i}", seed) for i in range(200)]

    assert strategies(1) == strategies(1)
    assert strategies(1) != strategies(2)
    assert 70 < Counter(strategies(1))["population"] < 130


@pytest.mark.parametrize(
    "query", ["SELEC name FRM kite", "SELECT (", "", "SELECT name FROM kite WHERE 'x", "DROP TABLE kite"]
)
def test_what_is_no_query_is_a_value_error(query: str) -> None:
    with pytest.raises(ValueError, match="the query") as caught:
        strategy_of(query, "r1", 0)
    assert "\x1b" not in str(caught.value)


def test_facts() -> None:
    facts = query_facts(
        "SELECT T1.name , avg(T2.wind) FROM kite AS T1 JOIN flight AS T2 ON T1.id = T2.kite_id "
        "WHERE T2.day > = '2020-01-01' GROUP BY T1.name ORDER BY avg(T2.wind) DESC LIMIT 3"
    )
    assert facts.selected == ("name", "wind")
    assert facts.tables == ("kite", "flight")
    assert {("kite", "name"), ("flight", "wind"), ("flight", "day")} <= set(facts.columns)
    assert (facts.aggregates, facts.ordered, facts.grouped, facts.limit) == (True, True, True, 3)


def test_facts_of_a_plain_query_and_of_a_set_operation() -> None:
    plain = query_facts("SELECT name FROM kite WHERE maker IN (SELECT id FROM maker WHERE town = 'Ulm')")
    assert not (plain.presents or plain.aggregates)
    assert set(plain.columns) == {("kite", "name"), ("kite", "maker"), ("maker", "id"), ("maker", "town")}
    assert query_facts("SELECT name FROM kite EXCEPT SELECT name FROM balloon").tables == ("kite",)


TWIN = Perturbed("Tell me about the kites.", "What would you like to know?")


@pytest.mark.parametrize(
    "text",
    [
        "Ambiguous request: Tell me about the kites.\nClarifying question: What would you like to know?",
        '\n- Ambiguous request: "Tell me about the kites."\n\n- Clarifying question: “What would you like to know?”\n',
        "**Ambiguous request:** Tell me about the kites.\n**Clarifying question:** What would you like to know?",
        "**Ambiguous Request**: Tell me  about the kites.\n* clarifying question : `What would you like to know?`",
        "Sure!\nAmbiguous request: **Tell me about the kites.**\nClarifying question: What would you like to know?",
    ],
)
def test_a_reply_is_read(text: str) -> None:
    assert read_perturbation(text) == TWIN


def test_quotes_inside_stay() -> None:
    read = read_perturbation('Ambiguous request: "Ara" and "Bo"\nClarifying question: Do you mean "Ara"?')
    assert read == Perturbed('"Ara" and "Bo"', 'Do you mean "Ara"?')


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tell me about the kites.\nWhat would you like to know?",
        "Ambiguous request: Tell me about the kites.",
        "Clarifying question: What would you like to know?",
        "Ambiguous request:\nClarifying question: What would you like to know?",
        'Ambiguous request: ""\nClarifying question: What would you like to know?',
        "Ambiguous request: Tell me about the kites.\nClarifying question:",
        "Ambiguous request: Tell me about the kites.\nClarifying question: ?",
        "Ambiguous request: Tell me about the kites.\nClarifying question: Say what you would like to know.",
        "Ambiguous request: One.\nAmbiguous request: Two.\nClarifying question: Which?",
    ],
)
def test_what_is_no_twin_is_not_read(text: str) -> None:
    assert read_perturbation(text) is None
