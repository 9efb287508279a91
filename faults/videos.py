"""Videos that are damaged, cut short, with times that cannot be, or text that names other files."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from data_modules.media import reader
from data_modules.media.decode import ClipRequest, DecodedClip
from faults.campaign import Campaign, Judge, Verdict, attempt
from faults.media_headers import nonsense_times
from faults.mutate import mutate
from lumos_pl.errors import LumosError

FPS, FRAMES, SIZE = 12, 24, 64
SOURCES = {  # file, codec and pixels; pictures that move have no codec
    "whole.mp4": ("libx264", "yuv420p"),
    "whole.mov": ("mpeg4", "yuv420p"),
    "whole.mkv": ("libx264", "yuv420p"),
    "whole.webm": ("libvpx-vp9", "yuv420p"),
    "whole.avi": ("mpeg4", "yuv420p"),
    "whole.ts": ("libx264", "yuv420p"),
    "whole.flv": ("libx264", "yuv420p"),
    "h264.avi": ("libx264", "yuv420p"),
    "utvideo.avi": ("utvideo", "yuv420p"),
    "png.mov": ("png", "rgb24"),
    "qtrle.mov": ("qtrle", "rgb24"),
    "ffv1.mkv": ("ffv1", "yuv420p"),
    "hevc.mp4": ("libx265", "yuv420p10le"),
    "mpeg2.ts": ("mpeg2video", "yuv420p"),
    "moving.gif": ("", ""),
    "moving.webp": ("", ""),
    "moving.png": ("", ""),
}
WHITE = 250  # of the file that nobody may open; the others are darker
TIME_LIMIT_S = 60.0
PLAYLISTS = [
    "ffconcat version 1.0\nfile {name}\n",
    "ffconcat version 1.0\nfile 'file:{path}'\nduration 2\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{name}\n#EXT-X-ENDLIST\n",
    "#EXTM3U\n#EXTINF:2,\nfile://{path}\n#EXT-X-ENDLIST\n",
    "concat:{name}|{name}",
    "v=0\nm=video 1 RTP/AVP 96\na=fmtp:96 {path}\n",
    '<svg xmlns="http://www.w3.org/2000/svg"><image href="{name}"/></svg>',
    "<MPD><BaseURL>{path}</BaseURL></MPD>",
]


def write_video(path: Path, *, brightness: int, seed: int = 0) -> None:
    """Two seconds of noise around a brightness, with a darker bar that moves: every frame has bytes of its own."""
    noise = np.random.default_rng(seed)
    pictures = noise.integers(brightness - 5, brightness + 5, (FRAMES, SIZE, SIZE, 3)).astype(np.uint8)
    for number, picture in enumerate(pictures):
        picture[:, 2 * number : 2 * number + 4] -= 60
    codec, pixels = SOURCES.get(path.name, ("libx264", "yuv420p"))
    if not codec:
        first, *rest = map(Image.fromarray, pictures)
        first.save(path, save_all=True, append_images=rest, duration=1000 / FPS)
        return
    rate = 24 if codec == "mpeg2video" else FPS  # which knows a few rates alone
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        assert isinstance(stream, VideoStream)
        stream.width = stream.height = SIZE
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        for picture in pictures.repeat(rate // FPS, axis=0):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _was_read(file: Path) -> bool:
    """Whether somebody read the file since `_unread` (where the file system notes reading)."""
    return file.stat().st_atime_ns != 0


def _unread(file: Path) -> None:
    os.utime(file, ns=(0, time.time_ns()))


def broken_video(whole: Path, secret: Path, draw: random.Random) -> tuple[bytes, str]:
    """The content of a file, and what it is."""
    if draw.random() < 0.1:
        text = draw.choice(PLAYLISTS).format(name=secret.name, path=secret)
        padded = text + draw.choice(["", "\n" * 2000])
        return padded.encode(), repr(text[:40])
    if draw.random() < 0.2 and (changed := nonsense_times(whole.suffix, whole.read_bytes(), FRAMES, draw)) is not None:
        return changed[0], f"{whole.name}: {changed[1]}"
    data, done = mutate(whole.read_bytes(), draw)
    for _ in range(draw.choice([0, 0, 3])):
        if len(data) > 1:
            data, more = mutate(data, draw)
            done += f", {more}"
    return data, f"{whole.name}: {done}"


def _most_alike(frames: NDArray[np.uint8]) -> int:
    """How many frames show one and the same picture."""
    return max(Counter(frame.tobytes() for frame in frames).values())


@contextmanager
def _broken(folder: Path) -> Iterator[Judge]:
    whole = [folder / name for name in SOURCES]
    for number, path in enumerate(whole):
        write_video(path, brightness=100, seed=number)
    request = ClipRequest(sizes=((SIZE, SIZE),), fps=FPS, max_frames=FRAMES, start=0.0)
    here, limit = folder / "here", TIME_LIMIT_S
    secret = here / "secret.mp4"
    write_video(folder / secret.name, brightness=WHITE)

    with reader.MediaReader(time_limit_s=limit) as media:
        for path in whole:
            assert len(media.read(path, request).frames) == FRAMES

        def judge(draw: random.Random) -> Verdict:
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            shutil.copy(folder / secret.name, secret)
            _unread(secret)
            source = draw.choice(whole)
            file = here / f"broken{draw.choice([source.suffix, '.mp4', '.mkv'])}"
            data, done = broken_video(source, secret, draw)
            file.write_bytes(data)
            begun = time.monotonic()
            clip = attempt(lambda: media.read(file, request))
            if time.monotonic() - begun > limit + 30:
                return Verdict("hang", done)
            if _was_read(secret) or (isinstance(clip, DecodedClip) and clip.frames.mean((1, 2, 3)).max() > WHITE - 30):
                return Verdict("foreign read", done)
            if isinstance(clip, LumosError):
                named = str(file) in str(clip) and "\n" not in str(clip)
                return Verdict("named" if named else "unnamed", f"{done} -> {clip}")
            n = len(clip.frames)
            if _most_alike(clip.frames) > max(n // 2, 1):
                return Verdict("silently frozen", f"{done}: {_most_alike(clip.frames)} of {n} frames are one")
            return Verdict("all frames" if n == FRAMES else "silently short", f"{done}: {n} of {FRAMES} frames")

        yield judge


BROKEN = Campaign(
    name="videos",
    title="broken videos",
    instances=400,
    held=("named", "all frames"),
    broken=("crash", "hang", "silently short", "silently frozen", "foreign read", "unnamed"),
    open=_broken,
)
