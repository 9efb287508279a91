"""The console command `lumos`. Heavy imports wait until a command needs them, so that --help is quick."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from experiments.sample.command import add_arguments as add_sample_arguments
from experiments.sample.command import sample
from experiments.study.command import add_arguments as add_study_arguments
from experiments.study.command import study
from lumos_pl.allocator import keep_freed_memory
from lumos_pl.errors import ConfigError, LumosError

if TYPE_CHECKING:
    from data_modules.manifest import Manifest

_TOKENIZER_HELP = "`embedded` (default), a .safetensors file, or a folder with Cosmos's encoder.jit and decoder.jit"
_Flag = tuple[str, Callable[[str], Any], str, str]  # name, type, metavar, help
_TOKENIZE_FLAGS: list[_Flag] = [  # fields of TokenizeSettings, whose import is slow
    ("--fps", int, "N", "frames per second of the clips (default 12)"),
    ("--frames", int, "N", "frames of a clip, at most (default 24)"),
    ("--size", str, "SIZE", "256p or 384p: the nearest of several aspects; or WIDTHxHEIGHT (default 256p)"),
    ("--start", float, "SECONDS", "where clips start, unless the list says it (default: in the middle)"),
    ("--min-frames", int, "N", "quarantine videos that give fewer (default 1)"),
    ("--workers", int, "N", "processes; 0: this one alone (default: one per core)"),
    ("--samples-per-shard", int, "N", "default 64"),
    ("--device", str, "DEVICE", "of the tokenizer: cpu, cuda or cuda:N (default cpu)"),
]
_EVAL_FLAGS: list[_Flag] = [  # fields of EvalSettings, whose import is slow
    ("--clips", int, "N", "validation clips for the losses (default 64)"),
    ("--captions", int, "N", "captions of each kind for fidelity (default 128)"),
    ("--generated", int, "N", "validation clips that each other part makes anew (default 32)"),
    ("--growth", int, "N", "drift: clips N times as long as the run's (default 2)"),
    ("--fvd", Path, "FILE", "TorchScript: RGB 0 to 255 [B, 3, N, H, W] -> features [B, F]; it is executed"),
    ("--fid", Path, "FILE", "TorchScript: RGB 0 to 255 [B, 3, H, W] -> features [B, F]; it is executed"),
    ("--seed", int, "N", "of masks, generated clips and resampling (default 0)"),
    ("--device", str, "DEVICE", "cpu, cuda, cuda:N, or auto (default)"),
    ("--out", Path, "DIR", "where eval.json goes (default: the run's folder)"),
]


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing the usage: a wrong command line is one line too. Subcommands are of this class."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, fix=f"`{self.prog} --help` lists what it takes")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an expected failure is one line on stderr and its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_freed_memory()
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

    one = add("plan", _plan, "what a run needs and costs: memory, operations, days; needs neither GPU nor data")
    one.add_argument("experiment", metavar="EXP", help="a name from `lumos experiments`")
    own_words = "gpu=h100-80g gpus=48 mfu=0.4 size=448x256 text=200, or the experiment's settings"
    one.add_argument("overrides", nargs="*", metavar="key=value", help=own_words)
    one.add_argument("--json", action="store_true", help="the same, and more, as one line of JSON")

    one = add("eval", _eval, "measure a model: losses, caption fidelity, continuations, drift, FVD and FID")
    one.add_argument("source", metavar="RUN|CKPT", type=Path, help="runs/EXP/NAME, a .ckpt, or a released folder")
    changed = "e.g. data.val_root=DIR callbacks.sampling.partial_context=0.3"
    one.add_argument("overrides", nargs="*", metavar="key=value", help=changed)
    parts = "some of loss, fidelity, i2v, continuation, drift, frechet (default: all that can be measured)"
    one.add_argument("--only", default="", metavar="PART,PART", help=parts)
    one.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: the averaged ones")
    _add_flags(one, _EVAL_FLAGS)

    add_sample_arguments(add("sample", sample, "make images and clips of prompts with a run or a released checkpoint"))

    add_study_arguments(add("study", study, "run and compare many cells of one question, and write its report"))

    add("experiments", _experiments, "list the experiments and studies")

    one = add("import-tokens", _import_tokens, "turn the release's pre-tokenized files into shards")
    one.add_argument("source", metavar="SRC", type=Path, help="folder, file, or merge-record.json")
    one.add_argument("--out", required=True, type=Path, metavar="DIR")
    one.add_argument("--samples-per-shard", type=int, default=64, metavar="N", help="default 64")

    one = add("tokenize", _tokenize, "turn videos and images with captions into shards")
    one.add_argument(
        "source", metavar="SRC", type=Path, help="folder with a .txt beside each file, or .csv or .jsonl: path, caption"
    )
    one.add_argument("--out", required=True, type=Path, metavar="DIR", help="interrupted? the same command goes on")
    one.add_argument("--tokenizer", default="embedded", metavar="SOURCE", help=_TOKENIZER_HELP)
    _add_flags(one, _TOKENIZE_FLAGS)

    one = add("shards", _shards, "check a folder of shards, or draw what is in it")
    one.add_argument("action", choices=["verify", "show"])
    one.add_argument("folder", metavar="DIR", type=Path)
    one.add_argument(
        "--skip-bad", action="store_true", help="verify: write what is whole to --out, list the rest there"
    )
    one.add_argument(
        "--out", type=Path, metavar="PATH", help="show: of the picture (default: DIR.png); verify: a folder"
    )
    one.add_argument("--tokenizer", metavar="SOURCE", help="show: the one that made them, " + _TOKENIZER_HELP)

    one = add("import-hf", _import_hf, "turn a released checkpoint into one of ours, every tensor as it is")
    one.add_argument("folder", metavar="DIR", type=Path, help="config.json and safetensors, one file or several")
    one.add_argument("--out", required=True, type=Path, metavar="FILE.ckpt")

    one = add("export-hf", _export_hf, "write a model in the layout of the released checkpoints")
    one.add_argument("source", metavar="SOURCE", type=Path, help="runs/EXP/NAME, a .ckpt, or a released folder")
    one.add_argument("--out", required=True, type=Path, metavar="DIR")
    one.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: the averaged ones")
    one.add_argument("--dtype", choices=["keep", "float16", "bfloat16", "float32"], default="keep", help="default keep")
    one.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="weights of more become several files")

    one = add("verify-golden", _verify_golden, "compare with numbers that the release computed")
    one.add_argument("folder", metavar="DIR", type=Path, help="checkpoint, cases.json and cases.safetensors")
    return parser


def _add_flags(parser: argparse.ArgumentParser, flags: Sequence[_Flag]) -> None:
    """Flags that are fields of some settings: those left out keep their defaults there."""
    for flag, kind, metavar, about in flags:
        parser.add_argument(flag, type=kind, default=argparse.SUPPRESS, metavar=metavar, help=about)


def _given_flags(options: argparse.Namespace, flags: Sequence[_Flag]) -> dict[str, Any]:
    """Fields by the flags that were given."""
    names = [flag.removeprefix("--").replace("-", "_") for flag, *_ in flags]
    return {name: getattr(options, name) for name in names if hasattr(options, name)}


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


def _plan(options: argparse.Namespace) -> int:
    from experiments.plan import plan_experiment
    from experiments.plan_table import print_plan, to_json

    plan = plan_experiment(options.experiment, options.overrides)
    if options.json:
        print(to_json(plan))
    else:
        print_plan(plan)
    return 0


def _eval(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from experiments.evaluation import EvalSettings, evaluate
    from experiments.evaluation.report import print_result

    settings = EvalSettings(
        only=tuple(part for part in options.only.split(",") if part),
        overrides=tuple(options.overrides),
        weights=options.weights,
        **_given_flags(options, _EVAL_FLAGS),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as progress:

        def show(part: str, done: int, total: int) -> None:
            if part not in tasks:
                tasks[part] = progress.add_task(part)
            progress.update(tasks[part], completed=done, total=total)

        result = evaluate(options.source, settings, on_progress=show)
    print_result(result)
    return 0


def _print_end(run: Path) -> None:
    from lightning.fabric.utilities.rank_zero import _get_rank

    if _get_rank():
        return
    result = json.loads((run / "result.json").read_text())
    print(f"done: {run}/result.json")
    for name, shares in result.get("caption_fidelity", {}).items():
        print(f"  {name:11}" + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    for picture in sorted([*run.glob("*.png"), *run.glob("*.gif")]):
        print(f"  look at    {picture}")
    print(f"  curves     tensorboard --logdir {run}")


def _experiments(options: argparse.Namespace) -> int:
    from experiments.config import experiment_names, load_experiment
    from experiments.study.config import load_study, study_names

    for name in experiment_names():
        print(f"{name:16} {load_experiment(name).about}")
    for name in study_names():
        print(f"{f'study {name}':16} {load_study(name).about}")
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
    _print_shards(options.out, written)
    return 0


def _print_shards(out: Path, written: Mapping[str, Manifest]) -> None:
    for kind, manifest in written.items():
        print(f"{out / kind}: {manifest.n_samples} samples in {len(manifest.shards)} shards")


def _tokenize(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from data_modules.tokenize import TokenizeProgress, TokenizeSettings, tokenize_media
    from data_modules.tokenize_state import QUARANTINE_FILE
    from lumos_pl.stop_request import StoppedBySignal, StopRequest

    settings = TokenizeSettings(**_given_flags(options, _TOKENIZE_FLAGS))
    reports: list[TokenizeProgress] = []  # the first and the latest
    begun = time.monotonic()

    def show(report: TokenizeProgress) -> None:
        reports[1:] = [report]
        rate = (report.done - reports[0].done) / (time.monotonic() - begun)
        words = f"{rate:.1f} clips/s, {report.quarantined} quarantined"
        progress.update(task, completed=report.done, total=report.total, words=words)

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), TimeRemainingColumn()
    try:
        with StopRequest(), Progress(*columns, transient=True) as progress:
            task = progress.add_task("", total=None, words="starting")
            written = tokenize_media(options.source, options.out, options.tokenizer, settings, on_progress=show)
    except StoppedBySignal as stop:
        done = f"{reports[-1].done} of {reports[-1].total} done" if reports else "nothing done yet"
        print(f"lumos: stopped, {done} | {options.out} | the same command goes on from there", file=sys.stderr)
        return int(str(stop.code))
    _print_shards(options.out, written)
    frames, seconds = reports[-1].frames if reports else 0, time.monotonic() - begun
    print(f"{frames} frames in {seconds:.1f} s, {frames / seconds:.0f} a second" if reports else "complete already")
    quarantine = options.out / QUARANTINE_FILE
    if quarantine.exists() and (n_quarantined := len(quarantine.read_text().splitlines())):
        print(f"{n_quarantined} quarantined, with reasons: {quarantine}")
    return 0


def _shards(options: argparse.Namespace) -> int:
    return _verify_shards(options) if options.action == "verify" else _show_shards(options)


def _verify_shards(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from data_modules.shard_check import QUARANTINE_FILE, skip_bad, verify_shards
    from data_modules.shard_sheet import describe_shards

    folder, out = options.folder, options.out
    if options.skip_bad and out is None:
        raise ConfigError("where to?", where="--skip-bad", fix="give --out DIR: the folder itself stays as it is")
    with Progress(transient=True) as progress:
        task = progress.add_task("verifying")

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        if options.skip_bad:
            written, left_out = skip_bad(folder, out, on_progress=show)
        else:
            problems = verify_shards(folder, on_progress=show)
    if options.skip_bad:
        print(f"{written + left_out} samples: {written} in {out}, {left_out} in {out / QUARANTINE_FILE}")
        return 0
    for problem in problems:
        print(f"lumos: {problem}", file=sys.stderr)
    if problems:
        return problems[0].exit_status
    print(json.dumps(describe_shards(folder)))
    return 0


def _show_shards(options: argparse.Namespace) -> int:
    from data_modules.shard_sheet import describe_shards, shard_sheet, sheet_tokenizer

    folder = options.folder.resolve()  # `.` has a name too
    tokenizer = sheet_tokenizer(folder, options.tokenizer)
    print(json.dumps(describe_shards(folder)))
    print(shard_sheet(folder, out=options.out or folder.with_name(f"{folder.name}.png"), tokenizer=tokenizer))
    return 0


def _import_hf(options: argparse.Namespace) -> int:
    from lumos_pl.checkpoints.conversion import import_released

    with _byte_progress("importing") as on_progress:
        import_released(options.folder, options.out, on_progress=on_progress)
    print(options.out)
    return 0


def _export_hf(options: argparse.Namespace) -> int:
    import torch

    from lumos_pl.checkpoints.conversion import export_released, parse_size
    from lumos_pl.checkpoints.latest import resolve_latest

    with _byte_progress("exporting") as on_progress:
        export_released(
            resolve_latest(options.source),
            options.out,
            weights=options.weights,
            dtype=None if options.dtype == "keep" else getattr(torch, options.dtype),
            max_shard_bytes=parse_size(options.max_shard_size),
            on_progress=on_progress,
        )
    print(options.out)
    return 0


@contextmanager
def _byte_progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over the bytes written, until they are."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn(words), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, transient=True) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _verify_golden(options: argparse.Namespace) -> int:
    from experiments.verify_golden import is_golden, verify_golden

    deviations = verify_golden(options.folder)
    print(json.dumps(deviations))
    return 0 if is_golden(deviations) else 1


if __name__ == "__main__":
    sys.exit(main())
