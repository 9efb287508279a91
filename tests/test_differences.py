"""Where two nested settings differ."""

from __future__ import annotations

import torch

from lumos_pl.settings.differences import differences


def test_every_field_that_differs_is_named_in_the_order_of_what_is_asked_for() -> None:
    made = {"a": 1, "b": {"c": [1, 2], "d": 0, "old": 3}, "same": {"x": None}}
    asked = {"b": {"d": 1, "c": [2, 1]}, "a": {"z": 1}, "same": {"x": None}, "new": 4}
    assert list(differences(made, asked)) == [
        ("b.d", 0, 1),
        ("b.c", [1, 2], [2, 1]),
        ("b.old", 3, None),
        ("a", 1, {"z": 1}),
        ("new", None, 4),
    ]
    assert not list(differences(made, made)) and not list(differences({"a": None}, {}))


def test_what_cannot_be_compared_differs() -> None:
    made, asked = {"a": torch.ones(2)}, {"a": 1}
    assert [found.where for found in differences(made, asked)] == ["a"]
