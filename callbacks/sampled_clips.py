"""Clips that a model in training makes for a few prompts."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from callbacks.log_image import log_image
from callbacks.picture_table import SHOWN_PX, Frames, Row, paint_stills, paint_table, show_frame, wrap
from callbacks.steps import run_folder, step_index, step_is_due
from callbacks.team import Team
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.encoding import encode_gif, encode_png
from lumos_pl.machinery.progress import mark
from lumos_pl.machinery.stop_request import BrokenOff, breakable
from lumos_pl.module import LumosModule
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import GeneratedClip, clip_seed
from lumos_pl.settings.plain import check_instance, check_texts
from lumos_pl.settings.ranges import whole_number

GRID_FILE, GIF_FILE = "samples.png", "samples.gif"
COLUMNS = 4  # of clips in the animation


class SampledClips(Callback):
    """Generates the prompts from the same seed each time, so that pictures differ only by the training.

    `samples/generated`: a row per prompt, a column per latent frame; `samples/generated_video`: all prompts side by
    side as a GIF. The last ones are also in the run's folder, as `samples.png` and `samples.gif`. Every rank makes its
    part of the clips; with a sharded model it gathers the weights. If the time runs out, this picture is dropped and
    the next one has half the prompts. If the run is asked to stop, generating is abandoned, and done first thing after
    the resume.

    Args:
        every_n_steps: optimizer steps between two pictures; 0: none but the one after the last step.
        clip, sampling: format of the clips, and how they are made; None: as the module does.
        max_seconds: seconds that generating one picture may take.
        timeout: how long a rank waits for another's part; by default torch's timeout.
    """

    def __init__(
        self,
        prompts: Sequence[str],
        *,
        every_n_steps: int = 0,
        clip: ClipFormat | None = None,
        sampling: SamplingConfig | None = None,
        max_seconds: float = math.inf,
        timeout: timedelta | None = None,
    ) -> None:
        self.prompts = check_texts(prompts, "prompts")
        self.every_n_steps = whole_number(every_n_steps, "every_n_steps", low=0)
        if clip is not None:
            check_instance(clip, ClipFormat, "clip")
        if sampling is not None:
            check_instance(sampling, SamplingConfig, "sampling")
        self.clip, self.sampling, self.max_seconds = clip, sampling, max_seconds
        self._timeout, self._team = timeout, Team()
        self._painted_at = -1
        self._is_owed = False  # whether the last finished step still needs its picture

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ConfigError without a tokenizer, DataError for a clip that does not fit, before the first step."""
        if stage == "fit":
            cast(LumosModule, pl_module).check_makes_clips(self.prompts, self.clip)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._painted_at = -1  # by an earlier training
        self._team = Team.of(trainer, self._timeout)

    def state_dict(self) -> dict[str, Any]:
        return {"is_owed": True} if self._is_owed else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._is_owed = state_dict["is_owed"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._is_owed:
            self._log(trainer, cast(LumosModule, pl_module))
            self._is_owed = False

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if step_is_due(trainer, self.every_n_steps):
            try:
                self._log(trainer, cast(LumosModule, pl_module))
            except BrokenOff:  # the step is about to be saved
                self._is_owed = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._painted_at != step_index(trainer):
            self._log(trainer, cast(LumosModule, pl_module))

    def _log(self, trainer: Trainer, module: LumosModule) -> None:
        self._painted_at = step_index(trainer)
        try:
            lumos = module.pipeline(ranks=len(self.prompts))
        except torch.OutOfMemoryError:
            lumos = None
        made, outcome = self._make(lumos)
        match Outcome(self._team.worst(outcome)):
            case Outcome.BROKEN_OFF:  # on this rank or another
                raise BrokenOff(128 + signal.SIGTERM)
            case Outcome.TIME_IS_UP:
                self.prompts = self.prompts[: max(1, len(self.prompts) // 2)]
                rank_zero_warn(
                    f"no sampled clips after {self.max_seconds:g} s; {counted(len(self.prompts), 'prompt')} next time"
                    " (callbacks.sampled_clips_max_seconds, or fewer sampling.steps)"
                )
            case Outcome.NO_ROOM:
                rank_zero_warn("no sampled clips: the GPU has no room for them beside the training")
            case Outcome.MADE:
                self._show(trainer, module, self._team.gathered([(clip.frames.numpy(), clip.fps) for clip in made]))

    def _make(self, lumos: LumosPipeline | None) -> tuple[list[GeneratedClip], Outcome]:
        """This rank's part of the clips, and what became of it."""
        part = self._team.part(list(enumerate(self.prompts)))
        if not part or lumos is None:
            return [], Outcome.NO_ROOM if part else Outcome.MADE
        try:
            with breakable():
                made = lumos.generate(
                    [prompt for _, prompt in part],
                    seed=[clip_seed(0, place) for place, _ in part],
                    clip=self.clip,
                    sampling=self.sampling,
                    on_step=self._stopwatch(),
                )
        except _TimeIsUp:
            return [], Outcome.TIME_IS_UP
        except torch.OutOfMemoryError:
            return [], Outcome.NO_ROOM
        except BrokenOff:
            return [], Outcome.BROKEN_OFF
        return made, Outcome.MADE

    def _show(self, trainer: Trainer, module: LumosModule, made: Sequence[tuple[Frames, int]]) -> None:
        if not made:  # this is not rank 0
            return
        clips, fps = [frames for frames, _ in made], made[0][1]
        step, stride = step_index(trainer), module.layout.strides[0]
        title = f"generated at step {step + 1}"
        still = encode_png(paint_stills(title, self.prompts, clips, stride))
        video = paint_animation(title, self.prompts, clips, fps)
        for tag, encoded, file in ("generated", still, GRID_FILE), ("generated_video", video, GIF_FILE):
            log_image(trainer, f"samples/{tag}", encoded, step)
            write_atomically(run_folder(trainer) / file, encoded)

    def _stopwatch(self) -> Callable[[int, int], None]:
        end = time.monotonic() + self.max_seconds

        def check(done: int, in_all: int) -> None:
            mark("generating clips")
            if done < in_all and time.monotonic() > end:
                raise _TimeIsUp

        return check


class Outcome(IntEnum):
    """What became of a rank's part; the highest value of all ranks applies to all."""

    MADE = 0
    NO_ROOM = 1
    TIME_IS_UP = 2
    BROKEN_OFF = 3


class _TimeIsUp(Exception):
    """Generating has taken longer than allowed."""


def paint_animation(title: str, captions: Sequence[str], clips: Sequence[Frames], fps: int) -> bytes:
    """All clips in a grid, playing at once, as a GIF; clips must have the same length."""
    tables = []
    for n in range(len(clips[0])):
        cells = [
            paint_table("", [""], [Row(wrap(caption), [show_frame(clip[n], SHOWN_PX)])])
            for caption, clip in zip(captions, clips, strict=True)
        ]
        rows = [Row("", cells[i : i + COLUMNS]) for i in range(0, len(cells), COLUMNS)]
        tables.append(paint_table(title, [""] * min(COLUMNS, len(cells)), rows))
    return encode_gif(tables, 1000 / fps)
