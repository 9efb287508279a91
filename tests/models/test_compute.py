"""Checkpointing and compilation change what a step costs, not what it computes."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from weakref import finalize

import pytest
import torch
import torch._dynamo.utils
import torch.distributed as dist
from lightning import Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lumos_pl.ar_df import hide_tokens
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.errors import ConfigError
from lumos_pl.layout import LayoutConfig, TokenLayout, TokenSequence
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.masking import MaskConfig
from lumos_pl.models import transformer
from lumos_pl.models.config import AttentionBackend, ComputeConfig, ModelConfig, Placement, Recomputed
from lumos_pl.models.parallel import shard_model
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.module import LumosModule
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate
from lumos_pl.sharded_strategy import ShardedStrategy
from tests.refusals import refused

MakeDecoder = Callable[..., LumosTransformer]
MakeBatch = Callable[..., MaskedBatch]
CHECKPOINTING: list[Recomputed] = ["none", "selective", "full"]
SHAPES = [(3, 2, 3, 5), (1, 4, 2, 30), (2, 2, 2, None)]  # latent frames, rows, cols, text


@pytest.fixture
def make_batch(make_sequence: Callable[..., TokenSequence], layout: TokenLayout) -> MakeBatch:
    def make(*shapes: tuple[int, int, int, int | None]) -> MaskedBatch:
        sequences = [make_sequence(*shape, seed=i) for i, shape in enumerate(shapes)]
        return hide_tokens(pack(sequences, list(map(str, shapes)), layout), layout, MaskConfig(), seed=0)

    return make


@pytest.fixture
def stats() -> Iterator[Counter[str]]:
    """What was compiled since; nothing was before."""
    transformer.compiled.cache_clear()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters["stats"]
    transformer.compiled.cache_clear()


def loss_of(net: LumosTransformer, batch: MaskedBatch, *, bf16: bool = False) -> Tensor:
    with torch.autocast(batch.tokens.device.type, torch.bfloat16, enabled=bf16):
        states = net(batch.inputs, batch.spans)[batch.target_index]
        objective = partial(masked_cross_entropy, targets=batch.target_codes, config=LossConfig(chunk_size=16))
        loss: Tensor = net.lm_head(states, objective)[0]
    return loss


def step(net: LumosTransformer, batch: MaskedBatch, *, bf16: bool = False) -> list[Tensor]:
    """The loss and every gradient."""
    net.zero_grad()
    loss = loss_of(net, batch, bf16=bf16)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in net.parameters() if parameter.grad is not None)]


def assert_same(ours: list[Tensor], expected: list[Tensor], **tolerance: float) -> None:
    assert len(ours) == len(expected)
    for a, b in zip(ours, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b.cpu(), **tolerance)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("checkpointing", ["selective", "full"])
def test_checkpointing_changes_no_bit(
    checkpointing: Recomputed, bf16: bool, make_decoder: MakeDecoder, make_batch: MakeBatch
) -> None:
    batch = make_batch(*SHAPES)
    stored = step(make_decoder(), batch, bf16=bf16)
    recomputed = step(make_decoder(compute=ComputeConfig(activation_checkpointing=checkpointing)), batch, bf16=bf16)
    assert_same(recomputed, stored, atol=0, rtol=0)


class Ledger(TorchDispatchMode):
    """Counts matrix products, and the bytes of what was made since and still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.bytes = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.products += func is torch.ops.aten.mm.default
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.bytes += storage.nbytes()
                finalize(storage, self._forget, storage._cdata, storage.nbytes())
        return out

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.bytes -= size


def test_checkpointing_stores_less_and_selective_repeats_no_product(
    make_decoder: MakeDecoder, make_batch: MakeBatch
) -> None:
    batch = make_batch((2, 8, 8, 5))
    held, repeated = {}, {}
    for checkpointing in CHECKPOINTING:
        net = make_decoder(compute=ComputeConfig(activation_checkpointing=checkpointing), n_layers=4)
        with Ledger() as ledger:
            loss = net(batch.inputs, batch.spans).sum()
            held[checkpointing], forward = ledger.bytes, ledger.products
            loss.backward()
            repeated[checkpointing] = ledger.products - 3 * forward  # two of the backward pass for each
    assert held["full"] < held["selective"] / 2 and held["selective"] < held["none"] * 0.8, held
    # every product of a layer but its last, of which the backward pass needs no output
    assert repeated == {"none": 0, "selective": 0, "full": 4 * 6}


# -- compilation -----------------------------------------------------------------------------------


@pytest.mark.seconds
@pytest.mark.parametrize("checkpointing", ["selective", "full"])  # the graphs of none are those of full
def test_two_graphs_serve_all_layers_and_batches(
    checkpointing: Recomputed,
    make_decoder: MakeDecoder,
    make_batch: MakeBatch,
    stats: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))  # all but the kernels
    compute = ComputeConfig(compile=True, activation_checkpointing=checkpointing)
    net, plain = make_decoder(compute=compute, n_layers=3), make_decoder(n_layers=3)
    for shapes in SHAPES, SHAPES[:1], [(4, 1, 5, 0), (1, 1, 1, 1)]:
        batch = make_batch(*shapes)
        assert_same(step(net, batch), step(plain, batch), atol=1e-5, rtol=1e-4)
    assert stats["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.seconds
def test_passes_without_gradients_are_compiled_too_and_recompute_nothing(
    make_decoder: MakeDecoder,
    make_batch: MakeBatch,
    layout: TokenLayout,
    stats: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Validation, and generation: a frame over what is cached, in both branches."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    net = make_decoder(compute=ComputeConfig(activation_checkpointing="selective"), n_layers=3)
    net.compute_as(ComputeConfig(activation_checkpointing="selective", compile=True))
    plain = make_decoder(n_layers=3)
    with torch.no_grad():
        for shapes in SHAPES, SHAPES[:1]:
            batch = make_batch(*shapes)
            torch.testing.assert_close(loss_of(net, batch), loss_of(plain, batch), atol=1e-5, rtol=1e-4)
    request = GenerationRequest(text_ids=(1, 2), latent_frames=2, rows=2, cols=3, duration=1, fps=12, seed=0)
    config = SamplingConfig(steps=2, guidance=3, greedy=True)
    ours, expected = (generate(each, layout, [request], config)[0] for each in (net, plain))
    assert torch.equal(ours, expected)
    assert stats["unique_graphs"] == 2
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_compiled_for_the_cpu(
    checkpointing: Recomputed, make_decoder: MakeDecoder, make_batch: MakeBatch, stats: Counter[str]
) -> None:
    if shutil.which("g++") is None:
        pytest.skip("needs a C++ compiler")
    batch = make_batch(*SHAPES)
    net = make_decoder(compute=ComputeConfig(compile=True, activation_checkpointing=checkpointing))
    for bf16 in False, True:
        tolerance = {"atol": 3e-2, "rtol": 3e-2} if bf16 else {"atol": 1e-5, "rtol": 1e-4}
        assert_same(step(net, batch, bf16=bf16), step(make_decoder(), batch, bf16=bf16), **tolerance)
    assert stats["unique_graphs"] == 4


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
@pytest.mark.parametrize("attention", ["auto", "sdpa", "varlen", "flex", "flash"])
def test_every_combination_on_a_gpu(
    attention: AttentionBackend,
    checkpointing: Recomputed,
    compile: bool,
    bf16: bool,
    make_decoder: MakeDecoder,
    make_batch: MakeBatch,
) -> None:
    if attention in ("flash", "varlen"):
        pytest.importorskip("flash_attn" if attention == "flash" else "torch.nn.attention.varlen")
        if not bf16:
            pytest.skip("kernels for ragged batches have no fp32")
    batch = make_batch((3, 8, 9, 40), *SHAPES)
    compute = ComputeConfig(attention=attention, compile=compile, activation_checkpointing=checkpointing)
    ours = step(make_decoder(compute=compute).cuda(), batch.to("cuda"), bf16=bf16)
    tolerance = {"atol": 5e-2, "rtol": 5e-2} if bf16 else {"atol": 1e-4, "rtol": 1e-3}
    assert_same(ours, step(make_decoder(), batch), **tolerance)


# -- sharding --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sharded_layers_do_all_of_it_too(
    make_decoder: MakeDecoder, make_batch: MakeBatch, tmp_path: Path, layout: TokenLayout
) -> None:
    """On two ranks that see the same batch, whose mean gradient is that of one."""
    batch, net = make_batch(*SHAPES), make_decoder()
    expected = step(net, batch)
    torch.multiprocessing.spawn(_step_on_one_rank, (str(tmp_path / "store"), net, batch, expected), nprocs=2)


def _step_on_one_rank(
    rank: int, store: str, whole: LumosTransformer, batch: MaskedBatch, expected: list[Tensor]
) -> None:
    torch.compile = partial(torch.compile, backend="aot_eager")
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    mesh = dist.init_device_mesh("cpu", (2,), mesh_dim_names=("data_parallel",))
    for checkpointing, compiled, again in product(CHECKPOINTING, (False, True), (False, True)):
        net = LumosTransformer(whole.config, ComputeConfig(activation_checkpointing=checkpointing, compile=compiled))
        net.load_state_dict(whole.state_dict())
        shard_model(net, mesh, reshard_after_forward=again)
        assert_same(_gathered(step(net, batch)), expected, atol=1e-5, rtol=1e-4)
    dist.destroy_process_group()


def _gathered(tensors: list[Tensor]) -> list[Tensor]:
    return [x.full_tensor() if isinstance(x, DTensor) else x for x in tensors]


@pytest.mark.slow
def test_mixed_precision_gathers_layers_in_bf16_and_keeps_the_head_and_the_residual_stream_exact(
    make_decoder: MakeDecoder, make_batch: MakeBatch, tmp_path: Path
) -> None:
    batch, net = make_batch(*SHAPES), make_decoder()
    expected = step(net, batch, bf16=True)
    torch.multiprocessing.spawn(_mixed_on_one_rank, (str(tmp_path / "store"), net, batch, expected), nprocs=2)


def _mixed_on_one_rank(
    rank: int, store: str, whole: LumosTransformer, batch: MaskedBatch, expected: list[Tensor]
) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    net = LumosTransformer(whole.config)
    net.load_state_dict(whole.state_dict())
    shard_model(net, dist.init_device_mesh("cpu", (2,), mesh_dim_names=("shard",)), mixed=True)
    seen: dict[str, torch.dtype] = {}
    layer, head = net.model.layers[1], net.lm_head
    layer.mlp.register_forward_pre_hook(lambda mlp, _: seen.update(layer=mlp.up_proj.weight.dtype))
    layer.register_forward_pre_hook(lambda _, inputs: seen.update(stream=inputs[0].dtype))
    head.register_forward_hook(lambda head, *_: seen.update(head=head.weight.dtype))
    ours = step(net, batch, bf16=True)
    exact = torch.float32
    assert seen == {"layer": torch.bfloat16, "stream": exact, "head": exact}, seen
    assert {tensor.dtype for tensor in ours} == {exact}  # sharded gradients, summed up in fp32
    assert_same(_gathered(ours), expected, atol=3e-2, rtol=3e-2)

    # of two batches a step, reduced with each and reduced once
    sums = []
    for once in False, True:
        placement = Placement(shard_size=2, reduce_once=once)
        patience = timedelta(seconds=60)
        strategy = ShardedStrategy(n_processes=2, placement=placement, cpu_offload=False, timeout=patience)
        strategy.model = net
        net.zero_grad()
        with strategy.block_backward_sync():
            loss_of(net, batch, bf16=True).backward()
        assert (net.lm_head.weight.grad is None) is once  # what is reduced is there, in shards
        loss_of(net, batch, bf16=True).backward()
        sums.append(_gathered([p.grad for p in net.parameters() if p.grad is not None]))
    assert_same(sums[1], sums[0], atol=1e-4, rtol=1e-2)

    # ranks that settled other things would wait for each other for ever; what each recomputes is its own affair
    settled = Placement(recompute="full" if rank else "none", shard_size=2, reshard_after_forward=rank == 0)
    strategy = ShardedStrategy(n_processes=2, placement=settled, cpu_offload=False, timeout=patience)
    with refused(ConfigError, where="rank 1"):
        strategy.check_agreement()
    dist.destroy_process_group()


# -- configuration ---------------------------------------------------------------------------------


def test_earlier_configurations_said_true_and_false() -> None:
    named = {value: ModelConfig(activation_checkpointing=value).activation_checkpointing for value in (True, False)}
    assert named == {True: "full", False: "none"}


def test_a_module_refuses_attention_that_cannot_be_trained_here() -> None:
    module = LumosModule(ModelConfig(size="debug", attention="flex"), LayoutConfig(preset="compact", codebook_size=60))
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with refused(ConfigError, where="model.attention"):
        trainer.fit(module, [])
