from __future__ import annotations

from lumos_pl.seeding import derive_seed


def test_seed_and_names_are_kept_apart() -> None:
    keys: list[tuple[int, tuple[str | int, ...]]] = [
        (1, ("ab", "c")),
        (1, ("a", "bc")),
        (11, ("ab", "c")),
        (1, (1, "ab", "c")),
        (2, ("ab", "c")),
    ]
    assert len({derive_seed(seed, *names) for seed, names in keys}) == len(keys)
