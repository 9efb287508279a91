"""Rebuild a module from what a checkpoint says of it, with the changes that are allowed."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch
from lightning import LightningModule

from lumos_pl.adapters.config import AdapterConfig, targeted
from lumos_pl.checkpoints.decoder import MERGE, StoredDecoder
from lumos_pl.checkpoints.description import adapter_identity, decoder_tensors, said_by, shortly
from lumos_pl.checkpoints.earlier_keys import in_current_keys
from lumos_pl.errors import CheckpointError, ConfigError, did_you_mean
from lumos_pl.models.config import TransformerConfig
from lumos_pl.settings.differences import differences
from lumos_pl.settings.plain import from_plain, to_plain
from lumos_pl.tokenizers.load import is_data

Module = TypeVar("Module", bound=LightningModule)

# The decoder's own dimensions, for a checkpoint that names no model size, such as a released one.
SHAPE = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim"),
    *("qk_norm_rows", "norm_eps", "rope", "rope_theta", "max_length"),
)


def made_again(kind: type[Module], stored: StoredDecoder, changes: Mapping[str, Any], *, named: str) -> Module:
    """A module built from the settings in a checkpoint, as far as its class takes them, with changes applied.

    Args:
        changes: arguments. A section given as a mapping changes the fields that it names, given as settings it replaces
            all of them.
        named: how the caller named the checkpoint; becomes the base of a new adapter.
    Raises:
        ConfigError: the class takes other arguments, or a change is invalid.
        CheckpointError: a setting in the checkpoint is invalid.
    """
    said = _said(kind, stored)
    settings = {**said, **{name: _changed(said.get(name), value) for name, value in changes.items()}}
    if stored.adapter is None and "init_from" in said and "init_from" not in changes:
        begins = from_plain(AdapterConfig, settings.get("adapter"), "adapter").is_on
        settings["init_from"] = named if begins else None  # otherwise the weights are in the file
    try:
        inspect.signature(kind).bind(**settings)
    except TypeError as error:
        takes = _arguments(kind)
        near = next((did_you_mean(name, takes) for name in changes if name not in takes), None)
        raise ConfigError(
            "other arguments than the class takes",
            where=f"{kind.__name__}.load_from_checkpoint",
            got=str(error).removeprefix("got "),
            fix=near or "save_hyperparameters of its own, or give them here",
        ) from None
    try:
        return kind(**settings)
    except ConfigError as error:
        if (error.where or "").partition(".")[0] in changes:
            raise
        with said_by(stored.file):
            raise


def _said(kind: type[LightningModule], stored: StoredDecoder) -> dict[str, Any]:
    """What a checkpoint says of a class's arguments; a released checkpoint says only its shape."""
    said = in_current_keys(stored.config)
    if not is_data(said.get("visual_tokenizer")):  # Cosmos's is code, which no checkpoint may name
        said.pop("visual_tokenizer", None)
    shape = {name: getattr(stored.model, name) for name in SHAPE}
    settings = {"model": shape, "init_from": None, **said, "layout": to_plain(stored.layout)}
    taken = _arguments(kind)
    return {name: value for name, value in settings.items() if name in taken}


def _changed(said: object, change: Any) -> Any:
    return {**said, **change} if isinstance(said, Mapping) and isinstance(change, Mapping) else change


def _arguments(kind: type[LightningModule]) -> set[str]:
    """Names of the arguments that a class takes: of its `__init__`, and of its bases' as far as **kwargs go on."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    return names - {"self"}


def check_fits(stored: StoredDecoder, shape: TransformerConfig, adapter: AdapterConfig) -> None:
    """Raise CheckpointError at the first setting in which a module differs from what the weights were made for."""
    for where, saved, own in differences(asdict(stored.model), asdict(shape), "model"):
        what = "the weights are of another decoder"
        raise CheckpointError(what, file=stored.file, where=where, got=saved, expected=own)
    if stored.adapter is None:
        return
    if adapter.is_on:
        adapter = replace(adapter, targets=targeted(adapter, decoder_tensors(stored.model)))
    made, asked = (adapter_identity(replace(one, frozen="as_is"), "") for one in (stored.adapter.config, adapter))
    for where, saved, own in differences(made, asked):
        what = "the weights are of another adapter"
        got, expected = shortly(saved), shortly(own)
        raise CheckpointError(what, file=stored.file, where=where, got=got, expected=expected, fix=MERGE)


def check_place(place: Any) -> None:
    """Raise ConfigError unless tensors can be moved to this device."""
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        got = f"{place}: {str(error).strip().splitlines()[0]}"
        raise ConfigError("no such device", where="map_location", got=got) from None
