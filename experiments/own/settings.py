"""What `lumos own` is asked for, and how it deals out the time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_modules.media.size_buckets import parse_sizes
from lumos_pl.errors import ConfigError
from lumos_pl.settings.ranges import between
from lumos_pl.tokenizers.load import GENERAL

TOKENIZER_SHARE, SHOWING_SHARE, LEAST_MODEL_SHARE = 0.3, 0.2, 0.15  # of all the time
CODING_SHARE = 0.05  # of it, in which a list of clips has to be turned into codes once
LEAST_STEPS, LEAST_CLIPS, MOST_SAMPLES = 20, 64, 16
# Of the training of the model: what the steps hand on to each other, and what follows from the time.
HANDED_ON = (
    "run",
    "data.root",
    "data.val_root",
    "data.val_share",
    "data.video.frames",
    "visual_tokenizer",
    "layout.codebook_size",
    "layout.strides",
    "clip",
    "trainer.max_steps",
)


@dataclass(frozen=True, kw_only=True)
class OwnSettings:
    """
    Args:
        minutes: for all of it.
        tokenizer: the visual tokenizer to begin with.
        train_tokenizer: whether one is trained on the clips too, and taken if it is better.
        size: WIDTHxHEIGHT px.
        fps, frames: of a clip.
        overrides: `key=value` of the model's training, but of HANDED_ON.
    """

    minutes: float = 30.0
    tokenizer: str = GENERAL
    train_tokenizer: bool = True
    size: str = "64x64"
    fps: int = 8
    frames: int = 17
    overrides: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        between(0.5, 100_000).check("--minutes", self.minutes)
        between(1, 1000).check("--fps", self.fps)
        between(2, 1000).check("--frames", self.frames)
        if len(parse_sizes(self.size, multiple=1)) > 1:
            raise ConfigError("one size for all", where="--size", got=self.size, expected="as 64x64")
        for key in (word.partition("=")[0] for word in self.overrides):
            if any(key == name or key.startswith(f"{name}.") for name in HANDED_ON):
                fix = "leave it out; --out, --tokenizer, --size, --frames, --fps and --minutes say it for all steps"
                raise ConfigError("lumos own sets this itself", where=key, fix=fix)

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def width(self) -> int:
        return parse_sizes(self.size, multiple=1)[0][0]

    @property
    def height(self) -> int:
        return parse_sizes(self.size, multiple=1)[0][1]

    @property
    def clip_seconds(self) -> float:
        return self.frames / self.fps


def default_out(source: Path) -> Path:
    """own/NAME, after the folder or list."""
    return Path("own") / (source.resolve().stem if source.is_file() else source.resolve().name or "clips")


# -- the time --------------------------------------------------------------------------------------


def clips_in_time(settings: OwnSettings, clip_seconds: float, workers: int) -> int:
    """How many clips can be turned into codes in their share of the time; each takes `clip_seconds` of one process."""
    return max(LEAST_CLIPS, int(CODING_SHARE * settings.seconds * max(1, workers) / max(clip_seconds, 1e-3)))


def clips_of_each(n_videos: int, n_clips: int, limit: int) -> int | None:
    """How many clips of each video are taken so that about `limit` come together; None: all there are."""
    return None if n_clips <= limit else max(1, limit // n_videos)


def tokenizer_steps(settings: OwnSettings, spent: float, step_seconds: float) -> int:
    """How long a tokenizer is trained, in optimizer steps, when so much of its share is spent."""
    return max(LEAST_STEPS, int((TOKENIZER_SHARE * settings.seconds - spent) / step_seconds))


def model_seconds(settings: OwnSettings, spent: float) -> float:
    """What is left for the model when so much is spent, and pictures are to be made; at least a part of the whole."""
    left = (1 - SHOWING_SHARE) * settings.seconds - spent
    return max(LEAST_MODEL_SHARE * settings.seconds, left)


def model_steps(settings: OwnSettings, spent: float, step_seconds: float) -> int:
    return max(LEAST_STEPS, int(model_seconds(settings, spent) / step_seconds))


def samples_of_each(settings: OwnSettings, n_captions: int, clip_seconds: float) -> int:
    """How many clips of each caption are made in half of the time for pictures; each takes `clip_seconds`."""
    return min(MOST_SAMPLES, max(1, int(SHOWING_SHARE / 2 * settings.seconds / (n_captions * max(clip_seconds, 1e-3)))))
