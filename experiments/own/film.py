"""From a folder of videos to a page of films: the steps in their order, see `steps`, and what is decided between them.

OUT/train.jsonl  val.jsonl               the videos to train on, and those that are held out
    clips.jsonl  val_clips.jsonl         the clips of these that can be used
    codes/given/  codes/own_dictionary/  train and val as codes, of the tokenizer given and of the one that is taken
    runs/own_dictionary/  runs/own_tokenizer/  runs/own/     the trainings
    samples/  continued/                 clips of the captions, and continuations of held-out clips
    eval/eval.json                       what the model is worth on held-out clips
    own.json                             what was decided, which steps are done
    page.html                            all of it to look at
"""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from data_modules.tokenizing import dry_run
from data_modules.tokenizing.media_list import read_media_list
from data_modules.tokenizing.settings import TokenizeSettings
from experiments.merging import text_override
from experiments.own import settings as budget
from experiments.own.choice import Choice
from experiments.own.clips import clip_items, spaced
from experiments.own.footage import STILL, Footage, changes, open_footage, split, too_little, write_list
from experiments.own.page import HELD_CLIPS, TRAINED, write_page
from experiments.own.room import strides_of, too_long
from experiments.own.settings import OwnSettings
from experiments.own.steps import Steps, read_begun
from experiments.own.trainings import Trainings, told
from experiments.read_config import load_experiment
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.tokenizers.load import load_visual_tokenizer

LOCK, LISTED = "own.lock", "videos.jsonl"
SHOWN_CAPTIONS, SHOWN_CONTINUATIONS = 24, 8
MOST_CAPTION_BYTES = 512  # of a caption that clips are made of: it fits the context beside any clip
SCENES_FROM = 5  # clips a video: those that are longer are looked through for cuts
NAMED = 3  # files of those that are left aside
# The beginning of a clip says more of what comes than its words do, and what is likeliest is asked for.
CONTINUING = {"guidance": 1, "temperature": 0.2}
MODEL = "model"  # the name of its run


def make_film(source: Path, out: Path, settings: OwnSettings, *, say: Callable[[str], None] = print) -> Path:
    """All of it, from where it was left; returns the page.

    Raises:
        ConfigError, DataError: wrong settings, no videos, none that can be read, or a folder that was begun otherwise.
        TemporaryError: another process works in the folder.
    """
    # What is wrong with these is said before any work.
    names = text_override("run.dir", str(out / "runs")), text_override("visual_tokenizer", settings.tokenizer)
    load_experiment("own", [*settings.overrides, *names])
    # Of whichever name and from wherever it is asked for, the commands of a folder are the same.
    with suppress(OSError, RuntimeError):  # a ring of links
        out = out.resolve()
    footage = open_footage(source)
    with located(source):
        footage = footage.without(too_long(footage.items, settings))
    if source.is_dir() and out.is_relative_to(source.resolve()):
        raise ConfigError("it would lie among the videos", where="--out", got=out, fix="write elsewhere")
    make_folder(out, error=ConfigError, where="--out")
    with file_lock(out / LOCK):
        asked = {
            "videos": str(source.absolute()),
            "contents": footage.fingerprint,
            "minutes": settings.minutes,
            "tokenizer": settings.tokenizer,
            "train_tokenizer": settings.train_tokenizer,
            "size": settings.size,
            "fps": settings.fps,
            "frames": settings.frames,
            "settings": list(settings.overrides),
        }
        _check_unchanged(out, footage)
        steps = Steps(out, asked, say=say)
        return _Film(footage, out, settings, steps).page()


def _check_unchanged(out: Path, footage: Footage) -> None:
    """Raise ConfigError where a folder was begun with other videos than are there now."""
    begun = read_begun(out)
    if begun is not None and begun["asked"].get("contents") != footage.fingerprint:
        listed = out / LISTED
        got = changes(read_media_list(listed), footage.items) if listed.is_file() else None
        fix = f"write elsewhere with --out, or remove {out} to start anew"
        raise ConfigError("not the videos that it was begun with", file=footage.folder, got=got, fix=fix)


def _named(names: Sequence[str]) -> str:
    """The first few of some names of files, which may hold anything, on one line."""
    shown = "".join(c if c.isprintable() else "?" for c in ", ".join(names[:NAMED])[:160])
    return shown + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


class _Film:
    def __init__(self, footage: Footage, out: Path, settings: OwnSettings, steps: Steps) -> None:
        self.footage, self.out, self.settings, self.steps = footage, out, settings, steps
        self.say, self.trainings = steps.say, Trainings(steps)

    def page(self) -> Path:
        self._look()
        self._codes("given", self.settings.tokenizer)
        for line in self.steps.decide("warnings", self._warnings):
            self.say(f"  too little: {line}")
        self.steps.decide("given_frames", lambda: self.given_frames)
        tokenizer, codes = self.settings.tokenizer, "given"
        if self.settings.train_tokenizer and self._has_held:
            best = Choice(self.out, self.settings, self.steps).best()
            if best is not None:
                tokenizer, codes = str(self.trainings.folder(best, TRAINED)), best
            self._codes(codes, tokenizer)
        self._model(tokenizer, codes)
        self._measure()
        self._clips()
        self.say("\nthe page")
        return write_page(self.out, self.settings, self.steps, tokenizer)

    # -- what there is -----------------------------------------------------------------------------

    def _look(self) -> None:
        """See what there is, settle which clips are taken, and write the lists."""
        listed = self.out / LISTED
        write_atomically(listed, write_list(self.footage.items))
        found = self.steps.decide("look", lambda: self._looked(listed))
        for name, line in found["lines"]:
            self.say(f"  {name:12}{line}")
        readable = [item for item in read_media_list(listed) if item.name not in found["unreadable"]]
        taken = spaced(readable, found["videos_taken"])
        train, held = split(taken, found["same"])
        for name, items in ("train", train), ("val", held):
            write_atomically(self.out / f"{name}.jsonl", write_list(items))
        files = counted(len({item.path for item in held}), "file")
        self.say(f"  {'held out':12}{counted(len(held), 'video')} of {len(taken)}, for validation ({files})")

    def _looked(self, listed: Path) -> dict[str, Any]:
        settings = TokenizeSettings(**self._tokenize_settings(), clips_per_video="all")
        words = self._tokenize(listed, self.out / "codes", "all", scenes=False)
        self.say(f"\nwhat there is\n  $ {shlex.join(['lumos', *words, '--dry-run'])}")
        found, request = dry_run.look_through(listed, self.settings.tokenizer, settings)
        if still := sum(one.first.is_image for one in found.seen):  # a GIF of one picture
            found.seen = [one for one in found.seen if not one.first.is_image]
            found.problems[STILL] += still
        if not found.seen:
            reasons = ", ".join(f"{count} {what}" for what, count in found.problems.most_common(3))
            expected = f"some of {self.settings.clip_seconds:.1f} s or more"
            fix = "fewer --frames, or a higher --fps, ask for shorter ones"
            raise DataError("no video can be read", file=self.footage.folder, got=reasons, expected=expected, fix=fix)
        seen = {one.item.name for one in found.seen}
        looked_at_all = found.looked_at == found.total  # of many, the rest is found out by the work
        unreadable = [item.name for item in read_media_list(listed) if looked_at_all and item.name not in seen]
        lines = dry_run.told(found, request, settings.several, settings.workers)
        if unreadable:
            lines.append(("left out", _named([os.path.relpath(name, self.footage.folder) for name in unreadable])))
        if self.footage.named_by_folder:
            named = counted(self.footage.named_by_folder, "video")
            lines.append(("captions of", f"{named}: the names of their folders"))
        for what, names in self.footage.left_aside.items():
            lines.append(("left aside", f"{len(names)}: {what} ({_named(names)})"))
        picture = dry_run.sheet(found, title=self.footage.folder.name, out=self.out / "look.png")
        limit = budget.clips_in_time(self.settings, found.clip_seconds, settings.workers)
        videos = min(found.total, limit)
        each = budget.clips_of_each(videos, found.clips, limit)
        if each is not None:
            some = f"{counted(min(limit, each * videos), 'clip')} of {counted(videos, 'video')}"
            lines.append(("taken", f"about {some}: more do not fit the time"))
        return {
            "unreadable": unreadable,
            "lines": [*lines, ("sheet", str(picture))],
            "same": found.same,
            "videos_taken": videos,
            "clips_per_video": each,
            "scenes": found.clips >= SCENES_FROM * found.total,
        }

    def _warnings(self) -> list[str]:
        lists = [read_media_list(self.out / f"{name}.jsonl") for name in self._sides("clips")]
        return too_little(sum(map(len, lists)), lists[0], lists[1] if self._has_held else [])

    @property
    def _has_held(self) -> bool:
        """Whether there are held-out videos, and, since it is known, clips of them: they may turn out damaged."""
        clips = self.out / HELD_CLIPS
        return bool((clips if clips.is_file() else self.out / "val.jsonl").stat().st_size)

    def _sides(self, kind: str = "") -> list[str]:
        """Of the lists or folders of a kind: the one for training, and the one for validation if there is any."""
        names = ("clips", "val_clips") if kind == "clips" else ("train", "val")
        return list(names if self._has_held else names[:1])

    # -- codes -------------------------------------------------------------------------------------

    def _tokenize_settings(self) -> dict[str, Any]:
        settings = self.settings
        return {
            "fps": settings.fps,
            "frames": settings.frames,
            "size": settings.size,
            "min_frames": settings.frames,
            "max_bad": 1.0,
        }

    def _tokenize(
        self, listed: Path, out: Path, clips: object, scenes: bool, tokenizer: str | None = None
    ) -> list[str]:
        settings = self.settings
        words = ["tokenize", listed, "--out", out, "--tokenizer", tokenizer or settings.tokenizer]
        words += ["--size", settings.size, "--fps", settings.fps, "--frames", settings.frames]
        words += ["--min-frames", settings.frames, "--max-bad", 1, "--clips-per-video", clips]
        return [str(word) for word in [*words, *(["--scenes"] if scenes else [])]]

    def _codes(self, kind: str, tokenizer: str) -> None:
        """Both lists as codes of a tokenizer; of the first one, which clips there are.

        Held-out videos of which none can be used are no end: nothing is judged then.
        """
        found = self.steps.record["decided"]["look"]
        clips = found["clips_per_video"] or "all"
        for side in self._sides():
            words = self._tokenize(
                self.out / f"{side}.jsonl", self.out / "codes" / kind / side, clips, found["scenes"], tokenizer
            )
            try:
                self.steps.run(f"codes_{kind}_{side}", f"codes of the {side} videos, by {tokenizer}", *words)
            except DataError as error:
                if side == "train" or kind != "given":
                    raise
                self.say(f"  left aside  {error}")
                write_atomically(self.out / HELD_CLIPS, "")  # none is held out: the rest goes on without
        if kind == "given":
            for side, name in zip(self._sides(), self._sides("clips"), strict=True):
                file = self.out / f"{name}.jsonl"
                if not file.exists():
                    items = clip_items(self.out / "codes" / kind / side)
                    if not items and side == "train":
                        raise DataError("no clip to train on", file=self.out / "train.jsonl", got="pictures alone")
                    write_atomically(file, write_list(items))

    # -- the model ---------------------------------------------------------------------------------

    def _model(self, tokenizer: str, codes: str) -> None:
        settings, opened = self.settings, load_visual_tokenizer(tokenizer)
        root = self.out / "codes" / codes
        words = [
            text_override("data.root", str(root / "train")),
            text_override("data.val_root", str(root / "val")) if self._has_held else "data.val_root=null",
            text_override("visual_tokenizer", tokenizer),
            f"layout.codebook_size={opened.codebook_size}",
            strides_of(opened, "layout"),
            f"data.video.frames={settings.frames}",
            f"clip.width={settings.width}",
            f"clip.height={settings.height}",
            f"clip.frames={settings.frames}",
            f"clip.fps={settings.fps}",
            *settings.overrides,
        ]
        self.trainings.time("model", "own", *words)
        steps = self.steps.decide(
            "model_steps",
            lambda: budget.model_steps(settings, self.steps.seconds, self.trainings.step_seconds("own")),
        )
        every = f"trainer.val_every_n_steps={max(1, steps // 4) if self._has_held else 0}"
        about = f"the model: {told(steps, f'what is left of the time but {budget.SHOWING_SHARE:.0%} for pictures')}"
        self.trainings.run("model", about, "own", MODEL, f"trainer.max_steps={steps}", every, *words)

    def _measure(self) -> None:
        """What the model makes of held-out clips whose beginning it is given."""
        if not self._has_held:
            return
        run, held = self.trainings.folder("own", MODEL), read_media_list(self.out / "val_clips.jsonl")
        count = max(2, min(32, len(held)))
        words = ["eval", run, "--only", "continuation", "--generated", count, "--out", self.out / "eval"]
        words += [f"sampling.{name}={value}" for name, value in CONTINUING.items()]
        self.steps.run("eval", "continuations of held-out clips, measured", *words)
        first = spaced(list({item.path: item for item in held}.values()), SHOWN_CONTINUATIONS)
        prompts = self.out / "continued.jsonl"
        write_atomically(prompts, write_list(first))
        common = os.path.commonpath([item.path.parent for item in first])
        words = ["sample", "--run", run, "--prompts", prompts, "--video", common]
        words += ["--given-frames", self.given_frames, "--out", self.out / "continued"]
        words += [word for name, value in CONTINUING.items() for word in (f"--{name}", value)]
        self.steps.run("continued", "continuations of held-out videos, from their first frames", *words)

    @property
    def given_frames(self) -> int:
        """The first half of the latent frames, as `lumos eval` gives them."""
        stride = load_visual_tokenizer(self.settings.tokenizer).strides[0]
        latent = 1 + -(-(self.settings.frames - 1) // stride)
        return 1 + stride * (max(1, latent // 2) - 1)

    def _clips(self) -> None:
        counts = Counter(item.caption for item in read_media_list(self.out / "clips.jsonl"))
        short = [caption for caption, _ in counts.most_common() if len(caption.encode()) <= MOST_CAPTION_BYTES]
        captions = short[:SHOWN_CAPTIONS] or [min(counts, key=len)]
        prompts = self.out / "prompts.jsonl"
        write_atomically(prompts, "".join(f"{json.dumps({'prompt': c}, ensure_ascii=False)}\n" for c in captions))
        words = ["sample", "--run", self.trainings.folder("own", MODEL), "--prompts", prompts]
        words += ["--out", self.out / "samples"]
        self.steps.run("samples", "a clip of each caption", *words, "--samples-per-prompt", 1)
        seconds = self.steps.record["steps"]["samples"]["seconds"] / len(captions)
        each = self.steps.decide(
            "samples_of_each", lambda: budget.samples_of_each(self.settings, len(captions), seconds)
        )
        if each > 1:
            self.steps.run("more_samples", f"{each} clips of each, to judge", *words, "--samples-per-prompt", each)
