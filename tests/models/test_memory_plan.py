"""What a layer keeps, as autograd counts it. A whole step is measured in tests/experiments/test_plan.py."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from torch import Tensor

from lumos_pl.adapters.config import AdapterConfig, targeted
from lumos_pl.adapters.training import adapt
from lumos_pl.layout import lumos1_layout
from lumos_pl.models.attention import BlockCausalAttention
from lumos_pl.models.config import ModelConfig, Placement, TransformerConfig
from lumos_pl.models.memory import Moment, StepSettings, layer_activation_bytes, step_memory
from lumos_pl.models.parameters import layer_matrices, parameter_counts
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.spans import SequenceSpans

GIB = 2**30


def settings(**changes: object) -> StepSettings:
    """Those of a plain run on one GPU; changes are fields of the settings, or of the placement."""
    placement = {name: changes.pop(name) for name in Placement.__dataclass_fields__ if name in changes}
    plain = {"mixed": True, "strategy": "single", "accumulate": 1, "cpu_offload": False}
    rest = {"optimizer": "adamw", "ema": False, "chunk_size": 256, "cuda": True}
    return StepSettings(placement=Placement(**placement), **(plain | rest | changes))  # type: ignore[arg-type]


def peak(config: TransformerConfig, **changes: object) -> int:
    moments = step_memory(config, settings(**changes), n_tokens=13_000, n_targets=12_000)
    return max(sum(components.values()) for components in moments.values())


@pytest.mark.parametrize("size", ["debug", "0.5b", "1b", "3b"])
def test_parameters_are_the_models(size: str) -> None:
    config = ModelConfig(size=size).build(lumos1_layout())  # type: ignore[arg-type]
    with torch.device("meta"):
        net = LumosTransformer(config)
    assert parameter_counts(config).total == sum(parameter.numel() for parameter in net.parameters())
    matrices = [p.numel() for p in net.model.layers[0].parameters() if p.ndim == 2 and len(p) > 1]
    assert layer_matrices(config) == sum(matrices)


ADAPTERS = {
    "none": None,
    "lora": AdapterConfig(kind="lora", rank=5),
    "lora of some": AdapterConfig(kind="lora", rank=5, targets=["v_proj", "gate_proj"]),
    "with dropout": AdapterConfig(kind="lora", rank=5, dropout=0.1),
    "dora": AdapterConfig(kind="dora", rank=5, targets=["q_proj", "v_proj", "*.mlp.*"]),
}


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
def test_a_layer_keeps_what_the_formula_says(adapter: AdapterConfig | None, mixed: bool) -> None:
    config = ModelConfig(size="small", n_layers=1).build(lumos1_layout())
    spans = SequenceSpans(prefix=50, latent_frames=2, rows=16, cols=16)
    with torch.device("meta"):
        net, beside = LumosTransformer(config), frozenset[str]()
        if adapter is not None:
            names = targeted(adapter, dict(net.named_parameters()))
            beside = frozenset(name.removeprefix("model.layers.0.") for name in names)
            adapt(net, adapter, frozen_dtype=torch.bfloat16 if mixed else None)
    layer = net.model.layers[0].to_empty(device="cpu")
    given = torch.ones(spans.length, config.head_dim)  # cosine and sine, shared by the layers
    shared = {tensor.untyped_storage().data_ptr() for tensor in chain(layer.parameters(), [given])}
    of_weights = {width for parameter in layer.parameters() for width in parameter.shape if len(parameter) > 1}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in shared and len(tensor) not in of_weights:  # no copies
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.ones(spans.length, config.dim, requires_grad=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=mixed)
    with autocast, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        layer(x, given, given, BlockCausalAttention([spans]))
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    expected = layer_activation_bytes(config, mixed=mixed, cuda=False, adapter=adapter, beside=beside)
    assert total == pytest.approx(expected * spans.length, rel=2e-3)


def test_a_step_by_hand() -> None:
    """Weights, gradients and AdamW's moments of the 3B model: 16 bytes each; a shard of them is a 48th."""
    config = ModelConfig(size="3b").build(lumos1_layout())
    states = 16 * parameter_counts(config).total
    alone = step_memory(config, settings(), n_tokens=1, n_targets=1)["update"]
    assert sum(alone.values()) == states
    sharded = step_memory(config, settings(strategy="fsdp2", shard_size=48), n_tokens=1, n_targets=1)["update"]
    assert sum(sharded.values()) == pytest.approx(states / 48, rel=1e-6)


def test_each_setting_moves_memory_its_way() -> None:
    config = ModelConfig(size="1b").build(lumos1_layout())
    plain = peak(config)
    assert peak(config, recompute="full") < peak(config, recompute="selective") - 5 * GIB < plain - 10 * GIB
    assert peak(config, strategy="fsdp2", shard_size=8) < plain
    assert peak(config, mixed=False) > plain
    assert peak(config, optimizer="muon") == plain - 4 * 16 * layer_matrices(config)
    total = 4 * parameter_counts(config).total
    assert peak(config, ema=True) == plain + total
    assert peak(config, strategy="ddp") == plain  # the gradients lie in the buckets of its exchange


def test_what_fsdp2_holds_whole_by_hand() -> None:
    """At the loss of a mixed step: the embedding in bf16, the fp32 head twice, and a layer or all of them in bf16."""
    config = ModelConfig(size="3b").build(lumos1_layout())
    counts = parameter_counts(config)

    def held(moment: Moment = "loss", **changes: object) -> int:
        these = settings(strategy="fsdp2", shard_size=48, **changes)
        components = step_memory(config, these, n_tokens=9, n_targets=1)[moment]
        assert components["bf16 weights"] == 0  # what is gathered is bf16 already
        return components["communication"] + components["gradients"]

    shard = 4 * counts.total // 48
    assert held() == shard + 2 * counts.embedding + 8 * counts.head + 2 * counts.layer
    assert held(mixed=False) == shard + 4 * counts.embedding + 8 * counts.head + 4 * counts.layer
    assert held(reshard_after_forward=False) - held() == 2 * (counts.body - counts.layer)
    assert held("backward ends") == shard + 4 * counts.embedding + 8 * counts.head
    # added up over batches, gradients are whole and fp32 until the update, and of one batch as they ever were
    assert held(reduce_once=True) == held()
    several = {"accumulate": 2, "reduce_once": True}
    for moment in "loss", "backward begins", "backward ends":
        cleared = 4 * counts.head // 48 if moment == "backward begins" else shard
        assert held(moment, **several) - held(moment) == 4 * counts.total - cleared
    assert held("update", **several) == held("update")


def test_the_loss_holds_a_chunk_by_hand() -> None:
    """In bf16: fp32 logits and their rounded copy, and a copy of the matrix; in fp32 the logits alone."""
    config, n_codes = ModelConfig(size="1b").build(lumos1_layout()), 64_000
    for mixed, chunk in (True, 6 * 2048 * n_codes + 2 * n_codes * 2048), (False, 4 * 2048 * n_codes):
        moments = step_memory(config, settings(mixed=mixed, chunk_size=2048), n_tokens=13_000, n_targets=12_000)
        assert moments["loss"]["logits chunk"] == chunk
