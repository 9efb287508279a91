"""Random generators derived from names, so that no random state ever needs saving.

Every draw of a run is keyed by its purpose, e.g. (seed, "ar_df", appearance), where an appearance names one
time that a sample is trained on. So a resumed run, or one with another number of workers or another batch
composition, draws the same numbers.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed that depends on every argument."""
    text = "\0".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    """A CPU generator for one purpose, e.g. `generator(seed, "ar_df", appearance)`."""
    return torch.Generator().manual_seed(derive_seed(seed, *names))
