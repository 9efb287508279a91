"""What a checkpoint says of its decoder: untrusted values, checked before anything is built from them.

A run saves how to rebuild its decoder:

    {"lumos": {"format": 1, "config": {...}, "identity": {"layout": {...}, "model": {...}, "data": {...}, ...}}, ...}

What else a checkpoint holds, and that all of this is there, says contents.py.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_origin, get_type_hints

import torch
from torch import Tensor

from lumos_pl.adapters.config import AdapterConfig, adapter_shapes
from lumos_pl.checkpoints.contents import OF_ITS_OWN, Identity, Lumos
from lumos_pl.checkpoints.training_state import FLOATS, extremes
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import LayoutConfig
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.settings.differences import differences
from lumos_pl.settings.kinds import REGISTRY
from lumos_pl.settings.plain import fits, from_plain, read_value, type_words
from lumos_pl.tokenizers.tokenizer_file import build_tokenizer
from lumos_pl.tokenizers.trained import TokenizerConfig

MOST = 1 << 20  # of any size that a checkpoint gives
MOST_LAYERS = 1024  # every one of them is built (without memory) to compare the weights with it
_OF_ADAPTER = ("kind", "rank", "alpha")  # beside its targets
VISUAL_TOKENIZER = "visual_tokenizer"  # under "data": its fingerprint; older checkpoints do not say it

Described = TypeVar("Described", LayoutConfig, TransformerConfig)


def identity(layout: LayoutConfig, model: TransformerConfig) -> dict[str, dict[str, Any]]:
    """What rebuilds a decoder, as plain values; `read_identity` reads it."""
    return {"layout": asdict(layout), "model": asdict(model) | {"strides": list(model.strides)}}


def read_identity(saved: Identity, file: Path | None) -> tuple[LayoutConfig, TransformerConfig]:
    """The vocabulary and the shape of a decoder.

    Raises:
        CheckpointError: it is no decoder's, or says what cannot be.
    """
    if saved.layout is None or saved.model is None:
        what, where = "not a decoder's checkpoint", "lumos.identity"
        raise CheckpointError(what, file=file, where=where, expected="layout and model")
    layout = described(LayoutConfig, saved.layout, file=file)
    model = described(TransformerConfig, saved.model, file=file)
    ids = layout.build()
    if model != replace(model, vocab_size=ids.vocab_size, visual_offset=ids.visual_offset, strides=ids.strides):
        raise CheckpointError("the decoder's vocabulary is not the layout's", file=file, where="lumos.identity")
    return layout, model


def adapter_identity(config: AdapterConfig, base: str) -> dict[str, Any]:
    """What rebuilds an adapter, and the digest of the weights it belongs to; {} of none; `read_adapter_identity`."""
    if not config.is_on:
        return {}
    said = {name: getattr(config, name) for name in _OF_ADAPTER}
    said |= {name: list(ids) for name in ("words", "codes") if (ids := getattr(config, name))}
    said |= {} if config.frozen == "as_is" else {"frozen": config.frozen}
    return {"adapter": {**said, "targets": list(config.targets), "base": base}}


def read_adapter_identity(saved: Identity, file: Path | None) -> tuple[AdapterConfig, str]:
    """An adapter's settings, and the digest of the weights that it belongs to.

    Raises:
        CheckpointError: it says what cannot be.
    """
    values = dict(saved.adapter or {})
    base = values.pop("base", None)
    if not isinstance(base, str) or not re.fullmatch("[0-9a-f]{64}", base):
        got, where = ascii(base)[:100], "lumos.identity.adapter.base"
        raise CheckpointError("not a digest", file=file, where=where, got=got, expected="64 hexadecimal digits")
    with said_by(file):
        config = from_plain(AdapterConfig, values, "adapter")
    if not config.is_on:
        raise CheckpointError("no adapter", file=file, where="lumos.identity.adapter.kind", expected="lora or dora")
    return config, base


@contextmanager
def said_by(file: Path | None) -> Iterator[None]:
    """Settings that a checkpoint says are its own fault where they cannot be."""
    try:
        yield
    except ConfigError as error:
        what = f"unusable settings in the checkpoint: {error.what}"
        raise CheckpointError(**error.parts | {"what": what, "file": file}) from None


def made_with(lumos: Lumos) -> dict[str, Any]:
    """The identity of the training that a checkpoint is of.

    Checkpoints of before the optimizer was part of it have its settings all the same, in their configuration.
    """
    identity = lumos.identity.model_dump(exclude_unset=True)
    match lumos.config.get("optimizer"):
        case {"kind": str(kind), "ema_decay": float() | int() as decay} if lumos.identity.optimizer is None:
            return identity | {"optimizer": {"kind": kind, "ema": decay > 0}}
    return identity


def refuse_changes(
    saved: dict[str, Any],
    now: dict[str, Any],
    checkpoint: Path | None = None,
    *,
    fix: str = "restore it, or set the module's allow_changes to go on all the same",
) -> None:
    """Raise CheckpointError at the first thing in which a run's identity is not what it was.

    What is gone comes first, then what has come: a source that a mixture lacks moves the steps of all others.
    """
    found = sorted(differences(saved, now), key=lambda one: (one.asked is not None, one.made is not None))
    for where, old, new in found:
        if where == "optimizer.kind" and old == OF_ITS_OWN:
            continue  # its state says whether it fits
        if where == f"data.{VISUAL_TOKENIZER}" and VISUAL_TOKENIZER not in saved["data"]:
            continue  # an older checkpoint; the manifests' digests tell it too
        if where.startswith("data.sources."):
            fix = f"a source keeps its name, and its weight up to this step; {fix}"
        raise CheckpointError(
            "the run was made with something else",
            file=checkpoint,
            where=where,
            got=shortly(new),
            expected=shortly(old),
            fix=fix,
        )


def shortly(value: object) -> object:
    """Of a section that one of two has and the other has not: that it is there."""
    return "nothing" if value is None else "settings" if isinstance(value, dict) else value


def described_text(value: object, file: Path | None, where: str) -> str | None:
    """An untrusted value that may be missing, and else is a text."""
    with said_by(file):
        return cast(str | None, read_value(value, str | None, where))


def described(
    kind: type[Described], values: Mapping[str, Any], *, file: Path | None, names: Mapping[str, str] | None = None
) -> Described:
    """Build `kind` from untrusted values: exactly its fields, each of its type and of a sane size.

    Args:
        names: what the file calls a field, for the message.
    """
    hints = get_type_hints(kind)
    hints |= {i.name: cast(Any, Literal)[tuple(i.metadata[REGISTRY])] for i in fields(kind) if REGISTRY in i.metadata}
    if unknown := [str(name) for name in values if name not in hints]:
        raise CheckpointError("unknown field", file=file, where=unknown[0][:100])
    for name, hint in hints.items():
        most = MOST_LAYERS if name == "n_layers" else sys.float_info.max if hint is float else MOST
        value = values.get(name)
        if not (fits(value, hint) and _is_sane(value, most)) and not _is_own(value, hint):
            raise CheckpointError(
                "unusable description of the decoder",
                file=file,
                where=(names or {}).get(name, name),
                got=repr(value)[:100] if name in values else "nothing",
                expected=f"a whole number from 1 to {most}" if hint is int else type_words(hint),
            )
    lists = {name: tuple(value) for name, value in values.items() if get_origin(hints[name]) is tuple}
    with said_by(file):
        made = kind(**{**values, **lists})
        if isinstance(made, LayoutConfig):
            made.build()
        return made


def _is_own(value: object, hint: Any) -> bool:
    """Whether a value is a dotted word where words are; the settings themselves know whether anybody imported it."""
    return get_origin(hint) is Literal and isinstance(value, str) and "." in value


def _is_sane(value: Any, most: float) -> bool:
    """Whether a number, or each of a list, is above 0 and no larger than `most`."""
    parts = value if isinstance(value, list) else [value]
    return all(0 < part <= most for part in parts if not isinstance(part, str))


def decoder_tensors(model: TransformerConfig) -> dict[str, Tensor]:
    """The parameters of a decoder by name, without memory."""
    with torch.device("meta"):
        return dict(LumosTransformer(model).named_parameters())


def adapter_tensors(config: AdapterConfig, model: TransformerConfig, file: Path | None) -> dict[str, Tensor]:
    """The parameters of an adapter in a decoder of this shape by name, without memory."""
    decoder = {name: tuple(tensor.shape) for name, tensor in decoder_tensors(model).items()}
    with said_by(file):
        shapes = adapter_shapes(config, decoder, model.visual_offset)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def tokenizer_tensors(saved: Mapping[str, Any], file: Path | None) -> tuple[dict[str, Tensor], set[str]]:
    """What a visual tokenizer's module holds by name, without memory, and which of it is trained."""
    with said_by(file), torch.device("meta"):
        net = build_tokenizer(from_plain(TokenizerConfig, saved, "tokenizer"))
    return dict(net.state_dict()), {name for name, _ in net.named_parameters()}


def check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], file: Path | None) -> None:
    """Refuse tensors that are not those expected: each there, of its shape, of finite floating-point numbers.

    No training saves numbers that are not finite, so they are damage; those of a sharded checkpoint, which come on the
    meta device, are looked at in its files.
    """
    if unexpected := tensors.keys() - expected.keys():
        raise CheckpointError("unexpected tensor", file=file, where=min(unexpected)[:100])
    for name, parameter in expected.items():
        if name not in tensors:
            raise CheckpointError("tensor missing", file=file, where=name)
        tensor = tensors[name]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                "tensor of another shape", file=file, where=name, got=list(tensor.shape), expected=list(parameter.shape)
            )
        if tensor.dtype not in FLOATS or tensor.layout is not torch.strided or not tensor.is_contiguous():
            raise CheckpointError(
                "not plain floating-point weights", file=file, where=name, got=f"{tensor.dtype}, {tensor.layout}"
            )
        if not tensor.is_meta and not all(map(math.isfinite, extremes(tensor))):
            raise CheckpointError("weights that are not finite", file=file, where=name, got="NaN or infinity")
