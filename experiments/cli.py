"""The console command `lumos`. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lumos_pl.errors import ConfigError, LumosError


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage: a wrong command line is one line too."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an expected failure is one line on stderr and its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser().parse_args(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except LumosError as error:
        if "--debug" in arguments:
            raise
        print(f"lumos: {error}", file=sys.stderr)
        return error.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="lumos", description="Lumos-1 on PyTorch Lightning: train, resume, prepare and check data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=_Parser)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an expected failure")

    def add(name: str, command: Callable[[argparse.Namespace], int], about: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=about, description=about, parents=[shared])
        added.set_defaults(command=command)
        return added

    one = add("train", _train, "train an experiment")
    one.add_argument("experiment", metavar="EXP", help="a name from `lumos experiments`")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trainer.max_steps=10 seed=1")

    one = add("resume", _resume, "go on with a run as if it had never stopped")
    one.add_argument("run", metavar="RUN_DIR", type=Path, help="runs/EXP/NAME")
    one.add_argument("overrides", nargs="*", metavar="key=value")
    one.add_argument("--allow-changes", action="store_true", help="even if data, batches, model or layout differ")

    add("experiments", _experiments, "list the experiments")

    one = add("import-tokens", _import_tokens, "turn the release's pre-tokenized files into shards")
    one.add_argument("source", metavar="SRC", type=Path, help="folder, file, or merge-record.json")
    one.add_argument("--out", required=True, type=Path, metavar="DIR")

    one = add("shards", _shards, "check a folder of shards, or draw what is in it")
    one.add_argument("action", choices=["verify", "show"])
    one.add_argument("folder", metavar="DIR", type=Path)
    one.add_argument("--out", type=Path, metavar="PNG", help="show: where the picture goes (default: DIR.png)")

    one = add("verify-golden", _verify_golden, "compare with numbers that the release computed")
    one.add_argument("folder", metavar="DIR", type=Path, help="checkpoint, cases.json and cases.safetensors")
    return parser


def _train(options: argparse.Namespace) -> int:
    from experiments.config import load_experiment
    from experiments.train import train

    folder = train(options.experiment, load_experiment(options.experiment, options.overrides))
    _print_end(folder.path)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from experiments.train import resume

    folder = resume(options.run, options.overrides, allow_changes=options.allow_changes)
    _print_end(folder.path)
    return 0


def _print_end(run: Path) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    if rank_zero_only.rank == 0:
        print(f"done: {run}/result.json | look: `make tensorboard`, or `tensorboard --logdir {run}`")


def _experiments(options: argparse.Namespace) -> int:
    from experiments.config import experiment_names, load_experiment

    for name in experiment_names():
        print(f"{name:16} {load_experiment(name).about}")
    return 0
