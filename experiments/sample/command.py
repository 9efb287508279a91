"""`lumos sample`: its options, and what it prints. Heavy imports wait until it runs."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands.options import Add, Flag, add_adapter_flag, add_flags, add_import_flag, given_flags
from experiments.sample.arrangement import ARRANGEMENTS, SAMPLES, Job, plan_jobs, slug
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.counted import counted
from lumos_pl.settings.ranges import at_least, optional

if TYPE_CHECKING:
    from experiments.sample.prompts import Prompt
    from experiments.sample.run import Given, SampleProgress, SampleSections, SampleSettings
    from lumos_pl.layout import TokenLayout
    from lumos_pl.pipeline import LumosPipeline
    from lumos_pl.sampling.config import ClipFormat, SamplingConfig

_SAMPLING: list[Flag] = [  # fields of SamplingConfig
    ("--steps", int, "N", "refinement steps of a frame"),
    ("--guidance", float, "G", "scale of classifier-free guidance; 1: none"),
    ("--partial-context", float, "RHO", "share of a finished frame that later ones do not see"),
    ("--temperature", float, "T", "of the drawn codes"),
    ("--top-k", int, "K", "draw among the K likeliest codes"),
    ("--top-p", float, "P", "draw among the likeliest codes that have this probability together"),
]
_FLAG_OF = {  # a field that an option sets
    "clip.width": "--size",
    "clip.height": "--size",
    "clip.frames": "--frames",
    "clip.fps": "--fps",
    "device": "--device",
    "visual_tokenizer": "--tokenizer",
    "text_tokenizer": "--text-tokenizer",
    "data.text_tokenizer": "--text-tokenizer",
    **{f"sampling.{flag[2:].replace('-', '_')}": flag for flag, *_ in _SAMPLING},
}


def add_commands(add: Add) -> None:
    """The options; those left out are as the run has them, or as the release does."""
    parser = add("sample", sample, "make images and clips of prompts with a run or a released checkpoint")
    source = parser.add_mutually_exclusive_group()  # none: the model that comes with the project
    source.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        help="a run's folder: its newest complete checkpoint (default: a small model of shapes)",
    )
    source.add_argument("--ckpt", type=Path, metavar="FILE", help="one checkpoint")
    source.add_argument("--hf", type=Path, metavar="DIR", help="a folder in the released format; needs both tokenizers")
    parser.add_argument("--weights", choices=["model", "ema"], default="model", help="ema: the running average")
    add_adapter_flag(parser)
    about = "`embedded`, a .safetensors, its run, or Cosmos's folder, whose files are executed: only what you trust"
    parser.add_argument("--tokenizer", "--visual-tokenizer", metavar="SOURCE", help=about)
    parser.add_argument("--text-tokenizer", metavar="FILE", help="a tokenizer.json")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, or auto (default)")
    parser.add_argument(
        "--precision", choices=["32-true", "bf16-mixed"], help="default: as in training, where bf16 is not slower"
    )
    parser.add_argument("--compile", action="store_true", help="by torch.compile: a minute at first, faster after it")

    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--prompt", action="append", metavar="TEXT", help="a caption; may be given several times")
    asked.add_argument(
        "--prompts", type=Path, metavar="FILE", help=".txt, .json {file name: caption}, .jsonl or .csv (prompt[, path])"
    )
    parser.add_argument("--prompt-field", metavar="NAME", help="of the caption in a .jsonl or .csv")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--image", type=Path, metavar="PATH", help="begin with it; of a folder: the file the list names")
    given.add_argument("--video", type=Path, metavar="PATH", help="go on from it; of a folder: the file the list names")
    parser.add_argument("--given-frames", type=int, metavar="N", help="of --video: 1, 5, 9, ... (default: all)")

    parser.add_argument("--size", metavar="WxH", help="in px")
    parser.add_argument("--frames", type=int, metavar="N", help="RGB frames, given ones included; 1: an image")
    parser.add_argument("--fps", type=int, metavar="N", help="frames per second of the video")
    add_flags(parser, _SAMPLING)
    add_import_flag(parser)
    others = "as in an experiment, of `sampling` and `clip`: sampling.greedy=true sampling.schedule=linear"
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=others)
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--samples-per-prompt", type=int, metavar="K", help="default 1; geneval 4, vbench 5")

    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="default samples/WORDS of the prompt; the same command goes on there"
    )
    parser.add_argument(
        "--arrangement", choices=ARRANGEMENTS, default="plain", help="names and folders (default plain)"
    )
    parser.add_argument(  # what it was called before
        "--layout", dest="arrangement", choices=ARRANGEMENTS, default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    parser.add_argument("--gif", action="store_true", help="a GIF beside each video")
    parser.add_argument("--shards", type=Path, metavar="DIR", help="all of their codes, to train on, in DIR/videos too")
    parser.add_argument(
        "--shard", default="0/1", metavar="I/N", help="part I of N of the prompts, from 0 (default all)"
    )


def sample(options: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    from experiments.sample.folder import SampleFolder
    from experiments.sample.pictures import SHEET, paint_sheet, write_geneval
    from experiments.sample.run import make_clips
    from experiments.sample.shards import write_shards
    from lumos_pl.machinery.stop_request import StoppedBySignal, StopRequest

    shard = _shard(options.shard)
    if options.shards is not None and shard[1] > 1:
        fix = "make the parts, and give --shards without --shard when all of them are there"
        raise ConfigError("shards of a part", where="--shards", got=f"--shard {options.shard}", fix=fix)
    prompts = _prompts(options)
    options.out = options.out or _default_out(options)
    bar = _Bar()
    try:
        with StopRequest():
            with _fields_as_flags():
                pipeline, settings = _prepare(options)
            suffix = ".png" if settings.clip.frames == 1 else ".mp4"
            samples = options.samples_per_prompt or SAMPLES[options.arrangement]
            jobs = plan_jobs(prompts, options.arrangement, samples=samples, suffix=suffix)
            own = [job for job in jobs if job.index % shard[1] == shard[0]]
            _print_renamed(own)
            folder = SampleFolder(options.out, shard)
            with folder.lock():
                with bar:
                    made = make_clips(pipeline, own, folder, settings, on_progress=bar.show)
                if options.arrangement == "geneval":
                    write_geneval(folder, own, settings.clip)
                paint_sheet(folder, jobs, settings.clip, stride=pipeline.layout.strides[0])
                if options.shards is not None:
                    write_shards(options.shards, folder, jobs, pipeline, settings.clip)
    except StoppedBySignal as stop:
        print(f"lumos: stopped, {bar.words} | {options.out} | the same command goes on from there", file=sys.stderr)
        return int(str(stop.code))
    part = "" if len(own) == len(jobs) else f" (part {options.shard} of {len(jobs)})"
    print(f"{options.out}: {counted(len(own), 'clip')}{part}, {made:,} made now{bar.rate}")
    if (options.out / SHEET).is_file():
        print(f"  look at {options.out / SHEET}")
    return 0


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if not shard[0] < shard[1]:
        raise ConfigError("not a part", where="--shard", got=repr(text), expected="I/N with I from 0 to N - 1")
    return shard


def _default_out(options: argparse.Namespace) -> Path:
    """A folder of its own for each prompt, or list, so that the next one does not meet its clips."""
    words = options.prompt[0] if options.prompts is None else options.prompts.stem
    return Path("samples") / (slug(words) or "clips")


def _prompts(options: argparse.Namespace) -> list[Prompt]:
    from experiments.sample.prompts import given_prompts, read_prompts

    if options.prompts is not None:
        prompts = read_prompts(options.prompts, field=options.prompt_field)
    elif options.prompt_field is not None:
        raise ConfigError("only rows have fields", where="--prompt-field", fix="give a list with --prompts")
    else:
        prompts = given_prompts(options.prompt)
    optional(at_least(1)).check("--samples-per-prompt", options.samples_per_prompt)
    if options.arrangement == "geneval" and any(prompt.metadata is None for prompt in prompts):
        raise ConfigError("GenEval needs the metadata of each prompt", where="--prompts", expected="its .jsonl")
    if options.arrangement == "vbench-i2v" and options.image is None:
        raise ConfigError("VBench-I2V begins with images", where="--image", fix="give the folder of the images")
    if options.arrangement != "plain" and options.gif:
        raise ConfigError(
            "other files would trip the benchmark's tool", where="--gif", got=f"--arrangement {options.arrangement}"
        )
    return prompts


def _prepare(options: argparse.Namespace) -> tuple[LumosPipeline, SampleSettings]:
    from experiments.own_parts import import_for_sampling
    from experiments.read_config import with_overrides
    from experiments.sample.run import SampleSections, SampleSettings
    from lumos_pl.checkpoints.named import EMBEDDED
    from lumos_pl.pipeline import LumosPipeline

    import_for_sampling(options.imports)
    pipeline = LumosPipeline.load(
        options.run or options.ckpt or options.hf or EMBEDDED,
        adapters=options.adapters,
        weights=options.weights,
        visual_tokenizer=options.tokenizer,
        text_tokenizer=options.text_tokenizer,
        device=options.device,
        precision=options.precision,
        compile=options.compile,
    )
    asked = with_overrides(SampleSections(clip=pipeline.clip, sampling=pipeline.sampling), options.overrides)
    clip = _clip(options, asked.clip)
    layout = pipeline.layout
    try:
        layout.latent_size(clip.width, clip.height)
    except DataError as error:
        raise ConfigError(error.what, where="--size", got=error.got, expected=error.expected) from None
    return pipeline, SampleSettings(
        clip=clip,
        sampling=_sampling(options, SampleSections(clip=clip, sampling=pipeline.sampling_for(clip))),
        seed=options.seed,
        weights=options.weights,
        given=_given(options, clip, layout),
        gif=options.gif and clip.frames > 1,
    )


def _clip(options: argparse.Namespace, default: ClipFormat) -> ClipFormat:
    """What the options ask for over what the run and the overrides have."""
    frames = options.frames
    if frames is None and any(word.startswith("clip.frames=") for word in options.overrides):
        frames = default.frames
    if frames is None and options.arrangement == "geneval":
        frames = 1
    if options.arrangement != "plain" and (frames == 1) != (options.arrangement == "geneval"):
        kind = "images" if options.arrangement == "geneval" else "videos"
        raise ConfigError(f"{options.arrangement} judges {kind}", where="--frames", got=frames)
    changes = {"frames": frames, "fps": options.fps}
    if options.size is not None:
        match = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", options.size)
        if match is None:
            raise ConfigError("not a size", where="--size", got=repr(options.size), expected="WxH such as 448x256")
        changes |= {"width": int(match[1]), "height": int(match[2])}
    return replace(default, **{name: value for name, value in changes.items() if value is not None})


def _sampling(options: argparse.Namespace, default: SampleSections) -> SamplingConfig:
    from experiments.merging import changed_by
    from experiments.read_config import with_overrides
    from lumos_pl.settings.idle import refuse_idle

    flags = given_flags(options, _SAMPLING)
    asked = with_overrides(replace(default, sampling=replace(default.sampling, **flags)), options.overrides)
    refuse_idle(asked, {"sampling": flags | changed_by(options.overrides).get("sampling", {})})
    return asked.sampling


def _given(options: argparse.Namespace, clip: ClipFormat, layout: TokenLayout) -> Given | None:
    from experiments.sample.run import Given

    frames, stride = options.given_frames, layout.strides[0]
    if frames is not None and options.video is None:
        raise ConfigError("of which video?", where="--given-frames", got=frames, fix="give it with --video")
    if options.image is None and options.video is None:
        return None
    last = 1 + stride * (layout.latent_frames(clip.frames) - 2)  # the most that leave a latent frame to make
    if last < 1:
        raise ConfigError("nothing left to make", where="--frames", got=clip.frames, expected="more than are given")
    if frames is not None and not (1 <= frames <= last and frames % stride == 1 % stride):
        expected = f"1 + {stride}k, at most {last}"
        raise ConfigError("frames that cannot be given", where="--given-frames", got=frames, expected=expected)
    return Given(source=options.image or options.video, frames=1 if options.image else frames)


@contextmanager
def _fields_as_flags() -> Iterator[None]:
    """Name the option instead of the field that it sets."""
    try:
        yield
    except ConfigError as error:
        field, colon, detail = (error.where or "").partition(":")
        where = f"{_FLAG_OF.get(field, field)}{colon}{detail}" or None
        raise ConfigError(**error.parts | {"where": where}) from error


def _print_renamed(jobs: Sequence[Job]) -> None:
    for job in jobs:
        if job.wanted_name is not None:
            print(f"not a name for a file, or taken: {job.wanted_name[:200]!r} is {job.file}")


class _Bar:
    """The progress bar: clips, the frame and step that is being drawn, tokens per second."""

    def __init__(self) -> None:
        self.rate = ""
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

        from lumos_pl.machinery.progress_bar import ProgressBar

        columns = BarColumn(), TextColumn("{task.fields[words]}"), TimeRemainingColumn()
        self._progress = ProgressBar(*columns)
        self._task = self._progress.add_task("", total=None, words="starting")
        self._begun = time.monotonic()
        self._report: SampleProgress | None = None

    def __enter__(self) -> None:
        self._begun = time.monotonic()
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, report: SampleProgress) -> None:
        self._report = report
        self.rate = f", {report.tokens / (time.monotonic() - self._begun):.0f} tokens/s"
        place = f"frame {report.frame} of {report.latent_frames}, step {report.step} of {report.steps}"
        words = f"{self.words}, {place}{self.rate}"
        self._progress.update(self._task, completed=report.clips, total=report.total, words=words)

    @property
    def words(self) -> str:
        return "nothing made yet" if self._report is None else f"{self._report.done} of {self._report.total} made"
