"""Checkpoints and pickles that are damaged, or made to run something."""

from __future__ import annotations

import logging
import os
import pickle
import random
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from data_modules.shards.release_tokens import import_release_tokens
from faults.campaign import Campaign, Judge, Verdict, attempt
from faults.mutate import mutate
from lumos_pl.checkpoints import decoder
from lumos_pl.checkpoints.complete import checkpoint_name, complete
from lumos_pl.checkpoints.contents import FORMAT
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.description import identity
from lumos_pl.errors import LumosError
from lumos_pl.layout import LayoutConfig
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.config import ModelConfig, TransformerConfig
from lumos_pl.models.transformer import LumosTransformer

STEPS = (1, 2, 3)
Weights = dict[str, Tensor]


def tiny_model() -> tuple[LayoutConfig, TransformerConfig]:
    layout = LayoutConfig(preset="compact", codebook_size=60)
    return layout, ModelConfig(size="debug", max_length=512).build(layout.build())


def tiny_content(step: int) -> dict[str, Any]:
    """What a run saves of its decoder; the weights are those of the step."""
    layout, model = tiny_model()
    net = LumosTransformer(model)
    net.init_weights(step)
    state = {f"net.{name}": tensor for name, tensor in net.state_dict().items()}
    description = {"format": FORMAT, "config": {}, "identity": identity(layout, model)}
    return {"state_dict": state, "lumos": description}


def save_file(content: Mapping[str, Any], path: Path) -> None:
    torch.save(dict(content), path)


def save_sharded(content: Mapping[str, Any], path: Path) -> None:
    """As FSDP2 saves: tensors by torch.distributed.checkpoint, the rest beside them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.save(  # type: ignore[attr-defined]
            {"state_dict": content["state_dict"], "a_plain_value": 1}, checkpoint_id=path, no_dist=True
        )
    torch.save({name: value for name, value in content.items() if name != "state_dict"}, path / "meta.pt")


def _write_run(folder: Path, save: Callable[[Mapping[str, Any], Path], None]) -> dict[int, Weights]:
    """A run's complete checkpoints; the weights of each step."""
    (folder / "checkpoints").mkdir(parents=True)
    weights = {}
    for step in STEPS:
        final = folder / "checkpoints" / checkpoint_name(step)
        partial = partial_of(final)
        content = tiny_content(step)
        save(content, partial)
        complete(partial, final)
        weights[step] = {name.removeprefix("net."): tensor for name, tensor in content["state_dict"].items()}
    return weights


# -- damaged -------------------------------------------------------------------------------------


def damage(run: Path, draw: random.Random) -> tuple[Path, str]:
    """Do something to the newest checkpoint of a run; which file, and what."""
    newest, older = (run / "checkpoints" / checkpoint_name(step) for step in (STEPS[-1], STEPS[0]))
    kind = draw.choice(["bytes"] * 8 + ["digest", "without a digest", "an older one's content", "missing", "empty"])
    inner = sorted(path for path in newest.rglob("*") if path.is_file()) if newest.is_dir() else [newest]
    victim = draw.choice(inner)
    match kind:
        case "bytes":
            changed, kind = mutate(victim.read_bytes(), draw)
            victim.write_bytes(changed)
        case "digest":
            victim = newest.with_name(newest.name + ".sha256")
            changed, kind = mutate(victim.read_bytes(), draw)
            victim.write_bytes(changed)
        case "without a digest":  # a copy of the file alone, damaged on the way
            newest.with_name(newest.name + ".sha256").unlink()
            changed, kind = mutate(victim.read_bytes(), draw)
            victim.write_bytes(changed)
            kind += ", no digest"
        case "an older one's content":
            shutil.copy(older / victim.relative_to(newest) if newest.is_dir() else older, victim)
        case "missing":
            victim.unlink()
        case _:
            victim.write_bytes(b"")
    return newest, f"{victim.relative_to(run)}: {kind}"


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the loading logs, instead of showing it."""
    said: list[str] = []
    logger, handler = logging.getLogger(decoder.__name__), logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


@contextmanager
def _mutated(folder: Path) -> Iterator[Judge]:
    weights = {}
    for kind, save in {"file": save_file, "sharded": save_sharded}.items():
        weights[kind] = _write_run(folder / kind, save)

    def judge(draw: random.Random) -> Verdict:
        kind = draw.choice(["file", "file", "sharded"])
        run = folder / "broken"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(folder / kind, run, symlinks=True)
        newest, done = damage(run, draw)
        # As a run's folder, where an earlier checkpoint must be found, or by itself, where it must be refused.
        source = draw.choice([run, newest])
        with _warnings() as warned:
            loaded = attempt(lambda: load_decoder(source))
        done = f"{kind}, {'run' if source == run else 'alone'}: {done}"
        if isinstance(loaded, LumosError):
            named = newest.name in str(loaded) and "\n" not in str(loaded) and source == newest
            return Verdict("named" if named else "unnamed", f"{done} -> {loaded}")
        step = int(loaded.file.name[5:13])
        if not all(torch.equal(own, weights[kind][step][name]) for name, own in loaded.net.named_parameters()):
            return Verdict("loaded wrong", done)
        if step != STEPS[-1] and newest.exists() and newest.name not in str(warned):
            return Verdict("unnamed", f"{done}: {newest.name} was passed over in silence")
        return Verdict("whole one loaded", done)

    yield judge


MUTATED = Campaign(
    name="checkpoints",
    title="mutated checkpoints",
    instances=500,
    held=("named", "whole one loaded"),
    broken=("crash", "loaded wrong", "unnamed"),
    open=_mutated,
)

# -- hostile -------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of `function`, which whoever unpickles it makes."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def _payload(marker: Path, draw: random.Random) -> tuple[Any, str]:
    """An object whose unpickling leaves `marker` behind."""
    code = f"__import__('os').mkdir({str(marker)!r})"
    calls: dict[str, Any] = {
        "os.mkdir": Call(os.mkdir, str(marker)),
        "os.system": Call(os.system, f"mkdir {marker}"),
        "builtins.eval": Call(eval, code),
        "builtins.exec": Call(exec, code),
        "map": Call(list, Call(map, os.mkdir, [str(marker)])),
        "nested pickle": Call(pickle.loads, pickle.dumps(Call(os.mkdir, str(marker)))),
        "torch.load": Call(torch.storage._load_from_bytes, pickle.dumps(Call(os.mkdir, str(marker)))),
    }
    name = draw.choice(sorted(calls))
    wraps: list[Callable[[Any], Any]] = [lambda x: x, lambda x: [x], lambda x: {"a": (1, x)}]
    wrapped = draw.choice(wraps)(calls[name])
    return wrapped, name


def _as_file(payload: Any, folder: Path, draw: random.Random) -> Path:
    content = tiny_content(1)
    place = draw.choice(["lumos", "state_dict", "callbacks", "legacy", "bare"])
    file = folder / "hostile.ckpt"
    match place:
        case "legacy":
            torch.save(content | {"callbacks": payload}, file, _use_new_zipfile_serialization=False)
        case "bare":
            file.write_bytes(pickle.dumps(payload, protocol=draw.randrange(6)))
        case "callbacks":
            torch.save(content | {"callbacks": payload}, file, pickle_protocol=draw.choice([2, 4]))
        case _:
            content[place]["more"] = payload
            torch.save(content, file)
    return file


def _as_sharded(payload: Any, folder: Path, draw: random.Random) -> Path:
    path = folder / "hostile.ckpt"
    content = tiny_content(1)
    place = draw.choice([".metadata", "meta.pt", "a plain value"])
    if place == "a plain value":
        content["state_dict"]["more"] = payload
    save_sharded(content, path)
    if place == ".metadata":
        metadata = pickle.loads((path / place).read_bytes())
        metadata.planner_data = payload
        (path / place).write_bytes(pickle.dumps(metadata))
    elif place == "meta.pt":
        torch.save({"lumos": payload}, path / place)
    return path


def _as_weights(payload: Any, folder: Path, draw: random.Random) -> Path:
    """A zip of torch's kind whose pickle is the payload's alone, under the records of a real one."""
    good, file = folder / "good.ckpt", folder / "hostile.ckpt"
    torch.save(tiny_content(1), good)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            pickled = pickle.dumps(payload, protocol=draw.choice([2, 4]))
            target.writestr(name, pickled if name.endswith("data.pkl") else source.read(name))
    return file


@contextmanager
def _hostile(folder: Path) -> Iterator[Judge]:
    def judge(draw: random.Random) -> Verdict:
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        marker = here / "executed"
        payload, name = _payload(marker, draw)
        kind = draw.choice(["file", "sharded", "zip", "release tokens"])
        file = here / "hostile.pkl"
        work: Callable[[], object]
        if kind == "release tokens":
            token = {"token": [1, 2], "label": [1, 2], "id": payload}
            file.write_bytes(pickle.dumps(draw.choice([payload, token]), protocol=draw.randrange(6)))
            work = lambda: import_release_tokens(file, here / "out")  # noqa: E731
        else:
            file = {"file": _as_file, "sharded": _as_sharded, "zip": _as_weights}[kind](payload, here, draw)
            work = lambda: load_decoder(file)  # noqa: E731
        result = attempt(work)
        done = f"{kind}, {name} -> {result}"
        if marker.exists():
            return Verdict("executed", done)
        if not isinstance(result, LumosError):
            return Verdict("accepted", done)
        return Verdict("refused" if str(file) in str(result) and "\n" not in str(result) else "unnamed", done)

    yield judge


HOSTILE = Campaign(
    name="hostile-pickles",
    title="hostile checkpoints and pickles",
    instances=40,
    held=("refused",),
    broken=("executed", "accepted", "crash", "unnamed"),
    open=_hostile,
)
