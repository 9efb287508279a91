"""JSON that a run, a user or a stranger wrote: read whole, within bounds, and checked before it is used.

What a file holds is said once, as a type: a TypedDict or a frozen dataclass beside the code that writes the file, or a
plain `dict[str, Any]`. Reading gives values of that type and of nothing else: no text stands for a number, no field is
missing, and none is there that the type does not know.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import from_json

from lumos_pl.errors import DataError, LumosError
from lumos_pl.machinery.regular_file import MOST_BYTES, read_regular

HALF = re.compile("[\ud800-\udfff]")  # of a pair that JSON may spell alone

_INFINITE = frozenset((math.inf, -math.inf))  # as 1e999 is read

Number = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Kind = TypeVar("Kind")


def read_json(
    file: Path,
    kind: type[Kind],
    *,
    at_most: int = MOST_BYTES,
    error: type[LumosError] = DataError,
    fix: str | None = None,
) -> Kind:
    """What a JSON file holds, see `parse_json`.

    Args:
        error: what to raise: whose file it is decides the exit status.
        fix: what the user can do about a damaged one.
    """
    try:
        return parse_json(read_regular(file, at_most=at_most), kind)
    except DataError as found:
        raise error(**found.parts | {"file": file, "fix": fix}) from found


def parse_json(data: bytes, kind: type[Kind]) -> Kind:
    """The value of a JSON document in UTF-8, of the type `kind`.

    Raises:
        DataError: it is no JSON, says NaN, an infinity or a name twice, or is of another type: the first such field.
    """
    content = None
    try:
        _check_scalars(content := _STRICT.decode(data.decode()), None)
        value: Kind = _adapter(kind).validate_json(data, strict=True)  # type: ignore[arg-type]  # a type has a hash
        return value
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8", got=f"byte {data[error.start]:#04x} at offset {error.start}") from error
    except ValidationError as error:
        raise first_problem(error, content) from error
    except LumosError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", got=error) from error


def parse_object(data: bytes) -> dict[str, object]:
    """As `parse_json` of an object, in a sixth of the time for one of plain values: a line of ten million, for one.

    An object whose text has as many colons as names has each name once, and no object inside it.
    """
    try:
        found = from_json(data, allow_inf_nan=False)
    except ValueError:
        found = None  # what is wrong with it is said below
    plain = isinstance(found, dict) and data.count(b":") == len(found) and b"[" not in data
    if plain and _INFINITE.isdisjoint(found.values()):
        return found  # type: ignore[no-any-return]
    return parse_json(data, dict[str, object])


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def first_problem(error: ValidationError, content: Any) -> DataError:
    """The line for what does not fit; where a type's own check refused it, that check's words."""
    found = error.errors(include_url=False)[0]
    where = _dotted(found["loc"], content)
    said = found.get("ctx", {}).get("error")
    if isinstance(said, LumosError):
        place = ": ".join(filter(None, (where, said.where))) or None
        return DataError(**said.parts | {"where": place})
    match found["type"]:
        case "json_invalid":
            return DataError("not JSON", got=found["msg"].removeprefix("Invalid JSON: "))
        case "missing":
            return DataError("missing field", where=where)
        case "extra_forbidden" | "unexpected_keyword_argument":
            return DataError("unknown field", where=where)
        case "too_short" | "too_long":
            limits = found["ctx"]
            expected = (
                f"at least {limits['min_length']}" if "min_length" in limits else f"at most {limits['max_length']}"
            )
            return DataError("wrong field", where=where, got=f"{limits['actual_length']} items", expected=expected)
        case "string_too_long" | "string_too_short":
            got, expected = f"{len(found['input'])} characters", found["msg"].removeprefix("String should have ")
            return DataError("wrong field", where=where, got=got, expected=expected)
        case "string_pattern_mismatch":
            expected = f"text like {found['ctx']['pattern']}"
            return DataError("wrong field", where=where, got=reprlib.repr(found["input"]), expected=expected)
    expected = found["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if not where:  # nothing is quoted of what is another kind of file altogether: it may be somebody else's
        return DataError("wrong content", got=type(found["input"]).__name__, expected=expected)
    return DataError("wrong field", where=where, got=reprlib.repr(found["input"]), expected=expected)


def _dotted(place: tuple[int | str, ...], content: Any) -> str | None:
    """Where a value stands in its document: `shards[3].file`; which of several types was tried is left out."""
    text = ""
    for number, part in enumerate(place, start=1):
        match content:
            case list() if isinstance(part, int):
                content, text = content[part], f"{text}[{part}]"
            case dict() if part in content or (number == len(place) and not str(part).startswith("[")):  # missing
                content, text = content.get(part), f"{text}.{str(part)[:100]}"
    return text.removeprefix(".") or None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataError("listed twice", where=reprlib.repr(first_repeated(name for name, _ in pairs)))
    for name, value in pairs:
        _check_scalars(value, name)
    return found


def _check_scalars(value: Any, field: str | None) -> None:
    """Refuse what is no number or no text of JSON, with the name of the field that it stands in."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise DataError("not a finite number", where=field, got=item, expected="a number of JSON")
        if isinstance(item, str) and not item.isascii() and HALF.search(item):
            raise DataError("half a character", where=field, got=ascii(item)[:100], expected="what UTF-8 can encode")


_STRICT = json.JSONDecoder(object_pairs_hook=_object)  # which reads NaN, Infinity and 1e999 as floats


def as_json(value: object) -> Any:
    """A value as it will be read back from a file: tuples are lists there, and paths are texts."""
    return json.loads(json.dumps(value, default=str))


def wrong(field: str, value: object, expected: object) -> DataError:
    """A field that is not what it should be; a long value is shown in part."""
    return DataError("wrong field", where=field, got=reprlib.repr(value), expected=expected)


def first_repeated(items: Iterable[Any]) -> Any | None:
    """The first item that occurred before."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None
