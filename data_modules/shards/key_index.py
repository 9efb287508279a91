"""Which keys there were, of any number of samples: the latest by name, all others by digest in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

IN_MEMORY = 1 << 18  # keys, which take 40 MB
_HALVES = np.dtype([("high", "<u8"), ("low", "<u8")])


class KeyIndex:
    """Tells of a key whether it was there before, and where. Two keys are the same where 128 bits of their digests are.

    Args:
        file: opens a new file to write to and read from, once there are more keys than are kept in memory.
        in_memory: how many these are.
    """

    def __init__(self, file: Callable[[], BinaryIO], *, in_memory: int = IN_MEMORY) -> None:
        self._open, self._in_memory = file, in_memory
        self._file: BinaryIO | None = None
        self.recent: dict[str, int] = {}
        self._runs: list[tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint32]]] = []

    def find(self, keys: Sequence[str]) -> list[int | None]:
        """For each key the number that it was added with; None: it was not."""
        found = [self.recent.get(key) for key in keys]
        digests = _digests(keys) if self._runs else None
        for high, low, numbers in self._runs:
            assert digests is not None
            places = np.searchsorted(high, digests["high"])
            for which in np.flatnonzero(high[np.minimum(places, len(high) - 1)] == digests["high"]).tolist():
                place = int(places[which])
                while place < len(high) and high[place] == digests["high"][which]:
                    if low[place] == digests["low"][which]:
                        found[which] = int(numbers[place])
                    place += 1
        return found

    def add(self, keys: Sequence[str], number: int) -> None:
        """Note keys that were not there before.

        Args:
            number: what they are found with, below 2^32.
        """
        self.recent.update(dict.fromkeys(keys, number))
        if len(self.recent) >= self._in_memory:
            self._put_away()

    def close(self) -> None:
        self._runs.clear()
        if self._file is not None:
            self._file.close()

    def _put_away(self) -> None:
        digests = _digests(list(self.recent))
        order = np.argsort(digests["high"])
        numbers = np.fromiter(self.recent.values(), np.uint32, len(self.recent))[order]
        self._file = self._file or self._open()
        high, low, which = (self._mapped(part) for part in (digests["high"][order], digests["low"][order], numbers))
        self._runs.append((high, low, which))
        self.recent.clear()

    def _mapped(self, values: NDArray[Any]) -> NDArray[Any]:
        """The same numbers in the file, which the system holds in memory as long as it has room."""
        assert self._file is not None
        start = self._file.seek(0, 2)
        self._file.write(values.tobytes())
        self._file.flush()
        return np.memmap(self._file, values.dtype, mode="r", offset=start, shape=values.shape)


def _digests(keys: Sequence[str]) -> NDArray[np.void]:
    """Of each key, 128 bits in two halves."""
    content = b"".join(hashlib.blake2b(key.encode(), digest_size=_HALVES.itemsize).digest() for key in keys)
    return np.frombuffer(content, _HALVES)
