"""The console command `lumos`. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from experiments.commands import checkpoints, config, data, training
from experiments.commands.options import Command
from experiments.evaluation import command as evaluation
from experiments.failures import report_failures
from experiments.play import command as playing
from experiments.sample import command as sampling
from experiments.study import command as studies
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.allocator import set_up_memory


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage: a wrong command line is one line too. Subcommands are of this class."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an expected failure is one line on stderr and its exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    set_up_memory()
    return report_failures(lambda: _run(words), debug="--debug" in words)


def _run(arguments: Sequence[str]) -> int:
    options = _parse(arguments)
    command: Command = options.command
    return command(options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options may stand anywhere among the key=value arguments, which argparse alone does not allow."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lumos", description="Lumos-1 on PyTorch Lightning: train, sample, evaluate, prepare data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an expected failure")

    def add(
        name: str, command: Command, about: str, /, *, help: str | type[argparse.Action] = "help"
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about, parents=[shared], add_help=False)
        added.add_argument("-h", "--help", action=help, help="show this help message and exit")
        added.set_defaults(command=command)
        return added

    for part in (training, config, sampling, playing, evaluation, studies, data, checkpoints):
        part.add_commands(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
