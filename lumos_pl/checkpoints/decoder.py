"""Reading a decoder out of any checkpoint: a run's, whole or sharded, or a folder in the released format.

RUN_DIR/checkpoints/   a run: its newest complete checkpoint
FILE.ckpt              one checkpoint of ours, imported ones too
DIR.ckpt/              the same, written by several ranks
DIR/config.json        the released format
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lumos_pl.checkpoints import huggingface
from lumos_pl.checkpoints.complete import newest_complete
from lumos_pl.checkpoints.contents import WeightsOfTraining
from lumos_pl.checkpoints.description import VISUAL_TOKENIZER, check_weights, described_text
from lumos_pl.checkpoints.digests import digest_of, digest_of_files, has_digest
from lumos_pl.checkpoints.huggingface import (
    CONFIG,
    is_released,
    map_weights,
    read_layout,
    read_run_config,
    read_shape,
    weight_files,
)
from lumos_pl.checkpoints.opening import PREFIXES, check_config, named, open_checkpoint
from lumos_pl.checkpoints.sharded import is_sharded, load_sharded_weights
from lumos_pl.checkpoints.verdicts import check_whole
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import LayoutConfig, TokenLayout
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import LumosTransformer, copy_weight
from lumos_pl.tokenizers.visual import VisualTokenizer, makes_codes_of

Weights = Literal["model", "ema"]


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
        digest: sha256 that identifies the checkpoint: the file's, or that of a folder's list of digests.
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
        layout, named = self.layout, self.visual_tokenizer
        got, expected = tokenizer.fingerprint, named
        if (tokenizer.codebook_size, tokenizer.strides) != (layout.codebook_size, layout.strides):
            got = f"{tokenizer.codebook_size} codes, strides {tokenizer.strides}"
            expected = f"{layout.codebook_size} codes, strides {layout.strides}"
        elif named is None or makes_codes_of(tokenizer, named):
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

    def digest(self) -> str:
        """The sha256 that identifies the checkpoint; reads all of it if no digest stands beside it."""
        if is_released(self.file):
            return digest_of_files([self.file / CONFIG, *weight_files(self.file)])
        return digest_of(self.file)

    def build(self) -> LumosTransformer:
        """The decoder, on the CPU; its weights are views of the file, or of a sharded checkpoint a copy."""
        with torch.device("meta"):
            net = LumosTransformer(self.model)
        if self.sharded:
            self.copy_into(net.to_empty(device="cpu"))
        else:
            net.load_state_dict(self.tensors, assign=True)
        return net

    @torch.no_grad()
    def copy_into(self, net: LumosTransformer) -> None:
        """Fill a decoder of this shape, whole or sharded, one weight at a time and in its own dtypes."""
        if self.sharded:
            load_sharded_weights(net, self.file, self.prefix)
            return
        for name, parameter in net.named_parameters():
            copy_weight(parameter, self.tensors[name])


def load_decoder(source: Path, *, weights: Weights = "model") -> SavedDecoder:
    """Build the decoder that a checkpoint holds; `ema` takes the averaged weights.

    Raises:
        CheckpointError: nothing there, damaged, hostile, not a decoder's, or without averaged weights.
    """
    stored = open_decoder(source, weights=weights)
    return SavedDecoder(
        net=stored.build().eval().requires_grad_(False),
        layout=stored.layout.build(),
        config=stored.config,
        visual_tokenizer=stored.visual_tokenizer,
        step=stored.step,
        file=stored.file,
        digest=stored.digest(),
    )


def open_decoder(source: Path, *, weights: Weights = "model") -> StoredDecoder:
    """Find the checkpoint; check its digest, its description, and the name, shape and kind of every weight."""
    file = _find(source)
    if is_released(file):
        return _open_released(file, weights)
    opened = open_checkpoint(file)
    lumos, state = opened.parts.lumos, opened.parts.state_dict
    if opened.layout is None or opened.model is None:
        what, where = "not a decoder's checkpoint", "lumos.identity"
        raise CheckpointError(what, file=file, where=where, expected="layout and model")
    tensors = named(PREFIXES[weights], state)
    if not tensors:
        raise CheckpointError(
            "no averaged weights in this checkpoint",
            file=file,
            fix="take the model's, or train with optimizer.ema_decay above 0",
        )
    return StoredDecoder(
        layout=opened.layout,
        model=opened.model,
        config=lumos.config,
        visual_tokenizer=described_text(lumos.identity.data.get(VISUAL_TOKENIZER), file, VISUAL_TOKENIZER),
        step=opened.parts.global_step if isinstance(opened.parts, WeightsOfTraining) else 0,
        file=file,
        tensors=tensors,
        prefix=PREFIXES[weights],
        sharded=opened.sharded,
        has_average=bool(named(PREFIXES["ema"], state)),
        rest={} if opened.sharded else opened.rest,
    )


def _open_released(folder: Path, weights: Weights) -> StoredDecoder:
    if weights == "ema":
        raise CheckpointError("no averaged weights in the released format", file=folder, fix="take the model's")
    layout = read_layout(folder)
    model = read_shape(folder, layout.build())
    config = read_run_config(folder)
    check_config(config, folder / CONFIG)
    tensors = map_weights(folder)
    check_weights(model, tensors, folder)
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


def _find(source: Path) -> Path:
    """The checkpoint that `source` stands for, under its own name and as it was written."""
    if is_released(source):
        return source.resolve()
    if (source / "checkpoints").is_dir():
        file, passed_over = newest_complete(source / "checkpoints")
        for line in passed_over:
            logging.getLogger(__name__).warning("passed over: %s", line)
        return file.resolve()
    if not (source.is_file() or is_sharded(source)):
        raise CheckpointError(
            "not a checkpoint" if source.exists() else "no such checkpoint",
            file=source,
            fix="give a run's folder, a .ckpt, or a folder with config.json and safetensors",
        )
    file = source.resolve()
    if has_digest(file):
        check_whole(file)
    return file
