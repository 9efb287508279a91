"""A generated clip: an image or clip that was made, and the seed it was made from."""

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
    """The seed of a prompt's sample: it depends on these three alone, not on what else is made, or where.

    Args:
        seed: of all of them.
        index: the prompt's place in its list, from 0.
        sample: which of the prompt's samples, from 0.
    """
    return derive_seed(seed, "clip", index, sample)


def are_frames(frames: object) -> TypeGuard[Tensor]:
    """Whether they are those of a clip: RGB uint8 [N, H, W, 3], one at the least."""
    if not isinstance(frames, Tensor) or frames.dtype != torch.uint8:
        return False
    return frames.ndim == 4 and frames.shape[3] == 3 and frames.numel() > 0


def in_words(value: object) -> str:
    """What was given in the place of a tensor, for messages."""
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
        ConfigError: the frames are none, or the rate is out of range.
    """

    codes: Tensor
    frames: Tensor
    fps: int
    prompt: str
    seed: int

    def __post_init__(self) -> None:
        if not are_frames(self.frames):  # as where a picture was made of them, and has floats
            what, expected = "not the frames of a clip", "[N, H, W, 3] torch.uint8"
            raise ConfigError(what, where="clip.frames", got=in_words(self.frames), expected=expected)
        check_ranges("clip", self, fps=FPS)

    def __repr__(self) -> str:
        """In a line: a list of clips is what a notebook shows by these."""
        n, height, width, _ = self.frames.shape
        size = f"{n} frames of {width} x {height} px, fps={self.fps}" if n > 1 else f"{width} x {height} px"
        return f"{type(self).__name__}(prompt={self.prompt!r}, {size}, seed={self.seed})"

    def encode(self, suffix: str) -> bytes:
        """The content of a file: `.mp4` (H.264), `.gif`, or, of an image, `.png`; its codes, uint16, as `.npy`.

        Raises:
            ConfigError: another kind of file, or an `.mp4` of an odd width or height.
        """
        frames = self.frames.cpu().numpy()
        pictures = [Image.fromarray(frame) for frame in frames]
        match suffix:
            case ".mp4":
                height, width = self.frames.shape[1:3]
                if height % 2 or width % 2:  # a pixel of its colours stands for 2 x 2
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
        """What a notebook shows of it: the pictures, enlarged without smoothing."""
        kind = "png" if len(self.frames) == 1 else "gif"
        content = base64.b64encode(self.encode(f".{kind}")).decode()
        style = "image-rendering:pixelated;width:256px"
        return f'<img style="{style}" alt="{html.escape(self.prompt)}" src="data:image/{kind};base64,{content}">'

    def save(self, file: str | Path) -> None:
        """Write a file of the kind that its name ends with, in any capitals, see `encode`.

        A regular file of that name is replaced, as `Path.write_bytes` would; its other names keep their content.

        Raises:
            FileError: something else has the name: a link is not followed.
        """
        path = Path(read_value(file, str | Path, "file"))
        replace_regular(path, self.encode(path.suffix.lower()))

    def to(self, device: torch.device | str) -> Self:
        """Lightning moves by this name what `predict_step` returns."""
        return replace(self, codes=self.codes.to(device), frames=self.frames.to(device))
