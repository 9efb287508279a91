"""FSDP2 and HSDP on 2 and 4 processes of the CPU: they train like one; their checkpoint is read by any number."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import pack
from lumos_pl.checkpoints.background import BackgroundWriter
from lumos_pl.checkpoints.complete import complete
from lumos_pl.checkpoints.digests import check_digest
from lumos_pl.checkpoints.sharded import load_sharded_tensors
from lumos_pl.layout import TokenSequence, compact_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.machinery.own_files import name_of, partial_of
from lumos_pl.masking import MaskConfig
from lumos_pl.models.config import PLAIN, ComputeConfig, ModelConfig
from lumos_pl.models.parallel import gather_model, shard_mesh, shard_model
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.optimizer import update_ema
from lumos_pl.seeding import generator
from tests.processes import on_ranks

LAYOUT = compact_layout(codebook_size=60)
MICRO_BATCHES, STEPS = 4, 3


def build(
    seed: int, shard_size: int = 1, cpu_offload: bool = False, compute: ComputeConfig = PLAIN
) -> LumosTransformer:
    with torch.device("meta"):
        net = LumosTransformer(ModelConfig(size="debug").build(LAYOUT), compute)
    if dist.is_initialized():
        shard_model(net, shard_mesh("cpu", dist.get_world_size(), shard_size), cpu_offload=cpu_offload)
    net.to_empty(device="cpu")
    net.init_weights(seed)
    return net


def losses(
    net: LumosTransformer, rank: int, world: int, *, bf16: bool = False, ema: LumosTransformer | None = None
) -> list[float]:
    """The mean loss of each of three steps of four micro-batches, dealt to the ranks; trains `net`, averages `ema`."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    own = range(rank, MICRO_BATCHES, world)
    curve = []
    for step in range(STEPS):
        total = torch.zeros(())
        for number in own:
            name = f"{step}/{number}"
            codes = torch.randint(LAYOUT.codebook_size, (2, 4, 4), generator=generator(0, name))
            sequence = TokenSequence(text_ids=(1, 2, 3), codes=codes, duration=1, fps=12)
            batch = hide_tokens(pack([sequence], [name], LAYOUT), LAYOUT, MaskConfig(), seed=0)
            objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                states = net(batch.inputs, batch.spans)[batch.target_index]
                loss, _ = net.lm_head(states, objective)
            (loss / len(own)).backward()
            total += loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            update_ema(ema, net, 0.5)
        if world > 1:
            dist.all_reduce(total)
        curve.append(float(total) / MICRO_BATCHES)
    return curve


def whole(net: LumosTransformer) -> dict[str, Tensor]:
    return {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().clone() for name, p in net.named_parameters()
    }


def load(folder: Path, shard_size: int = 1) -> dict[str, Tensor]:
    net = build(9, shard_size)
    load_sharded_tensors(net.named_parameters(), folder, "net.")
    return whole(net)


def train_and_save(rank: int, world: int, partial: Path, shard_size: int, other: Path | None) -> Any:
    """Losses, weights and a rank's share of them after a training, saved beside `partial`; what `other` has."""
    net = build(1, shard_size, cpu_offload=shard_size < world)  # in one of the three teams
    curve, trained = losses(net, rank, world), whole(net)
    head = cast(DTensor, net.lm_head.weight)
    share = head.to_local().numel() / head.numel()
    gathered = gather_model(net)
    assert (gathered is None) == (rank > 0)
    assert gathered is None or all(
        torch.equal(gathered.get_parameter(name), weight) for name, weight in trained.items()
    )
    weights = {f"net.{name}": p.detach() for name, p in net.named_parameters()}
    writing = BackgroundWriter(timedelta(seconds=60)).start({"state_dict": weights}, {"global_step": 1}, partial)
    net.init_weights(7)  # the training goes on while the copy is written
    digests = writing.result()
    if rank == 0:
        complete(partial, partial.with_name(name_of(partial) or ""), digests)
    return curve, trained, share, other and load(other, shard_size)


def train_as_the_recipe(rank: int, world: int) -> Any:
    """bf16, every layer recomputed, sharded over all, averaged: losses, weights and averaged weights."""
    net, ema = (build(1, world, compute=ComputeConfig(activation_checkpointing="full")) for _ in range(2))
    curve = losses(net, rank, world, bf16=True, ema=ema.requires_grad_(False))
    return curve, whole(net), whole(ema)


def distance(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    return sum(float((some[name] - other).norm() ** 2) for name, other in others.items()) ** 0.5


def assert_equal(some: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    torch.testing.assert_close(some, others, atol=0, rtol=0)


@pytest.mark.seconds
@pytest.mark.skipif(os.name != "posix", reason="needs a fork server")
@pytest.mark.filterwarnings("ignore:torch.distributed")  # one process reads the checkpoint too
def test_ranks_train_like_one_process_and_read_each_others_checkpoints(tmp_path: Path) -> None:
    alone = build(seed=1)
    expected = losses(alone, 0, 1)
    other, written = None, {}
    for world, shard_size in (2, 2), (4, 2), (4, 4):
        folder = tmp_path / f"{world}_by_{shard_size}"
        partial = partial_of(folder)
        curve, weights, share, read = on_ranks(world, train_and_save, tmp_path, partial, shard_size, other)
        check_digest(folder)
        assert share == pytest.approx(1 / shard_size)
        assert curve == pytest.approx(expected, abs=1e-5)
        torch.testing.assert_close(weights, whole(alone), atol=1e-4, rtol=1e-3)
        assert_equal(load(folder), weights)
        if other is not None:
            assert_equal(read, written)
        other, written = folder, weights
    assert len(list((tmp_path / "2_by_2").glob("*.distcp"))) == 2
    assert len(list((tmp_path / "4_by_2").glob("*.distcp"))) == 4  # each rank writes some of what two of them hold


@pytest.mark.seconds
@pytest.mark.skipif(os.name != "posix", reason="needs a fork server")
def test_bf16_recomputation_sharding_and_averaging_go_together(tmp_path: Path) -> None:
    curve, *trained = on_ranks(2, train_as_the_recipe, tmp_path)
    expected, *alone = train_as_the_recipe(0, 1)
    assert curve == pytest.approx(expected, abs=5e-4)
    assert losses(build(1), 0, 1) != pytest.approx(expected, abs=5e-4)  # in fp32: 1.4e-3 away in the end
    start = whole(build(1))
    for got, single in zip(trained, alone, strict=True):
        assert distance(got, single) < 0.01 * distance(single, start)
