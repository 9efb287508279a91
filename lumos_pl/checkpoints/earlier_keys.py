"""How the keys of a configuration were spelled before, for runs, checkpoints and exports which are older than that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED = {  # a section's earlier key: today's; the longer one first
    "callbacks.sampling": "sampling",
    "callbacks.clip": "clip",
    "clips.world": "world",
    "clips": "world",
}
NOT_OF_A_TOKENIZER = ("sampling", "clip")  # which its configuration said all the same


def current_key(key: str) -> str:
    """Today's spelling of a dotted key, which most often is the same."""
    for earlier, now in RENAMED.items():
        if key == earlier or key.startswith(f"{earlier}."):
            return now + key.removeprefix(earlier)
    return key


def in_current_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration that a run wrote, in today's keys; nothing of it is judged, and what is as today stays.

    Args:
        content: plain values, of which nobody knows that they are a configuration.
    """
    found = {key: dict(value) if isinstance(value, Mapping) else value for key, value in content.items()}
    for earlier, now in RENAMED.items():
        parent, _, name = earlier.rpartition(".")
        section = found.get(parent, {}) if parent else found
        if isinstance(section, dict) and isinstance(section.get(name), Mapping):
            moved = dict(section.pop(name))
            there = found.setdefault(now, {})
            if isinstance(there, dict):
                found[now] = moved | there
    if found.get("task") == "tokenizer":
        found = {key: value for key, value in found.items() if key not in NOT_OF_A_TOKENIZER}
    return found
