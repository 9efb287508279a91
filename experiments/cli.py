"""The console command `lumos`. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from experiments.commands import checkpoints, config, data, training
from experiments.commands.options import Command
from experiments.environment import restored_environment
from experiments.evaluation import command as evaluation
from experiments.failures import check_printed, leave_quietly, report_failures
from experiments.outputs import fill_standard_descriptors
from experiments.own import command as own_clips
from experiments.play import command as playing
from experiments.sample import command as sampling
from experiments.status import command as status
from experiments.study import command as studies
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.machinery.parent_process import end_with_parent, launcher
from lumos_pl.settings.places import check_local

PRINTED = (
    "config",
    "experiments",
    "plan",
    "shards",
    "status",
    "verify-golden",
)  # commands whose output is their result


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage, so that a wrong command line is one line too; subcommands do the same."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Pass a ConfigError on: argparse would report it, like any ValueError, as a value that does not parse."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, ConfigError):
                raise error.__context__ from None
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a failure is one line on stderr."""
    words, is_the_program = (sys.argv[1:], True) if arguments is None else (arguments, False)
    debug = "--debug" in words
    if is_the_program:
        fill_standard_descriptors()
        if (parent := launcher()) is not None:
            end_with_parent(parent)  # a rank started by rank 0 never outlives it
    try:
        with restored_environment():
            return report_failures(lambda: _run(words), debug=debug)
    finally:
        if is_the_program and not debug:
            leave_quietly()


def _run(arguments: Sequence[str]) -> int:
    set_up_memory()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a missing or read-only home
    try:
        options = parse(arguments)
    except SystemExit:  # --help
        check_printed()
        raise
    command: Command = options.command
    exit_status = command(options)
    if options.called in PRINTED:
        check_printed()
    return exit_status


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; options may be anywhere among the key=value arguments, unlike with argparse alone."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and (not hasattr(options, "overrides") or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    for name, value in vars(options).items():
        for path in value if isinstance(value, list) else [value]:
            if isinstance(path, Path):
                check_local(name, path)
    return options


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lumos", description="Lumos-1 on PyTorch Lightning: train, sample, evaluate, prepare data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of a failure")

    def add(
        name: str, command: Command, about: str, /, *, help: str | type[argparse.Action] = "help"
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about, parents=[shared], add_help=False)
        added.add_argument("-h", "--help", action=help, help="show this help message and exit")
        added.set_defaults(command=command, called=name)
        return added

    for part in (training, status, config, sampling, playing, evaluation, studies, own_clips, data, checkpoints):
        part.add_commands(add)
    return parser


if __name__ == "__main__":
    sys.exit(main())
