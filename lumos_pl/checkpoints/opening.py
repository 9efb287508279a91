"""Opening a checkpoint of ours: all of it is checked, for whatever purpose, before anybody gets a part of it.

So whoever opens one comes to the same verdict: `lumos resume`, a Trainer's fit(ckpt_path=..), load_from_checkpoint,
init_from, export-hf, sample and eval.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lumos_pl.checkpoints.contents import OF_ITS_OWN, Training, Weights, check_fields
from lumos_pl.checkpoints.description import (
    adapter_tensors,
    check_tensors,
    decoder_tensors,
    made_with,
    read_adapter_identity,
    read_identity,
    said_by,
    tokenizer_tensors,
)
from lumos_pl.checkpoints.plain_content import check_plain
from lumos_pl.checkpoints.reading import PLAIN_VALUES, read_checkpoint
from lumos_pl.checkpoints.run_settings import RunSettings
from lumos_pl.checkpoints.sharded import is_sharded, sharded_content
from lumos_pl.checkpoints.training_state import check_training
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import LayoutConfig
from lumos_pl.models.config import ModelConfig, TransformerConfig
from lumos_pl.settings.differences import differences
from lumos_pl.settings.plain import from_plain, is_plain

_CONTRADICTS = "the checkpoint contradicts itself on what it was made with"
PREFIXES = {"model": "net.", "ema": "ema."}  # of the parameters in a training's checkpoint
CONFIG_CHECKS: list[Callable[[Mapping[str, Any], Path], None]] = []
"""Raise ConfigError for a run's configuration that cannot be; entered by those who know its sections."""


@dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    """
    Args:
        parts: the fields by name; `Training`, if a training can go on from it.
        layout, model: of the decoder that it is of; None: of something else.
        rest: its tensors beside the decoder's and their averages.
        sharded: whether the tensors are only described, and lie in a folder's files.
    """

    parts: Weights
    layout: LayoutConfig | None
    model: TransformerConfig | None
    rest: Mapping[str, Tensor]
    sharded: bool


def open_checkpoint(file: Path) -> OpenedCheckpoint:
    """Read and check a checkpoint, file or folder, whose digest (if it has one) was compared.

    Raises:
        CheckpointError: with the field, what was got and what was expected.
    """
    sharded = is_sharded(file)
    content = read_checkpoint(file)
    if sharded:
        apart = sharded_content(file)
        for name in content.keys() & apart.keys():
            raise CheckpointError("a part that is there twice", file=file / PLAIN_VALUES, where=name)
        content |= apart
    return check_content(content, file, sharded=sharded)


def check_content(content: Mapping[str, Any], file: Path, *, sharded: bool = False) -> OpenedCheckpoint:
    """As `open_checkpoint`, of what was read already: from a file, unless it is sharded."""
    if not sharded:
        check_plain(dict(content), file=file)
    parts = check_fields(content, file)
    identity = parts.lumos.identity
    layout = model = None
    if identity.layout is not None or identity.model is not None:
        layout, model = read_identity(identity, file)
        RunSettings.read(parts.lumos.config, file)
        trained, rest = _check_decoder(parts, model, file)
    elif identity.tokenizer is not None:
        trained, rest = _check_tokenizer(parts, identity.tokenizer, file), {}
    else:  # of a module of somebody's own
        trained, rest = {}, parts.state_dict
    _check_agreement(parts, layout, model, file)
    if isinstance(parts, Training):
        optimizer = made_with(parts.lumos).get("optimizer", {}).get("kind")
        saved = [len(group.params) for state in parts.optimizer_states for group in state.param_groups]
        is_a_runs = _is_a_runs(parts.lumos.config)
        is_known = bool(trained) and (is_a_runs or (not rest and sum(saved) == len(trained)))
        kind = optimizer if is_known else None
        check_training(parts, file, trained=trained, kind=kind, is_a_runs=is_a_runs)
    check_config(parts.lumos.config, file)  # last: it takes the longest
    return OpenedCheckpoint(parts=parts, layout=layout, model=model, rest=rest, sharded=sharded)


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by what follows it."""
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def check_config(config: Mapping[str, Any], file: Path) -> None:
    """Raise CheckpointError for a configuration in a checkpoint or export that no run can have had."""
    if not is_plain(config):
        raise CheckpointError("not plain values", file=file, where="lumos.config", expected="dicts, lists and scalars")
    with said_by(file):
        for check in CONFIG_CHECKS:
            check(config, file)


def _check_decoder(parts: Weights, model: TransformerConfig, file: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What was trained of a decoder's module, and its other tensors."""
    own, average = (named(prefix, parts.state_dict) for prefix in PREFIXES.values())
    trained = decoder_tensors(model)
    if parts.lumos.identity.adapter is not None:
        trained = adapter_tensors(read_adapter_identity(parts.lumos.identity, file)[0], model, file)
    check_tensors(trained, own, file)
    optimizer = made_with(parts.lumos).get("optimizer", {})
    if average or (isinstance(parts, Training) and optimizer.get("ema")):
        check_tensors(trained, average, file)
    rest = {n: t for n, t in parts.state_dict.items() if not n.startswith(tuple(PREFIXES.values()))}
    if _is_a_runs(parts.lumos.config):  # whose module has nothing else, so that no resume would take it
        unexpected = [*rest, *(PREFIXES["ema"] + name for name in average if not optimizer.get("ema"))]
        if unexpected:
            raise CheckpointError("unexpected tensor", file=file, where=f"state_dict.{min(unexpected)[:100]}")
    return {PREFIXES["model"] + name: tensor for name, tensor in trained.items()}, rest


def _check_tokenizer(parts: Weights, shape: Mapping[str, Any], file: Path) -> dict[str, Tensor]:
    """What was trained of a visual tokenizer's module."""
    expected, trained = tokenizer_tensors(shape, file)
    prefix = PREFIXES["model"]
    check_tensors({prefix + name: tensor for name, tensor in expected.items()}, parts.state_dict, file)
    return {prefix + name: tensor for name, tensor in expected.items() if name in trained}


def _check_agreement(parts: Weights, layout: LayoutConfig | None, model: TransformerConfig | None, file: Path) -> None:
    """Refuse a checkpoint that says one thing as its training's identity and another elsewhere."""
    config, identity = parts.lumos.config, made_with(parts.lumos)
    said = {name: config.get(name) for name in ("seed", "layout")}
    match config.get("optimizer"):
        case {"kind": kind, "ema_decay": float() | int() as decay}:
            said["optimizer"] = {"kind": kind, "ema": decay > 0}
    if isinstance(section := config.get("adapter"), dict):
        said["adapter"] = {name: value for name, value in section.items() if name != "dropout"}
    for name, value in said.items():
        for where, one, other in differences(identity.get(name), value, name):
            if one in (None, OF_ITS_OWN) or other is None or (isinstance(one, tuple) and list(one) == other):
                continue
            raise CheckpointError(_CONTRADICTS, file=file, where=f"lumos.config.{where}", got=other, expected=one)
    if layout is not None and model is not None and isinstance(section := config.get("model"), dict):
        with said_by(file):
            built = from_plain(ModelConfig, section, "model").build(layout.build())
        for where, one, other in differences(asdict(model), asdict(built), "model"):
            raise CheckpointError(_CONTRADICTS, file=file, where=f"lumos.config.{where}", got=other, expected=one)
    if not _is_a_runs(config):  # in a Trainer of one's own the data module may have a seed of its own
        return
    for name, state in (parts.model_extra or {}).items():  # that of a `PositionedDataModule`
        if isinstance(state, dict) and state.keys() == {"data", "seed", "batches_per_step"}:
            for where, one, other in differences({key: identity.get(key) for key in state}, state, name):
                raise CheckpointError(_CONTRADICTS, file=file, where=where, got=_short(other), expected=_short(one))


def _short(value: object) -> str:
    return ascii(reprlib.repr(value))[1:-1]


def _is_a_runs(config: Mapping[str, Any]) -> bool:
    """Whether `lumos train` wrote it, and not somebody's own Trainer, who may have frozen or added parameters."""
    return "run" in config and "checkpoint" in config
