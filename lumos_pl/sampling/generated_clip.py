"""A generated clip or image, and the seed it was made from."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lumos_pl.errors import ConfigError
from lumos_pl.machinery.atomic_file import replace_regular
from lumos_pl.machinery.encoding import encode_gif, encode_mp4, encode_png
from lumos_pl.sampling.config import FPS
from lumos_pl.seeding import derive_seed
from lumos_pl.settings.plain import read_value
from lumos_pl.settings.ranges import check_ranges


def clip_seed(seed: int, index: int, sample: int = 0) -> int:
    """The seed of one sample of a prompt; it depends only on these three, not on what else is made, or where.

    Args:
        seed: of the whole call.
        index: the prompt's place in its list, from 0.
        sample: which of the prompt's samples, from 0.
    """
    return derive_seed(seed, "clip", index, sample)


def are_frames(frames: object) -> TypeGuard[Tensor]:
    """Whether these are the frames of a clip: RGB uint8 [N, H, W, 3], N >= 1."""
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        return False
    return frames.ndim == 4 and frames.shape[3] == 3 and frames.numel() > 0


def in_words(value: object) -> str:
    """Describe, for messages, what was given instead of the expected tensor."""
    return f"{list(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GeneratedClip:
    """One image or clip.

    Args:
        codes: [T, H, W] int64, given frames included.
        frames: RGB uint8 [N, H, W, 3]; an image is one frame.
        fps: frames per second.
        prompt: the caption.
        seed: with the same model, prompt, settings and given frames, it gives the same codes.
    Raises:
        ConfigError: `frames` are not RGB frames, or the frame rate is out of range.
    """

    codes: Tensor
    frames: Tensor
    fps: int
    prompt: str
    seed: int

    def __post_init__(self) -> None:
        if not are_frames(self.frames):  # such as float pictures
            what, expected = "not the frames of a clip", "[N, H, W, 3] torch.uint8"
            raise ConfigError(what, where="clip.frames", got=in_words(self.frames), expected=expected)
        check_ranges("clip", self, fps=FPS)

    def __repr__(self) -> str:
        """One line, because notebooks show lists of clips by it."""
        n, height, width, _ = self.frames.shape
        size = f"{n} frames of {width} x {height} px, fps={self.fps}" if n > 1 else f"{width} x {height} px"
        return f"{type(self).__name__}(prompt={self.prompt!r}, {size}, seed={self.seed})"

    def encode(self, suffix: str) -> bytes:
        """The content of a file: `.mp4` (H.264), `.gif`, for an image `.png`, or `.npy` for the codes as uint16.

        Raises:
            ConfigError: another kind of file, or an `.mp4` of an odd width or height.
        """
        frames = self.frames.cpu().numpy()
        pictures = [Image.fromarray(frame) for frame in frames]
        match suffix:
            case ".mp4":
                height, width = self.frames.shape[1:3]
                if height % 2 or width % 2:  # its chroma has half the resolution
                    what, fix = "an .mp4 of an odd width or height", "cut a row of pixels off, or save a .gif"
                    got = f"{width} x {height} px"
                    raise ConfigError(what, where="clip.frames", got=got, expected="both even", fix=fix)
                return encode_mp4(frames, self.fps)
            case ".gif":
                return encode_gif(pictures, 1000 / self.fps)
            case ".png" if len(pictures) == 1:
                return encode_png(pictures[0])
            case ".npy":
                content = io.BytesIO()
                np.save(content, self.codes.cpu().numpy().astype(np.uint16), allow_pickle=False)
                return content.getvalue()
        expected = ".mp4, .gif" + (" or .png" if len(pictures) == 1 else f" for {len(pictures)} frames")
        raise ConfigError("unknown kind of file", where="suffix", got=repr(suffix), expected=expected)

    def _repr_html_(self) -> str:
        """What a notebook shows: the frames, enlarged without smoothing."""
        kind = "png" if len(self.frames) == 1 else "gif"
        content = base64.b64encode(self.encode(f".{kind}")).decode()
        style = "image-rendering:pixelated;width:256px"
        return f'<img style="{style}" alt="{html.escape(self.prompt)}" src="data:image/{kind};base64,{content}">'

    def save(self, file: str | Path) -> None:
        """Write a file in the format of its suffix, in upper or lower case; see `encode`.

        A regular file of that name is replaced, as `Path.write_bytes` would; its other hard links keep their content.

        Raises:
            FileError: something else has that name; a link is not followed.
        """
        path = Path(read_value(file, str | Path, "file"))
        replace_regular(path, self.encode(path.suffix.lower()))

    def to(self, device: torch.device | str) -> Self:
        """Called by Lightning to move what `predict_step` returns; see `Tensor.to`."""
        return replace(self, codes=self.codes.to(device), frames=self.frames.to(device))
