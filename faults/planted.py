"""Bugs planted in the code that a campaign tests: the campaign must see each of them."""

from __future__ import annotations

import itertools
import os
import pickle
import shutil
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter

from data_modules import token_data
from data_modules.media.reader import MediaReader
from data_modules.media.request import DecodedClip
from data_modules.shards import reading, release_tokens, shards
from data_modules.shards.places import Place
from data_modules.shards.table import ShardEntry
from data_modules.stream import token_stream
from data_modules.stream.position import StreamPosition
from data_modules.tokenizing.parts import Part
from experiments import cli, failures, outputs, roll_call, train
from experiments.sample import arrangement
from faults.campaign import Campaign, Draw, Judge, Verdict, run_campaign
from faults.troubled import PLANTED
from lumos_pl.checkpoints import complete, decoder, digests, opening, rotation, saving
from lumos_pl.machinery import json_file, own_files
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.content_cache import ContentCache
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.stop_request import StopRequest

_SAVE, _ORDER, _PARSE, _READ = (
    saving.Checkpointing._save,
    token_stream.training_order,
    cli.parse,
    MediaReader.read,
)  # as they are without bugs


@dataclass(frozen=True, kw_only=True)
class Bug:
    """
    Args:
        campaign: that must see it.
        plant: puts it in, for as long as the context lasts.
        outcomes: any of which tells it.
        instances: within which it must be seen.
    """

    about: str
    campaign: str
    plant: Callable[[], AbstractContextManager[object]]
    outcomes: tuple[str, ...]
    instances: int


def _lenient_members(path: Path, entry: ShardEntry, *_: Any, **__: Any) -> list[shards.Member]:
    """The shard's samples, without its size and digest, and no more than can be read."""
    data = path.read_bytes() if path.is_file() else b""
    try:
        members = shards._plain_members(data)
    except ValueError:
        members = []
    return [(name.partition(".")[0], codes, text) for (name, codes), (_, text) in itertools.pairwise(members)][::2]


def _unsafe_read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path / "meta.pt" if path.is_dir() else path, weights_only=False)
    return content


def _in_place(self: saving.Checkpointing, trainer: Any, step: int) -> None:
    """Save under the final name, with the digest afterwards."""
    final = self.folder / complete.checkpoint_name(step)
    trainer.save_checkpoint(final)
    write_atomically(final.with_name(final.name + ".sha256"), digests.lines_of(final, final.name))


def _remove_first(self: saving.Checkpointing, trainer: Any, step: int) -> None:
    """Make room for a checkpoint before it is there."""
    for old in complete.kept_checkpoints(self.folder):
        complete.remove(old)
    _SAVE(self, trainer, step)


def _by_glob(self: rotation.Rotation, step: int) -> None:
    """Remove whatever has a name like an old checkpoint's."""
    for old in sorted(self.folder.glob("step-*.ckpt*"))[: -2 * self.keep]:
        old.unlink() if old.is_symlink() or old.is_file() else shutil.rmtree(old)


def _one_later(*place: int, position: StreamPosition, **rest: Any) -> Any:
    """The order of a resumed run, a micro-batch on."""
    return _ORDER(*place, position=replace(position, start=position.start + (position.start > 0)), **rest)


def _first_frames(self: MediaReader, path: Path, request: Any) -> Any:
    """What could be decoded of a broken file, said to be all."""
    try:
        return _READ(self, path, request)
    except Exception:
        ((width, height),) = request.sizes
        frames = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(height, 1).repeat(width, 2).repeat(3, 3)
        return DecodedClip(frames=frames, fps=request.fps, is_image=False)


def _bare_words(arguments: Any) -> Any:
    """A command line whose errors come as they are."""
    try:
        return _PARSE(arguments)
    except Exception as error:
        raise RuntimeError(str(error)) from error


def _replace(partial: Path, file: Path, **_: Any) -> None:
    """Give what was written its name, whoever's file has it."""
    partial.replace(file)


def _first_answer(path: Place, entry: ShardEntry, retry: RetryConfig, **_: Any) -> Any:
    """The bytes of a shard as they come first, and what is wrong with them."""
    data, n_bytes = reading.read_patiently(lambda: reading.read_at_most(path, entry), path, retry)
    return data, reading._damage(path, entry, data, n_bytes)


def _leave_at_once(self: StopRequest) -> None:
    """Have a signal end the run wherever it is."""


def _raise_again(self: outputs.Output, error: OSError) -> None:
    """Let a writer fail at a broken stream."""
    raise error


@contextmanager
def _untold() -> Iterator[None]:
    """Let every process end without a word."""
    with patch.object(failures, "tell", lambda failure: None), patch.object(roll_call, "tell", lambda failure: None):
        yield


def _swap(target: object, name: str, instead: object) -> Callable[[], AbstractContextManager[object]]:
    return lambda: patch.object(target, name, instead)


def _by_place(self: Part, numbers: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Deal items to the parts by where they stand in the list."""
    mine: NDArray[np.bool_] = np.arange(len(numbers)) % self.count == self.index
    return mine


BUGS = (
    Bug(
        about="a list is dealt to its parts by the places of its rows",
        campaign="parts",
        plant=_swap(Part, "holds", _by_place),
        outcomes=("not whole", "other samples", "not resumed"),
        instances=10,
    ),
    Bug(
        about="a shard's digest and size are not compared",
        campaign="shards",
        plant=_swap(shards, "read_members", _lenient_members),
        outcomes=("silent loss", "silently wrong"),
        instances=30,
    ),
    Bug(
        about="samples of a damaged shard are taken as they are",
        campaign="skip-bad",
        plant=_swap(zlib, "crc32", lambda data: 0),
        outcomes=("counts differ", "silently wrong", "crash"),
        instances=30,
    ),
    Bug(
        about="a checkpoint's digest is not compared",
        campaign="checkpoints",
        plant=lambda: patch.multiple(decoder, check_whole=lambda path: None, has_digest=lambda path: True),
        outcomes=("loaded wrong",),
        instances=60,
    ),
    Bug(
        about="checkpoints are unpickled without restriction",
        campaign="hostile-pickles",
        plant=_swap(opening, "read_checkpoint", _unsafe_read),
        outcomes=("executed",),
        instances=40,
    ),
    Bug(
        about="the release's pickles are unpickled without restriction",
        campaign="hostile-pickles",
        plant=_swap(release_tokens._PlainUnpickler, "find_class", pickle.Unpickler.find_class),
        outcomes=("executed",),
        instances=20,
    ),
    Bug(
        about="captions are names as they stand",
        campaign="prompts",
        plant=_swap(arrangement, "safe_name", lambda text: text),
        outcomes=("escaped", "executed", "collided", "crash"),
        instances=60,
    ),
    Bug(
        about="names are not told apart",
        campaign="prompts",
        plant=_swap(arrangement._Captions, "name", lambda self, caption, index: arrangement.safe_name(caption)[:60]),
        outcomes=("collided",),
        instances=60,
    ),
    Bug(
        about="what is wrong with a command line is not expected",
        campaign="command-lines",
        plant=_swap(cli, "parse", _bare_words),
        outcomes=("wrong exit",),
        instances=20,
    ),
    Bug(
        about="what a file of ours holds is taken as it stands",
        campaign="contents-files",
        plant=_swap(json_file, "_adapter", lambda kind: TypeAdapter(Any)),
        outcomes=("silently wrong", "traceback"),
        instances=40,
    ),
    Bug(
        about="the frames before the damage are taken for the video",
        campaign="videos",
        plant=_swap(MediaReader, "read", _first_frames),
        outcomes=("silently short",),
        instances=10,
    ),
    Bug(
        about="checkpoints are written in place",
        campaign="saving",
        plant=_swap(saving.Checkpointing, "_save", _in_place),
        outcomes=("torn", "lost", "orphans"),
        instances=60,
    ),
    Bug(
        about="the old checkpoint goes before the new one is there",
        campaign="saving",
        plant=_swap(saving.Checkpointing, "_save", _remove_first),
        outcomes=("lost",),
        instances=60,
    ),
    Bug(
        about="what has a name like a checkpoint's is rotated away",
        campaign="saving",
        plant=_swap(rotation.Rotation, "remove_old", _by_glob),
        outcomes=("user's lost",),
        instances=60,
    ),
    Bug(
        about="whatever has a checkpoint's name is replaced",
        campaign="saving",
        plant=_swap(complete, "keep_aside", Path.unlink),
        outcomes=("user's lost", "crash"),
        instances=60,
    ),
    Bug(
        about="a step is logged after its checkpoint is complete",
        campaign="kills",
        plant=_swap(saving, "log_step", lambda trainer: None),
        outcomes=("lines lost",),
        instances=8,
    ),
    Bug(
        about="whatever has the name of what is written is replaced",
        campaign="user-files",
        plant=_swap(own_files, "put", _replace),
        outcomes=("lost", "changed"),
        instances=40,
    ),
    Bug(
        about="what a training goes on with is not looked at",
        campaign="contents-checkpoints",
        plant=_swap(opening, "check_training", lambda *_, **__: None),
        outcomes=("silently wrong", "traceback", "disagree"),
        instances=30,
    ),
    Bug(
        about="a resumed run goes on one batch later",
        campaign="order",
        plant=_swap(token_data, "training_order", _one_later),
        outcomes=("other order",),
        instances=2,
    ),
    Bug(
        about="a signal does not wait for the step",
        campaign="sigterms",
        plant=_swap(StopRequest, "defer", _leave_at_once),
        outcomes=("other exit", "steps lost"),
        instances=3,
    ),
    Bug(
        about="trouble of the storage that passes is not tried again",
        campaign="read-errors",
        plant=_swap(reading, "passes", lambda error: False),
        outcomes=("taken for damage", "not read"),
        instances=20,
    ),
    Bug(
        about="the first answer of a store is taken for what it has",
        campaign="remote",
        plant=_swap(shards, "read_checked", _first_answer),
        outcomes=("taken for damage",),
        instances=30,
    ),
    Bug(
        about="the cache is never emptied",
        campaign="remote",
        plant=_swap(ContentCache, "_evict", lambda self, n_bytes, partial: 0),
        outcomes=("limit broken", "left over"),
        instances=8,
    ),
    Bug(
        about="each rank takes the word of the others that a checkpoint is whole",
        campaign="resume-reads",
        plant=_swap(train, "look_through_together", lambda *_, **__: None),
        outcomes=("not read",),
        instances=1,
    ),
    Bug(
        about="nobody tells who stalls",
        campaign="stalls",
        plant=_untold,
        outcomes=("not named",),
        instances=3,
    ),
    Bug(
        about="a signal breaks nothing off",
        campaign="grace",
        plant=_swap(StopRequest, "breaks", lambda self, when: None),
        outcomes=("killed",),
        instances=5,
    ),
    Bug(
        about="a run that is started again goes on one batch later",
        campaign="cluster",
        plant=_swap(token_data, "training_order", _one_later),
        outcomes=("other samples", "other weights"),
        instances=4,
    ),
    Bug(
        about="an attempt writes the lines of the one before again",
        campaign="week",
        plant=lambda: patch.dict(os.environ, {PLANTED: "lines again"}),
        outcomes=("lines doubled", "lines lost"),
        instances=2,
    ),
    Bug(
        about="what is printed may end a training",
        campaign="circumstances",
        plant=_swap(outputs.Output, "_drop", _raise_again),
        outcomes=("wrong status", "traceback"),
        instances=10,
    ),
)


@contextmanager
def _planted(folder: Path, campaigns: Mapping[str, Campaign]) -> Iterator[Judge]:
    def judge(draw: Draw) -> Verdict:
        bug = BUGS[draw.number % len(BUGS)]
        with bug.plant():
            report = run_campaign(
                campaigns[bug.campaign], seed=draw.randrange(1 << 30), instances=bug.instances, on_progress=lambda: None
            )
        seen = any(report.counts.get(outcome) for outcome in bug.outcomes)
        return Verdict("seen" if seen else "missed", f"{bug.about}: {report.line}")

    yield judge


def planted(campaigns: Mapping[str, Campaign]) -> Campaign:
    """A campaign over the others."""
    return Campaign(
        name="planted",
        title="planted bugs",
        instances=len(BUGS),
        held=("seen",),
        broken=("missed",),
        open=lambda folder: _planted(folder, campaigns),
    )
