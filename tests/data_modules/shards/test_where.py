"""Conditions on samples: what they hold for, what is no condition, and what they can never do."""

from __future__ import annotations

import random

import pytest

from data_modules.shards.where import MOST_CHARACTERS, MOST_DEPTH, Where
from lumos_pl.errors import ConfigError
from tests.refusals import refused

ROW = {"score": 5.5, "lang": "en", "ok": True, "title": "a cat", "n": 3, "Has text": False, "none_here": None}


def holds(text: str) -> bool:
    return Where.parse(text, "data.where").holds(ROW)


@pytest.mark.parametrize(
    "text",
    [
        "score > 5",
        "score>=5.5 and n<4",
        "5 <= score < 6",
        'lang == "en"',
        "lang != 'de'",
        "lang in ('de', 'en')",
        'lang not in ["de", "fr",]',
        '"cat" in title',
        "'dog' not in title",
        "ok and not `Has text`",
        "`Has text` == false",
        "score < 5 or n == 3",
        "not score < 5 and n == 3",
        "not (score < 5 and n == 4)",
        "n == 3.0 and n == +3 and -1e2 < n",
        "OK == none or Ok is null",  # columns have capitals, words of the language need not
        "n IS NOT NONE AND ok",
        r"'it\'s' != title",
        "title < 'b'",
    ],
)
def test_what_holds(text: str) -> None:
    assert holds(text)
    assert not holds(f"not ({text})")


@pytest.mark.parametrize("column", ["absent", "none_here"])
def test_what_is_missing_fulfils_no_comparison_but_the_one_with_none(column: str) -> None:
    for comparison in "== 1", "!= 1", "< 1", ">= 1", "in (1, 2)", "not in (1, 2)", "== 'x'", "!= n":
        assert not holds(f"{column} {comparison}"), comparison
        assert holds(f"not {column} {comparison}"), comparison
    assert not holds(column) and not holds(f"'x' in {column}") and not holds(f"'x' not in {column}")
    assert holds(f"{column} == none") and holds(f"none is {column}") and not holds(f"{column} != none")
    assert holds("n != none") and not holds("n is none")
    assert holds(f"{column} in (none, 1)") and not holds(f"{column} not in (none, 1)")


@pytest.mark.parametrize(
    ("text", "column", "got"),
    [
        ("score < '5'", "score", "a number 5.5"),
        ("lang > 3", "lang", "text 'en'"),
        ("3 == lang", "lang", "text 'en'"),
        ("n == ok", "n", "a number 3"),
        ("ok < true", "ok", "true or false True"),
        ("n in ('a', 'b')", "n", "a number 3"),
        ("score", "score", "a number 5.5"),
        ("title and ok", "title", "text 'a cat'"),
        ("not n", "n", "a number 3"),
        ("n in title", "n", "a number 3"),
        ("'a' in n", "n", "a number 3"),
    ],
)
def test_values_of_two_kinds_are_never_compared(text: str, column: str, got: str) -> None:
    with refused(ConfigError, where=f"data.where: column {column}", got=got):
        holds(text)


@pytest.mark.parametrize(
    ("text", "character"),
    [
        ("", 1),
        ("score >", 8),
        ("score > 5 5", 11),
        ("(score > 5", 11),
        ("score > 5)", 10),
        ("lang = 'en'", 6),
        ("lang == 'en", 9),
        ("score > 5 && ok", 11),
        ("n in ()", 7),
        ("n in (1, ok)", 10),
        ("n in (1", 8),
        ("not", 4),
        ("score == 1e999", 10),
        ("score == 1_000", 10),
        ("`` == 1", 1),
        ("title.upper() == 'A'", 6),
        ("title[0] == 'a'", 6),
        ("len(title) > 3", 1),
        ("__import__('os')", 1),
        ("__import__('os').system('x')", 17),
        ("n == 9**9**9", 7),
        ("n + 1 == 4", 3),
        ("lambda: 0", 7),
        ("n if ok else 0", 3),
        ("{'a': 1}", 1),
        ("f'{n}' == '3'", 2),
        ("n := 3", 3),
        ("n; ok", 2),
        ("n == 3 # and", 8),
        ("n == 0x10", 6),
        ("n in (1, 3) == ok", 13),
    ],
)
def test_what_is_no_condition_is_told_by_its_character(text: str, character: int) -> None:
    with refused(ConfigError, where=f"data.where, character {character}"):
        holds(text)


def test_length_and_depth_have_bounds() -> None:
    assert holds("(" * MOST_DEPTH + "ok" + ")" * MOST_DEPTH)
    for text in "(" * 4000, "not " * 1000 + "ok", "(" * (MOST_DEPTH + 1) + "ok" + ")" * (MOST_DEPTH + 1):
        with refused(ConfigError, where="data.where"):
            holds(text)
    with refused(ConfigError, where="data.where", got=f"{MOST_CHARACTERS + 1} characters"):
        holds("x" * (MOST_CHARACTERS + 1))
    assert holds(" or ".join(["n == 3"] * 400))


def test_columns_are_known_and_one_that_is_not_there_is_told_with_those_that_are() -> None:
    where = Where.parse("score > 1 and (lang in ('a',) or `Has text`) and score < 9", "--where")
    assert where.columns == ("score", "lang", "Has text")
    where.check_columns(["lang", "Has text", "score", "more"])
    with refused(
        ConfigError, where="--where", got="'score'", expected="one of the columns: Score, lang", file="x"
    ) as caught:
        where.check_columns(["lang", "Score"], file="x")
    assert caught.value.fix is not None and "Score" in caught.value.fix


def test_it_says_what_python_says_of_the_same_words() -> None:
    """Where nothing is missing and all is compared with its like, the language is a part of Python's."""
    draws = random.Random(5)

    def condition(depth: int) -> str:
        if depth == 0 or draws.random() < 0.2:
            number, text = (
                draws.choice(["score", "n", "3", "5.5", "-1"]),
                draws.choice(["lang", "title", "'en'", '"z"']),
            )
            sign = draws.choice(["==", "!=", "<", "<=", ">", ">="])
            return draws.choice(
                [
                    f"{number} {sign} {draws.choice(['n', 'score', '4'])}",
                    f"{text} {sign} {draws.choice(['lang', 'title'])}",
                    f"n {sign} score {sign} 7",
                    f"lang {draws.choice(['in', 'not in'])} ('en', 'de')",
                    f"'a' {draws.choice(['in', 'not in'])} title",
                    "ok",
                ]
            )
        parts = [condition(depth - 1) for _ in range(draws.randint(2, 3))]
        joined = f" {draws.choice(['and', 'or'])} ".join(parts)
        return draws.choice([joined, f"({joined})", f"not ({joined})", f"not {parts[0]}"])

    names = {name: value for name, value in ROW.items() if name.isidentifier()}
    for _ in range(500):
        text = condition(3)
        assert holds(text) == bool(eval(text, {}, names)), text
