"""`lumos import-tokens`, `tokenize` and `shards`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.commands.options import Add, Flag, add_flags, given_flags
from lumos_pl.errors import ConfigError, TemporaryError
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.store import is_url
from lumos_pl.settings.places import check_local

if TYPE_CHECKING:
    from data_modules.shards.manifest import Manifest
    from data_modules.shards.places import Place
    from data_modules.tokenizing.media_list import MediaList
    from data_modules.tokenizing.media_rows import Fields
    from data_modules.tokenizing.settings import TokenizeSettings
    from data_modules.tokenizing.work import TokenizeProgress
    from lumos_pl.errors import DataError


def clips_per_video(text: str) -> int | str:
    """Parse the flag's value: a number, or `all`."""
    return text if text == "all" else int(text)


_TOKENIZER_HELP = (
    "`embedded` (default), a .safetensors file or its run, or a folder with Cosmos's encoder.jit and decoder.jit"
)
_TOKENIZE_FLAGS: list[Flag] = [  # fields of TokenizeSettings, whose import is slow
    ("--fps", int, "N", "frames per second of the clips (default: 12)"),
    ("--frames", int, "N", "most frames of a clip (default: 24)"),
    ("--size", str, "SIZE", "256p or 384p, in the nearest of several aspects; or WIDTHxHEIGHT (default: 256p)"),
    ("--start", float, "SECONDS", "where clips start, unless the list says so (default: in the middle)"),
    (
        "--clips-per-video",
        clips_per_video,
        "N|all",
        "N whole clips spread evenly, or all, one after another (default: 1)",
    ),
    ("--min-frames", int, "N", "quarantine videos with fewer frames (default: 1)"),
    ("--workers", int, "N", "worker processes; 0: none but this one (default: one per core)"),
    ("--samples-per-shard", int, "N", "default: 64, more for large data sets"),
    (
        "--hdr",
        str,
        "map|refuse",
        "HDR videos: map to standard range, or quarantine (default: map)",
    ),
    (
        "--max-bad",
        float,
        "SHARE",
        "share of items that may be unusable before it stops (default: 0.01; ten always may)",
    ),
    (
        "--engine",
        str,
        "processes|ray",
        "run in processes here (default), or on a Ray cluster (pip install 'lumos_pl[ray]')",
    ),
    ("--batch-size", int, "N", "clips of one shape encoded together (default: 8 on a GPU, 1 on a CPU)"),
    ("--where", str, "CONDITION", 'take only rows of the list that fulfil it: \'score >= 5 and lang in ("en", "de")\''),
    (
        "--text-tokenizer",
        str,
        "SOURCE",
        "count the captions' ids with this tokenizer.json, to know what fits a context",
    ),
    ("--device", str, "DEVICE", "where the tokenizer runs: cpu, cuda or cuda:N (default: cpu)"),
]


def add_commands(add: Add) -> None:
    one = add("import-tokens", _import_tokens, "convert the release's pre-tokenized files to shards")
    one.add_argument("source", metavar="SRC", type=Path, help="folder, file, or merge-record.json")
    one.add_argument("--out", required=True, type=Path, metavar="DIR", help="the folder to write")
    per_shard = "default: 64; with more than 65,536 samples a thousandth of them, up to 4096"
    one.add_argument("--samples-per-shard", type=int, metavar="N", help=per_shard)

    one = add("tokenize", _tokenize, "turn videos and images with captions into shards")
    about = "folder with a .txt beside each file, or a .csv, .tsv, .json, .jsonl or .parquet of paths and captions"
    one.add_argument("source", metavar="SRC", type=Path, help=about)
    where = "a folder, or a URL such as s3://bucket/folder; repeat the same command to go on after an interruption"
    one.add_argument("--out", required=True, metavar="DIR", help=where)
    one.add_argument("--tokenizer", default="embedded", metavar="SOURCE", help=_TOKENIZER_HELP)
    one.add_argument("--path-field", default="path", metavar="NAME", help="column with the paths (default: path)")
    about = "column with the second where a clip starts (default: start, if there is one); none: ignore it"
    one.add_argument("--start-field", default="start", metavar="NAME", help=about)
    about = "only part i (from 0) of n, into a folder of its own; slurm: the part of this array task"
    one.add_argument("--part", metavar="i/n|slurm", help=about)
    about = "only say how far all parts in DIR are; exit status 0 if all is done, else 75"
    one.add_argument("--status", action="store_true", help=about)
    several = "columns with captions (default: caption); of several, one is drawn each time a sample is trained on"
    one.add_argument("--caption-field", nargs="+", default=["caption"], metavar="NAME", help=several)
    one.add_argument("--scenes", action="store_true", help="let no clip cross a cut between scenes")
    about = "only report counts, lengths, captions, and hours and bytes needed, and show first frames as a picture"
    one.add_argument("--dry-run", action="store_true", help=about)
    one.add_argument("--follow-links", action="store_true", help="also follow links that lead out of SRC")
    about = "if SRC is a folder: a file without a .txt gets its folder's name as its caption"
    one.add_argument("--folder-captions", action="store_true", help=about)
    again = "try the items in DIR/quarantine.jsonl again, after mending them; works on a finished DIR too"
    one.add_argument("--retry-quarantined", action="store_true", help=again)
    add_flags(one, _TOKENIZE_FLAGS)

    one = add(
        "shards", _shards, "check a folder of shards, show what is in it, or write its manifest in the newest form"
    )
    one.add_argument("action", choices=["verify", "show", "upgrade"])
    one.add_argument(
        "roots",
        metavar="DIR",
        nargs="+",
        help="folder of shards, or with images/ and videos/; a URL or a pattern as in data.root",
    )
    one.add_argument(
        "--skip-bad", action="store_true", help="verify: write intact samples to --out, and list the others there"
    )
    one.add_argument(
        "--max-bad",
        type=float,
        metavar="SHARE",
        help="with --skip-bad: share of the samples that may be left out (default: 0.001)",
    )
    shares = "with --skip-bad: hard-link intact shards into --out instead of copying: changing one changes both"
    one.add_argument("--hard-links", action="store_true", help=shares)
    one.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="show: file for the pictures (default: DIR.png, or a similar free name); verify: a folder",
    )
    one.add_argument("--tokenizer", metavar="SOURCE", help="show: the one that made the shards, " + _TOKENIZER_HELP)


def _import_tokens(options: argparse.Namespace) -> int:
    from data_modules.shards.release_tokens import import_release_tokens
    from lumos_pl.machinery.progress_bar import ProgressBar

    with ProgressBar() as progress:
        task = progress.add_task("importing")
        written = import_release_tokens(
            options.source,
            options.out,
            samples_per_shard=options.samples_per_shard,
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    _print_shards(options.out, written)
    return 0


def _fields(options: argparse.Namespace) -> Fields:
    from data_modules.tokenizing.media_rows import Fields

    start = None if options.start_field == "none" else options.start_field
    return Fields(path=options.path_field, caption=tuple(options.caption_field), start=start)


def _tokenize(options: argparse.Namespace) -> int:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    from data_modules.shards.places import Access, place_of
    from data_modules.shards.put_folder import claim, put_folder, scratch_of
    from data_modules.tokenizing.parts import Part
    from data_modules.tokenizing.settings import TokenizeSettings
    from data_modules.tokenizing.tokenize import tokenize_media
    from lumos_pl.machinery.progress_bar import ProgressBar
    from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest

    place = place_of(options.out, Access(where="--out"))
    part = None if options.part is None else Part.parse(options.part)
    if options.status:
        return _tokenize_status(options, place, None if part is None else part.count)
    settings = TokenizeSettings(
        **given_flags(options, _TOKENIZE_FLAGS),
        fields=_fields(options),
        follow_links=options.follow_links,
        folder_captions=options.folder_captions,
        scenes=options.scenes,
        retry_quarantined=options.retry_quarantined,
        part=part,
    )
    if options.dry_run:
        return _look_before(options, settings, place)
    out = place if isinstance(place, Path) else scratch_of(place)
    folder = out if part is None else out / part.folder
    reports: list[TokenizeProgress] = []  # the first and the latest
    begun = time.monotonic()

    def show(report: TokenizeProgress) -> None:
        reports[1:] = [report]
        rate = (report.done - reports[0].done) / (time.monotonic() - begun)
        words = f"{rate:.1f} clips/s, {report.quarantined} quarantined"
        progress.update(task, completed=report.done, total=report.total, words=words)

    def claimed(begun: Path, settings: dict[str, Any], listed: str | None) -> None:
        if not isinstance(place, Path):
            claim(begun, place / begun.relative_to(out), settings, listed)

    columns = BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[words]}"), TimeRemainingColumn()
    tell = partial(_tell_of_list, settings)
    try:
        with StopRequest(), ProgressBar(*columns) as progress:
            task = progress.add_task("", total=None, words="starting")
            written = tokenize_media(
                options.source, out, options.tokenizer, settings, on_progress=show, on_list=tell, claim=claimed
            )
    except StoppedBySignal as stop:
        _print_to_do(reports, folder, "stopped")
        return int(str(stop.code))
    except TemporaryError:
        _print_to_do(reports, folder, "not finished")
        raise
    _print_shards(folder, written)
    frames, seconds = reports[-1].frames if reports else 0, time.monotonic() - begun
    print(f"{frames} frames in {seconds:.1f} s, {frames / seconds:.0f} a second" if reports else "complete already")
    _print_account(written, folder)
    if not isinstance(place, Path):
        place = place if part is None else place / part.folder
        print(f"{counted(put_folder(folder, place), 'file')} put into {place}; they stay here, too: {folder}")
    return 0


def _tell_of_list(settings: TokenizeSettings, items: MediaList) -> None:
    if items.n_left_out:
        n_rows = items.n_left_out + len(items)
        print(f"lumos: {items.n_left_out} of {n_rows} rows left out | --where: {settings.where}", file=sys.stderr)
    if items.end is not None:
        length = f"{settings.frames / settings.fps:.3g} s"
        print(
            f"lumos: no clip ends where the list says | {items.end} | each has up to {length} from its start"
            " | leave rows of shorter scenes out, or take fewer --frames",
            file=sys.stderr,
        )


def _look_before(options: argparse.Namespace, settings: TokenizeSettings, out: Place) -> int:
    """Report what `_tokenize` would do; exit status 3 if too many items are unusable for it to finish."""
    from data_modules.tokenizing.dry_run import look_through, sheet, told
    from data_modules.tokenizing.work import most_bad
    from lumos_pl.errors import DataError

    tell = partial(_tell_of_list, settings)
    found, request = look_through(options.source, options.tokenizer, settings, on_list=tell)
    for name, line in told(found, request, settings.several, settings.workers):
        print(f"{name:12}{line}")
    if found.seen:
        look = f"{out.name}-look.png"  # pictures are never put into a store
        look_at = out.with_name(look) if isinstance(out, Path) else Path(look)
        print(f"{'sheet':12}{sheet(found, title=options.source.name, out=look_at)}")
    usable = found.seen and found.unusable <= most_bad(settings.max_bad, found.total)
    return 0 if usable else DataError.exit_status


def _tokenize_status(options: argparse.Namespace, out: Place, count: int | None) -> int:
    from data_modules.shards.where import Where
    from data_modules.tokenizing.media_list import open_media_list
    from data_modules.tokenizing.state import knows_as_spelled
    from data_modules.tokenizing.status import status_of, table, with_totals

    if not isinstance(out, Path):
        fix = "`lumos shards verify URL` says which part is not there"
        raise ConfigError("how far parts are is known where they are written", where="--status", file=out, fix=fix)
    parts = status_of(out, count)
    if any(part.total is None for part in parts):
        where = None if getattr(options, "where", None) is None else Where.parse(options.where, "--where")
        listed = open_media_list(
            options.source, fields=_fields(options), follow_links=True, where=where, as_spelled=knows_as_spelled(out)
        )
        parts = with_totals(parts, listed.numbers)
    print("\n".join(table(parts)))
    return 0 if all(part.is_complete for part in parts) else TemporaryError.exit_status


def _print_to_do(reports: Sequence[TokenizeProgress], out: Path, word: str) -> None:
    done = f"{reports[-1].done} of {reports[-1].total} done" if reports else "nothing done yet"
    print(f"lumos: {word}, {done} | {out} | the same command goes on from there", file=sys.stderr)


def _print_account(written: Mapping[str, Manifest], out: Path) -> None:
    """Print what became of every item: taken, or quarantined and why; called when nothing is left to do."""
    from data_modules.tokenizing.state import QUARANTINE_FILE, counts_of
    from data_modules.tokenizing.status import reasons_of

    quarantine = out / QUARANTINE_FILE
    reasons = reasons_of(quarantine)
    taken = sum(manifest.n_samples for manifest in written.values())
    told = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common(8))
    print(f"{taken} taken, {reasons.total()} quarantined{f' ({told})' if told else ''}, 0 to do")
    if rests := counts_of(out).get("rests"):
        print(f"  left out   {counted(rests, 'piece')} of videos, shorter than a clip")
    if reasons:
        print(f"  reasons    {quarantine}")


def _print_shards(out: Path, written: Mapping[str, Manifest]) -> None:
    for kind, manifest in written.items():
        print(f"{out / kind}: {counted(manifest.n_samples, 'sample')} in {counted(len(manifest.shards), 'shard')}")


def _shards(options: argparse.Namespace) -> int:
    actions = {"verify": _verify_shards, "show": _show_shards, "upgrade": _upgrade_shards}
    return actions[options.action](options)


def _upgrade_shards(options: argparse.Namespace) -> int:
    from data_modules.shards.folders import every_folder
    from data_modules.shards.manifest import Manifest

    for root in options.roots:
        check_local("DIR", root, fix="upgrade the folder on a disk, and put it there anew")
    for folder in every_folder(options.roots)[1].values():
        assert isinstance(folder, Path)
        is_upgraded = Manifest.upgrade(folder)
        print(f"{folder}: {'upgraded, the same data set' if is_upgraded else 'in the newest form already'}")
    return 0


def _verify_shards(options: argparse.Namespace) -> int:
    from rich.progress import TaskID

    from data_modules.shards.check import MOST_BAD, QUARANTINE_FILE, skip_bad, verify_shards
    from data_modules.shards.folders import every_folder
    from data_modules.shards.manifest import damage_fix
    from data_modules.shards.sheet import describe_shards
    from lumos_pl.machinery.progress_bar import ProgressBar

    if options.skip_bad and options.out is None:
        raise ConfigError("where to?", where="--skip-bad", fix="give --out DIR: the folder itself stays as it is")
    if options.hard_links and not options.skip_bad:
        raise ConfigError("nothing to link", where="--hard-links", fix="it belongs to --skip-bad")
    if options.hard_links and any(is_url(root) for root in options.roots):
        raise ConfigError("a store has no second names", where="--hard-links", fix="leave it out")
    if options.max_bad is not None and not (options.skip_bad and 0 <= options.max_bad <= 1):
        raise ConfigError("no share to leave out", where="--max-bad", expected="0 to 1", fix="it belongs to --skip-bad")
    most_bad = MOST_BAD if options.max_bad is None else options.max_bad
    saved: list[str] = []
    found: dict[Place, list[DataError]] = {}
    with ProgressBar() as progress:  # print only after the bar is gone
        for name, folder in every_folder(options.roots)[1].items():
            task = progress.add_task(f"verifying {folder}")

            def show(done: int, total: int, task: TaskID = task) -> None:
                progress.update(task, completed=done, total=total)

            if options.skip_bad:
                out = options.out / name
                written, left_out = skip_bad(
                    folder, out, most_bad=most_bad, hard_links=options.hard_links, on_progress=show
                )
                line = f"{counted(written, 'sample')} in {out}, {left_out:,} left out: {out / QUARANTINE_FILE}"
                shared = f"; whole shards are hard links: to change one there changes it in {folder}"
                saved.append(line + (shared if options.hard_links else ""))
            else:
                found[folder] = verify_shards(folder, on_progress=show)
    for line in saved:
        print(line)
    for folder, problems in found.items():
        for problem in problems:
            if problem.fix == damage_fix(folder):  # it suggests the command that just ran
                problem = type(problem)(**problem.parts | {"fix": "leave it out with --skip-bad --out NEW"})
            print(f"lumos: {problem}", file=sys.stderr)
        if not problems:
            print(json.dumps({"folder": str(folder), **describe_shards(folder)}))
    return next((problem.exit_status for problems in found.values() for problem in problems), 0)


def _show_shards(options: argparse.Namespace) -> int:
    from data_modules.shards.folders import every_folder
    from data_modules.shards.sheet import describe_shards, shard_sheet, sheet_tokenizer

    common, folders = every_folder(options.roots)
    for name, folder in folders.items():
        tokenizer = sheet_tokenizer(folder, options.tokenizer)
        print(json.dumps({"folder": str(folder), **describe_shards(folder)}))
        beside = common if isinstance(common, Path) else Path(common.name)  # pictures are never put into a store
        out = options.out or beside.with_name(f"{beside.name}.png")
        out = out.with_stem("-".join([out.stem, *name.parts]))
        print(shard_sheet(folder, out=out, named=options.out is not None, tokenizer=tokenizer))
    return 0
