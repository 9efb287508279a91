"""Reading a decoder out of any checkpoint: a run's, whole or sharded, or a folder in the released format.

RUN_DIR/checkpoints/   a run: its newest complete checkpoint
FILE.ckpt              one checkpoint of ours, imported ones too
DIR.ckpt/              the same, written by several ranks
DIR/config.json        the released format
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lumos_pl.adapters.config import targeted
from lumos_pl.adapters.stored import StoredAdapter, is_adapter_folder, read_adapter, weights_sha256
from lumos_pl.adapters.training import decoder_parameters
from lumos_pl.checkpoints import huggingface
from lumos_pl.checkpoints.complete import newest_complete
from lumos_pl.checkpoints.contents import WeightsOfTraining
from lumos_pl.checkpoints.description import (
    VISUAL_TOKENIZER,
    adapter_tensors,
    check_tensors,
    decoder_tensors,
    described_text,
    read_adapter_identity,
)
from lumos_pl.checkpoints.digests import digest_of, digest_of_files, files_of, has_digest
from lumos_pl.checkpoints.huggingface import (
    CONFIG,
    is_released,
    map_weights,
    read_layout,
    read_run_config,
    read_shape,
    weight_files,
)
from lumos_pl.checkpoints.named import LATEST, resolve_named, with_found_places
from lumos_pl.checkpoints.opening import PREFIXES, OpenedCheckpoint, check_config, named, open_checkpoint
from lumos_pl.checkpoints.sharded import is_sharded, load_sharded_tensors
from lumos_pl.checkpoints.verdicts import check_whole
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.layout import LayoutConfig, TokenLayout
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import LumosTransformer, copy_weight
from lumos_pl.tokenizers.visual import VisualTokenizer, check_visual_tokenizer, makes_codes_of

Weights = Literal["model", "ema"]
MERGE = "write the two as one checkpoint first: `lumos merge`"
GIVE_A_MODEL = "give a run's folder, a .ckpt, or a folder with config.json and safetensors"
GIVE_AN_ADAPTER = "give the folder of an adapter, or a run that trained one"


@dataclass(frozen=True, kw_only=True)
class SavedDecoder:
    """A decoder ready to use.

    Args:
        net: on the CPU, in eval mode, without gradients; every weight in the dtype it was saved in.
            The pages of a file are read when they are first used, and shared between processes.
        layout: its vocabulary.
        config: the configuration of the run that it comes from; {} for one of the release.
        visual_tokenizer: fingerprint of that whose codes it learned; None: it does not say.
        step: optimizer steps of its training; 0 for one of the release.
        file: the checkpoint that was read.
        digest: sha256 that identifies the checkpoint: the file's, or that of a folder's list of digests; with adapters
            that of all together.
    """

    net: LumosTransformer
    layout: TokenLayout
    config: dict[str, Any]
    visual_tokenizer: str | None
    step: int
    file: Path
    digest: str

    def check_visual_tokenizer(self, tokenizer: VisualTokenizer) -> None:
        """Raise ConfigError unless the decoder's codes are this tokenizer's, as far as the checkpoint tells."""
        check_visual_tokenizer(tokenizer, self.layout, file=self.file)
        got, expected = tokenizer.fingerprint, self.visual_tokenizer
        if expected is None or makes_codes_of(tokenizer, expected):
            return
        raise ConfigError(
            "not the visual tokenizer of this model",
            file=self.file,
            where="visual_tokenizer",
            got=got,
            expected=expected,
            fix="give the one that made its training data",
        )


@dataclass(frozen=True, kw_only=True)
class StoredDecoder:
    """A checkpoint that was checked and not yet read.

    Args:
        tensors: its weights by the names of the decoder's parameters: views of the file, or (`sharded`)
            only their shapes, on the meta device.
        prefix: of these names in the checkpoint.
        has_average: whether it holds averaged weights too.
        rest: tensors of its module beside the decoder's; of a sharded checkpoint none are read.
        adapter: what it is of, if that is an adapter: then `tensors` are its base's, and lie in `weights_in`.
    """

    layout: LayoutConfig
    model: TransformerConfig
    config: dict[str, Any]
    visual_tokenizer: str | None
    step: int
    file: Path
    tensors: Mapping[str, Tensor]
    prefix: str
    sharded: bool
    has_average: bool
    rest: Mapping[str, Tensor]
    adapter: StoredAdapter | None = None
    weights_in: Path | None = None

    def digest(self) -> str:
        """The sha256 that identifies the checkpoint; reads all of it if no digest stands beside it."""
        if is_released(self.file):
            return digest_of_files([self.file / CONFIG, *weight_files(self.file)])
        return digest_of(self.file)

    def build(self) -> LumosTransformer:
        """The decoder, on the CPU; its weights are views of the file, or of a sharded checkpoint a copy.

        Those that an adapter changes are its sum with them.
        """
        net = self.build_base()
        if self.adapter is not None:
            self.adapter.merge_into(net)
        return net

    def build_base(self) -> LumosTransformer:
        """The same without its adapter."""
        with torch.device("meta"):
            net = LumosTransformer(self.model)
        if self.sharded:
            self._copy_base_into(net.to_empty(device="cpu"))
        else:
            net.load_state_dict(self.tensors, assign=True)
        return net

    def weights_sha256(self) -> str:
        """What an adapter knows its base by; reads all of the weights."""
        return weights_sha256(self.build_base().named_parameters())

    @torch.no_grad()
    def copy_into(self, net: nn.Module) -> None:
        """Fill a decoder of this shape, whole or sharded, one weight at a time and in its own dtypes.

        Args:
            net: with an adapter in it, if the checkpoint is of one; or an average of that adapter.
        """
        if isinstance(net, LumosTransformer):
            self._copy_base_into(net)
        if self.adapter is not None:
            self.adapter.copy_into(net)

    def _copy_base_into(self, net: LumosTransformer) -> None:
        if self.sharded:
            load_sharded_tensors(decoder_parameters(net), self.weights_in or self.file, self.prefix)
            return
        for name, parameter in decoder_parameters(net):
            copy_weight(parameter, self.tensors[name])


def load_decoder(
    source: Path, *, weights: Weights = "model", adapters: Sequence[tuple[Path, float]] = ()
) -> SavedDecoder:
    """Build the decoder that a checkpoint holds; `ema` takes the averaged weights.

    Args:
        adapters: added to it, each with its weight: folders in PEFT's layout, or the runs or checkpoints of adapters.
    Raises:
        CheckpointError: nothing there, damaged, hostile, not a decoder's, or without averaged weights; or an adapter of
            another base.
        ConfigError: an adapter that the checkpoint itself is of.
    """
    stored = open_decoder(source, weights=weights)
    net, digest = with_adapters(stored, adapters, weights=weights)
    return SavedDecoder(
        net=net.eval().requires_grad_(False),
        layout=stored.layout.build(),
        config=stored.config,
        visual_tokenizer=stored.visual_tokenizer,
        step=stored.step,
        file=stored.file,
        digest=digest,
    )


def with_adapters(
    stored: StoredDecoder, adapters: Sequence[tuple[Path, float]], *, weights: Weights
) -> tuple[LumosTransformer, str]:
    """The decoder of a checkpoint with adapters added to it, see `load_decoder`, and the digest of all together."""
    net, digest = stored.build_base(), stored.digest()
    of_base = dict(net.named_parameters())
    if stored.adapter is not None:
        stored.adapter.merge_into(net)
    if adapters:
        named, base = stored.weights_in or stored.file, stored.weights_sha256()
        for path, weight in adapters:
            adapter = open_adapter(path, stored.model, weights=weights, base=(base, named))
            _check_is_not_in(stored, adapter)
            adapter.merge_into(net, weight, of_base=of_base)
            of_file = digest_of(adapter.file) if adapter.file.is_file() else digest_of_files(files_of(adapter.file))
            digest = hashlib.sha256(f"{digest} {of_file} {weight}".encode()).hexdigest()
    return net, digest


def _check_is_not_in(stored: StoredDecoder, adapter: StoredAdapter) -> None:
    """Raise ConfigError for the adapter that a checkpoint is of, which would be added twice."""
    if stored.adapter is not None and stored.adapter.digest() == adapter.digest():
        got = f"{stored.file}, which has it already"
        fix = "leave it out; for more or less of it give its model, and it with a weight"
        raise ConfigError("an adapter twice", file=adapter.file, where="adapters", got=got, fix=fix)


def open_adapter(
    source: Path, model: TransformerConfig, *, weights: Weights, base: tuple[str, object]
) -> StoredAdapter:
    """Find an adapter: a folder in PEFT's layout, or a run or checkpoint of one.

    Args:
        base: the digest of the decoder's weights that it must belong to, and where they are from, for messages.
    Raises:
        CheckpointError: nothing there, damaged, hostile, no adapter, or of another decoder.
    """
    if is_adapter_folder(source):
        read = read_adapter(source.resolve(), model, base)
        read.check_base(*base)
        return read
    file = _find(source, fix=GIVE_AN_ADAPTER)
    opened = None if is_released(file) else open_checkpoint(file)
    adapter = None if opened is None else _adapter_of(opened, file, weights)
    if adapter is None:
        raise CheckpointError("no adapter", file=file, fix=GIVE_AN_ADAPTER)
    adapter.check_base(*base)
    check_tensors(adapter_tensors(adapter.config, model, file), adapter.tensors, file)
    return adapter


def _adapter_of(opened: OpenedCheckpoint, file: Path, weights: Weights) -> StoredAdapter | None:
    """The adapter that a checkpoint is of, if it is of one."""
    lumos = opened.parts.lumos
    if lumos.identity.adapter is None or opened.model is None:
        return None
    config, base = read_adapter_identity(lumos.identity, file)
    named = described_text(with_found_places(lumos.config, file).get("init_from"), file, "init_from")
    return StoredAdapter(
        config=replace(config, targets=targeted(config, decoder_tensors(opened.model))),
        tensors=_weights_of(opened, file, weights),
        base={"named": named, "weights": base},
        file=file,
        step=_step_of(opened),
        sharded=opened.sharded,
        prefix=PREFIXES[weights],
    )


def _step_of(opened: OpenedCheckpoint) -> int:
    return opened.parts.global_step if isinstance(opened.parts, WeightsOfTraining) else 0


def _weights_of(opened: OpenedCheckpoint, file: Path, weights: Weights) -> dict[str, Tensor]:
    tensors = named(PREFIXES[weights], opened.parts.state_dict)
    if not tensors:
        raise CheckpointError(
            "no averaged weights in this checkpoint",
            file=file,
            fix="take the model's, or train with optimizer.ema_decay above 0",
        )
    return tensors


def open_decoder(source: Path, *, weights: Weights = "model", base: str | Path | None = None) -> StoredDecoder:
    """Find the checkpoint; check its digest, its description, and the name, shape and kind of every weight.

    Args:
        base: where that of an adapter lies; None: where the checkpoint says.
    """
    file = _find(source)
    if is_released(file):
        return _open_released(file, weights)
    opened = open_checkpoint(file)
    lumos = opened.parts.lumos
    if opened.layout is None or opened.model is None:
        what, where = "not a decoder's checkpoint", "lumos.identity"
        raise CheckpointError(what, file=file, where=where, expected="layout and model")
    adapter = _adapter_of(opened, file, weights)
    if adapter is not None:
        return _with_base(opened, adapter, base)
    tensors = _weights_of(opened, file, weights)
    return StoredDecoder(
        layout=opened.layout,
        model=opened.model,
        config=with_found_places(lumos.config, file),
        visual_tokenizer=described_text(lumos.identity.data.get(VISUAL_TOKENIZER), file, VISUAL_TOKENIZER),
        step=_step_of(opened),
        file=file,
        tensors=tensors,
        prefix=PREFIXES[weights],
        sharded=opened.sharded,
        has_average=bool(named(PREFIXES["ema"], opened.parts.state_dict)),
        rest={} if opened.sharded else opened.rest,
    )


def _with_base(opened: OpenedCheckpoint, adapter: StoredAdapter, given: str | Path | None) -> StoredDecoder:
    """An adapter's checkpoint with the decoder that it belongs to, which it names and holds the digest of."""
    assert adapter.base is not None
    file, lumos, source = adapter.file, opened.parts.lumos, given or adapter.base["named"]
    try:
        if source is None:
            raise CheckpointError("nothing named")
        base = open_decoder(resolve_named(Path(source)))
    except LumosError as error:
        what = "the base of this adapter cannot be opened"
        fix = "give the base, and this as one of its adapters; to load_from_checkpoint, init_from"
        got = " ".join(filter(None, (error.what, str(error.file or ""), error.where)))
        raise CheckpointError(what, file=file, where=f"init_from {source}", got=got, fix=fix) from error
    if base.adapter is not None:
        raise CheckpointError("the base is an adapter itself", file=file, where=f"init_from {source}", fix=MERGE)
    if (base.model, base.layout) != (opened.model, opened.layout):
        raise CheckpointError("the base is of another shape", file=file, where=f"init_from {source}")
    adapter.check_base(base.weights_sha256(), base.file)
    return replace(
        base,
        config=with_found_places(lumos.config, file),
        step=adapter.step,
        file=file,
        weights_in=base.file,
        has_average=bool(named(PREFIXES["ema"], opened.parts.state_dict)),
        rest={} if opened.sharded else opened.rest,
        adapter=adapter,
    )


def _open_released(folder: Path, weights: Weights) -> StoredDecoder:
    if weights == "ema":
        raise CheckpointError("no averaged weights in the released format", file=folder, fix="take the model's")
    layout = read_layout(folder)
    model = read_shape(folder, layout.build())
    config = read_run_config(folder)
    check_config(config, folder / CONFIG)
    tensors = map_weights(folder)
    check_tensors(decoder_tensors(model), tensors, folder)
    return StoredDecoder(
        layout=layout,
        model=model,
        config=config,
        visual_tokenizer=huggingface.read_visual_tokenizer(folder),
        step=0,
        file=folder,
        tensors=tensors,
        prefix=PREFIXES[weights],
        sharded=False,
        has_average=False,
        rest={},
    )


def _find(source: Path, *, fix: str = GIVE_A_MODEL) -> Path:
    """The checkpoint that `source` stands for, under its own name and as it was written."""
    if is_released(source):
        return source.resolve()
    if is_adapter_folder(source):
        what, fix = (
            "an adapter, without the model that it belongs to",
            f"give the model, and this beside it; or {MERGE}",
        )
        raise CheckpointError(what, file=source, fix=fix)
    if (source / "checkpoints").is_dir():
        file, passed_over = newest_complete(source / "checkpoints")
        for line in passed_over:
            logging.getLogger(__name__).warning("passed over: %s", line)
        return file.resolve()
    if not (source.is_file() or is_sharded(source)):
        if any(source.glob("*/config.yaml")):
            fix = f"give one of its runs; {source / LATEST} is the newest"
            raise CheckpointError("a folder of runs, not a run", file=source, fix=fix)
        raise CheckpointError(
            "not a checkpoint" if source.exists() else "no such checkpoint",
            file=source,
            fix=fix,
        )
    file = source.resolve()
    if has_digest(file):
        check_whole(file)
    return file
