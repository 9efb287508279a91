"""Where the files of a clip go, and what they are called.

OUT/records/00003-0.json     prompt 3, sample 0: how to make it again; written last, so it stands for "done"
OUT/records/00003-0.npy      its codes, uint16 [T, H, W]
OUT/sheet.png                the first clips with their captions
OUT/.written                 which of the files are ours, see `own_files`

plain        OUT/00003-0-a-red-circle.mp4 (.png for an image)
geneval      OUT/00003/samples/00000.png  grid.png  metadata.jsonl
vbench(-i2v) OUT/videos/{caption}-0.mp4        VBench takes the suffix of whatever file it lists first in its
                                               folder for that of all, so nothing else may lie there
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    from experiments.sample.prompts import Prompt

Arrangement = Literal["plain", "geneval", "vbench", "vbench-i2v"]
ARRANGEMENTS: tuple[Arrangement, ...] = get_args(Arrangement)
SAMPLES: dict[Arrangement, int] = {"plain": 1, "geneval": 4, "vbench": 5, "vbench-i2v": 5}  # what the tools expect
RECORDS = "records"
MAX_NAME_BYTES = 255  # of one name, on every common file system
SLUG_CHARS = 48


@dataclass(frozen=True, kw_only=True)
class Job:
    """One clip to make.

    Args:
        index: its prompt's place in the list.
        sample: which one of that prompt.
        file: where it goes, inside the folder.
        wanted_name: what the arrangement's tool would call it, if that cannot be a file's name or is taken.
    """

    prompt: Prompt
    index: int
    sample: int
    file: str
    wanted_name: str | None = None

    @property
    def record(self) -> str:
        return f"{RECORDS}/{self.index:05d}-{self.sample}.json"

    @property
    def codes(self) -> str:
        return f"{RECORDS}/{self.index:05d}-{self.sample}.npy"

    def with_suffix(self, suffix: str) -> str:
        """`file` as another kind."""
        return self.file.removesuffix(PurePosixPath(self.file).suffix) + suffix


def plan_jobs(prompts: Sequence[Prompt], arrangement: Arrangement, *, samples: int, suffix: str) -> list[Job]:
    """Every sample of every prompt, prompt by prompt; the same names whichever part of them is made."""
    jobs = []
    captions = _Captions(room=MAX_NAME_BYTES - len(f"-{samples}{suffix}"))
    for index, prompt in enumerate(prompts):
        title = captions.name(prompt.title, index) if arrangement.startswith("vbench") else ""
        for sample in range(samples):
            wanted = None
            match arrangement:
                case "plain":
                    file = "-".join(filter(None, [f"{index:05d}-{sample}", slug(prompt.title)])) + suffix
                case "geneval":
                    file = f"{index:05d}/samples/{sample:05d}{suffix}"
                case "vbench" | "vbench-i2v":
                    file = f"videos/{title}-{sample}{suffix}"
                    wanted = None if title == prompt.title else f"{prompt.title}-{sample}{suffix}"
            jobs.append(Job(prompt=prompt, index=index, sample=sample, file=file, wanted_name=wanted))
    return jobs


def slug(text: str) -> str:
    """The beginning of a text in lower-case ASCII letters, digits and hyphens; may be empty."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub("[^a-z0-9]+", "-", plain).strip("-")[:SLUG_CHARS].strip("-")


def safe_name(text: str) -> str:
    """The text in NFC as it stands, but for what no file's name should have.

    That is separators, control and invisible characters (line ends, NUL, the ones that reverse the
    direction of writing, lone surrogates), a first `-` (an option), `.` (hidden) or `~`, and blanks at the ends.
    """
    kept = "".join(
        "_" if c in "/\\\u2028\u2029" or unicodedata.category(c)[0] == "C" else c
        for c in unicodedata.normalize("NFC", text).strip()
    )
    return re.sub(r"^[-.~]|^$", "_", kept)


class _Captions:
    """Names from captions, each once, also where case does not count; at most `room` bytes long."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._taken: set[str] = set()

    def name(self, caption: str, index: int) -> str:
        name, tag = _cut(safe_name(caption), self.room), f"~{index:05d}"
        if name != safe_name(caption):
            name = _cut(name, self.room - len(tag)) + tag
        while _folded(name) in self._taken:
            name = _cut(safe_name(caption), self.room - len(tag)) + tag
            tag += "~"
        self._taken.add(_folded(name))
        return name


def _cut(name: str, room: int) -> str:
    """As many of the first characters as fit into `room` bytes."""
    return name.encode()[:room].decode(errors="ignore")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", name).casefold())
