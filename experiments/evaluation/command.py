"""`lumos eval`: its options, and what it prints. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands.options import Add, Flag, add_adapter_flag, add_flags, add_import_flag, given_flags
from lumos_pl.errors import ConfigError
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest
from lumos_pl.settings.ranges import at_least

if TYPE_CHECKING:
    from experiments.evaluation.settings import EvalSettings

_FLAGS: list[Flag] = [  # fields of EvalSettings, whose import is slow
    ("--clips", int, "N", "validation clips for the losses (default 64)"),
    ("--captions", int, "N", "captions of each kind for fidelity (default 128)"),
    ("--generated", int, "N", "validation clips that each other part makes anew (default 32)"),
    ("--windows", int, "N", "horizon: clips that follow each other (default 4)"),
    ("--growth", int, "N", "drift: clips N times as long as the run's (default 2)"),
    ("--fvd", Path, "FILE", "TorchScript: RGB 0 to 255 [B, 3, N, H, W] -> features [B, F]; it is executed"),
    ("--fid", Path, "FILE", "TorchScript: RGB 0 to 255 [B, 3, H, W] -> features [B, F]; it is executed"),
    ("--seed", int, "N", "of masks, generated clips and resampling (default 0)"),
    ("--device", str, "DEVICE", "cpu, cuda, cuda:N, or auto (default)"),
    ("--out", Path, "DIR", "where eval.json goes (default: the run's folder)"),
]


def add_commands(add: Add) -> None:
    parser = add("eval", evaluate_command, "measure a model: losses, caption fidelity, continuations, drift, FVD, FID")
    parser.add_argument("source", metavar="RUN|CKPT", type=Path, help="runs/EXP/NAME, a .ckpt, or a released folder")
    changed = "e.g. data.val_root=DIR sampling.partial_context=0.3"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=changed)
    parts = "some of loss, fidelity, i2v, continuation, drift, frechet (default: all possible), context, horizon"
    parser.add_argument("--only", default="", metavar="PART,PART", help=parts)
    parser.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: the averaged ones")
    watch = "measure each checkpoint of a run once, beside the training, until its end; any number of watchers"
    parser.add_argument("--watch", action="store_true", help=watch)
    once = "with --watch: end when the checkpoints that are there now are done"
    parser.add_argument("--once", action="store_true", help=once)
    parser.add_argument("--poll", type=float, metavar="S", help="with --watch: seconds between two looks (default 10)")
    add_flags(parser, _FLAGS)
    add_adapter_flag(parser)
    add_import_flag(parser)


def evaluate_command(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from experiments.evaluation.settings import EvalSettings
    from experiments.own_parts import import_for_sampling
    from lumos_pl.checkpoints.named import resolve_named

    import_for_sampling(options.imports)
    settings = EvalSettings(
        only=tuple(part for part in options.only.split(",") if part),
        overrides=tuple(options.overrides),
        weights=options.weights,
        adapters=tuple((resolve_named(path), weight) for path, weight in options.adapters),
        **given_flags(options, _FLAGS),
    )
    for flag in ("once", "poll"):
        if getattr(options, flag) and not options.watch:
            raise ConfigError(f"--{flag} goes with --watch", where=f"--{flag}")
    try:
        with StopRequest():  # a signal leaves at once
            return _watch(options, settings) if options.watch else _measure(options, settings)
    except StoppedBySignal as stop:
        kept = "what is measured is kept" if options.watch else "nothing is written"
        again = "goes on from there" if options.watch else "measures it from the beginning"
        print(f"lumos: stopped, {kept} | {options.source} | the same command {again}", file=sys.stderr)
        return int(str(stop.code))


def _measure(options: argparse.Namespace, settings: EvalSettings) -> int:
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn

    from experiments.evaluation.evaluate import FILE, evaluate, results_folder
    from experiments.evaluation.report import print_result
    from lumos_pl.checkpoints.named import resolve_named
    from lumos_pl.machinery.progress_bar import ProgressBar

    tasks: dict[str, TaskID] = {}
    with ProgressBar(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()) as progress:

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part)
            progress.update(tasks[part], completed=done, total=total)

        source = resolve_named(options.source)
        result = evaluate(source, settings, on_progress=show)
    print_result(result)
    print(f"done: {results_folder(source, settings) / FILE}")
    return 0


def _watch(options: argparse.Namespace, settings: EvalSettings) -> int:
    from experiments.evaluation.watch import POLL_S, Watcher
    from lumos_pl.checkpoints.named import resolve_latest

    if options.source.suffix == ".ckpt" or (options.source.exists() and not options.source.is_dir()):
        raise ConfigError("a run's folder is watched", file=options.source, where="--watch", fix="give runs/EXP/NAME")
    poll_s = POLL_S if options.poll is None else options.poll
    at_least(0.1).check("--poll", poll_s)
    run = resolve_latest(options.source, holding="config.yaml")
    measured = Watcher(run, settings, poll_s=poll_s).work(once=options.once)
    print(f"{counted(measured, 'checkpoint')} measured here")
    return 0
