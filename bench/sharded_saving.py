"""How long a sharded checkpoint of several ranks keeps the training waiting, in the background and without it.

python -m bench.sharded_saving background|waiting [--size SIZE] [--ranks N] [--rounds N] [--folder DIR]

Prints, of each round, the seconds until the training may go on and until the checkpoint is complete, and of a stand-in
for a training step (a matrix product and an exchange) the median alone and the mean while it is written.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import mean, median
from tempfile import TemporaryDirectory
from typing import Any, get_args

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.multiprocessing.spawn import start_processes

from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.complete import checkpoint_name, complete, remove
from lumos_pl.layout import lumos1_layout
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.models.config import ModelConfig, Size
from lumos_pl.models.parallel import shard_mesh, shard_model
from lumos_pl.models.transformer import LumosTransformer


def _state(size: Size, ranks: int) -> Callable[[], dict[str, Any]]:
    """What gives this rank's part of the weights and AdamW's two moments."""
    with torch.device("meta"):
        net = LumosTransformer(ModelConfig(size=size).build(lumos1_layout()))
    shard_model(net, shard_mesh("cpu", ranks, ranks))
    net.to_empty(device="cpu").init_weights(0)
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return lambda: {"state_dict": get_model_state_dict(net), "optimizer_0": get_optimizer_state_dict(net, optimizer)}


def _step() -> float:
    start = time.perf_counter()
    torch.ones(2000, 2000) @ torch.ones(2000, 2000)
    dist.all_reduce(torch.ones(1))
    return time.perf_counter() - start


def _common_partial(final: Path) -> Path:
    """Where all ranks write."""
    drawn = [partial_of(final)]
    dist.broadcast_object_list(drawn)
    return drawn[0]


def _save_waiting(state: dict[str, Any], final: Path) -> dict[str, float]:
    """Every rank writes, rank 0 digests all of it, and then the training goes on."""
    start, partial = time.perf_counter(), _common_partial(final)
    dcp.state_dict_saver.save(state, checkpoint_id=partial)
    if dist.get_rank() == 0:
        complete(partial, final)
    dist.barrier()
    seconds = time.perf_counter() - start
    return {"waiting": seconds, "complete": seconds}


def _save_in_background(writer: BackgroundWriter, state: dict[str, Any], final: Path) -> dict[str, float]:
    start, partial = time.perf_counter(), _common_partial(final)
    writing = writer.start(state, {}, partial)
    waiting, steps, left = time.perf_counter() - start, [], torch.ones(1)
    while left:
        steps.append(_step())
        left[0] = not writing.done()
        dist.all_reduce(left)
    if dist.get_rank() == 0:
        complete(partial, final, writing.result())
    return {"waiting": waiting, "complete": time.perf_counter() - start, "step": mean(steps)}


def _rank(rank: int, options: argparse.Namespace, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=options.ranks)
    state, final = _state(options.size, options.ranks), Path(folder) / checkpoint_name(1)
    alone = median(_step() for _ in range(15))
    writer = BackgroundWriter(timedelta(minutes=10))
    rounds = []
    for _ in range(options.rounds):
        dist.barrier()
        background = options.way == "background"
        rounds.append(_save_in_background(writer, state(), final) if background else _save_waiting(state(), final))
        if rank == 0:
            n_bytes = sum(file.stat().st_size for file in final.iterdir())
            remove(final)
    if rank == 0:
        print(json.dumps({"MiB": round(n_bytes / 2**20), "step alone": alone, "rounds": rounds}))
    dist.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("way", choices=["background", "waiting"])
    parser.add_argument("--size", choices=get_args(Size), default="small")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the disk that is asked about; default: the temporary one")
    options = parser.parse_args(arguments)
    with TemporaryDirectory(dir=options.folder) as folder:
        start_processes(_rank, (options, folder), nprocs=options.ranks)


if __name__ == "__main__":
    main()
