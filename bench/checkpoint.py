"""Saving and loading a run's state completely (digested, on the disk, restricted), against torch alone.

python -m bench.checkpoint save|save_alone|load|load_alone [--size SIZE] [--folder DIR]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch

from bench.measure import measure_here
from lumos_pl.checkpoints.complete import checkpoint_name, complete
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.reading import read_checkpoint
from lumos_pl.checkpoints.saves import DirectCheckpointIO
from lumos_pl.layout import lumos1_layout
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.config import ModelConfig, Size
from lumos_pl.models.transformer import LumosTransformer


def _state(size: Size) -> dict[str, Any]:
    """Weights and AdamW's two moments."""
    net = LumosTransformer(ModelConfig(size=size).build(lumos1_layout()))
    net.init_weights(0)
    weights = {name: parameter.detach() for name, parameter in net.named_parameters()}
    moments = {name: (weight * 0.5, weight**2) for name, weight in weights.items()}
    return {"state_dict": weights, "optimizer_states": [moments], "global_step": 1}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["save", "save_alone", "load", "load_alone"])
    parser.add_argument("--size", choices=get_args(Size), default="tiny")
    parser.add_argument("--folder", type=Path, help="on the disk that is asked about; default: the temporary one")
    options = parser.parse_args(arguments)
    state = _state(options.size)
    n_bytes = sum(weight.nbytes for weight in state["state_dict"].values()) * 3
    with TemporaryDirectory(dir=options.folder) as temporary:
        file = Path(temporary) / checkpoint_name(1)
        partial = partial_of(file)

        def save() -> None:
            DirectCheckpointIO().save_checkpoint(state, partial)
            complete(partial, file)

        def load() -> int:
            check_digest(file)
            return int(read_checkpoint(file)["global_step"])

        if options.way.startswith("load"):
            save()
            state.clear()
        ways: dict[str, Callable[[], int | None]] = {
            "save": save,
            "save_alone": lambda: torch.save(state, file),
            "load": load,
            "load_alone": lambda: int(torch.load(file, weights_only=True)["global_step"]),
        }
        measured = measure_here(ways[options.way])
    print(json.dumps(measured | {"notes": {"MiB": n_bytes / 2**20}}))


if __name__ == "__main__":
    main()
