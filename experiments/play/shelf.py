"""What the server keeps for a while, in memory: the newest, by names that nobody guesses."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

from lumos_pl.errors import DataError

Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """Holds so many items and bytes at most; the oldest go first. Any thread may use it.

    Args:
        what: one item, in words.
    """

    def __init__(self, what: str, *, most: int, most_bytes: int) -> None:
        self._what, self._most, self._most_bytes = what, most, most_bytes
        self._items: OrderedDict[str, tuple[Item, int]] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, item: Item, n_bytes: int) -> str:
        """Keep it; returns its id."""
        name = secrets.token_urlsafe(18)
        with self._lock:
            self._items[name] = item, n_bytes
            while len(self._items) > self._most or (self._held() > self._most_bytes and len(self._items) > 1):
                self._items.popitem(last=False)
        return name

    def _held(self) -> int:
        return sum(n_bytes for _, n_bytes in self._items.values())

    def get(self, name: str) -> Item:
        """
        Raises:
            DataError: there is none of this name, or no longer.
        """
        with self._lock:
            found = self._items.get(name)
        if found is None:
            expected = f"one of the newest {self._most}"
            raise DataError(f"this {self._what} is not kept, or no longer", expected=expected, fix="make it again")
        return found[0]

    def __len__(self) -> int:
        return len(self._items)
