"""The queue of clips to make, and the one thread that makes them.

A thread and not a child process: the model is in memory once and answers without being started, and the
callback that shows every refinement step is also where the work ends when its visitor leaves or Ctrl-C is
pressed, which is within one step.
"""

from __future__ import annotations

import base64
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from experiments.play.asked import MOST_FRAMES, Asked
from experiments.play.shelf import Shelf
from experiments.sample.arrangement import slug
from experiments.sample.run import SampleSettings, describe_request, describe_software
from lumos_pl.checkpoints.decoder import Weights
from lumos_pl.errors import ConfigError, LumosError
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat
from lumos_pl.sampling.generate import FrameInProgress
from lumos_pl.sampling.generated_clip import GeneratedClip, clip_seed

MOST_WAITING = 8
KEPT, KEPT_BYTES = 64, 256 << 20
PICTURES, PICTURES_BYTES = 16, 64 << 20

Event = dict[str, Any]  # a line of what the page is told; what it says is under `kind`

_log = logging.getLogger(__name__)


class Busy(LumosError):
    """Too much is asked for at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """An uploaded picture, in the size of the clips: its frame, RGB uint8 [1, H, W, 3], and its file."""

    frames: Tensor
    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Kept:
    """A clip that was made, with all that it was continued from.

    Args:
        counts: RGB frames of each of its latent frames.
        record: how to make it again, as `lumos sample` writes it; of a continued clip `given` holds, under
            `continues`, the request of the clip whose last frames it begins with.
    """

    clip: GeneratedClip
    counts: tuple[int, ...]
    record: dict[str, Any]

    @property
    def suffix(self) -> str:
        return ".png" if len(self.clip.frames) == 1 else ".mp4"

    @property
    def file(self) -> str:
        return (slug(self.clip.prompt) or "clip") + self.suffix


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """One visitor's wish.

    Args:
        tell: takes the events from any thread; None: there will be no more.
    """

    asked: Asked
    visitor: str
    tell: Callable[[Event | None], None]
    left: threading.Event = field(default_factory=threading.Event)


class _Left(Exception):
    """Nobody waits for the clip any longer."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Beginning:
    """What a clip begins with.

    Args:
        given: the first RGB frames of what is made, [N, H, W, 3].
        described: for the record.
        kept: the clip that is continued.
    """

    given: Tensor | None = None
    described: dict[str, Any] | None = None
    kept: Kept | None = None


class Studio:
    """Makes clips, one after the other.

    Args:
        weights: which of the checkpoint's were loaded.
    """

    def __init__(self, pipeline: LumosPipeline, *, weights: Weights = "model") -> None:
        self.pipeline, self._weights = pipeline, weights
        self.clips: Shelf[Kept] = Shelf("clip", most=KEPT, most_bytes=KEPT_BYTES)
        self.pictures: Shelf[Picture] = Shelf("picture", most=PICTURES, most_bytes=PICTURES_BYTES)
        self._waiting: deque[Job] = deque()
        self._present: Job | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="studio", daemon=True)
        self._thread.start()

    # -- the queue: called by the server -------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Put it into the queue.

        Raises:
            Busy: its visitor has one already, or too many wait.
            DataError, ConfigError: what cannot be made.
        """
        self.pipeline.check([job.asked.caption], clip=self._clip(job.asked))
        self._beginning(job.asked)
        with self._changed:
            if any(other.visitor == job.visitor for other in self._jobs()):
                raise Busy("one at a time", got="a clip of yours is in the making", fix="wait for it, or stop it")
            if len(self._waiting) >= MOST_WAITING or self._closed:
                raise Busy("too many are waiting", got=len(self._waiting), fix="try again in a moment")
            self._waiting.append(job)
            self._tell_places()
            self._changed.notify()

    def leave(self, job: Job) -> None:
        """Its visitor has gone, or has had enough."""
        job.left.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                self._tell_places()

    def stop(self) -> None:
        """End all work at the next step."""
        with self._changed:
            self._closed = True
            for job in self._jobs():
                job.left.set()
                job.tell(None)
            self._waiting.clear()
            self._changed.notify()

    def join(self) -> bool:
        """Wait for the step that is being made, but not for one that takes long; whether all work has ended."""
        self._thread.join(3)
        return not self._thread.is_alive()

    def _jobs(self) -> list[Job]:
        return [*self._waiting, *([self._present] if self._present else [])]

    def _tell_places(self) -> None:
        for place, job in enumerate(self._waiting, 1 if self._present else 0):
            job.tell({"kind": "waiting", "place": place})

    # -- the work: in its own thread -----------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._make(job)
            except _Left:
                pass
            except LumosError as error:
                job.tell({"kind": "refused", "line": str(error)})
            except (MemoryError, torch.OutOfMemoryError):
                line = str(ConfigError("not enough memory", fix="ask for fewer frames"))
                job.tell({"kind": "refused", "line": line})
            except Exception:
                _log.exception("a clip could not be made")  # a mistake of ours: for the terminal, not for the page
                job.tell({"kind": "refused", "line": "the clip could not be made | see the terminal of `lumos play`"})
            finally:
                with self._changed:
                    self._present = None
                job.tell(None)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            self._present = self._waiting.popleft()
            self._tell_places()
            return self._present

    def _make(self, job: Job) -> None:
        asked, pipeline = job.asked, self.pipeline
        clip, begin = self._clip(asked), self._beginning(asked)
        seed = clip_seed(asked.seed, 0)  # of the first prompt of `lumos sample`
        request = pipeline.request(asked.caption, clip, seed=seed, given=begin.given)
        for side, knobs in enumerate(asked.knobs):
            sampling = replace(pipeline.sampling_for(clip), **knobs.model_dump())
            settings = SampleSettings(clip=clip, sampling=sampling, seed=asked.seed, weights=self._weights)
            show = _Show(self.pipeline, job, side, clip, begin.kept, request.given_codes, request.latent_frames)
            begun = time.monotonic()
            codes = pipeline.generate_codes([request], sampling, on_frame=show.look)[0]
            made = GeneratedClip(
                codes=codes,
                frames=pipeline.decode(codes)[: clip.frames],
                fps=clip.fps,
                prompt=asked.caption,
                seed=seed,
            )
            described = describe_request(pipeline, settings, asked.caption, seed=seed, given=begin.described)
            kept = self._keep(made, asked.seed, described, begin.kept, n_given=request.n_given)
            name = self.clips.put(kept, kept.clip.frames.numel() + 8 * kept.clip.codes.numel())
            took = round(time.monotonic() - begun, 2)
            job.tell({"kind": "made", "side": side, "clip": name, "suffix": kept.suffix, "seconds": took})

    def _clip(self, asked: Asked) -> ClipFormat:
        clip = self.pipeline.clip
        return clip if asked.frames == clip.frames else replace(clip, frames=asked.frames)

    def _beginning(self, asked: Asked) -> _Beginning:
        """
        Raises:
            DataError: what it begins with is not kept.
            ConfigError: nothing would be left to make.
        """
        if asked.picture is None and asked.clip is None:
            return _Beginning()
        stride = self.pipeline.layout.strides[0]
        latent_frames = self.pipeline.layout.latent_frames(asked.frames)
        if latent_frames < 2:
            raise ConfigError("nothing left to make", where="frames", got=asked.frames, fix="ask for a longer clip")
        if asked.picture is not None:
            picture = self.pictures.get(asked.picture)
            described = {"file": picture.name, "sha256": picture.sha256, "frames": 1}
            return _Beginning(given=picture.frames, described=described)
        assert asked.clip is not None
        kept = self.clips.get(asked.clip)
        before = len(kept.clip.frames)
        n = 1 + stride * min(latent_frames // 2 - 1, (before - 1) // stride)
        if before + asked.frames - n > MOST_FRAMES:
            expected = f"at most {MOST_FRAMES} frames"
            raise ConfigError("the clip is long enough", got=before, expected=expected, fix="begin a new one")
        given = kept.clip.frames[before - n :]
        return _Beginning(given=given, described={"continues": kept.record["request"], "frames": n}, kept=kept)

    def _keep(
        self, made: GeneratedClip, seed: int, request: dict[str, Any], before: Kept | None, *, n_given: int
    ) -> Kept:
        counts = frame_counts(self.pipeline, len(made.codes), len(made.frames))
        if before is not None:  # its frames as they were, then the new ones
            new = sum(counts[:n_given])
            counts = (*before.counts, *counts[n_given:])
            made = replace(
                made,
                codes=torch.cat([before.clip.codes, made.codes[n_given:]]),
                frames=torch.cat([before.clip.frames, made.frames[new:]]),
            )
        kept = Kept(clip=made, counts=counts, record={})
        files = {"file": kept.file, "codes": kept.file.removesuffix(kept.suffix) + ".npy", "wanted_name": None}
        place = {"index": 0, "sample": 0, "seed": seed}
        kept.record.update({**files, **place, "request": request, "made_with": describe_software(self.pipeline)})
        return kept


def frame_counts(pipeline: LumosPipeline, latent_frames: int, frames: int) -> tuple[int, ...]:
    """How many of so many RGB frames each latent frame holds: the last may hold fewer."""
    stride = pipeline.layout.strides[0]
    ends = [min(1 + stride * t, frames) for t in range(latent_frames)]
    return tuple(end - begin for begin, end in zip([0, *ends], ends, strict=False))


class _Show:
    """Tells a visitor how a clip comes along.

    Args:
        side: which of two that are compared.
        kept: the clip that is continued.
        given_codes: [T0, H, W], None where nothing is given.
    """

    def __init__(
        self,
        pipeline: LumosPipeline,
        job: Job,
        side: int,
        clip: ClipFormat,
        kept: Kept | None,
        given_codes: Tensor | None,
        latent_frames: int,
    ) -> None:
        self._pipeline, self._job, self._side = pipeline, job, side
        self._known = [] if given_codes is None else list(given_codes)
        self._counts = frame_counts(pipeline, latent_frames, clip.frames)
        n_given = len(self._known)
        before = n_given if kept is None else len(kept.clip.codes)
        self._shift = before - n_given  # where this clip's frames stand in the whole
        self._tell("begun", latent_frames=latent_frames + self._shift, kept=before, fps=clip.fps)
        if kept is not None:
            pictures: Sequence[Tensor] = kept.clip.frames.split(kept.counts)
            codes: Sequence[Tensor] = list(kept.clip.codes)
        elif n_given:
            pictures = pipeline.decode(torch.stack(self._known)).split(self._counts[:n_given])
            codes = self._known
        else:
            return
        for frame, (grid, group) in enumerate(zip(codes, pictures, strict=True)):
            self._tell("codes", frame=frame, step=0, codes=grid.flatten().tolist())
            self._tell_pictures(frame, group)

    def look(self, state: FrameInProgress) -> None:
        if self._job.left.is_set():
            raise _Left
        frame = state.frame + self._shift
        self._tell("codes", frame=frame, step=state.step, codes=state.codes.flatten().tolist())
        if state.done:
            # The tokenizer is causal: a finished frame looks as it will in the whole clip.
            self._known.append(state.codes)
            count = self._counts[state.frame]
            decoded = self._pipeline.decode(torch.stack(self._known))[: sum(self._counts[: state.frame + 1])]
            self._tell_pictures(frame, decoded[-count:])

    def _tell_pictures(self, frame: int, pictures: Tensor) -> None:
        rgb = base64.b64encode(pictures.contiguous().numpy().tobytes()).decode()
        self._tell("pictures", frame=frame, count=len(pictures), rgb=rgb)

    def _tell(self, kind: str, **values: Any) -> None:
        self._job.tell({"kind": kind, "side": self._side, **values})
