"""The arguments with which a module is made again of what a checkpoint says of it, and what of them may be changed."""

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

# The decoder's own numbers, of a checkpoint that names no size, as a released one.
SHAPE = (
    *("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim"),
    *("qk_norm_rows", "norm_eps", "rope", "rope_theta", "max_length"),
)


def made_again(kind: type[Module], stored: StoredDecoder, changes: Mapping[str, Any], *, named: str) -> Module:
    """A module of the settings that a checkpoint says, as far as its class takes them, and of changes of them.

    Args:
        changes: arguments; a section as a mapping changes the fields that it names, as settings all of them.
        named: what the checkpoint was asked for as: the base of an adapter that begins with it.
    Raises:
        ConfigError: the class takes other arguments, or a change cannot be.
        CheckpointError: what the checkpoint says cannot be.
    """
    said = _said(kind, stored)
    settings = {**said, **{name: _changed(said.get(name), value) for name, value in changes.items()}}
    if stored.adapter is None and "init_from" in said and "init_from" not in changes:
        begins = from_plain(AdapterConfig, settings.get("adapter"), "adapter").is_on
        settings["init_from"] = named if begins else None  # else the weights are in the file
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
    """What a checkpoint says of the arguments of a class; of a release, its shape."""
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
    """The names of what a class takes: of its own `__init__`, and of its bases' as far as that hands on the rest."""
    names: set[str] = set()
    for base in kind.__mro__:
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            names |= {one.name for one in parameters if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
            if all(one.kind is not one.VAR_KEYWORD for one in parameters):
                break
    return names - {"self"}


def check_fits(stored: StoredDecoder, shape: TransformerConfig, adapter: AdapterConfig) -> None:
    """Raise CheckpointError at the first thing in which a module is not what a checkpoint's weights are of."""
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
    """Raise ConfigError unless tensors can be moved there."""
    try:
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, TypeError) as error:
        got = f"{place}: {str(error).strip().splitlines()[0]}"
        raise ConfigError("no such device", where="map_location", got=got) from None
