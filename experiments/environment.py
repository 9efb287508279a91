"""What launchers say of this process in its environment, looked at first, and left as it was."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from lumos_pl.errors import ConfigError

RANKS = {  # in the order in which they are believed, with the number of those that there are
    "RANK": "WORLD_SIZE",
    "LOCAL_RANK": "WORLD_SIZE",
    "SLURM_PROCID": "SLURM_NTASKS",
    "JSM_NAMESPACE_RANK": "JSM_NAMESPACE_SIZE",
}
NUMBERS = *RANKS, *RANKS.values(), "NODE_RANK", "GROUP_RANK", "SLURM_LOCALID"


def check_environment() -> None:
    """Raise ConfigError for a rank that is no number, has no world, or is outside of it."""
    numbers = {name: number(name) for name in NUMBERS if name in os.environ}
    name = next((name for name in RANKS if name in numbers), "RANK")
    size = RANKS[name]
    world = numbers.get(size, numbers.get("SLURM_NTASKS"))
    if (rank := numbers.get(name, 0)) >= (world or 1):
        raise _wrong(name, rank, f"less than {size}, which is {'not set' if world is None else world}")
    if {"RANK", "LOCAL_RANK"} & numbers.keys() and "MASTER_PORT" in os.environ:
        port = number("MASTER_PORT")
        if not 0 < port < 1 << 16:
            raise _wrong("MASTER_PORT", port, "1 to 65535")


@contextmanager
def restored_environment() -> Iterator[None]:
    """What work in this process sets, its ranks' address or its run's name, is not for what is begun after it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def number(name: str) -> int:
    """The whole number that a variable holds, which a launcher must have set.

    Raises:
        ConfigError: it is not set, or holds something else.
    """
    value = os.environ.get(name, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise _wrong(name, repr(value), "a whole number")
    return int(value)


def _wrong(name: str, got: object, expected: str) -> ConfigError:
    fix = "unset it, unless a launcher started this process"
    return ConfigError("wrong environment variable", where=name, got=got, expected=expected, fix=fix)
