"""Damage to bytes, as disks, networks and careless hands do it, and to what texts say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, cast

RAW = "@raw@"  # stands in a JSON or YAML text for what no library would write
DEEP = "[" * 50_000
NO_VALUES = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 5000,
    DEEP,
    '"\\ud800"',
    "",
    "'",
    "{,}",
    "\0",
    '{"a": 1, "a": 2}',
)


def mutate(data: bytes, draw: random.Random) -> tuple[bytes, str]:
    """Other bytes than `data` (which has at least two), and what was done to them."""
    while True:
        kind = draw.choice(
            ["flip a bit", "set bytes", "zero a block", "cut", "remove a block", "double a block", "grow"]
        )
        start = draw.randrange(len(data))
        length = min(draw.choice([1, 16, 512, 4096]), len(data) - start)
        end = start + length
        match kind:
            case "flip a bit":
                changed = data[:start] + bytes([data[start] ^ 1 << draw.randrange(8)]) + data[start + 1 :]
            case "set bytes":
                changed = data[:start] + draw.randbytes(length) + data[end:]
            case "zero a block":
                changed = data[:start] + bytes(length) + data[end:]
            case "cut":
                changed = data[:start]
            case "remove a block":
                changed = data[:start] + data[end:]
            case "double a block":
                changed = data[:end] + data[start:]
            case _:
                changed = data + draw.randbytes(length)
        if changed != data:
            return changed, f"{kind} at {start}, {length} bytes"


def _fields(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where every value stands, of dicts the fields and of lists the first two."""
    items: list[tuple[str | int, Any]] = []
    match value:
        case dict():
            items = list(value.items())
        case list():
            items = list(enumerate(value[:2]))
    for key, item in items:
        yield (*place, key)
        yield from _fields(item, (*place, key))


def _other_type(value: Any, draw: random.Random) -> Any:
    samples = [None, True, 7, 0.25, "text", [7], ["text"], {"a": 1}, [], {}]
    numbers = (int, float)
    return draw.choice(
        [s for s in samples if type(s) is not type(value) and not (type(s) in numbers and type(value) in numbers)]
    )


def change_text(
    text: str, draw: random.Random, dump: Callable[[Any], str], load: Callable[[str], Any]
) -> tuple[str, str, str]:
    """Another text, the dotted field that was changed, and how."""
    value = load(text)
    place = draw.choice(list(_fields(value)))
    outer, last = place[:-1], cast(Any, place[-1])
    around: Any = value
    for key in outer:
        around = around[key]
    kind = draw.choice(["another type", "another type", "another type", "missing", "unknown", "no value"])
    raw = draw.choice(NO_VALUES)
    match kind:
        case "another type":
            around[last] = _other_type(around[last], draw)
            kind = f"{around[last]!r}"
        case "missing":
            del around[last]
        case "unknown":
            if isinstance(around, list) and isinstance(last, int):
                around[last] = RAW
            else:
                around["unheard_of"] = 1
                place = (*outer, "unheard_of")
        case _:
            around[last] = RAW
            kind = raw[:20]
    changed = dump(value).replace(f'"{RAW}"', raw).replace(RAW, raw)
    return changed, ".".join(map(str, place)), kind
