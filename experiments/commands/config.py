"""`lumos config`: the settings of an experiment, and what they may be."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from experiments.commands.options import Add


def add_commands(add: Add) -> None:
    one = add("config", _config, "print an experiment's resolved settings, as its run writes them")
    one.add_argument("experiment", metavar="EXP", help="a name from `lumos experiments`, or a .yaml file")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trainer.max_steps=10 seed=1")
    one.add_argument(
        "--keys",
        nargs="?",
        const="",
        metavar="SECTION",
        help="list the keys of all sections or of one, with type, value and meaning",
    )


def _config(options: argparse.Namespace) -> int:
    from experiments.config import to_yaml
    from experiments.read_config import load_experiment

    config = load_experiment(options.experiment, options.overrides)
    if options.keys is None:
        print(to_yaml(config), end="")
    else:
        print_keys(config, options.keys)
    return 0


class ShowKeys(argparse.Action):
    """`--help` that also lists an experiment's keys, if one is named before it."""

    def __init__(self, option_strings: Sequence[str], dest: str, **others: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, **others)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[object] | None,
        option_string: str | None = None,
    ) -> None:
        parser.print_help()
        if getattr(namespace, "experiment", None) is not None:
            from experiments.read_config import load_experiment

            print("\nkeys, with their values in this experiment (one section: `lumos config EXP --keys SECTION`):\n")
            print_keys(load_experiment(namespace.experiment, namespace.overrides or []))
        parser.exit()


def print_keys(config: object, section: str = "") -> None:
    """Print each key with its type, range and value, and its meaning from the docstring of its section."""
    from experiments.keys import keys_of

    rows = [(key.name, f"{key.kind} = {key.value}", key.about) for key in keys_of(config, section)]
    width = max(len(name) for name, _, _ in rows)
    for name, value, about in rows:
        print(f"{name:{width}}  {value}")
        if about:
            print(f"{'':{width}}    {about}")
