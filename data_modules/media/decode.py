"""Frames of a video or image file, cut and resized; in this process (`reader` decodes in a child)."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

import av
from PIL import UnidentifiedImageError

from data_modules.media.fit import fit
from data_modules.media.images import Picture
from data_modules.media.kinds import IMAGE, kind_of
from data_modules.media.request import START, ClipRequest, DecodedClip, Several
from data_modules.media.video import video_clips
from data_modules.media.windows import Plan
from lumos_pl.errors import DataError, LumosError
from lumos_pl.machinery.regular_file import open_regular

__all__ = ["START", "ClipRequest", "DecodedClip", "Several", "decode_clips", "decode_media"]


def decode_media(path: Path, request: ClipRequest) -> DecodedClip:
    """The clip that is asked for, see `decode_clips`. A video shorter than the window gives what it has."""
    starts = () if request.start is None else (request.start,)
    with closing(decode_clips(path, request, Several(starts=starts))) as clips:
        return next(clips)


def decode_clips(path: Path, request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
    """The clips that are asked for, told by the file's content: its suffix does not matter.

    Images: see `images`; those that move (GIF, WebP, PNG, AVIF) are videos.
    Videos: see `video.video_clips`.

    Returns:
        how many pieces were left out because they are shorter than a clip.
    Raises:
        DataError: a file that cannot be read, is of another kind, damaged, cut off, absurdly large,
            or gives fewer than `min_frames` frames.
        MemoryError: as it is, for who set the limit.
    """
    with _told(path), open_regular(path, at_most=None) as file:
        kind = kind_of(file)
        clips = _of_picture(file, request, several) if kind == IMAGE else video_clips(file, kind, request, several)
        with closing(clips):
            while True:
                try:
                    clip = next(clips)
                except StopIteration as end:
                    return int(end.value)
                if not clip.is_image and len(clip.frames) < request.min_frames:
                    got, expected = f"{len(clip.frames)} frames at {request.fps} fps", f"at least {request.min_frames}"
                    raise DataError("the video is too short", got=got, expected=expected)
                yield clip


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever fails as one DataError that names the file."""
    try:
        yield
    except MemoryError:
        raise
    except LumosError as error:
        raise DataError(**error.parts | {"file": path}) from error
    except av.FFmpegError as error:
        got = ": ".join(filter(None, (error.strerror, str(error.log[-1]) if error.log else None)))
        raise DataError("cannot be decoded", file=path, got=got) from error
    except UnidentifiedImageError as error:  # whose text names the stream
        raise DataError("cannot be decoded", file=path, got="nothing of an image behind its first bytes") from error
    except OSError as error:
        raise DataError("cannot be read", file=path, got=error.strerror or error) from error
    except Exception as error:  # decoders raise anything at damaged files
        raise DataError("cannot be decoded", file=path, got=f"{type(error).__name__}: {error}") from error


def _of_picture(file: IO[bytes], request: ClipRequest, several: Several) -> Generator[DecodedClip, None, int]:
    with Picture(file, hdr=request.hdr) as picture:
        facts = picture.facts() if several.facts else None
        if not picture.is_moving:
            yield DecodedClip(frames=fit(picture.pixels(), request.sizes)[None], fps=1, is_image=True, facts=facts)
            return 0
        plan = Plan.of(picture, request, several)
        for clip in plan.clips(picture):
            yield replace(clip, facts=facts)
        return plan.rests
