"""JSON that a run, a user or a stranger wrote: read whole, within bounds, and checked before it is used."""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lumos_pl.errors import DataError, LumosError
from lumos_pl.machinery.regular_file import MOST_BYTES, read_regular


def read_bytes(file: Path, *, at_most: int = MOST_BYTES) -> bytes:
    """The content of a regular file; see `read_regular`."""
    return read_regular(file, at_most=at_most)


def read_json(
    file: Path, *, at_most: int = MOST_BYTES, error: type[LumosError] = DataError, fix: str | None = None
) -> Any:
    """The value in a JSON file, see `parse_json`.

    Args:
        error: what to raise: whose file it is decides the exit status.
        fix: what the user can do about a damaged one.
    """
    try:
        return parse_json(read_bytes(file, at_most=at_most))
    except DataError as found:
        raise error(**found.parts | {"file": file, "fix": fix}) from found


def read_object(
    file: Path, *, at_most: int = MOST_BYTES, error: type[LumosError] = DataError, fix: str | None = None
) -> dict[str, Any]:
    """The object in a JSON file, as `read_json`."""
    content = read_json(file, at_most=at_most, error=error, fix=fix)
    if not isinstance(content, dict):
        raise error("not a JSON object", file=file, got=reprlib.repr(content), fix=fix)
    return content


def parse_json(data: bytes) -> Any:
    """The value of a JSON document in UTF-8, without NaN and infinities and with each name once in its object."""
    try:
        value = _STRICT.decode(data.decode())
        _check_numbers(value, None)
        return value
    except UnicodeDecodeError as error:
        raise DataError("not UTF-8", got=f"byte {data[error.start]:#04x} at offset {error.start}") from error
    except LumosError:
        raise
    except (ValueError, RecursionError) as error:
        raise DataError("not JSON", got=error) from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DataError("listed twice", where=reprlib.repr(first_repeated(name for name, _ in pairs)))
    for name, value in pairs:
        _check_numbers(value, name)
    return found


def _check_numbers(value: Any, field: str | None) -> None:
    """Refuse what is no number of JSON, with the name of the field that it stands in."""
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, float) and not math.isfinite(item):
            raise DataError("not a finite number", where=field, got=item, expected="a number of JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_object)  # which reads NaN, Infinity and 1e999 as floats


def as_json(value: object) -> Any:
    """A value as it will be read back from a file: tuples are lists there, and paths are texts."""
    return json.loads(json.dumps(value, default=str))


def wrong(field: str, value: object, expected: object) -> DataError:
    """A field that is not what it should be; a long value is shown in part."""
    return DataError("wrong field", where=field, got=reprlib.repr(value), expected=expected)


def check_fields(value: object, names: Iterable[str]) -> dict[str, Any]:
    """`value`, which must be a JSON object with exactly these fields."""
    if not isinstance(value, dict):
        raise DataError("not a JSON object", got=reprlib.repr(value))
    for what, found in ("missing", set(names) - value.keys()), ("unknown", value.keys() - set(names)):
        if found:
            raise DataError(f"{what} field", where=min(found), expected=f"the fields {', '.join(sorted(names))}")
    return value


def integers(
    field: str, values: object, at_least: int, at_most: int | None = None, *, length: int | None = None
) -> tuple[int, ...]:
    """`values`, which must be a list of integers (no booleans) in the range, `length` of them."""
    if not isinstance(values, list):
        raise wrong(field, values, "a list of integers")
    if length not in (None, len(values)):
        raise DataError("wrong field", where=field, got=f"{len(values)} items", expected=length)
    for value in values:
        if type(value) is not int or value < at_least or (at_most is not None and value > at_most):
            raise wrong(
                field, value, f"an integer of at least {at_least}" + (f", at most {at_most}" if at_most else "")
            )
    return tuple(values)


def first_repeated(items: Iterable[Any]) -> Any | None:
    """The first item that occurred before."""
    seen = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    return None
