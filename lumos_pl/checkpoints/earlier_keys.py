"""How the keys of a configuration were spelled before, for runs, checkpoints and exports which are older than that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {  # a section's or a value's earlier key: today's; applied one after another
    "callbacks.sampling": "sampling",
    "callbacks.clip": "clip",
    "clips.world": "world",
    "clips": "world",
    "sampling.given_frames": "sampling.given_context",
    "data.given_frames_prob": "data.given_prob",
    "data.given_frames_max": "data.given_max",
}
NOT_OF_A_TOKENIZER = ("sampling", "clip")  # which its configuration said all the same


def current_key(key: str) -> str:
    """Today's spelling of a dotted key, or of `key=value`, which most often is the same."""
    for earlier, now in RENAMED.items():
        if key == earlier or key.startswith((f"{earlier}.", f"{earlier}=")):
            key = now + key.removeprefix(earlier)
    return key


def in_current_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that a run wrote, in today's keys; nothing of it is judged, and what is as today stays.

    Args:
        content: plain values, of which nobody knows that they are a configuration.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    for earlier, now in RENAMED.items():
        (old, name), (new, today) = _place(found, earlier), _place(found, now)
        if name in old:
            moved, there = old.pop(name), new.get(today)
            if isinstance(moved, Mapping) and isinstance(there, dict | None):
                new[today] = {**moved, **(there or {})}
            else:
                new.setdefault(today, moved)
    world, name = _place(found, "world.remembered")
    if isinstance(world.get(name), float):  # a share of the clips for training, before it was how many there are beside
        del world[name]
    if found.get("task") == "tokenizer":
        found = {key: value for key, value in found.items() if key not in NOT_OF_A_TOKENIZER}
    return found


def _place(content: dict[str, Any], key: str) -> tuple[dict[str, Any], str]:
    """The section that a key stands in, an empty one where there is none, and its name there."""
    parent, _, name = key.rpartition(".")
    section = content.get(parent) if parent else content
    return section if isinstance(section, dict) else {}, name
