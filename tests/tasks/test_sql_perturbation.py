"""Ambiguous twins by rule: a table of hand-written requests, and what holds for every twin."""

import re

import pytest

from act_assets.tasks.ambig_sql.perturbation import perturb
from act_assets.tasks.ambig_sql.phrases import SchemaNames, noun_phrase, stem, stems
from act_assets.tasks.ambig_sql.strategy import Strategy, strategy_of

NAMES = SchemaNames(
    tables=("kite", "balloon", "pilot", "flight"),
    columns=(
        *("kite id", "name", "length", "colour", "maker"),
        *("balloon id", "name", "length", "colour", "town"),
        *("pilot id", "name", "age", "town", "country"),
        *("flight id", "kite id", "pilot id", "wind", "day"),
    ),
)

# strategy: (request, query, the twin's request)
TWINS_OF: dict[Strategy, list[tuple[str, str, str]]] = {
    # What is wanted goes; who is meant stays, with every condition. The opening is one of several.
    "information": [
        ("What are the name and colour of each kite?", "SELECT name, colour FROM kite", "each kite."),
        ("Find the names of the kites that are longer than 2 metres.", "SELECT name FROM kite WHERE length > 2",
         "the kites that are longer than 2 metres."),
        ("How many pilots are there?", "SELECT count(*) FROM pilot", "the pilots."),
        ("Count the number of pilots.", "SELECT count(*) FROM pilot", "the pilots."),
        ("How many pilots live in Ulm?", "SELECT count(*) FROM pilot WHERE town = 'Ulm'",
         "the pilots that live in Ulm."),
        ("Which pilots come from Ulm? List their names.", "SELECT name FROM pilot WHERE town = 'Ulm'",
         "the pilots that come from Ulm."),
        ('Show the age of the pilot with name "Ara".', "SELECT age FROM pilot WHERE name = 'Ara'",
         'the pilot with name "Ara".'),
        ("What is the average length of all kites?", "SELECT avg(length) FROM kite", "all kites."),
    ],
    # Who is meant goes; what is wanted and the conditions stay, but for what would tell that kites are meant.
    "population": [
        ("How many kites are there?", "SELECT count(*) FROM kite", "How many are there?"),
        ("How many kites do we have?", "SELECT count(*) FROM kite", "How many do we have?"),
        ('How many kites have the colour "blue"?', "SELECT count(*) FROM kite WHERE colour = 'blue'",
         'How many of them have the colour "blue"?'),
        ("Count the number of balloons.", "SELECT count(*) FROM balloon", "Count all of them."),
        ("What are the names of the pilots who live in Ulm?", "SELECT name FROM pilot WHERE town = 'Ulm'",
         "What are the names of the ones that live in Ulm?"),
        ("List the kite names of all kites.", "SELECT name FROM kite", "List the names of all of them."),
        ("Which kites have the colour 'red'? List their names.", "SELECT name FROM kite WHERE colour = 'red'",
         "Which ones have the colour 'red'? List their names."),
        ("Return the colour of the longest kite.",
         "SELECT colour FROM kite WHERE length = (SELECT max(length) FROM kite)", "Return the colour."),
        ("Which pilots have no flight? List their names.",
         "SELECT name FROM pilot WHERE id NOT IN (SELECT pilot_id FROM flight)", "List their names."),
        ("List all the pilot names.", "SELECT name FROM pilot", "List all the names."),
    ],
    # How the results are presented goes; a word shows that there is an order, a grouping, a ranking.
    "presentation": [
        ("How many pilots does each country have?", "SELECT count(*), country FROM pilot GROUP BY country",
         "How many pilots are there in each group?"),
        ("What is the average age of pilots for each country?", "SELECT avg(age), country FROM pilot GROUP BY country",
         "What is the average age of pilots for each group?"),
        ("For each country, how many pilots are there?", "SELECT count(*), country FROM pilot GROUP BY country",
         "For each group, how many pilots are there?"),
        ("Show the country and the number of pilots in each country.",
         "SELECT country, count(*) FROM pilot GROUP BY country", "Show the number of pilots for each group."),
        ("Find the name of the pilot with the most flights.",
         "SELECT name FROM pilot JOIN flight GROUP BY name ORDER BY count(*) DESC LIMIT 1",
         "Find the name of the pilot that ranks first."),
        ("Which country has the most pilots?",
         "SELECT country FROM pilot GROUP BY country ORDER BY count(*) DESC LIMIT 1", "Which country ranks first?"),
        ("What are the names of the three oldest pilots?", "SELECT name FROM pilot ORDER BY age DESC LIMIT 3",
         "What are the names of the top three pilots?"),
        ("What is the most common colour of kites?",
         "SELECT colour FROM kite GROUP BY colour ORDER BY count(*) DESC LIMIT 1", "What is the top colour of kites?"),
        ("Find the top 2 pilots with the greatest number of flights.",
         "SELECT pilot FROM flight GROUP BY pilot ORDER BY count(*) DESC LIMIT 2", "Find the top 2 pilots."),
        ("List the names of all kites. Sort them by length in descending order.",
         "SELECT name FROM kite ORDER BY length", "List the names of all kites. Sort the results."),
    ],
}  # fmt: skip
TWINS = [(request, query, strategy, twin) for strategy, found in TWINS_OF.items() for request, query, twin in found]


def key(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().lower()


@pytest.mark.parametrize(("request_", "query", "strategy", "expected"), TWINS)
def test_twins(request_: str, query: str, strategy: Strategy, expected: str) -> None:
    twin = perturb(request_, query, strategy, NAMES)
    assert twin is not None
    assert (re.sub(r"^.*? about ", "", twin.request) if strategy == "information" else twin.request) == expected
    assert (strategy_of(query, "r", 0) == "presentation") == (strategy == "presentation")
    assert twin == perturb(f"  {request_.replace(' ', '  ')}", query, strategy, NAMES), "of spaces nothing depends"
    assert twin.clarifying_question.endswith("?") and key(twin.request) != key(request_)
    assert twin.request[0].isupper() and twin.request[-1] in ".?" and "  " not in twin.request


ORDERED = [
    "List the names of all kites ordered by length.",
    "List the names of all kites, sorted by length in descending order.",
    "List the names of all kites in alphabetical order.",
    "List the names of all kites from the longest to the shortest.",
]


@pytest.mark.parametrize("request_", ORDERED)
def test_an_order_that_is_masked_stays_visible(request_: str) -> None:
    twin = perturb(request_, "SELECT name FROM kite ORDER BY length", "presentation", NAMES)
    assert twin is not None
    assert re.fullmatch(
        r"List the names of all kites,? in (a particular|a certain|sorted|the right) order\.", twin.request
    )


@pytest.mark.parametrize(
    ("request_", "query", "strategy"),
    [
        # more is asked for after the population
        ("Show the name of each kite and its maker.", "SELECT name, maker FROM kite", "information"),
        ("What is the name of the kite and the name of the pilot?", "SELECT name FROM kite", "population"),
        # who asks for everything is answered by `tell me about`
        ("What is all the information about the kites?", "SELECT * FROM kite", "information"),
        # only kites have a maker, only pilots an age: there is nothing to ask
        ("What are the makers of all kites?", "SELECT maker FROM kite", "population"),
        ("What is the average age of all pilots?", "SELECT avg(age) FROM pilot", "population"),
        # only kites have a maker and a colour
        ("What are the makers and colours of all kites?", "SELECT maker, colour FROM kite", "population"),
        # a colour is a value: there is nothing else to know about it
        ("Show the colours that are on both kites and balloons.", "SELECT colour FROM kite", "information"),
        # the masked noun is there a second time
        ("Find the pilot rank names of pilot licences.", "SELECT name FROM pilot", "population"),
        # no rule is sure
        ("Who flew in the strongest wind?", "SELECT name FROM pilot", "information"),
        ("What are the names of pilots who has a kite?", "SELECT name FROM pilot", "information"),
        ("Show the the names of the kites.", "SELECT name FROM kite", "information"),
        ("Which countries have two pilots?", "SELECT country FROM pilot GROUP BY country HAVING count(*) = 2",
         "presentation"),
        ("When was the kite with the longest tail built?", "SELECT length FROM kite ORDER BY length LIMIT 1",
         "presentation"),
        # the key stays named
        ("For each country, show the country and its pilots.", "SELECT country FROM pilot GROUP BY country",
         "presentation"),
        ("Show all the names of kites in alphabetical order that Ara made.", "SELECT name FROM kite ORDER BY name",
         "presentation"),
    ],
)  # fmt: skip
def test_no_twin_where_no_rule_is_sure(request_: str, query: str, strategy: Strategy) -> None:
    assert perturb(request_, query, strategy, NAMES) is None


def test_the_population_of_a_single_table_is_never_open() -> None:
    one = SchemaNames(("kite",), ("kite id", "name"))
    assert perturb("How many kites are there?", "SELECT count(*) FROM kite", "population", one) is None


def test_a_table_or_column_called_group_or_rank_is_not_hit_by_chance() -> None:
    grouped = SchemaNames((*NAMES.tables, "group"), NAMES.columns)
    request, query = "How many pilots does each country have?", "SELECT count(*) FROM pilot GROUP BY country"
    assert perturb(request, query, "presentation", grouped) is None
    ranked = SchemaNames(NAMES.tables, (*NAMES.columns, "rank"))
    twin = perturb("Which country has the most pilots?", "SELECT country FROM pilot ORDER BY 1 LIMIT 1", "presentation", ranked)  # fmt: skip  # noqa: E501
    assert twin is not None
    assert twin.request == "Which country comes first?"


def test_a_masked_number_is_asked_for() -> None:
    query = "SELECT name FROM pilot ORDER BY age DESC LIMIT 3"
    twin = perturb("What are the names of pilots with the three highest ages?", query, "presentation", NAMES)
    assert twin is not None
    assert twin.request == "What are the names of pilots that rank first?"
    assert "how many" in twin.clarifying_question.lower()


def test_restrictions_stay_only_where_they_do_not_tell() -> None:
    def twin(request: str) -> str:
        made = perturb(request, "SELECT name FROM pilot", "population", NAMES)
        assert made is not None
        return made.request

    assert "live in Ulm" in twin("Find the names of the pilots who live in Ulm.")  # balloons have a town as well
    assert "flight" not in twin("Find the names of the pilots who took a flight.")
    assert "older" not in twin("Find the names of the pilots who are older than 30.")


def test_questions_give_nothing_away_and_vary() -> None:
    questions = set()
    for number in range(60):
        twin = perturb(f"How many kites have id {number}?", "SELECT count(*) FROM kite", "population", NAMES)
        assert twin is not None
        assert str(number) not in twin.clarifying_question
        questions.add(twin.clarifying_question)
    assert len(questions) > 4
    assert sum(q.startswith("Are you asking about the kites") for q in questions) == 1


@pytest.mark.parametrize(("query", "strategy"), [("SELECT (", "population"), ("SELECT 1", "boredom")])
def test_a_query_that_does_not_parse_or_another_strategy_is_a_value_error(query: str, strategy: str) -> None:
    with pytest.raises(ValueError, match=r"parsed|boredom"):
        perturb("How many kites are there?", query, strategy, NAMES)


@pytest.mark.parametrize(
    ("word", "expected"),
    [("Kites", "kite"), ("countries", "country"), ("addresses", "address"), ("status", "status"), ("people", "person"),
     ("matches", "match"), ("aircraft", "aircraft"), ("boss", "boss"), ("movies", "movie"), ("kite's", "kite")],
)  # fmt: skip
def test_stems(word: str, expected: str) -> None:
    assert stem(word) == expected


def test_stems_of_names() -> None:
    assert stems("Song_Title songTitles") == {"song", "title"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("all the young singers who sing", ("all the", "young", "singers", "who sing")),
        ("singers", ("", "", "singers", "")),
        ("the singer named Ara", ("the", "", "singer", "named Ara")),
        ("the singer Ara", ("the", "", "singer", "Ara")),
        ("each singer song", None),
        ("singers, songs", None),
        ("the loud", None),
    ],
)
def test_noun_phrases(text: str, expected: tuple[str, ...] | None) -> None:
    noun = noun_phrase(text, {"singer"})
    assert (noun and (noun.determiner, noun.modifiers, noun.head, noun.rest)) == expected
