"""`init_from`: start from the weights of another run or of a released checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from lumos_pl.checkpoints.decoder import MERGE, open_decoder
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.checkpoints.together import look_through_together
from lumos_pl.errors import CheckpointError
from lumos_pl.models.transformer import LumosTransformer

_OF_THE_LAYOUT = {"vocab_size", "visual_offset", "strides"}


def load_initial_weights(net: LumosTransformer, *, source: Path) -> None:
    """Fill a decoder, whole or sharded, from whatever `open_decoder` takes; of several ranks all call this alike.

    An adapter in it is left alone.

    Raises:
        CheckpointError: the checkpoint is missing or damaged, or of another architecture. Weights made
            for another rotation, norm or grouping of heads are refused though their shapes may fit.
    """
    source = resolve_named(source)
    look_through_together(source)
    stored = open_decoder(source)
    if stored.adapter is not None:
        raise CheckpointError("an adapter, and no decoder to start from", file=stored.file, fix=MERGE)
    own, saved = asdict(net.config), asdict(stored.model)
    for name in own:
        if name != "max_length" and own[name] != saved[name]:
            raise CheckpointError(
                "weights of another architecture",
                file=stored.file,
                where=name,
                got=saved[name],
                expected=own[name],
                fix="set layout to the checkpoint's" if name in _OF_THE_LAYOUT else f"set model.{name}",
            )
    stored.copy_into(net)
