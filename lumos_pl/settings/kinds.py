"""Parts that a configuration names by a word: each kind of them is a plain dict by name, to which anybody may add.

    MASK_KINDS["checkerboard"] = checkerboard      in a notebook
    mask: {kind: own_masks.checkerboard}           in a YAML: an attribute of own_masks.py beside it

A dotted word is imported only where the user's own YAML or command line says it, see experiments/own_parts.py; anywhere
else it is looked up among what is registered already.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lumos_pl.errors import ConfigError, did_you_mean

REGISTRY = "registry"  # in a field's metadata: the registry that its words are of


def kind_field(default: str, known: Mapping[str, object]) -> Any:
    """A dataclass field that holds a word of a registry."""
    return field(default=default, metadata={REGISTRY: known})


def check_kind(kind: object, known: Mapping[str, object], where: str) -> None:
    """Raise ConfigError unless a word is registered; the line says what would be, and how to bring one's own."""
    if not isinstance(kind, str):
        what, got, fix = "not the name of a kind", reprlib.repr(kind), "register it under a name, and give that"
        raise ConfigError(what, where=where, got=got, expected=f"one of {', '.join(known)}", fix=fix)
    if kind in known:
        return
    if "." in kind:
        raise ConfigError(
            "a part of one's own that nobody has imported",
            where=where,
            got=kind,
            fix="a run's file does not import it: say it in your own YAML, as key=value, or with sample --import",
        )
    own = "one of your own is FILE.NAME, of a FILE.py beside your YAML"
    raise ConfigError(
        "unknown kind",
        where=where,
        got=kind,
        expected=f"one of {', '.join(known)}",
        fix=" ".join(filter(None, (did_you_mean(kind, known), own))),
    )


@dataclass(frozen=True, kw_only=True)
class ClassPath:
    """A class by its dotted name, and what it is called with, as Lightning's own command line spells it.

    Args:
        class_path: e.g. `lightning.pytorch.callbacks.EarlyStopping`, or FILE.CLASS of a FILE.py beside one's YAML.
        init_args: keyword arguments.
    """

    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)
