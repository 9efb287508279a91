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
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from callbacks.jsonl_logger import last_figure
from data_modules.tokenizing.dry_run import look_through, sheet, told
from data_modules.tokenizing.media_list import read_media_list
from data_modules.tokenizing.tokenize import TokenizeSettings
from experiments.config import load_experiment
from experiments.evaluation.bootstrap import of_samples
from experiments.own import settings as budget
from experiments.own.clips import clip_items, listed_clips, reconstructed, spaced
from experiments.own.footage import STILL, Footage, changes, open_footage, split, too_little, write_list
from experiments.own.judge import psnr
from experiments.own.page import HELD_CLIPS, TRAINED, TRIED, interval, write_page
from experiments.own.room import strides_of, too_long
from experiments.own.settings import OwnSettings
from experiments.own.steps import Steps, read_begun
from experiments.run_folder import RunFolder
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.reconstruction import mean_motion_kept
from lumos_pl.weighted_mean import WeightedMean

LOCK, LISTED = "own.lock", "videos.jsonl"
JUDGED_CLIPS = 64  # held-out ones that tokenizers are compared on
SHOWN_CAPTIONS, SHOWN_CONTINUATIONS = 24, 8
MOST_CAPTION_BYTES = 512  # of a caption that clips are made of: it fits the context beside any clip
TIMING_STEPS = 12
SCENES_FROM = 5  # clips a video: those that are longer are looked through for cuts
# A dictionary that surely gains so much is taken at once. Of games, where it gained 14 dB, a network came to 6.
FAR_BETTER_DB = 8.0
NAMED = 3  # files of those that are left aside
# The beginning of a clip says more of what comes than its words do, and what is likeliest is asked for.
CONTINUING = {"guidance": 1, "temperature": 0.2}
FASTER = "a short try, to know how long a step takes here"
A_SHORT_TRY = "data.val_root=null", "trainer.val_every_n_steps=0", "callbacks.log_every_n_steps=4"


def make_film(source: Path, out: Path, settings: OwnSettings, *, say: Callable[[str], None] = print) -> Path:
    """All of it, from where it was left; returns the page.

    Raises:
        ConfigError, DataError: wrong settings, no videos, none that can be read, or a folder that was begun otherwise.
        TemporaryError: another process works in the folder.
    """
    load_experiment("own", settings.overrides)  # what is wrong with them is said before any work
    footage = open_footage(source)
    with located(source):
        footage = footage.without(too_long(footage.items, settings))
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
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


def gain(own: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    """How much better the trained tokenizer is, by what each gives of the same clips; of one clip without interval."""
    found = of_samples([one - other for one, other in zip(own, given, strict=True)], seed=0)
    better = (found.mean if found.low is None else found.low) > 0
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n, "own_is_better": better}


def _told(steps: int, usual: str) -> str:
    """How many steps a training has, and why."""
    return f"{steps} steps, {usual if steps > budget.LEAST_STEPS else 'the fewest there are, however little the time'}"


class _Film:
    def __init__(self, footage: Footage, out: Path, settings: OwnSettings, steps: Steps) -> None:
        self.footage, self.out, self.settings, self.steps = footage, out, settings, steps
        self.say = steps.say

    def page(self) -> Path:
        self._look()
        self._codes("given", self.settings.tokenizer)
        for line in self.steps.decide("warnings", self._warnings):
            self.say(f"  too little: {line}")
        self.steps.decide("given_frames", lambda: self.given_frames)
        tokenizer, codes = self.settings.tokenizer, "given"
        if self.settings.train_tokenizer and self._has_held and (best := self._best_trained()) is not None:
            tokenizer, codes = str(self._run(best, TRAINED)), best
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
        found, request = look_through(listed, self.settings.tokenizer, settings)
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
        lines = told(found, request, settings.several, settings.workers)
        if unreadable:
            lines.append(("left out", _named([os.path.relpath(name, self.footage.folder) for name in unreadable])))
        if self.footage.named_by_folder:
            named = counted(self.footage.named_by_folder, "video")
            lines.append(("captions of", f"{named}: the names of their folders"))
        for what, names in self.footage.left_aside.items():
            lines.append(("left aside", f"{len(names)}: {what} ({_named(names)})"))
        picture = sheet(found, title=self.footage.folder.name, out=self.out / "look.png")
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

    # -- the tokenizer -----------------------------------------------------------------------------

    def _run(self, experiment: str, name: str) -> Path:
        return self.out / "runs" / experiment / name

    def _train(self, experiment: str, name: str, *words: str) -> list[str]:
        return ["train", experiment, "--resume-or-start", f"run.dir={self.out / 'runs'}", f"run.name={name}", *words]

    def _step_seconds(self, experiment: str) -> float:
        seconds = last_figure(RunFolder(self._run(experiment, "timing")).metrics, "throughput/step_seconds_median")
        if seconds is None:
            raise DataError("no step was timed", file=self._run(experiment, "timing"), fix="remove it, and start again")
        return seconds

    def _best_trained(self) -> str | None:
        """The experiment whose tokenizer gives held-out clips back best; None: the one given does."""
        settings = self.settings
        data = [
            f"data.root={self.out / 'clips.jsonl'}",
            f"data.val_root={self.out / 'val_clips.jsonl'}",
            f"data.size={settings.size}",
            f"data.frames={settings.frames}",
            f"data.fps={settings.fps}",
            strides_of(load_visual_tokenizer(settings.tokenizer), "tokenizer"),  # both are judged with as many codes
        ]
        words = self._train("own_dictionary", TRAINED, *data)
        self.steps.run("own_dictionary", "a dictionary of these clips' patches, for what comes back in them", *words)
        choices = {"own_dictionary": self._choice("own_dictionary")}
        if (choices["own_dictionary"]["low"] or 0) < FAR_BETTER_DB:
            self._network(data)
            choices["own_tokenizer"] = self._choice("own_tokenizer")
        better = [name for name, choice in choices.items() if choice["own_is_better"]]
        taken: str | None = self.steps.decide(
            "taken", lambda: max(better, key=lambda name: float(choices[name]["own"]), default=None)
        )
        self.say(f"  taken: {TRIED[taken] if taken else settings.tokenizer}")
        return taken

    def _network(self, data: Sequence[str]) -> None:
        """Train a tokenizer for what its share of the time leaves."""
        settings = self.settings
        timing = self._train("own_tokenizer", "timing", *data, f"trainer.max_steps={TIMING_STEPS}", *A_SHORT_TRY)
        self.steps.run("tokenizer_timing", f"the tokenizer: {FASTER}", *timing)
        spent = self.steps.record["steps"]["own_dictionary"]["seconds"]
        steps = self.steps.decide(
            "tokenizer_steps", lambda: budget.tokenizer_steps(settings, spent, self._step_seconds("own_tokenizer"))
        )
        about = f"a tokenizer of these clips: {_told(steps, f'{budget.TOKENIZER_SHARE:.0%} of the time')}"
        every = f"trainer.val_every_n_steps={max(1, steps // 4)}"
        self.steps.run(
            "own_tokenizer", about, *self._train("own_tokenizer", TRAINED, *data, f"trainer.max_steps={steps}", every)
        )

    def _choice(self, experiment: str) -> dict[str, Any]:
        """How much better its tokenizer gives held-out clips back than the one given, and the interval of that."""
        given = self.steps.decide("given_on_held_out", lambda: self._on_held_out(self.settings.tokenizer))
        choice: dict[str, Any] = self.steps.decide(f"choice_{experiment}", lambda: self._compared(experiment, given))
        self.say(
            f"  on held-out clips {choice['given']:.1f} dB by {self.settings.tokenizer}, "
            f"{choice['own']:.1f} dB by {TRIED[experiment]}, {choice['difference']:+.1f} dB ({interval(choice)})"
        )
        return choice

    def _compared(self, experiment: str, given: dict[str, Any]) -> dict[str, Any]:
        own = self._on_held_out(str(self._run(experiment, TRAINED)))
        found = {"given": given, "own": own}
        return {
            **{name: of_samples(one["psnr"], seed=0).mean for name, one in found.items()},
            **{f"{name}_motion": one["motion"] for name, one in found.items()},
            **gain(own["psnr"], given["psnr"]),
        }

    def _on_held_out(self, tokenizer: str) -> dict[str, Any]:
        """What a tokenizer gives back: the PSNR of each held-out clip, and how much of what moves."""
        clips = listed_clips(self.out / HELD_CLIPS, self.settings, JUDGED_CLIPS)
        if not clips:
            raise DataError("no held-out clip can be read", file=self.out / HELD_CLIPS)
        opened = load_visual_tokenizer(tokenizer)
        made = [reconstructed(opened, clip.frames) for clip in clips]
        motion = WeightedMean()
        for one, clip in zip(made, clips, strict=True):
            motion.update(*mean_motion_kept(torch.from_numpy(one)[None], torch.from_numpy(clip.frames)[None]))
        share = float(motion.compute())
        values = [psnr(one, clip.frames) for one, clip in zip(made, clips, strict=True)]
        return {"psnr": values, "motion": None if math.isnan(share) else share}

    # -- the model ---------------------------------------------------------------------------------

    def _model(self, tokenizer: str, codes: str) -> None:
        settings, opened = self.settings, load_visual_tokenizer(tokenizer)
        root = self.out / "codes" / codes
        words = [
            f"data.root={root / 'train'}",
            f"data.val_root={root / 'val' if self._has_held else 'null'}",
            f"visual_tokenizer={tokenizer}",
            f"layout.codebook_size={opened.codebook_size}",
            strides_of(opened, "layout"),
            f"data.video.frames={settings.frames}",
            f"clip.width={settings.width}",
            f"clip.height={settings.height}",
            f"clip.frames={settings.frames}",
            f"clip.fps={settings.fps}",
            *settings.overrides,
        ]
        self.steps.run(
            "model_timing",
            f"the model: {FASTER}",
            *self._train("own", "timing", *words, f"trainer.max_steps={TIMING_STEPS}", *A_SHORT_TRY),
        )
        steps = self.steps.decide(
            "model_steps", lambda: budget.model_steps(settings, self.steps.seconds, self._step_seconds("own"))
        )
        every = f"trainer.val_every_n_steps={max(1, steps // 4) if self._has_held else 0}"
        about = f"the model: {_told(steps, f'what is left of the time but {budget.SHOWING_SHARE:.0%} for pictures')}"
        self.steps.run("model", about, *self._train("own", "model", f"trainer.max_steps={steps}", every, *words))

    def _measure(self) -> None:
        """What the model makes of held-out clips whose beginning it is given."""
        if not self._has_held:
            return
        run, held = self._run("own", "model"), read_media_list(self.out / "val_clips.jsonl")
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
        words = ["sample", "--run", self._run("own", "model"), "--prompts", prompts, "--out", self.out / "samples"]
        self.steps.run("samples", "a clip of each caption", *words, "--samples-per-prompt", 1)
        seconds = self.steps.record["steps"]["samples"]["seconds"] / len(captions)
        each = self.steps.decide(
            "samples_of_each", lambda: budget.samples_of_each(self.settings, len(captions), seconds)
        )
        if each > 1:
            self.steps.run("more_samples", f"{each} clips of each, to judge", *words, "--samples-per-prompt", each)
