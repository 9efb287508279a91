"""page.html: what came of a folder of videos, with moving pictures and figures; it stands alone.

Nothing is asked of a network, and all words that come from files are escaped.
"""

from __future__ import annotations

import io
import shlex
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import read_media_list
from experiments.evaluation.bootstrap import of_samples
from experiments.evaluation.report import MeasureRecord, Result
from experiments.own.clips import Clip, listed_clips, read_clips, reconstructed, spaced
from experiments.own.judge import ColourJudge, Frames, mean_colours, psnr
from experiments.own.settings import OwnSettings, default_out
from experiments.own.steps import Steps
from experiments.sample.prompts import read_prompts
from experiments.web_page import render_page
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.encoding import encode_png
from lumos_pl.machinery.json_file import read_json
from lumos_pl.tokenizers.load import load_visual_tokenizer

HELD_CLIPS = "val_clips.jsonl"
TRAINED = "clips"  # the name of a tokenizer's run
TRIED = {"own_dictionary": "a dictionary of patches", "own_tokenizer": "a network trained here"}
"""The experiments that train a tokenizer of the clips, as they are tried, and what their tokenizers are called."""
TEMPLATE = Path(__file__).with_name("page.html")
SHOWN_PAIRS, SHOWN_OF_CAPTION, STILLS = 6, 3, 5
REFERENCES, CHECKED = 240, 64
"""True clips that colours are compared with, and held-out ones that the comparison itself is tried on."""


@dataclass(frozen=True)
class Moving:
    """A clip on the page: as an animation, and as still frames where nothing is to move."""

    about: str
    webp: bytes
    png: bytes


@dataclass(frozen=True)
class Row:
    """Clips that belong together, and what they are of."""

    words: str
    clips: Sequence[Moving]


def write_page(out: Path, settings: OwnSettings, steps: Steps, tokenizer: str) -> Path:
    """Write the page anew, from what is in the folder.

    Args:
        tokenizer: the one whose codes the model was trained on.
    """
    paint = _Painter(out, settings)
    decided = steps.record["decided"]
    choices = {words: decided[f"choice_{name}"] for name, words in TRIED.items() if f"choice_{name}" in decided}
    held = [] if not paint.has_held else listed_clips(out / HELD_CLIPS, settings, CHECKED)
    made = paint.made()
    judged = steps.decide("judged", lambda: _judged(out, settings, held, made))
    measures = read_json(out / "eval" / "eval.json", Result)["measures"] if paint.has_held else {}
    shown = held or listed_clips(out / "clips.jsonl", settings, SHOWN_PAIRS)
    file = out / "page.html"
    write_atomically(
        file,
        render_page(
            TEMPLATE,
            name=default_out(Path(steps.record["asked"]["videos"])).name,
            lines=decided["look"]["lines"],
            warnings=decided["warnings"],
            choices=choices,
            given=next(iter(choices.values()), None),
            taken=TRIED.get(decided.get("taken") or ""),
            interval=interval,
            floor=of_samples([psnr(mean_colours(c.frames), c.frames) for c in shown], seed=0).mean,
            measures={name: _words(measure) for name, measure in measures.items()},
            gain=measures.get("continuation/psnr_gain/all"),
            judged=judged,
            has_held=paint.has_held,
            tokenizers=paint.tokenizers(spaced(shown, SHOWN_PAIRS), choices),
            captions=paint.captions(made),
            continued=paint.continued(),
            given_s=decided["given_frames"] / settings.fps,
            steps=_steps(steps),
            minutes=steps.seconds / 60,
            asked_minutes=settings.minutes,
            tokenizer=tokenizer,
            date=time.strftime("%Y-%m-%d"),
        ),
    )
    return file


def _steps(steps: Steps) -> list[dict[str, Any]]:
    return [
        {"name": name, "command": shlex.join(["lumos", *done["command"]]), "seconds": done["seconds"]}
        for name, done in steps.record["steps"].items()
        if done["command"]
    ]


def interval(choice: Mapping[str, Any]) -> str:
    """How sure the difference of two tokenizers is."""
    if choice["n"] == 1:
        return "of one clip alone, so how sure that is cannot be said"
    return f"{choice['low']:+.1f} to {choice['high']:+.1f}"


def _words(measure: MeasureRecord) -> str:
    low, high = measure.get("low"), measure.get("high")
    interval = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
    return f"{measure['mean']:.1f} dB{interval}"


def _judged(
    out: Path, settings: OwnSettings, held: Sequence[Clip], made: Sequence[tuple[str, Frames]]
) -> dict[str, Any] | None:
    """The share of clips whose colours are most like those of a true clip of their caption; None: it says nothing.

    The comparison is tried on held-out true clips: where it finds their captions, it can be believed.
    """
    counts = Counter(item.caption for item in read_media_list(out / "clips.jsonl"))
    if sum(count > 1 for count in counts.values()) < 2:
        return None
    known = listed_clips(out / "clips.jsonl", settings, REFERENCES)
    judge = ColourJudge([clip.frames for clip in known], [clip.item.caption for clip in known])
    captions = {clip.item.caption for clip in known}
    checked = [clip for clip in held if clip.item.caption in captions]
    tried = [(caption, frames) for caption, frames in made if caption in captions]
    if not (checked and tried):
        return None
    right = of_samples([judge.caption(frames) == caption for caption, frames in tried], seed=0)
    check = of_samples([judge.caption(clip.frames) == clip.item.caption for clip in checked], seed=0)
    return {
        "right": right.mean,
        "low": right.low,
        "high": right.high,
        "n": right.n,
        "check": check.mean,
        "check_n": check.n,
        "captions": len(captions),
    }


class _Painter:
    def __init__(self, out: Path, settings: OwnSettings) -> None:
        self.out, self.settings = out, settings
        self.has_held = (out / HELD_CLIPS).is_file() and (out / HELD_CLIPS).stat().st_size > 0

    def tokenizers(self, clips: Sequence[Clip], tried: Collection[str]) -> list[Row]:
        """Each clip as it is, and as each tokenizer gives it back, the given one and those of `TRIED`."""
        sources = {self.settings.tokenizer: self.settings.tokenizer}
        sources |= {words: str(self.out / "runs" / name / TRAINED) for name, words in TRIED.items() if words in tried}
        opened = {name: load_visual_tokenizer(source) for name, source in sources.items()}
        return [
            Row(
                clip.item.caption,
                [
                    self._moving("as it is", clip.frames),
                    *(
                        self._moving(f"{name}, {psnr(back, clip.frames):.1f} dB", back)
                        for name, back in ((name, reconstructed(one, clip.frames)) for name, one in opened.items())
                    ),
                ],
            )
            for clip in clips
        ]

    def made(self) -> list[tuple[str, Frames]]:
        """The clips of the captions, each with its caption."""
        captions = [prompt.text for prompt in read_prompts(self.out / "prompts.jsonl")]
        files = sorted((self.out / "samples").glob("[0-9]*-[0-9]*.mp4"))
        items = [
            MediaItem(path=file, name=file.name, caption=captions[int(file.name[:5])], start=0.0) for file in files
        ]
        return [(clip.item.caption, clip.frames) for clip in read_clips(items, self.settings)]

    def captions(self, made: Sequence[tuple[str, Frames]]) -> list[Row]:
        """A true clip of each caption, and some that were made of it."""
        of_caption: dict[str, list[Frames]] = {}
        for caption, frames in made:
            of_caption.setdefault(caption, []).append(frames)
        items = {item.caption: item for item in reversed(read_media_list(self.out / "clips.jsonl"))}
        true = {clip.item.caption: clip.frames for clip in read_clips([items[c] for c in of_caption], self.settings)}
        return [
            Row(
                caption,
                [
                    *([self._moving("a true one", true[caption])] if caption in true else []),
                    *(self._moving("made", frames) for frames in of_this[:SHOWN_OF_CAPTION]),
                ],
            )
            for caption, of_this in of_caption.items()
        ]

    def continued(self) -> list[Row]:
        """Held-out videos from their first frames on, and what the model makes of these."""
        if not self.has_held:
            return []
        items = [replace(item, start=0.0) for item in read_media_list(self.out / "continued.jsonl")]
        files = sorted((self.out / "continued").glob("[0-9]*-0-*.mp4"))
        pairs = [
            (items[index], MediaItem(path=file, name="made", caption=items[index].caption, start=0.0))
            for file in files
            if (index := int(file.name[:5])) < len(items)
        ]
        read = {clip.item.path: clip.frames for clip in read_clips(chain(*pairs), self.settings)}
        return [
            Row(true.caption, [self._moving("as it is", read[true.path]), self._moving("continued", read[made.path])])
            for true, made in pairs
            if true.path in read and made.path in read
        ]

    def _moving(self, about: str, frames: Frames) -> Moving:
        pictures = [Image.fromarray(frame) for frame in frames]
        encoded = io.BytesIO()
        ms = round(1000 / self.settings.fps)
        pictures[0].save(
            encoded, format="WebP", save_all=True, append_images=pictures[1:], duration=ms, loop=0, quality=88, method=4
        )
        strip = Image.fromarray(np.concatenate(spaced(list(frames), STILLS), axis=1))
        return Moving(about, encoded.getvalue(), encode_png(strip))
