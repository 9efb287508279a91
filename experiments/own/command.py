"""`lumos own`: its options, and what it prints. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from experiments.commands.options import Add, Flag, add_flags, given_flags
from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest

_FLAGS: list[Flag] = [  # fields of OwnSettings, whose import is slow
    ("--minutes", float, "N", "for all of it (default 30)"),
    ("--tokenizer", str, "SOURCE", "the visual tokenizer to begin with (default general)"),
    ("--size", str, "WxH", "of the clips, in px (default 64x64)"),
    ("--fps", int, "N", "frames per second of the clips (default 8)"),
    ("--frames", int, "N", "frames of a clip (default 17)"),
]


def add_commands(add: Add) -> None:
    parser = add("own", own, "from a folder of videos of one's own to a small model and a page of what it makes")
    about = (
        "with a .txt beside each video, or captions.csv inside; else the folder's name is the caption; or such a list"
    )
    parser.add_argument("source", metavar="FOLDER", type=Path, help=about)
    changed = "of the model's training, e.g. model.size=small; other settings than before need another --out"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=changed)
    about = "the folder to write (default own/NAME, after FOLDER); the same command goes on there"
    parser.add_argument("--out", type=Path, metavar="DIR", help=about)
    kept = "train no visual tokenizer on the clips: all of the time is the model's"
    parser.add_argument("--keep-tokenizer", action="store_true", help=kept)
    add_flags(parser, _FLAGS)


def own(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from experiments.own.film import make_film
    from experiments.own.settings import OwnSettings, default_out

    settings = OwnSettings(
        train_tokenizer=not options.keep_tokenizer,
        overrides=tuple(options.overrides),
        **given_flags(options, _FLAGS),
    )
    out = options.out or default_out(options.source)
    try:
        with StopRequest():
            page = make_film(options.source, out, settings)
    except StoppedBySignal as stop:
        if not stop.is_told:
            message = f"lumos: stopped, the steps that are done are kept | {out} | the same command goes on from there"
            print(message, file=sys.stderr)
        return int(str(stop.code))
    print(f"  look at {page}")
    return 0
