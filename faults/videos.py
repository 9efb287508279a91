"""Videos and pictures that are damaged, cut short, with times that cannot be, or text that names other files."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from data_modules.media import reader
from data_modules.media.decode import ClipRequest, DecodedClip
from faults.campaign import Campaign, Judge, Verdict, attempt
from faults.media_headers import nonsense_times
from faults.media_kinds import all_kinds
from faults.mutate import mutate
from faults.numbered import SIZE
from lumos_pl.errors import LumosError

FPS = 12
WITH_TIMES = {  # kinds whose header has times in a known place, and how many frames
    "open GOP in mp4": 48,
    "B-frames of MPEG-4 in avi": 48,
    "open GOP in avi": 48,
    "FFV1": 48,
    "VP8": 48,
    "QuickTime Animation": 48,
    "uneven times in mkv": 48,
}
MOST_FRAMES = 200
WHITE = 250  # of the file that nobody may open; the others are darker
TIME_LIMIT_S = 60.0
_ALIKE = 5  # mean distance of two pictures of one frame; frames of other numbers are at least twice as far
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


@dataclass(frozen=True)
class Whole:
    """A sound file of one kind, and what is read of it."""

    kind: str
    path: Path
    clip: DecodedClip

    @property
    def most_alike(self) -> int:
        return _most_alike(self.clip.frames)


class Sources:
    """Files of every kind that is read, each made when it is first drawn."""

    def __init__(self, folder: Path, media: reader.MediaReader) -> None:
        self._folder, self._media = folder, media
        self._kinds = list(all_kinds(noise=0).items())
        self._made: dict[str, Whole] = {}

    def draw(self, draw: random.Random) -> Whole:
        kind, (suffix, write) = draw.choice(self._kinds)
        if kind not in self._made:
            path = self._folder / f"{len(self._made)}{suffix}"
            write(path)
            clip = self._media.read(path, request(MOST_FRAMES))
            self._made[kind] = Whole(kind, path, clip)
        return self._made[kind]


def request(n_frames: int) -> ClipRequest:
    return ClipRequest(sizes=(SIZE,), fps=FPS, max_frames=n_frames, start=0.0)


def write_white(path: Path) -> None:
    """A video that is brighter than all others."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for _ in range(12):
            picture = np.full((SIZE[1], SIZE[0], 3), WHITE, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def _was_read(file: Path) -> bool:
    """Whether somebody read the file since `_unread` (where the file system notes reading)."""
    return file.stat().st_atime_ns != 0


def _unread(file: Path) -> None:
    os.utime(file, ns=(0, time.time_ns()))


def broken_file(whole: Whole, secret: Path, draw: random.Random) -> tuple[bytes, str]:
    """The content of a file, and what it is."""
    if draw.random() < 0.1:
        text = draw.choice(PLAYLISTS).format(name=secret.name, path=secret)
        padded = text + draw.choice(["", "\n" * 2000])
        return padded.encode(), repr(text[:40])
    data = whole.path.read_bytes()
    if whole.kind in WITH_TIMES and draw.random() < 0.5:
        changed = nonsense_times(whole.path.suffix, data, WITH_TIMES[whole.kind], draw)
        if changed is not None:
            return changed[0], f"{whole.kind}: {changed[1]}"
    data, done = mutate(data, draw)
    for _ in range(draw.choice([0, 0, 3])):
        if len(data) > 1:
            data, more = mutate(data, draw)
            done += f", {more}"
    return data, f"{whole.kind}: {done}"


def _most_alike(frames: NDArray[np.uint8]) -> int:
    """How many frames show one and the same picture."""
    return max(Counter(frame.tobytes() for frame in frames).values())


def _is_white(frames: NDArray[np.uint8]) -> bool:
    """Whether any frame is that of the file that nobody may open: damage may make others bright, but not even."""
    far = np.abs(frames.astype(np.int16) - WHITE).max((1, 2, 3))
    return bool(far.min() < _ALIKE)


def _moments(frames: NDArray[np.uint8], whole: NDArray[np.uint8]) -> list[int | None]:
    """Which frame of the sound file each is; None: it looks like none of them."""
    found: list[int | None] = []
    for frame in frames:
        distances = np.abs(whole.astype(np.int16) - frame).mean((1, 2, 3))
        found.append(int(distances.argmin()) if distances.min() < _ALIKE else None)
    return found


def _are_doubled(moments: list[int | None]) -> bool:
    """Whether frames run on as ever, but for some that come twice: a doubled block, as of a film cut so."""
    known = [moment for moment in moments if moment is not None]
    steps = [later - earlier for earlier, later in pairwise(known)]
    return max(steps, default=0) <= 1 and sum(step != 1 for step in steps) <= 3


def _ends_between_packets(whole: Whole, n_bytes: int) -> bool:
    """Whether a transport stream is a sound one that is shorter: it has no header, and no end."""
    packet = {".ts": 188, ".m2ts": 192}.get(whole.path.suffix)
    return packet is not None and n_bytes % packet == 0


def _judged(clip: DecodedClip, whole: Whole, n_bytes: int, done: str) -> Verdict:
    """What was read of a damaged file of so many bytes, beside what was read of the sound one.

    A changed bit of a picture may be seen by nobody: few formats have checksums. Its time is another matter.
    """
    n, expected = len(clip.frames), len(whole.clip.frames)
    if _most_alike(clip.frames) > max(n // 2, whole.most_alike):
        return Verdict("silently frozen", f"{done}: {_most_alike(clip.frames)} of {n} frames are one")
    if n != expected and not _ends_between_packets(whole, n_bytes):
        return Verdict("silently short", f"{done}: {n} of {expected} frames")
    moments, due = _moments(clip.frames, whole.clip.frames), _moments(whole.clip.frames, whole.clip.frames)
    moved = sum(moment not in (None, right) for moment, right in zip(moments, due, strict=False))
    if moved > n // 2 and not _are_doubled(moments):
        return Verdict("at wrong times", f"{done}: {moved} of {n} frames: {moments}")
    return Verdict("all frames")


@contextmanager
def _broken(folder: Path) -> Iterator[Judge]:
    here, limit = folder / "here", TIME_LIMIT_S
    secret = here / "secret.mp4"
    write_white(folder / secret.name)
    with reader.MediaReader(time_limit_s=limit) as media:
        sources = Sources(folder, media)

        def judge(draw: random.Random) -> Verdict:
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            shutil.copy(folder / secret.name, secret)
            _unread(secret)
            whole = sources.draw(draw)
            file = here / f"broken{draw.choice([whole.path.suffix, '.mp4', '.mkv'])}"
            data, done = broken_file(whole, secret, draw)
            file.write_bytes(data)
            begun = time.monotonic()
            clip = attempt(lambda: media.read(file, request(len(whole.clip.frames))))
            if time.monotonic() - begun > limit + 30:
                return Verdict("hang", done)
            if _was_read(secret) or (isinstance(clip, DecodedClip) and _is_white(clip.frames)):
                return Verdict("foreign read", done)
            if isinstance(clip, LumosError):
                named = str(file) in str(clip) and "\n" not in str(clip)
                return Verdict("named" if named else "unnamed", f"{done} -> {clip}")
            return _judged(clip, whole, len(data), done)

        yield judge


BROKEN = Campaign(
    name="videos",
    title="broken videos",
    instances=400,
    held=("named", "all frames"),
    broken=("crash", "hang", "silently short", "silently frozen", "at wrong times", "foreign read", "unnamed"),
    open=_broken,
)
