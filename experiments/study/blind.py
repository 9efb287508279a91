"""A reader looks at clips of several trainings without knowing whose they are: does he see what the detector sees?

    python -m experiments.study.blind look --out looks RUN1 RUN2     writes looks/page.html, and looks/key.json unseen
    python -m experiments.study.blind agree looks answers.json       how often reader and detector say the same word

Held-out captions, the same for each training; clips shuffled, without their captions. The page asks for colour, shape
and motion by one key each, and saves what was said as a JSON file. It needs no network.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from experiments.web_page import render_page
from lumos_pl.errors import DataError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.encoding import encode_gif
from lumos_pl.machinery.json_file import read_json
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.seeding import generator
from lumos_pl.shape_world.detector import detect
from lumos_pl.shape_world.fidelity import FRESH_SEED
from lumos_pl.shape_world.scene import COLORS, MOTIONS, SHAPES, STAYS, WorldConfig
from lumos_pl.shape_world.world import ShapeWorld
from lumos_pl.world import Frames

TEMPLATE = Path(__file__).with_name("blind.html")
OTHER = "other"  # no such word, several, or nothing to be seen
WORDS = {
    "color": dict(zip("1234567890", [*COLORS, OTHER], strict=True)),
    "shape": dict(zip("qwer", [*SHAPES, OTHER], strict=True)),
    "motion": dict(zip("asdfghjk", [*MOTIONS, STAYS, OTHER], strict=True)),
}
FRAME_MS = 120

Seen = dict[str, str]
"""A word of each of `WORDS`."""


def seen_by_detector(frames: Frames) -> Seen:
    """Of the only object that it finds."""
    found = detect(frames)
    words = vars(found[0]) if len(found) == 1 else {}
    seen = {name: str(words.get(name)) for name in WORDS}
    return {name: word if word in WORDS[name].values() else OTHER for name, word in seen.items()}


def look(runs: list[Path], out: Path, n_clips: int) -> Path:
    """Write the page and its key; returns the page."""
    world = ShapeWorld(WorldConfig())
    captions = [world.scene("heldout", number, seed=FRESH_SEED).caption for number in range(n_clips)]
    clips, key = [], []
    for run in runs:
        for clip in LumosPipeline.load(run, weights="ema").generate(captions, seed=0):
            clips.append(_gif(clip.frames.numpy()))
            key.append({"run": str(run), "caption": clip.prompt, **seen_by_detector(clip.frames.numpy())})
    order = torch.randperm(len(clips), generator=generator(0, "blind", *map(str, runs))).tolist()
    make_folder(out)
    write_atomically(out / "key.json", json.dumps([key[i] for i in order], indent=1).encode())
    write_atomically(out / "page.html", render_page(TEMPLATE, words=WORDS, clips=[clips[i] for i in order]))
    return out / "page.html"


def _gif(frames: Frames) -> bytes:
    return encode_gif([Image.fromarray(frame) for frame in frames], FRAME_MS)  # the page enlarges them


def agreement(key: list[Seen], answers: list[Seen | None]) -> dict[str, dict[str, float]]:
    """By run and word the share of the clips looked at of which both say the same, and `all`: of all words."""
    same, asked = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for own, said in zip(key, answers, strict=True):
        for name in WORDS if said is not None else ():
            for place in (own["run"], name), (own["run"], "all"):
                asked[place] += 1
                same[place] += said is not None and said[name] == own[name]
    return {run: {w: same[r, w] / n for (r, w), n in asked.items() if r == run} for run in {r for r, _ in asked}}


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    asked = commands.add_parser("look")
    asked.add_argument("runs", nargs="+", type=Path)
    asked.add_argument("--out", type=Path, required=True)
    asked.add_argument("--clips", type=int, default=50)
    told = commands.add_parser("agree")
    told.add_argument("folder", type=Path)
    told.add_argument("answers", type=Path)
    options = parser.parse_args(words)
    if options.command == "look":
        print(f"look at {look(options.runs, options.out, options.clips)}")
        return 0
    key, answers = read_json(options.folder / "key.json", list[Seen]), read_json(options.answers, list[Seen | None])
    if len(key) != len(answers):
        raise DataError("answers to another page", file=options.answers, got=len(answers), expected=len(key))
    for run, shares in sorted(agreement(key, answers).items()):
        print(run, ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
