"""The commands that write, each as small as can be: what it is given, and how it is run."""

from __future__ import annotations

import fnmatch
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from data_modules.tokenizing.growing import GrowingShards
from data_modules.tokenizing.journal import Journal
from experiments import cli
from experiments.sample.folder import SampleFolder
from faults.processes import forked
from faults.shards import write_shards
from lumos_pl.layout import TokenSequence, lumos1_layout
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.seeding import generator
from lumos_pl.shape_world.clips import write_clips
from lumos_pl.shape_world.scene import WorldConfig

OF_NEW = 0.7  # of what wants an empty folder: whatever was there before is refused
INPUTS = "in"  # the folder of what a command reads, and nothing else
IMPORTED = (  # before a process forks, once
    "experiments.train", "experiments.sample.run", "experiments.sample.pictures", "experiments.evaluation.evaluate",
    "data_modules.shards.sheet", "data_modules.shards.release_tokens", "data_modules.shards.check",
    "data_modules.tokenizing.tokenize",
    "lumos_pl.checkpoints.conversion", "torch._dynamo", "torch.distributed.tensor", "rich.progress",
)  # fmt: skip
Work = Callable[[Path], object]

ALWAYS_VARY = (
    "events.out.*",
    "*.lock",
    RECORD,
    "attempts.jsonl",
    "metrics.jsonl",
    "result.json",
    "times.json",
    "*.ckpt*",
    "hparams.yaml",
)
RUN = (
    "trainer.val_every_n_steps=0", "data.synthetic.n_samples=4", "data.image.batch_size=1", "data.video.batch_size=1",
    "data.video.frames=5", "callbacks.progress_bar=false", "callbacks.sample_grid_every_n_steps=0",
    "callbacks.heatmap_every_n_steps=0", "checkpoint.every_n_steps=1", "checkpoint.keep=1",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Command:
    """
    Args:
        weight: how often it is drawn, against the others.
        prepare: puts into an empty folder what it needs: into `INPUTS` what is only read.
        work: runs it there; returns the exit status.
        stopped: whether it is sent a SIGTERM.
        takes_free_name: whether it writes beside a file that has its output's name.
        final_step: of the run's newest checkpoint, afterwards.
        races: the share of instances in which a file of the user's appears meanwhile.
    """

    name: str
    weight: int
    prepare: Work
    work: Work
    stopped: bool = False
    takes_free_name: bool = False
    final_step: int | None = None
    races: float = 0.25

    def varies(self, name: str) -> bool:
        """Whether a file is another one each time."""
        return any(fnmatch.fnmatch(part, pattern) for part in Path(name).parts for pattern in ALWAYS_VARY)


def lumos(*words: object) -> int:
    """The command, in this process."""
    return cli.main([str(word) for word in words])


def in_a_process(work: Callable[[], object]) -> None:
    """Do it, whatever becomes of it, in a process that is forked."""
    os.waitpid(forked(work, Path(os.devnull)), 0)


def nothing(here: Path) -> None:
    """Needs no more than an empty folder."""


def then(*works: Work) -> Work:
    """One after the other, each in a process of its own."""

    def all_of_them(here: Path) -> None:
        for work in works:
            in_a_process(lambda work=work: work(here))  # type: ignore[misc]

    return all_of_them


def train(steps: int) -> Work:
    return lambda here: lumos(
        "train", "debug", f"run.dir={here / 'runs'}", "run.name=a", *RUN, f"trainer.max_steps={steps}"
    )


def resume(steps: int) -> Work:
    return lambda here: lumos("resume", here / "runs" / "debug" / "a", f"trainer.max_steps={steps}")


def sample(*words: str, prompts: int = 1) -> Work:
    asked = [word for text in ["a red circle", "a blue square"][:prompts] for word in ("--prompt", text)]
    each = ("--frames", "1", "--steps", "1", "--device", "cpu")
    return lambda here: lumos("sample", *asked, *each, "--out", here / "out", *words)


def cut_short(work: Work, target: type, method: str, after: int) -> Work:
    """Killed, once a method was called so often."""
    whole = getattr(target, method)

    def cut(here: Path) -> None:
        calls: list[None] = []

        def counted(*arguments: object, **named: object) -> object:
            if len(calls) == after:
                os._exit(137)
            calls.append(None)
            return whole(*arguments, **named)

        with patch.object(target, method, counted):
            work(here)

    return cut


def without_records(here: Path) -> None:
    """As a version left it that kept none."""
    for record in here.rglob(RECORD):
        record.unlink()


def geneval(here: Path) -> int:
    words = (
        "--frames",
        "1",
        "--steps",
        "1",
        "--device",
        "cpu",
        "--samples-per-prompt",
        "2",
        "--arrangement",
        "geneval",
    )
    return lumos("sample", "--prompts", here / INPUTS / "list.jsonl", *words, "--out", here / "out")


def geneval_list(here: Path) -> None:
    (here / INPUTS / "list.jsonl").write_text(json.dumps({"tag": "one", "prompt": "a red circle"}) + "\n")


def media(here: Path) -> None:
    for number, color in enumerate(["teal", "tan", "navy"]):
        Image.new("RGB", (32, 32), color).save(here / INPUTS / f"{number}.png")
    rows = [f"{number}.png,caption {number}\n" for number in range(3)]
    (here / INPUTS / "list.csv").write_text("path,caption\n" + "".join(rows))


def tokenize(here: Path) -> int:
    words = ("--tokenizer", "embedded", "--workers", 0, "--size", "32x32", "--frames", 1, "--samples-per-shard", 2)
    return lumos("tokenize", here / INPUTS / "list.csv", "--out", here / "out", *words)


def shards(here: Path) -> None:
    write_shards(here / INPUTS / "shards")


def skip_bad(here: Path) -> int:
    return lumos("shards", "verify", here / INPUTS / "shards", "--skip-bad", "--out", here / "new" / "one")


def shards_beside(here: Path) -> None:
    write_shards(here / "shards")


def show(here: Path) -> int:
    return lumos("shards", "show", here / "shards")


def pickles(here: Path) -> None:
    layout = lumos1_layout()
    for number, frames in enumerate([1, 7, 1, 7]):
        codes = torch.randint(layout.codebook_size, (frames, 4, 8), generator=generator(0, "user files", number))
        seconds = {"duration": 1, "fps": 1} if frames == 1 else {"duration": 2, "fps": 12}
        tokens = layout.build(TokenSequence(text_ids=(16399,) * 3, codes=codes, **seconds)).tolist()
        start = tokens.index(layout.video_start)
        content = {"token": tokens, "label": [-100] * start + tokens[start:], "id": number}
        (here / INPUTS / f"{number}.pkl").write_bytes(pickle.dumps(content))


def import_tokens(here: Path) -> int:
    return lumos("import-tokens", here / INPUTS, "--out", here / "out", "--samples-per-shard", 1)


def export_hf(here: Path) -> int:
    return lumos("export-hf", here / INPUTS / "runs" / "debug" / "a", "--out", here / "hf" / "one")


def trained(steps: int, *, within: str = ".") -> Work:
    """A run of so many steps, in a folder of its own; it is trained once."""

    def run(here: Path) -> None:
        kept = here.parent / f"trained {steps}"
        if not kept.exists():
            in_a_process(lambda: train(steps)(here))
            (here / "runs").rename(kept)
        shutil.copytree(kept, here / within / "runs", symlinks=True)

    return run


trained_input = trained(1, within=INPUTS)


def exported_input(here: Path) -> None:
    trained_input(here)
    run = here / INPUTS / "runs" / "debug" / "a"
    in_a_process(lambda: lumos("export-hf", run, "--out", here / INPUTS / "hf"))


def import_hf(here: Path) -> int:
    return lumos("import-hf", here / INPUTS / "hf", "--out", here / "own" / "one.ckpt")


def evaluate(here: Path) -> int:
    return lumos("eval", here / "runs" / "debug" / "a", "--only", "loss")


def clips(here: Path) -> None:
    write_clips(here / "clips", WorldConfig(side=32, frames=5), split="train", count=3)


COMMANDS = (
    Command(name="train", weight=2, prepare=nothing, work=train(2), final_step=2),
    Command(name="resume", weight=4, prepare=trained(2), work=resume(4), final_step=4),
    Command(name="resume, stopped", weight=1, prepare=trained(2), work=resume(4), stopped=True),
    Command(name="sample", weight=2, prepare=nothing, work=sample()),
    Command(
        name="sample, resumed",
        weight=3,
        prepare=then(cut_short(sample(prompts=2), SampleFolder, "finish", 1)),
        work=sample(prompts=2),
    ),
    Command(
        name="sample, another part",
        weight=1,
        prepare=then(sample("--shard", "0/2", prompts=2)),
        work=sample("--shard", "1/2", prompts=2),
    ),
    Command(name="sample, of before", weight=1, prepare=then(sample(), without_records), work=sample()),
    Command(name="sample, geneval", weight=1, prepare=geneval_list, work=geneval),
    Command(name="eval", weight=1, prepare=trained(1), work=evaluate),
    Command(name="eval, of before", weight=1, prepare=then(trained(1), evaluate, without_records), work=evaluate),
    Command(name="shards show", weight=1, prepare=shards_beside, work=show, takes_free_name=True),
    Command(name="shards verify", weight=6, prepare=shards, work=skip_bad, races=OF_NEW),
    Command(name="tokenize", weight=3, prepare=media, work=tokenize),
    Command(
        name="tokenize, resumed",
        weight=3,
        prepare=then(media, cut_short(tokenize, Journal, "append", 2)),
        work=tokenize,
    ),
    Command(
        name="tokenize, resumed late",
        weight=3,
        prepare=then(media, cut_short(tokenize, GrowingShards, "finish", 0)),
        work=tokenize,
    ),
    Command(name="import-tokens", weight=6, prepare=pickles, work=import_tokens, races=OF_NEW),
    Command(name="export-hf", weight=5, prepare=trained_input, work=export_hf, races=OF_NEW),
    Command(name="import-hf", weight=4, prepare=exported_input, work=import_hf, races=OF_NEW),
    Command(name="world clips", weight=5, prepare=nothing, work=clips),
)
