"""The console command `lumos`. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from lumos_pl.errors import ConfigError, LumosError


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage: a wrong command line is one line too. Subcommands are of this class."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an expected failure is one line on stderr and its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parse(arguments)
        command: Callable[[argparse.Namespace], int] = options.command
        return command(options)
    except LumosError as error:
        if "--debug" in arguments:
            raise
        print(f"lumos: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:  # before or after training, which handles it itself
        return 130


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
    parser = _Parser(prog="lumos", description="Lumos-1 on PyTorch Lightning: train, resume, prepare and check data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    shared = _Parser(add_help=False)
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
    one.add_argument("--samples-per-shard", type=int, default=64, metavar="N", help="default 64")

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
    from lightning.fabric.utilities.rank_zero import _get_rank

    if not _get_rank():
        print(f"done: {run}/result.json | look: tensorboard --logdir {run}")


def _experiments(options: argparse.Namespace) -> int:
    from experiments.config import experiment_names, load_experiment

    for name in experiment_names():
        print(f"{name:16} {load_experiment(name).about}")
    return 0


def _import_tokens(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from data_modules.release_tokens import import_release_tokens

    with Progress(transient=True) as progress:
        task = progress.add_task("importing")
        written = import_release_tokens(
            options.source,
            options.out,
            samples_per_shard=options.samples_per_shard,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    for kind, manifest in written.items():
        print(f"{options.out / kind}: {manifest.n_samples} samples in {len(manifest.shards)} shards")
    return 0


def _shards(options: argparse.Namespace) -> int:
    return _verify_shards(options.folder) if options.action == "verify" else _show_shards(options.folder, options.out)


def _verify_shards(folder: Path) -> int:
    from rich.progress import Progress

    from data_modules.shard_sheet import describe_shards
    from data_modules.shards import verify_shards

    with Progress(transient=True) as progress:
        task = progress.add_task("verifying")
        problems = verify_shards(
            folder, on_progress=lambda done, total: progress.update(task, completed=done, total=total)
        )
    for problem in problems:
        print(f"lumos: {problem}", file=sys.stderr)
    if problems:
        return problems[0].exit_status
    print(json.dumps(describe_shards(folder)))
    return 0


def _show_shards(folder: Path, out: Path | None) -> int:
    from data_modules.shard_sheet import describe_shards, shard_sheet

    print(json.dumps(describe_shards(folder)))
    print(shard_sheet(folder, out=out or folder.with_suffix(".png")))
    return 0


def _verify_golden(options: argparse.Namespace) -> int:
    from experiments.verify_golden import is_golden, verify_golden

    deviations = verify_golden(options.folder)
    print(json.dumps(deviations))
    return 0 if is_golden(deviations) else 1


if __name__ == "__main__":
    sys.exit(main())
