"""Make the clips of a list: `lumos sample`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data_modules.media.decode import ClipRequest
from data_modules.media.reader import MediaReader
from experiments.sample.arrangement import Job
from experiments.sample.folder import SampleFolder
from experiments.sample.prompts import Prompt, file_inside
from lumos_pl.checkpoints.decoder import Weights
from lumos_pl.errors import ConfigError, DataError, located
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.tokenizers.load import need_text_tokenizer, need_visual_tokenizer

MOST_GIVEN_BYTES = 16 << 30  # of an image or video that clips begin with, which is digested whole


@dataclass(frozen=True, kw_only=True)
class Given:
    """The image or video that clips begin with.

    Args:
        source: a file for all, or a folder with the files that the list names.
        frames: its first RGB frames that are kept, 1 + 4k; None: all that a video has.
    """

    source: Path
    frames: int | None

    def file(self, prompt: Prompt) -> Path:
        file = file_inside(self.source, prompt) if self.source.is_dir() else self.source
        try:
            if file.is_file():
                return file
        except OSError:  # a name that no file can have
            pass
        raise DataError("no such file", file=file)


@dataclass(frozen=True, kw_only=True)
class SampleSections:
    """What of an experiment's configuration `lumos sample` takes as `key=value`."""

    clip: ClipFormat = field(default_factory=ClipFormat)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """
    Args:
        clip, sampling: of every clip.
        seed: of all; see `clip_seed` for what each gets.
        weights: which of the checkpoint's were loaded.
        gif: write a GIF beside each video.
    """

    clip: ClipFormat
    sampling: SamplingConfig
    seed: int = 0
    weights: Weights = "model"
    given: Given | None = None
    gif: bool = False

    @property
    def also(self) -> tuple[str, ...]:
        return (".gif",) if self.gif else ()


@dataclass(frozen=True, kw_only=True)
class SampleProgress:
    """Where the work is.

    Args:
        done, total: clips written, and to be written; those that were there already are not counted.
        at_once: clips that are being made together: at `step` of `steps` in `frame` of `latent_frames`, from 1.
        tokens: visual tokens drawn so far.
    """

    done: int
    total: int
    at_once: int
    frame: int
    latent_frames: int
    step: int
    steps: int
    tokens: int

    @property
    def clips(self) -> float:
        """Clips done, with their parts."""
        return self.done + self.at_once * ((self.frame - 1) * self.steps + self.step) / (
            self.latent_frames * self.steps
        )


OnProgress = Callable[[SampleProgress], None]


def make_clips(
    pipeline: LumosPipeline,
    jobs: Sequence[Job],
    folder: SampleFolder,
    settings: SampleSettings,
    *,
    on_progress: OnProgress | None = None,
) -> int:
    """Write every clip that is not there yet; the folder is locked.

    All of what is there and all of what is asked for is checked before the first is made.

    Returns:
        how many were made.
    Raises:
        ConfigError: a clip that was made otherwise is there, or the settings do not fit together.
        DataError: a prompt that does not fit the model's context, or a file that cannot be given.
    """
    maker = _Maker(pipeline, settings, folder)
    waiting = [job for job in jobs if not folder.matches(job, maker.request(job), also=settings.also)]
    for index, prompt in {job.index: job.prompt for job in waiting}.items():
        with located(where=f"prompt {index}"):
            pipeline.check([prompt.text], clip=settings.clip)
    folder.clear(waiting, also=settings.also)
    total, done = len(waiting), 0
    with MediaReader() as reader:
        for group in _groups(waiting, pipeline.clips_at_once(settings.clip)):
            maker.make(group, reader, done, total, on_progress)
            done += len(group)
    return total


def describe_request(
    pipeline: LumosPipeline, settings: SampleSettings, prompt: str, *, seed: int, given: dict[str, Any] | None
) -> dict[str, Any]:
    """All that a clip depends on, in plain values.

    Args:
        seed: the clip's own.
        given: the frames that it begins with, described.
    """
    assert pipeline.saved is not None, "a clip's record names the checkpoint"
    return {
        "prompt": prompt,
        "text": pipeline.wording(prompt, settings.clip),
        "seed": seed,
        "given": given,
        "clip": asdict(settings.clip),
        "sampling": asdict(settings.sampling),
        "checkpoint": pipeline.saved.digest,
        "weights": settings.weights,
        "visual_tokenizer": need_visual_tokenizer(pipeline.visual_tokenizer).fingerprint,
        "text_tokenizer": need_text_tokenizer(pipeline.text_tokenizer, pipeline.layout).fingerprint,
        "precision": pipeline.precision,
        "device": pipeline.device.type,  # rounding differs between CPU and GPU, and where graphs are compiled
    } | ({"compile": True} if pipeline.net.compute.compile else {})


def describe_software(pipeline: LumosPipeline) -> dict[str, str]:
    """What a clip was made with, for whoever wonders; it is not compared."""
    assert pipeline.saved is not None
    return {
        "checkpoint_file": str(pipeline.saved.file),
        "lumos_pl": version("lumos_pl"),
        "torch": torch.__version__,
    }


class _Maker:
    def __init__(self, pipeline: LumosPipeline, settings: SampleSettings, folder: SampleFolder) -> None:
        self.pipeline, self.settings, self.folder = pipeline, settings, folder
        self.tokens = 0
        self._digests: dict[Path, str] = {}

    def request(self, job: Job) -> dict[str, Any]:
        seed = clip_seed(self.settings.seed, job.index, job.sample)
        given = self._describe_given(job.prompt)
        return describe_request(self.pipeline, self.settings, job.prompt.text, seed=seed, given=given)

    def _describe_given(self, prompt: Prompt) -> dict[str, Any] | None:
        given = self.settings.given
        if given is None:
            return None
        file = given.file(prompt)
        if file not in self._digests:
            with open_regular(file, at_most=MOST_GIVEN_BYTES) as stream:
                self._digests[file] = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"file": file.name, "sha256": self._digests[file], "frames": given.frames}

    def make(
        self, group: Sequence[Job], reader: MediaReader, done: int, total: int, on_progress: OnProgress | None
    ) -> None:
        """Generate clips together and write them."""
        clip, layout = self.settings.clip, self.pipeline.layout
        given = [self._read_given(reader, job.prompt) for job in group]
        rows, cols = layout.latent_size(clip.width, clip.height)
        starts = [0 if frames is None else layout.latent_frames(len(frames)) for frames in given]
        tokens = sum(layout.latent_frames(clip.frames) - start for start in starts) * rows * cols

        def show(step: int, in_all: int) -> None:
            if on_progress is not None:
                steps = self.settings.sampling.steps
                report = SampleProgress(
                    done=done,
                    total=total,
                    at_once=len(group),
                    frame=1 + (step - 1) // steps,
                    latent_frames=in_all // steps,
                    step=1 + (step - 1) % steps,
                    steps=steps,
                    tokens=self.tokens + tokens * step // in_all,
                )
                on_progress(report)

        requests = [self.request(job) for job in group]
        clips = self.pipeline.generate(
            [job.prompt.text for job in group],
            seed=[request["seed"] for request in requests],
            clip=clip,
            sampling=self.settings.sampling,
            given=given,
            on_step=show,
        )
        self.tokens += tokens
        for job, request, made in zip(group, requests, clips, strict=True):
            record = {"seed": self.settings.seed, "request": request, "made_with": describe_software(self.pipeline)}
            self.folder.finish(job, made, also=self.settings.also, record=record)

    def _read_given(self, reader: MediaReader, prompt: Prompt) -> Tensor | None:
        """The frames that a clip begins with, in its size and at its frame rate; whole groups of the tokenizer's."""
        given, clip = self.settings.given, self.settings.clip
        if given is None:
            return None
        request = ClipRequest(
            sizes=((clip.width, clip.height),),
            fps=clip.fps,
            start=0.0,
            max_frames=given.frames or clip.frames,
            min_frames=given.frames or 1,
        )
        file = given.file(prompt)
        frames = torch.from_numpy(reader.read(file, request).frames)
        if given.frames is None and len(frames) >= clip.frames:
            raise ConfigError(
                "nothing left to make: the video is as long as the clip",
                file=file,
                where="--frames",
                got=clip.frames,
                fix="ask for more frames, or say how many are given (--given-frames)",
            )
        return frames[: len(frames) - (len(frames) - 1) % self.pipeline.layout.strides[0]]


def _groups(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    remaining = iter(jobs)
    while group := list(islice(remaining, size)):
        yield group
