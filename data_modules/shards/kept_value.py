"""What is kept as metadata of a value in somebody's list."""

from __future__ import annotations

import json
import math
import re
from datetime import date, time
from decimal import Decimal

from data_modules.shards.sample import Scalar

MOST_VALUE_BYTES = 4096  # of a text: what is longer is no property of a sample to choose by
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,17})(?:\.[0-9]+)?(?:[eE][+-]?[0-9]{1,2})?")  # as JSON writes one
_TRUTH = {"true": True, "false": False}


def kept_value(value: object, *, of_table: bool) -> Scalar | None:
    """What is kept of a value in a list; None: nothing.

    Numbers, texts, true and false stay what they are, lists and objects become their JSON, dates and times their ISO
    form. Nothing is kept of NaN, of bytes, and of a text of more than `MOST_VALUE_BYTES`.

    Args:
        of_table: it is a text of a CSV, where a number, without zeros before it, stands for one, and true and false, in
            any capitals, for themselves; an empty one is missing.
    """
    if isinstance(value, str) and of_table:
        value = value.strip()
        if _NUMBER.fullmatch(value):
            return float(value) if re.search("[.eE]", value) else int(value)
        value = _TRUTH.get(value.lower(), value or None)
    if isinstance(value, list | dict):
        value = json.dumps(value, ensure_ascii=False, default=str)
    elif isinstance(value, date | time):
        value = value.isoformat()
    elif isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, str):
        return value if len(value.encode(errors="replace")) <= MOST_VALUE_BYTES else None
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, bool | int) else None
