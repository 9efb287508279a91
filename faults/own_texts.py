"""Texts of ours with other contents: JSON and YAML of another shape, and what is no file at all."""

from __future__ import annotations

import io
import json
import logging
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Never
from unittest.mock import patch

import yaml

import experiments.train
from callbacks.jsonl_logger import JsonlLogger
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.tokenizing.journal import JOURNAL_FILE, Journal
from data_modules.tokenizing.ledger import LEDGER_FILE, Ledger, Said
from data_modules.tokenizing.parts import STATE_FILE
from data_modules.tokenizing.state import TokenizeFolder
from experiments import cli
from experiments.evaluation.evaluate import FILE as EVAL_FILE
from experiments.evaluation.settings import EvalSettings
from experiments.failures import report_failures
from experiments.study.cells import Evaluation
from experiments.study.collect import read_measures
from experiments.study.config import Variant
from faults.campaign import Campaign, Judge, Verdict
from faults.mutate import DEEP, NO_VALUES, change_text
from faults.runs import SETTINGS
from faults.shards import write_shards
from lumos_pl.shape_world.clips import WORLD_FILE, write_clips
from lumos_pl.shape_world.scene import WorldConfig

USAGE, DATA = 2, 3
MOST_SECONDS = 20
WHOLE = (
    b"",
    b"null",
    b"[]",
    b"3",
    b'"text"',
    b"\xef\xbb\xbf[]",
    b"\xff\xfe{}",
    bytes(range(256)),
    DEEP.encode(),
    b"\0" * 100,
)
YAML_TEXTS = (
    "seed: ???",
    "1: 2",
    "yes: 1",
    "null: 1",
    "? [a]\n: 1",
    "seed: !!int x",
    f"seed: {'9' * 5000}",
    f"seed: {'9' * 30}",
    f"about: {DEEP}",
    "task: {a: 1}",
    "optimizer: {lr: 1e39}",
    "data: {num_workers: 100000}",
    "about: &a [*a]",
    "a: &a [1]\n" + "".join(f"b{i}: &a [*a, *a]\n" for i in range(40)),
    "\tseed: 1",
    "about: 1\nabout: 2",
    "--- 1\n--- 2",
    'about: "\\0"',
    'run: {dir: "\\0"}',
    f"run: {{dir: {'a' * 300}}}",
    "run: {name: ../../x}",
    "model: {n_layers: 100000000000}",
    "about: !!python/object/apply:os.mkdir [executed]",
    "about: !!binary aGk=",
    "about: ${about}",
    "about: ${",
    "%YAML 9.9",
    "data: {video: {frames: 100000000000}}",
    "seed: null",
    "loggers: 3",
    "optimizer: 3",
    "optimizer: {1: 2}",
    "mask: {kind: [tube]}",
)


class _Begun(BaseException):
    """Everything was taken, and the training would begin."""


class _Hung(BaseException):
    """It went on for too long."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A file of ours, and who reads it.

    Args:
        make: given an empty folder, writes what is needed; the file's path.
        use: reads the file as a command does; an exit status.
        status: of the line for a damaged one.
        free: dotted fields (and all below) that may hold any JSON, or be missing.
        optional: fields that may be missing.
        kept: whether odd content is kept beside and the work goes on.
    """

    make: Callable[[Path], Path]
    use: Callable[[Path], int]
    status: int = DATA
    free: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    kept: bool = False
    is_yaml: bool = False


def _lines(work: Callable[[], object]) -> int:
    def done() -> int:
        work()
        return 0

    return report_failures(done, debug=False)


def _json(file: Path, value: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))
    return file


def _no_file(file: Path, draw: random.Random) -> str:
    kind = draw.choice(["FIFO", "folder", "link to /dev/zero", "link to a FIFO", "link to itself", "dangling link"])
    file.unlink()
    match kind:
        case "FIFO":
            os.mkfifo(file)
        case "folder":
            file.mkdir()
        case "link to a FIFO":
            os.mkfifo(file.with_name("pipe"))
            file.symlink_to("pipe")
        case "link to /dev/zero":
            file.symlink_to("/dev/zero")
        case "link to itself":
            file.symlink_to(file.name)
        case _:
            file.symlink_to("nowhere")
    return kind


def _copies(file: Path) -> list[bytes]:
    """The contents of the file, and of whatever is kept beside it."""
    return [other.read_bytes() for other in file.parent.glob(f"{file.stem}*") if other.is_file()]


@contextmanager
def _warnings_to(said: io.StringIO) -> Iterator[None]:
    """Warnings of ours, as a command shows them."""
    logger, handler = logging.getLogger("lumos_pl"), logging.StreamHandler(said)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)


@contextmanager
def _limited() -> Iterator[None]:
    def stop(*_: object) -> Never:
        raise _Hung

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _judged(target: Target, file: Path, name: str, place: str, kind: str, marker: Path) -> Verdict:
    """What the reader of a changed file says."""
    before = file.read_bytes() if file.is_file() and not file.is_symlink() else None
    said, done = io.StringIO(), f"{name}: {place} {kind}"
    try:
        with _limited(), redirect_stderr(said), redirect_stdout(io.StringIO()), _warnings_to(said):
            status = target.use(file)
    except _Begun:
        status = 0
    except _Hung:
        return Verdict("hang", done)
    except BaseException as error:
        return Verdict("traceback", f"{done}: {type(error).__name__}: {error}")
    line = said.getvalue()
    done += f" -> {status}: {line[:300]}"
    if marker.exists():
        return Verdict("executed", done)
    may_be = _may_be(target, place, kind)
    if before is not None and before not in _copies(file) and not may_be:
        return Verdict("overwritten", done)
    if "Traceback" in line:
        return Verdict("traceback", done)
    if status == 0:
        told = target.kept and line.startswith("lumos: ") and line.count("\n") == 1
        return Verdict("taken" if told or may_be else "silently wrong", done)
    own = [one for one in line.splitlines() if one.startswith("lumos: ")]  # among others' warnings
    named = len(own) == 1 and (target.is_yaml or str(file.parent) in line)
    # Sound settings that are not those asked for are a usage error.
    right = {target.status, USAGE, *((DATA,) if target.is_yaml and place.endswith("root") else ())}
    return Verdict("one line" if named and status in right else "wrong exit", done)


# -- the files -----------------------------------------------------------------------------------

# Of a result: any of them may be missing.
FIGURES = "experiment", "seconds", "loss", "loss.loss/train", "frame_loss", "tokens_per_second", "weights_sha256"


def _targets(run: Path) -> Mapping[str, Target]:
    """All files by name; the run is copied where one of its own is changed."""

    def of_run(name: str) -> Callable[[Path], Path]:
        return lambda folder: Path(shutil.copytree(run, folder / "run", symlinks=True)) / name

    def resume(file: Path) -> int:
        return cli.main(["resume", str(file.parent)])

    def metrics(file: Path) -> int:
        return _lines(lambda: JsonlLogger(file).rewind(2))

    def shards(folder: Path) -> Path:
        write_shards(folder / "shards")
        return folder / "shards" / MANIFEST_FILE

    def upgraded(folder: Path) -> Path:
        file = shards(folder)
        Manifest.upgrade(file.parent)
        return file

    def evaluation(file: Path) -> Evaluation:
        return Evaluation(name="e", variant=Variant((), ()), folder=file.parent, settings=EvalSettings())

    def measured(folder: Path) -> Path:
        measure = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 2, "values": [0.25, 0.75]}
        _json(folder / "times.json", {"loss/all/seconds": 1.5})
        settings = EvalSettings().recorded()
        return _json(folder / EVAL_FILE, {"settings": settings, "step": 2, "measures": {"loss/a/b": measure}})

    def state(folder: Path) -> Path:
        TokenizeFolder(folder).begin({"fps": 8})
        return folder / STATE_FILE

    def journal(folder: Path) -> Path:
        Journal(folder / JOURNAL_FILE).append(0, "no caption")
        return folder / JOURNAL_FILE

    def ledger(folder: Path) -> Path:
        Ledger(folder).append(Said(quarantined={0: "no caption"}), None)
        return folder / LEDGER_FILE

    def world(file: Path) -> int:
        return _lines(lambda: write_clips(file.parent, WorldConfig(side=32, frames=2), split="train", count=1))

    def clips(folder: Path) -> Path:
        write_clips(folder, WorldConfig(side=32, frames=2), split="train", count=1)
        return folder / WORLD_FILE

    def own_yaml(folder: Path) -> Path:
        (folder / "own.yaml").write_text("base: debug\n")
        return folder / "own.yaml"

    lines = (run / "metrics.jsonl").read_text().splitlines()
    figures = tuple({name for line in lines for name in json.loads(line)} - {"step"})
    measure = "measures.loss/a/b"
    of_measure = tuple(f"{measure}.{name}" for name in ("low", "high", "n", "values"))
    settings = tuple(f"settings.{name}" for name in (*EvalSettings().recorded(), "unheard_of") if name != "overrides")
    return {
        "result.json": Target(
            make=of_run("result.json"),
            use=resume,
            free=("frame_loss.train", "frame_loss.val", "frame_loss.unheard_of", "unheard_of", "loss.unheard_of"),
            optional=FIGURES,
        ),
        "metrics.jsonl": Target(
            make=of_run("metrics.jsonl"), use=metrics, kept=True, optional=figures, free=("unheard_of",)
        ),
        "config.yaml": Target(make=of_run("config.yaml"), use=resume, status=USAGE, is_yaml=True),
        "own.yaml": Target(make=own_yaml, use=lambda file: cli.main(["plan", str(file)]), status=USAGE, is_yaml=True),
        "manifest.json": Target(make=shards, use=lambda file: cli.main(["shards", "show", str(file.parent)])),
        "manifest.json beside rows": Target(
            make=upgraded,
            use=lambda file: cli.main(["shards", "show", str(file.parent)]),
            optional=("identity",),
        ),
        "eval.json": Target(
            make=measured,
            use=lambda file: _lines(lambda: read_measures(evaluation(file))),
            free=(*settings, "unheard_of"),
            optional=("step", "settings.overrides", *of_measure),
        ),
        "tokenize.json": Target(
            make=state,
            use=lambda file: _lines(lambda: TokenizeFolder(file.parent).begin({"fps": 8})),
        ),
        "journal": Target(make=journal, use=lambda file: _lines(lambda: Journal(file)), kept=True),
        "ledger": Target(make=ledger, use=lambda file: _lines(lambda: Ledger(file.parent))),
        "world.json": Target(make=clips, use=world),
    }


def _damage(target: Target, file: Path, draw: random.Random) -> tuple[str, str]:
    """Change a file; the dotted field, and what was done."""
    way = draw.choice(["content", "content", "content", "content", "whole", "no file"])
    if way == "no file":
        return "", _no_file(file, draw)
    if way == "whole":
        content = draw.choice([one for one in WHOLE if one or not target.kept])
        file.write_bytes(content + b"\n" * target.kept)  # else it is a line that a kill has torn
        return "", f"all of it {content[:20]!r}"
    if file.name == "own.yaml":
        text = draw.choice(YAML_TEXTS)
        file.write_text(f"{file.read_text()}{text}\n")
        return "", text[:40]
    if target.is_yaml:
        changed, place, kind = change_text(file.read_text(), draw, yaml.safe_dump, yaml.safe_load)
        file.write_text(changed)
        return place, kind
    lines = file.read_text().splitlines() if target.kept else [file.read_text()]
    number = draw.randrange(len(lines))
    lines[number], place, kind = change_text(lines[number], draw, json.dumps, json.loads)
    file.write_text("\n".join(lines) + "\n")
    return place, kind


def _may_be(target: Target, place: str, kind: str) -> bool:
    """Whether a reader may take the changed file for right: other values of a setting, or what nobody needs."""
    if target.is_yaml:
        is_text = kind in ("NaN", "Infinity", "-Infinity")  # to YAML, which writes .nan and .inf
        return place != "" and kind != "unknown" and (is_text or kind not in {raw[:20] for raw in NO_VALUES})
    if any(place == field or place.startswith(f"{field}.") for field in target.free):
        return kind not in {raw[:20] for raw in NO_VALUES}
    return place in target.optional and kind in ("missing", "None")  # a value that is null in some


@contextmanager
def _contents(folder: Path) -> Iterator[Judge]:
    def begun(*_: object, **__: object) -> Never:
        raise _Begun

    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        small = ["trainer.max_steps=3", "trainer.accelerator=cpu", f"run.dir={folder / 'runs'}", "run.name=whole"]
        assert cli.main(["train", "debug", *SETTINGS, "trainer.accumulate=1", *small]) == 0
    targets = _targets(folder / "runs" / "debug" / "whole")
    before = Path.cwd()

    def judge(draw: random.Random) -> Verdict:
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        name = draw.choice(sorted(targets))
        target = targets[name]
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            file = target.make(here)
        place, kind = _damage(target, file, draw)
        os.chdir(here)
        try:
            return _judged(target, file, name, place, kind, here / "executed")
        finally:
            os.chdir(before)

    with patch.object(experiments.train, "_fit", begun):
        yield judge


CONTENTS = Campaign(
    name="contents-files",
    title="contents of own files",
    instances=250,
    held=("one line", "taken"),
    broken=("silently wrong", "traceback", "hang", "executed", "wrong exit", "overwritten"),
    open=_contents,
)
