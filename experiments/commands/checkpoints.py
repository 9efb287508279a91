"""`lumos import-hf`, `export-hf`, `merge` and `verify-golden`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.commands.options import Add, add_adapter_flag


def add_commands(add: Add) -> None:
    one = add("import-hf", _import_hf, "convert a released checkpoint to one of ours, tensors unchanged")
    one.add_argument("folder", metavar="DIR", type=Path, help="folder of config.json and safetensors files")
    one.add_argument("--out", required=True, type=Path, metavar="FILE.ckpt", help="the checkpoint to write")

    one = add("export-hf", _export_hf, "write a model in the format of the released checkpoints")
    one.add_argument("source", metavar="SOURCE", type=Path, help="runs/EXP/NAME, a .ckpt, or a released folder")
    one.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    one.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: their running average")
    one.add_argument("--dtype", choices=["keep", "float16", "bfloat16", "float32"], default="keep", help="default keep")
    one.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file of weights (default: 5GB)")

    one = add("merge", _merge, "write a model and its adapters as one checkpoint")
    about = "the run of an adapter, or the model that --adapter belongs to"
    one.add_argument("source", metavar="SOURCE", type=Path, help=about)
    add_adapter_flag(one)
    one.add_argument("--out", required=True, type=Path, metavar="FILE.ckpt", help="the checkpoint to write")
    one.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: their running average")
    about = "default: keep, which stores merged weights in float32, others unchanged"
    one.add_argument("--dtype", choices=["keep", "float16", "bfloat16", "float32"], default="keep", help=about)

    one = add("verify-golden", _verify_golden, "compare with numbers computed by the release")
    one.add_argument("folder", metavar="DIR", type=Path, help="folder with cases.json and cases.safetensors")


def _import_hf(options: argparse.Namespace) -> int:
    import experiments.read_config  # noqa: F401 - needed to read a run's configuration
    from lumos_pl.checkpoints.conversion import import_released
    from lumos_pl.checkpoints.named import resolve_named

    with _byte_progress("importing") as on_progress:
        import_released(resolve_named(options.folder), options.out, on_progress=on_progress)
    print(options.out)
    return 0


def _export_hf(options: argparse.Namespace) -> int:
    import torch

    import experiments.read_config  # noqa: F401 - needed to read a run's configuration
    from lumos_pl.checkpoints.conversion import export_released, parse_size
    from lumos_pl.checkpoints.named import resolve_named

    with _byte_progress("exporting") as on_progress:
        export_released(
            resolve_named(options.source),
            options.out,
            weights=options.weights,
            dtype=None if options.dtype == "keep" else getattr(torch, options.dtype),
            max_shard_bytes=parse_size(options.max_shard_size),
            on_progress=on_progress,
        )
    print(options.out)
    return 0


def _merge(options: argparse.Namespace) -> int:
    import torch

    import experiments.read_config  # noqa: F401 - needed to read a run's configuration
    from lumos_pl.checkpoints.conversion import merge_adapters
    from lumos_pl.checkpoints.named import resolve_named

    with _byte_progress("merging") as on_progress:
        merge_adapters(
            resolve_named(options.source),
            options.out,
            adapters=[(resolve_named(path), weight) for path, weight in options.adapters],
            weights=options.weights,
            dtype=None if options.dtype == "keep" else getattr(torch, options.dtype),
            on_progress=on_progress,
        )
    print(options.out)
    return 0


@contextmanager
def _byte_progress(words: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over the bytes written."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn

    from lumos_pl.machinery.progress_bar import ProgressBar

    columns = TextColumn(words), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with ProgressBar(*columns) as progress:
        task = progress.add_task(words, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _verify_golden(options: argparse.Namespace) -> int:
    from experiments.verify_golden import TOLERANCE, off, verify_golden
    from lumos_pl.errors import LumosError

    deviations = verify_golden(options.folder)
    print(json.dumps(deviations))
    if others := off(deviations):
        got = ", ".join(f"{name} {value:.6g}" for name, value in others.items())
        raise LumosError("not the release's numbers", file=options.folder, got=got, expected=f"below {TOLERANCE}")
    return 0
