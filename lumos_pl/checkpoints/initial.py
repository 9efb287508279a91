"""`init_from`: start from the weights of another run or of a released checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from lumos_pl.checkpoints.complete import read_checkpoint
from lumos_pl.checkpoints.huggingface import load_weights
from lumos_pl.checkpoints.sharded import is_sharded, load_sharded_weights
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer, copy_weight

PREFIX = "net."  # of the decoder's parameters in a run's checkpoint


@torch.no_grad()
def load_initial_weights(net: LumosTransformer, *, source: Path) -> None:
    """Fill the decoder from a run's checkpoint, file or sharded, or from a folder in the released layout.

    Raises:
        CheckpointError: the file or folder is missing or damaged, or a name or shape does not fit.
    """
    if not source.exists():
        raise CheckpointError(
            "no such checkpoint", file=source, where="init_from", fix="give a .ckpt or a released folder"
        )
    if is_sharded(source):
        load_sharded_weights(net, source, PREFIX)
        return
    if source.is_dir():
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
