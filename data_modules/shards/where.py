"""Which samples to take: a condition on their metadata, in a small language of its own.

    score >= 5 and (source == "web" or lang in ("en", "de")) and not `Has text` and "cat" in title

Columns by name, in backquotes where a name is no plain word; numbers, texts in quotes, `true`, `false`, `none`;
`==` `!=` `<` `<=` `>` `>=`, `in` and `not in` a list, a text `in` a column of texts (a part of it); `and`, `or`, `not`
and parentheses. Nothing else is in it: no call, no arithmetic, no attribute. It is parsed here, never handed to Python.

Values are compared with their like alone: numbers, texts (case counts, `<` by code point), or true and false. Where a
sample lacks a value, a comparison with it does not hold, neither `<` nor `!=` nor `not in`; `== none` and `!= none` ask
for that itself.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn, Self

from data_modules.shards.sample import Scalar
from lumos_pl.errors import ConfigError, did_you_mean

MOST_CHARACTERS = 4096
MOST_DEPTH = 32  # of parentheses and `not`s

Row = Mapping[str, Scalar | None]
Evaluate = Callable[[Row], Any]  # of an operand or a condition

_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_WORDS = {"and", "or", "not", "in", "is"}
_VALUES: dict[str, bool | None] = {"true": True, "false": False, "none": None, "null": None}
_TOKEN = re.compile(
    r"""(?P<blank>\s+)
    | (?P<number>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?)(?![\w.])
    | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<quoted>`[^`]+`)
    | (?P<word>[^\W\d]\w*)
    | (?P<sign><=|>=|==|!=|<|>|\(|\)|\[|\]|,)""",
    re.VERBOSE | re.DOTALL,
)
_HINTS = {"=": "==", "<>": "!=", "&&": "and", "&": "and", "||": "or", "|": "or", "!": "not"}


class _Token(NamedTuple):
    kind: str  # a group of _TOKEN, "value" or "end"
    value: Any
    start: int


@dataclass(frozen=True, kw_only=True)
class Where:
    """A condition that a sample's metadata fulfil or not.

    Args:
        text: as it was written.
        name: of the flag or setting, for messages.
        columns: that it asks for, in the order of their first use.
    """

    text: str
    name: str
    columns: tuple[str, ...]
    _evaluate: Evaluate = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, name: str) -> Self:
        """The condition that a text says.

        Raises:
            ConfigError: it says none, with the character where it goes wrong; it is too long or too deep.
        """
        if len(text) > MOST_CHARACTERS:
            expected = f"at most {MOST_CHARACTERS}"
            raise ConfigError("condition too long", where=name, got=f"{len(text)} characters", expected=expected)
        parser = _Parser(text, name)
        evaluate = parser.whole()
        return cls(text=text, name=name, columns=tuple(parser.columns), _evaluate=evaluate)

    def holds(self, row: Row) -> bool:
        """Whether a sample's values, by column, fulfil it; what is not there is missing.

        Raises:
            ConfigError: values of two kinds are compared, with the column.
        """
        return bool(self._evaluate(row))

    def check_columns(self, known: Iterable[str], *, file: object = None) -> None:
        """Raise ConfigError, with the columns there are, where it asks for one that is not among them."""
        known = sorted(set(known))
        for column in self.columns:
            if column not in known:
                there = ", ".join(known[:30]) + (", ..." if len(known) > 30 else "") if known else "none at all"
                raise ConfigError(
                    "a condition on a column that is not there",
                    file=None if file is None else str(file),
                    where=self.name,
                    got=repr(column),
                    expected=f"one of the columns: {there}",
                    fix=did_you_mean(column, known),
                )


class _Parser:
    """Reads a condition from left to right, by recursive descent:

    or:          and [or and]...
    and:         not [and not]...
    not:         not not | comparison
    comparison:  operand [(== | != | < | <= | > | >=) operand]... | operand [not] in (list | column)
    operand:     value | column | ( or )
    """

    def __init__(self, text: str, name: str) -> None:
        self._name = name
        self.columns: dict[str, None] = {}
        self._tokens = list(self._split(text))
        self._place = self._depth = 0

    # -- tokens ----------------------------------------------------------------------------------

    def _split(self, text: str) -> Iterator[_Token]:
        start = 0
        while start < len(text):
            found = _TOKEN.match(text, start)
            if found is None:
                sign = next((sign for sign in _HINTS if text.startswith(sign, start)), None)
                fix = f"write {_HINTS[sign]}" if sign else "a column of another name stands in `backquotes`"
                raise self._error(start, text[start : start + 20], "a column, a value or a comparison", fix)
            kind, said = str(found.lastgroup), found[0]
            match kind:
                case "number":
                    if math.isinf(number := _number(said)):
                        raise self._error(start, said, "a finite number")
                    yield _Token("value", number, start)
                case "text":
                    yield _Token("value", re.sub(r"\\(.)", r"\1", said[1:-1], flags=re.DOTALL), start)
                case "quoted":
                    yield _Token("column", said[1:-1], start)
                case "word" if said.lower() in _WORDS:
                    yield _Token("sign", said.lower(), start)
                case "word" if said.lower() in _VALUES:
                    yield _Token("value", _VALUES[said.lower()], start)
                case "word":
                    yield _Token("column", said, start)
                case "sign":
                    yield _Token("sign", said, start)
            start = found.end()
        yield _Token("end", "the end", len(text))

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next
        self._place += token.kind != "end"
        return token

    def _takes(self, *signs: str) -> bool:
        """Take these signs, if they come next."""
        coming = self._tokens[self._place : self._place + len(signs)]
        if [(token.kind, token.value) for token in coming] != [("sign", sign) for sign in signs]:
            return False
        self._place += len(signs)
        return True

    def _error(self, start: int, got: object, expected: str, fix: str | None = None) -> ConfigError:
        where = f"{self._name}, character {start + 1}"
        return ConfigError("not a condition", where=where, got=got, expected=expected, fix=fix)

    def _refuse(self, expected: str) -> NoReturn:
        got = self._next.value if self._next.kind == "end" else repr(self._next.value)
        raise self._error(self._next.start, got, expected)

    def _deeper(self, read: Callable[[], Evaluate]) -> Evaluate:
        self._depth += 1
        if self._depth > MOST_DEPTH:
            raise ConfigError("condition too deep", where=self._name, expected=f"at most {MOST_DEPTH} parentheses")
        found = read()
        self._depth -= 1
        return found

    # -- the grammar -----------------------------------------------------------------------------

    def whole(self) -> Evaluate:
        found = self._or()
        if self._next.kind != "end":
            self._refuse("and, or, or the end")
        return self._condition(found)

    def _or(self) -> Evaluate:
        parts = [self._and()]
        while self._takes("or"):
            parts.append(self._and())
        if len(parts) == 1:
            return parts[0]
        conditions = [self._condition(part) for part in parts]
        return lambda row: any(condition(row) for condition in conditions)

    def _and(self) -> Evaluate:
        parts = [self._not()]
        while self._takes("and"):
            parts.append(self._not())
        if len(parts) == 1:
            return parts[0]
        conditions = [self._condition(part) for part in parts]
        return lambda row: all(condition(row) for condition in conditions)

    def _not(self) -> Evaluate:
        if not self._takes("not"):
            return self._comparison()
        condition = self._condition(self._deeper(self._not))
        return lambda row: not condition(row)

    def _condition(self, evaluate: Evaluate) -> Evaluate:
        """What is true or false; what is missing is false."""

        def condition(row: Row) -> bool:
            value = evaluate(row)
            if value is None or isinstance(value, bool):
                return bool(value)
            raise self._unlike(evaluate, value, "true or false, or a comparison")

        return condition

    def _comparison(self) -> Evaluate:
        left = self._operand()
        if self._takes("in"):
            return self._in(left)
        if self._takes("not", "in"):
            found = self._in(left)
            return lambda row: None if (value := found(row)) is None else not value
        parts: list[Evaluate] = []
        while True:
            if self._takes("is", "not"):
                sign = "!="
            elif self._takes("is"):
                sign = "=="
            elif self._next.kind == "sign" and self._next.value in _ORDERS:
                sign = self._take().value
            else:
                break
            right = self._operand()
            parts.append(self._compared(left, sign, right))
            left = right
        if not parts:
            return left
        return parts[0] if len(parts) == 1 else lambda row: all(part(row) for part in parts)

    def _compared(self, left: Evaluate, sign: str, right: Evaluate) -> Evaluate:
        order = _ORDERS[sign]
        if sign in ("==", "!="):
            for none, other in (left, right), (right, left):
                if getattr(none, "literal", ...) is None:
                    return lambda row: (other(row) is None) == (sign == "==")

        def compared(row: Row) -> bool:
            one, two = left(row), right(row)
            if one is None or two is None:
                return False
            kind = _kind(one)
            if kind != _kind(two) or (kind == _TRUTH and sign not in ("==", "!=")):
                column, value, beside = (right, two, one) if not hasattr(left, "column") else (left, one, two)
                raise self._unlike(column, value, f"{_kind(beside)} {sign} {_kind(beside)}, as of {beside!r}")
            return order(one, two)

        return compared

    def _in(self, left: Evaluate) -> Evaluate:
        """Whether a value is one of a list, or a text a part of a column's; None: it is missing."""
        closing = {"(": ")", "[": "]"}.get(self._next.value) if self._next.kind == "sign" else None
        if closing is None:
            return self._part_of(left, self._operand())
        self._take()
        values = [self._literal()]
        while self._takes(",") and not (self._next.kind == "sign" and self._next.value == closing):
            values.append(self._literal())
        if not self._takes(closing):
            self._refuse(f"a comma or {closing}")
        kinds = {_kind(value) for value in values if value is not None}
        members = {(_kind(value), value) for value in values if value is not None}

        def among(row: Row) -> bool | None:
            value = left(row)
            if value is None:
                return True if None in values else None
            if kinds and _kind(value) not in kinds:
                raise self._unlike(left, value, f"{' or '.join(sorted(kinds))}, as in the list")
            return (_kind(value), value) in members

        return among

    def _part_of(self, part: Evaluate, whole: Evaluate) -> Evaluate:
        def inside(row: Row) -> bool | None:
            one, two = part(row), whole(row)
            if one is None or two is None:
                return None
            for evaluate, value in (part, one), (whole, two):
                if not isinstance(value, str):
                    raise self._unlike(evaluate, value, "text in text")
            return one in two

        return inside

    def _literal(self) -> Scalar | None:
        if self._next.kind != "value":
            self._refuse("a number or a text in quotes")
        value: Scalar | None = self._take().value
        return value

    def _operand(self) -> Evaluate:
        if self._takes("("):
            found = self._deeper(self._or)
            if not self._takes(")"):
                self._refuse(")")
            return found
        if self._next.kind == "value":
            return _Literal(self._literal())
        if self._next.kind != "column":
            self._refuse("a column or a value")
        column: str = self._take().value
        if self._takes("("):
            raise self._error(
                self._tokens[self._place - 2].start, f"{column}(", "no call", "compare columns and values"
            )
        self.columns[column] = None
        return _Column(column)

    def _unlike(self, evaluate: Evaluate, value: object, expected: str) -> ConfigError:
        column = getattr(evaluate, "column", None)
        where = self._name if column is None else f"{self._name}: column {column}"
        shown = repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}..."
        fix = "compare numbers with numbers and texts, in quotes, with texts"
        return ConfigError(
            "values of two kinds compared", where=where, got=f"{_kind(value)} {shown}", expected=expected, fix=fix
        )


@dataclass(frozen=True)
class _Literal:
    literal: Scalar | None

    def __call__(self, row: Row) -> Scalar | None:
        return self.literal


@dataclass(frozen=True)
class _Column:
    column: str

    def __call__(self, row: Row) -> Scalar | None:
        return row.get(self.column)


_TRUTH = "true or false"


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return _TRUTH
    return "text" if isinstance(value, str) else "a number"


def _number(said: str) -> int | float:
    return float(said) if re.search("[.eE]", said) else int(said)
