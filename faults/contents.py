"""Checkpoints whose digest fits and whose content does not: whoever opens one says the same, or does what is right."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import experiments.evaluation.subject  # noqa: F401 - once, and not anew in every fork
from experiments import cli
from experiments.read_config import saved_config
from faults.campaign import Campaign, Judge, Verdict
from faults.checkpoints import Call
from faults.processes import ended, forked
from faults.runs import SETTINGS, Run
from lumos_pl.checkpoints.complete import checkpoint_name, complete
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.checkpoints.run_settings import RunSettings
from lumos_pl.errors import LumosError
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.module import LumosModule

STEP = 2  # of the checkpoint; a resume does one more
MOST_SECONDS = 300.0  # of an instance, which takes one, on a busy machine
Said = dict[str, dict[str, Any]]  # by command: its "status" and its "line"

# -- what is done to a checkpoint --------------------------------------------------------------------


def places(content: Any) -> Iterator[tuple[Any, Any]]:
    """Every dict or list in a checkpoint, with each key or index of it."""
    if isinstance(content, dict | list):
        for key in list(content) if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from places(content[key])


def _deep() -> Any:
    value: Any = 1
    for _ in range(200):
        value = [value]
    return value


def _doubling() -> Any:
    value: Any = [1, 1]
    for _ in range(60):
        value = [value, value]
    return value


def _cyclic() -> Any:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


OTHER_VALUES: dict[str, Callable[[Any], Any]] = {
    "null": lambda value: None,
    "text": lambda value: "text",
    "empty text": lambda value: "",
    "negative": lambda value: -1,
    "huge": lambda value: 10**30,
    "5,000 digits": lambda value: 10**5000,
    "NaN": lambda value: float("nan"),
    "infinity": lambda value: float("inf"),
    "true": lambda value: True,
    "a fraction": lambda value: 0.5,
    "one more": lambda value: value + 1 if type(value) in (int, float) else [value],
    "as text": lambda value: str(value)[:50],
    "empty list": lambda value: [],
    "empty dict": lambda value: {},
    "in a list": lambda value: [value],
    "in a dict": lambda value: {"a": value},
    "a tensor": lambda value: torch.ones(3),
    "deep": lambda value: _deep(),
    "self-doubling": lambda value: _doubling(),
    "cyclic": lambda value: _cyclic(),
    "surrogates": lambda value: "a\ud800",
    "the environment's": lambda value: "${oc.env:HOME}",
}
OTHER_TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "int64": lambda tensor: tensor.long(),
    "int8": lambda tensor: tensor.to(torch.int8),
    "bool": lambda tensor: tensor.bool(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "sparse": lambda tensor: tensor.to_sparse(),
    "meta": lambda tensor: tensor.to("meta"),
    "flat": lambda tensor: tensor.flatten()[None],
    "one less": lambda tensor: tensor.flatten()[:-1].clone(),
    "empty": lambda tensor: tensor[:0] if tensor.ndim else tensor[None][:0],
    "broadcast": lambda tensor: torch.ones(1).expand(tensor.shape) if tensor.numel() > 1 else tensor[None],
    "another order": lambda tensor: tensor.t().contiguous().t() if tensor.ndim == 2 else tensor[None],
    "a NaN": lambda tensor: _with(tensor, float("nan")),
    "an infinity": lambda tensor: _with(tensor, float("-inf")),
    "a list": lambda tensor: tensor.flatten()[:4].tolist(),
    "nothing": lambda tensor: None,
}


def _with(tensor: Tensor, number: float) -> Tensor:
    changed = tensor.clone()
    changed.view(-1)[-1] = number
    return changed


def change_value(content: dict[str, Any], draw: random.Random) -> str:
    """Change something of a checkpoint's content; what."""
    section = draw.choice(list(content))
    within = [(content, section), *places(content[section])]
    parent, key = draw.choice(within[:12] if draw.random() < 0.4 else within)  # its upper parts as often as the rest
    value = parent[key]
    kinds = ["missing", "extra", "swapped", "another key", "call"] + ["other"] * 10
    kind = draw.choice(kinds)
    where = f"{section}: {str(key)[:40]}"
    if kind == "missing":
        del parent[key]
    elif kind == "extra" and isinstance(value, dict):
        value["more"] = draw.choice([1, "text", None])
    elif kind == "another key" and isinstance(value, dict):
        value[draw.choice([7, 1.5, None, "a\ud800", ("a", 1)])] = 1
    elif kind == "swapped" and len(within) > 1:
        other, its = draw.choice(within[1:] if (parent, key) != within[0] else within)
        parent[key], other[its] = other[its], value
        return f"{where} swapped with {str(its)[:40]}"
    elif kind == "call":
        parent[key] = Call(os.mkdir, os.environ[MARKER])
    else:
        changes = OTHER_TENSORS if isinstance(value, Tensor) else OTHER_VALUES
        kind = draw.choice(list(changes))
        parent[key] = changes[kind](value)
    return f"{where}: {kind}"


def change_records(file: Path, draw: random.Random) -> str:
    """Write a checkpoint's archive anew, each record with its right checksum; what was done to one of them."""
    kind = draw.choice(["shorter", "longer", "empty", "missing", "twice", "compressed", "another's name", "extra"])
    with zipfile.ZipFile(file) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    of_storages = [i for i, (name, _) in enumerate(records) if "/data/" in name]
    chosen = draw.choice(of_storages)
    name, data = records[chosen]
    methods = {name: zipfile.ZIP_DEFLATED if kind == "compressed" else zipfile.ZIP_STORED}
    match kind:
        case "shorter":
            records[chosen] = name, data[: draw.randrange(len(data))]
        case "longer":
            records[chosen] = name, data + b"\0" * draw.choice([1, 4, 64])
        case "empty":
            records[chosen] = name, b""
        case "missing":
            del records[chosen]
        case "twice":
            records.append((name, data[::-1]))
        case "another's name":
            other = draw.choice([i for i in of_storages if len(records[i][1]) != len(data)])
            records[chosen], records[other] = (name, records[other][1]), (records[other][0], data)
        case "extra":
            records.append((f"{name}9999", data))
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in records:
            archive.writestr(name, data, compress_type=methods.get(name, zipfile.ZIP_STORED))
    return f"{name}: {kind}"


# -- who opens it --------------------------------------------------------------------------------------

MARKER = "LUMOS_FAULTS_MARKER"


def _say(work: Callable[[], int]) -> dict[str, Any]:
    """The exit status of a command and its last line; an error that is none of ours is a traceback."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        try:
            status = work()
        except LumosError as error:
            return {"status": error.exit_status, "line": str(error)}
        except BaseException as error:
            return {"status": 70, "line": f"Traceback: {type(error).__name__}: {str(error)[:300]}"}
    lines = out.getvalue().splitlines()
    line = next((line.removeprefix("lumos: ") for line in lines if line.startswith("lumos: ")), "")
    return {"status": status, "line": "Traceback" if "Traceback" in out.getvalue() else line}


def _load(run: Path) -> int:
    """What sample and eval do with a checkpoint before they compute."""
    saved = load_decoder(run)
    RunSettings.read(saved.config, saved.file)
    saved_config(saved.config, saved.file)
    return 0


def _module(run: Path) -> int:
    LumosModule.load_from_checkpoint(run)
    return 0


def open_by_all(run: Path, out: Path) -> Said | None:
    """What each command says of a run's checkpoint, in a process of their own; None: it went on for too long."""
    answer = out / "answer.json"
    commands: dict[str, Callable[[], int]] = {
        "export": lambda: cli.main(["export-hf", str(run), "--out", str(out / "exported")]),
        "load": lambda: _load(run),
        "module": lambda: _module(run),
        "resume": lambda: cli.main(["resume", str(run), f"trainer.max_steps={STEP + 1}"]),
    }

    def work() -> None:
        answer.write_text(json.dumps({name: _say(command) for name, command in commands.items()}))

    if ended(forked(work, out / "said"), MOST_SECONDS) is None:
        return None
    said: Said = json.loads(answer.read_text()) if answer.exists() else {}
    return said


@contextmanager
def _contents(folder: Path) -> Iterator[Judge]:
    train = ["train", "debug", f"run.dir={folder}", "run.name=whole", *SETTINGS, f"trainer.max_steps={STEP}"]
    log = folder / "train.jsonl"
    assert Run(train, log).wait() == 0, log.with_suffix(".said").read_text()
    whole = folder / "debug" / "whole"
    original = whole / "checkpoints" / checkpoint_name(STEP)

    def copied(name: str) -> Path:
        run = folder / "debug" / name
        shutil.rmtree(folder / "debug" / name, ignore_errors=True)
        (run / "checkpoints").mkdir(parents=True)
        shutil.copy(whole / "config.yaml", run)
        return run

    def judged(run: Path, out: Path) -> tuple[Said | None, object, dict[str, Tensor]]:
        """What all said, the weights that the resume ended with, and those that were exported."""
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        said, result, exported = open_by_all(run, out), run / "result.json", out / "exported" / "model.safetensors"
        ended_with = json.loads(result.read_text())["weights_sha256"] if result.exists() else None
        return said, ended_with, load_file(exported) if exported.exists() else {}

    run, out = copied("sound"), folder / "out"
    shutil.copy(original, run / "checkpoints" / "x")
    complete(run / "checkpoints" / "x", run / "checkpoints" / original.name)
    said, resumed, exported = judged(run, out)
    assert said and {entry["status"] for entry in said.values()} == {0}, said

    def judge(draw: random.Random) -> Verdict:
        run, marker = copied("changed"), folder / "executed"
        os.environ[MARKER] = str(marker)
        final = run / "checkpoints" / original.name
        partial = partial_of(final)
        if draw.random() < 0.15:
            shutil.copy(original, partial)
            done = change_records(partial, draw)
        else:
            content = read_checkpoint(original)
            done = change_value(content, draw)
            try:
                torch.save(content, partial)
            except Exception as error:  # what no checkpoint can be made of
                return Verdict("refused by all", f"{done}: not even saved: {error}")
            if draw.random() < 0.03:
                final = final.with_name(checkpoint_name(STEP + draw.choice([-1, 1])))
                done += f", as {final.name}"
        complete(partial, final)
        said, ended_with, weights = judged(run, out)
        return _verdict(said, marker, done, right=(ended_with == resumed, _equal(weights, exported)))

    yield judge


def _equal(weights: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in others)


def _verdict(said: Said | None, marker: Path, done: str, *, right: tuple[bool, bool]) -> Verdict:
    if marker.exists():
        marker.rmdir()
        return Verdict("executed", done)
    if said is None:
        return Verdict("hang", done)
    words = f"{done} -> " + "; ".join(f"{name} {entry['status']} {entry['line']}" for name, entry in said.items())
    statuses = {entry["status"] for entry in said.values()}
    if not said or statuses - {0, 4} or any("Traceback" in entry["line"] for entry in said.values()):
        return Verdict("traceback", words)
    if statuses == {4}:
        return Verdict("refused by all" if len({entry["line"] for entry in said.values()}) == 1 else "disagree", words)
    if statuses == {0}:
        return Verdict("taken by all" if all(right) else "silently wrong", words)
    return Verdict("disagree", words)


CHECKPOINTS = Campaign(
    name="contents-checkpoints",
    title="contents of checkpoints",
    instances=350,
    held=("refused by all", "taken by all"),
    broken=("silently wrong", "traceback", "hang", "executed", "disagree"),
    open=_contents,
)
