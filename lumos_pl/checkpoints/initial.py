"""`init_from`: start from the weights of another run or of a released checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from lumos_pl.checkpoints.complete import check_digest, has_digest, read_checkpoint
from lumos_pl.checkpoints.huggingface import load_weights, read_config
from lumos_pl.checkpoints.sharded import is_sharded, load_sharded_weights
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer, copy_weight

PREFIX = "net."  # of the decoder's parameters in a run's checkpoint


@torch.no_grad()
def load_initial_weights(net: LumosTransformer, *, source: Path) -> None:
    """Fill the decoder from a run's checkpoint, file or sharded, or from a folder in the released layout.

    Raises:
        CheckpointError: the file or folder is missing or damaged, or of another architecture.
    """
    if not source.exists():
        raise CheckpointError(
            "no such checkpoint", file=source, where="init_from", fix="give a .ckpt or a released folder"
        )
    if has_digest(source):
        check_digest(source)
    if is_sharded(source):
        load_sharded_weights(net, source, PREFIX)
        return
    if source.is_dir():
        _check_architecture(net, source)
        load_weights(net, source)
        return
    state = read_checkpoint(source).get("state_dict", {})
    for name, parameter in net.named_parameters():
        tensor = state.get(PREFIX + name)
        got = None if tensor is None else list(tensor.shape)
        if got != list(parameter.shape):
            raise CheckpointError(
                "weights do not fit", file=source, where=name, got=got or "nothing", expected=list(parameter.shape)
            )
        copy_weight(parameter, tensor)


def _check_architecture(net: LumosTransformer, source: Path) -> None:
    """Refuse weights made for another rotation, norm or grouping of heads: their shapes may fit all the same."""
    own, released = asdict(net.config), asdict(read_config(source, net.config))
    for name in own.keys() - {"max_length"}:
        if own[name] != released[name]:
            raise CheckpointError(
                "weights of another architecture",
                file=source / "config.json",
                where=name,
                got=released[name],
                expected=own[name],
                fix=f"set model.{name}",
            )
