"""Four parts of a list of media on two processes, killed at random and repeated: what one machine makes of the list."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from data_modules.media.request import ClipRequest, DecodedClip
from data_modules.shards.folders import shard_folders
from data_modules.shards.manifest import Manifest
from data_modules.shards.shards import read_shard
from data_modules.tokenizing.media_list import MediaList, open_media_list
from data_modules.tokenizing.parts import Part
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.tokenize import tokenize_items
from data_modules.tokenizing.work import TokenizeProgress
from faults.campaign import Campaign, Judge, Verdict
from faults.processes import forked
from lumos_pl.errors import DataError, LumosError, TemporaryError
from lumos_pl.tokenizers.visual import Strides

EQUAL = "equal"
N_ITEMS, N_PARTS, AT_ONCE, MOST_KILLS = 60, 4, 2, 8
DEADLINE_S = 120

Samples = dict[str, tuple[str, bytes]]


class _Tokenizer:
    """The code of a cell is the first byte of it."""

    fingerprint = "first byte"
    codebook_size = 256
    strides: Strides = (1, 8, 8)

    def encode(self, frames: Tensor) -> Tensor:
        return frames[:, :, ::8, ::8, 0].long()

    def decode(self, codes: Tensor) -> Tensor:
        return codes[..., None].expand(*codes.shape, 3).to(torch.uint8)


class _Reader:
    """A file of two numbers, a seed and how many frames, is a clip; another is broken."""

    def read(self, path: Path, request: ClipRequest) -> DecodedClip:
        try:
            seed, n_frames = map(int, path.read_text().split())
        except ValueError as error:
            raise DataError("not a clip", file=path) from error
        frames = np.random.default_rng(seed).integers(256, size=(n_frames, 8, 16, 3), dtype=np.uint8)
        return DecodedClip(frames=frames, fps=request.fps, is_image=n_frames == 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


def _tokenize(items: MediaList, out: Path, part: Part | None, told: int | None = None) -> None:
    """Args: told: a byte is written here after each item."""

    def tell(report: TokenizeProgress) -> None:
        if told is not None:
            os.write(told, b".")

    settings = TokenizeSettings(size="16x8", fps=8, workers=0, samples_per_shard=4, part=part)
    tokenize_items(items, out, settings, make_tokenizer=_Tokenizer, make_reader=_Reader, on_progress=tell)


def _samples(root: Path) -> Samples:
    found: Samples = {}
    for kind in "image", "video":
        for folder in shard_folders(str(root), kind, by_kind=True):
            manifest = Manifest.load(folder)
            for index in range(len(manifest.shards)):
                for sample in read_shard(folder, manifest, index):
                    if sample.key in found:
                        raise DataError("twice", where=sample.key)
                    found[sample.key] = str(sample.text), sample.codes.tobytes()
    return found


class _Process:
    """One that does a part, until it has done so many items and a moment more, or all."""

    def __init__(self, items: MediaList, out: Path, part: Part, items_until_death: int | None, moment_s: float) -> None:
        self.part, self._left, self._moment_s = part, items_until_death, moment_s
        self._reads, told = os.pipe()
        self.pid = forked(lambda: _tokenize(items, out, part, told), Path(os.devnull))
        os.close(told)

    def end(self) -> int:
        """How it ended: its exit status, or minus the signal."""
        while self._left is None or self._left > 0:
            if not os.read(self._reads, 1):
                break
            self._left = None if self._left is None else self._left - 1
        else:
            time.sleep(self._moment_s)
            os.kill(self.pid, signal.SIGKILL)
        os.close(self._reads)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@contextmanager
def _parts(folder: Path) -> Iterator[Judge]:
    media = folder / "media"
    media.mkdir()
    draw = random.Random(0)
    rows = []
    for number in range(N_ITEMS):
        (media / f"{number}.clip").write_text(f"{number} {draw.choice([1, 3, 9])}" if number % 20 else "nonsense")
        rows.append(json.dumps({"path": f"{number}.clip", "caption": f"clip {number}"}))
    listed, reversed_ = media / "list.jsonl", media / "reversed.jsonl"
    listed.write_text("\n".join(rows))
    reversed_.write_text("\n".join(rows[::-1]))
    lists = [open_media_list(listed), open_media_list(reversed_)]
    _tokenize(lists[0], folder / "whole", None)
    expected = _samples(folder / "whole")

    def judge(draw: random.Random) -> Verdict:
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        to_do = deque(draw.sample(range(N_PARTS), N_PARTS))
        kills, done, deadline = draw.randrange(1, MOST_KILLS), "", time.monotonic() + DEADLINE_S
        while to_do:
            if time.monotonic() > deadline:
                return Verdict("not finished", done)
            some = [to_do.popleft() for _ in range(min(AT_ONCE, len(to_do)))]
            if draw.random() < 0.1:
                some.append(some[0])  # of two at one part, one works
            team = []
            for index in some:
                items = draw.choice(lists)
                until = draw.randrange(1, N_ITEMS // N_PARTS) if kills > 0 and draw.random() < 0.7 else None
                kills -= until is not None
                done += f" {index}{'' if until is None else f' killed at {until}'},"
                team.append(_Process(items, out, Part(index=index, count=N_PARTS), until, draw.random() * 0.01))
            for process in team:
                status = process.end()
                if status not in (0, -signal.SIGKILL, TemporaryError.exit_status):
                    return Verdict("not resumed", f"{done} exit {status}")
                if status != 0 and process.part.index not in to_do:
                    to_do.append(process.part.index)
        try:
            found = _samples(out)
        except LumosError as error:
            return Verdict("not whole", f"{done} {error}")
        if found != expected:
            return Verdict("other samples", f"{done} {len(found)} of {len(expected)}")
        return Verdict(EQUAL, done)

    yield judge


PARTS = Campaign(
    name="parts",
    title="tokenizations in four parts on two processes",
    instances=30,
    held=(EQUAL,),
    broken=("not finished", "not resumed", "not whole", "other samples"),
    open=_parts,
)
