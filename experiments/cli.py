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
)  # commands whose result is what they print


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage: a wrong command line is one line too. Subcommands are of this class."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """argparse takes a ConfigError, as any ValueError, for a word that does not parse, and names the function."""
        try:
            return super()._get_value(action, arg_string)
        except argparse.ArgumentError as error:
            if isinstance(error.__context__, ConfigError):
                raise error.__context__ from None
            raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; whatever it fails at is one line on stderr and its exit status."""
    words, is_the_program = (sys.argv[1:], True) if arguments is None else (arguments, False)
    debug = "--debug" in words
    if is_the_program:
        fill_standard_descriptors()
        if (parent := launcher()) is not None:
            end_with_parent(parent)  # a rank that rank 0 started does not outlive it, from the first moment on
    try:
        with restored_environment():
            return report_failures(lambda: _run(words), debug=debug)
    finally:
        if is_the_program and not debug:
            leave_quietly()


def _run(arguments: Sequence[str]) -> int:
    set_up_memory()
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # a home that is missing or read-only: it does without
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
    """Options may stand anywhere among the key=value arguments, which argparse alone does not allow."""
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
