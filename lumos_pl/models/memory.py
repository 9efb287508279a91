"""Memory of a training step by arithmetic: what is held at its four fullest moments.

    loss              all activations, the last chunk of logits; gradients still those of the step before
    backward begins   all activations, the head's gradient
    backward ends     one layer's activations, all gradients
    update            all gradients, what the optimizer holds for a moment

Every term says which tensor it stands for. What one layer keeps is checked against autograd's own
saved tensors (tests/models/test_memory_plan.py), the sums on a CPU against the resident memory of a run
(tests/experiments/test_plan.py). Of CUDA nothing is measured: fused norms, autocast's fp32 norms and FSDP2's
buffers are as torch's code has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.models.config import Placement, TransformerConfig
from lumos_pl.models.parameters import (
    adapted,
    adapter_count,
    layer_matrices,
    matrix_shapes,
    parameter_counts,
)

Moment = Literal["loss", "backward begins", "backward ends", "update"]
MOMENTS_IN_BLOCK = 256  # of `adamw_8bit`, that have one scale
FULL = 4  # bytes of fp32: weights, gradients, optimizer, the residual stream
HALF = 2  # bytes of bf16
PACKED = {"int8": 1, "nf4": 0.5 + 1 / 64}  # bytes of a number in `adapter.frozen`, with the scales of its blocks
STATES = "weights", "gradients", "optimizer", "EMA"  # what `cpu_offload` keeps in the host's memory


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """All that decides a step's memory besides the decoder's shape and the batch.

    Args:
        mixed: bf16 autocast over fp32 weights, or fp32 throughout.
        placement: what is recomputed, and how fsdp2 shards and gathers.
        strategy: `single`, `ddp` or `fsdp2`.
        cpu_offload: what outlasts a step rests in the host's memory (fsdp2).
        accumulate: batches per step.
        chunk_size: rows of logits held at a time.
        cuda: a GPU's kernels; a CPU's keep a little more in the norms, and more in the optimizer.
        adapter: what alone is trained; None: the whole decoder.
    """

    mixed: bool
    placement: Placement
    strategy: Literal["single", "ddp", "fsdp2"]
    cpu_offload: bool
    accumulate: int
    optimizer: str
    ema: bool
    chunk_size: int
    cuda: bool
    adapter: AdapterConfig | None = None

    @property
    def compute(self) -> int:
        """Bytes of what matrices multiply."""
        return HALF if self.mixed else FULL

    @property
    def shards(self) -> int:
        return self.placement.shard_size if self.strategy == "fsdp2" else 1

    @property
    def reduces_once(self) -> bool:
        """Whether fsdp2 holds whole gradients between the batches of a step."""
        return self.strategy == "fsdp2" and self.placement.reduce_once and self.accumulate > 1


def trained_count(config: TransformerConfig, settings: StepSettings) -> int:
    """Parameters that have a gradient, and a place in the optimizer."""
    adapter = settings.adapter
    return parameter_counts(config).total if adapter is None else adapter_count(config, adapter)


def weight_bytes(config: TransformerConfig, settings: StepSettings) -> int:
    """Of all parameters: fp32; a frozen decoder's matrices, in autocast's precision or as `adapter.frozen` says."""
    counts = parameter_counts(config)
    if settings.adapter is None:
        return FULL * counts.total
    products = layer_matrices(config) * config.n_layers + counts.head
    rest = counts.total - products + trained_count(config, settings)
    spared = 0.0
    if (packed := PACKED.get(settings.adapter.frozen)) is not None:
        shapes = matrix_shapes(config)
        n_packed = sum(math.prod(shapes[name]) for names in adapted(config, settings.adapter) for name in names)
        spared = (settings.compute - packed) * n_packed
    return settings.compute * products + FULL * rest - int(spared)


def layer_activation_bytes(
    config: TransformerConfig,
    *,
    mixed: bool,
    cuda: bool,
    adapter: AdapterConfig | None = None,
    beside: frozenset[str] = frozenset(),
) -> int:
    """What one layer keeps per token for its backward pass, with attention in fused kernels; nothing recomputed.

    Args:
        adapter: what is trained there instead of the layer itself, `beside` these of its matrices.
    """
    compute = HALF if mixed else FULL
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    norm_inputs = 2 * config.dim * FULL
    if not cuda and adapter is None:
        norm_inputs += 2 * config.dim * FULL  # RMSNorm in parts keeps the normalized input too, for its own gradient
    head_norm_inputs = (queries + keys) * (FULL if cuda else compute)  # CUDA's autocast norms in fp32
    attention = (2 * queries + 2 * keys) * compute  # q, the calls' outputs; k, v
    mlp = 3 * config.ffn_dim * compute  # gate, silu(gate), up
    # rstd of both norms; mean and rstd of the head norms; logsumexp of attention
    statistics = FULL * (2 + 2 * (config.n_heads + config.n_kv_heads) + config.n_heads)
    products = _kept_for_products(config, compute, cuda, adapter, beside)
    return norm_inputs + head_norm_inputs + attention + mlp + statistics + products


def _kept_for_products(
    config: TransformerConfig, compute: int, cuda: bool, adapter: AdapterConfig | None, beside: frozenset[str]
) -> int:
    """What the matrices' own gradients ask for: their inputs; of an adapter's, those that it sees, and its factors."""
    shapes = matrix_shapes(config)
    alike = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]  # one input each
    kept = 0
    for names in alike:
        these = [shape for name, shape in shapes.items() if name.rpartition(".")[2] in names]
        trained = [shapes[name] for name in beside if name.rpartition(".")[2] in names]
        n_in = these[0][1]
        if adapter is None or (trained and not adapter.dropout):
            kept += n_in * compute
        elif adapter.dropout:  # each its own, and what was drawn for it
            kept += len(trained) * n_in * (compute + (1 if cuda else compute))
        if adapter is not None and (adapter.kind == "dora" or adapter.dropout):  # PEFT's layer, not ours
            kept += len(trained) * adapter.rank * compute
            if adapter.kind == "dora":  # what the lengths scale: the product of the matrix, and that beside it
                kept += sum(2 * n_out * compute for n_out, _ in trained)
    return kept


def kept_layer_bytes(config: TransformerConfig, settings: StepSettings, beside: frozenset[str] = frozenset()) -> int:
    """What one layer keeps per token until its turn comes in the backward pass.

    Args:
        beside: its matrices that an adapter is beside.
    """
    layer_input = config.dim * FULL
    if settings.placement.recompute == "full":
        return layer_input
    if settings.placement.recompute == "none":
        return _activation_bytes(config, settings, beside)
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    products = queries + 2 * keys + 2 * config.dim + 2 * config.ffn_dim  # q, k, v; o, down; gate, up
    attention = 3 * queries + keys  # rotated q, the calls' outputs, the same joined; rotated k
    if settings.adapter is not None:
        products += len(beside) * settings.adapter.rank
        attention += keys if "self_attn.v_proj" in beside else 0  # no product itself, but a sum with another
    return layer_input + (products + attention) * settings.compute + config.n_heads * FULL


def _activation_bytes(config: TransformerConfig, settings: StepSettings, beside: frozenset[str]) -> int:
    mixed, cuda, adapter = settings.mixed, settings.cuda, settings.adapter
    return layer_activation_bytes(config, mixed=mixed, cuda=cuda, adapter=adapter, beside=beside)


def step_memory(
    config: TransformerConfig, settings: StepSettings, *, n_tokens: int, n_targets: int
) -> dict[Moment, dict[str, int]]:
    """Bytes per process at each moment, by component; the largest sum is what a step needs.

    Args:
        n_tokens: tokens of one batch, S.
        n_targets: hidden visual tokens among them, M.
    """
    moments = _step_memory(config, settings, n_tokens=n_tokens, n_targets=n_targets)
    if not (settings.cpu_offload and settings.cuda):
        return moments
    return {moment: components | dict.fromkeys(STATES, 0) for moment, components in moments.items()}


def most_bytes(memory: dict[Moment, dict[str, int]]) -> int:
    """Of the fullest moment."""
    return max(sum(components.values()) for components in memory.values())


def host_memory(config: TransformerConfig, settings: StepSettings) -> dict[str, int]:
    """Bytes of the host's memory per GPU, by component: what `cpu_offload` keeps there, and the copy being saved."""
    if not (settings.strategy == "fsdp2" and settings.cuda):
        return {}
    update = _step_memory(config, settings, n_tokens=0, n_targets=0)["update"]
    states = {component: update[component] for component in STATES if update[component]}
    saved = sum(states.values()) - states["gradients"]
    return (states if settings.cpu_offload else {}) | {"copy being saved": saved}


def saved_bytes(config: TransformerConfig, settings: StepSettings) -> int:
    """Of a checkpoint, of all processes together: weights, optimizer and their average."""
    trained = FULL * trained_count(config, settings)
    return trained * (2 if settings.ema else 1) + _optimizer_state(config, settings)


def _step_memory(
    config: TransformerConfig, settings: StepSettings, *, n_tokens: int, n_targets: int
) -> dict[Moment, dict[str, int]]:
    counts, shards = parameter_counts(config), settings.shards
    trained = FULL * trained_count(config, settings) // shards
    frozen = settings.adapter is not None
    states: dict[str, int] = {
        "weights": weight_bytes(config, settings) // shards,
        "optimizer": _optimizer_state(config, settings) // shards,
        "EMA": trained if settings.ema else 0,
    }
    head_gradient = 0 if frozen else FULL * counts.head
    early = trained if settings.accumulate > 1 else head_gradient // shards
    gradients = 0 if settings.reduces_once else trained  # these are whole until the update, see `_communication`
    beside = adapted(config, settings.adapter)
    layer = max(_activation_bytes(config, settings, names) for names in set(beside)) * n_tokens
    kept_layers = [kept_layer_bytes(config, settings, names) * n_tokens for names in beside]
    kept = sum(kept_layers) + _outside_layers(config, settings) * n_tokens
    # autocast's, of one layer; fsdp2 gathers bf16
    copied = settings.mixed and settings.strategy != "fsdp2" and not frozen
    copy = HALF * layer_matrices(config) if copied else 0
    copies = copy * config.n_layers
    # of the MLP's product and its two factors, and of the residual stream on its way through the norm
    flow = (2 * config.ffn_dim * settings.compute + 2 * config.dim * FULL) * n_tokens + _made_dense(config, settings)
    between = _communication(config, settings)
    targets = 2 * n_targets * config.dim * FULL  # states and their gradient
    lengths = _of_lengths(config, settings)
    codes = _of_codes(config, settings)
    return {
        "loss": states
        | {
            "gradients": gradients,  # cleared only after the forward pass
            "bf16 weights": copies,
            "activations": kept,
            "logits chunk": _logits_chunk(config, settings, n_targets),
            "in flight": max(head_gradient + targets + codes, lengths),
            "communication": between["loss"],
        },
        "backward begins": states
        | {
            "gradients": min(early, gradients),
            "bf16 weights": copies if settings.placement.recompute == "none" else copy,
            "activations": kept - kept_layers[-1] + layer,  # the last one is there again
            "logits chunk": 0,
            "in flight": max(flow + (head_gradient if settings.accumulate > 1 else 0), lengths),
            "communication": between["backward begins"],
        },
        "backward ends": states
        | {
            "gradients": gradients,
            "bf16 weights": copy,
            "activations": layer,
            "logits chunk": 0,
            "in flight": flow,
            "communication": between["backward ends"],
        },
        "update": states
        | {
            "gradients": trained,
            "bf16 weights": 0,
            "activations": 0,
            "logits chunk": 0,
            # AdamW on a CPU takes a root and a quotient of the largest parameter; on a GPU it is fused
            "in flight": 0 if settings.cuda else 2 * (trained if frozen else head_gradient),
            "communication": between["update"],
        },
    }


def _of_lengths(config: TransformerConfig, settings: StepSettings) -> int:
    """What DoRA makes of its widest matrix for the lengths of the rows: an identity, the adapter's product, the sum."""
    if settings.adapter is None or settings.adapter.kind != "dora":
        return 0
    names = frozenset[str]().union(*adapted(config, settings.adapter))
    return max(
        FULL * (n_in * n_in + 3 * n_out * n_in) for n_out, n_in in (matrix_shapes(config)[name] for name in names)
    )


def _made_dense(config: TransformerConfig, settings: StepSettings) -> int:
    """The widest matrix of few bits, while it is multiplied by."""
    if settings.adapter is None or settings.adapter.frozen == "as_is":
        return 0
    return settings.compute * max(math.prod(shape) for shape in matrix_shapes(config).values())


def _of_codes(config: TransformerConfig, settings: StepSettings) -> int:
    """What rows of codes take in the loss: the codes' part of the head with them in it, and its gradient."""
    if settings.adapter is None or not settings.adapter.codes:
        return 0
    return (settings.compute + FULL) * (config.vocab_size - config.visual_offset) * config.dim


def _optimizer_state(config: TransformerConfig, settings: StepSettings) -> int:
    """AdamW: two moments of everything. Muon: one of the layers' matrices, AdamW for the rest.

    In 8 bits those of a matrix take a byte a number, and 4 for each block; an adapter's are mostly too small for it.
    """
    moments = 2 * FULL * trained_count(config, settings)
    if settings.adapter is None and settings.optimizer == "adamw_8bit":
        counts = parameter_counts(config)
        matrices = layer_matrices(config) * config.n_layers + counts.embedding + counts.head
        moments -= 2 * (FULL * matrices - matrices - FULL * matrices // MOMENTS_IN_BLOCK)
    if settings.adapter is None and settings.optimizer.startswith("muon"):
        moments -= FULL * layer_matrices(config) * config.n_layers
    return moments


def _outside_layers(config: TransformerConfig, settings: StepSettings) -> int:
    """Per token: the last norm's input, the rotary angles, ids and positions."""
    norm = config.dim * FULL * (1 if settings.cuda else 2)
    return norm + 2 * config.head_dim * FULL + 8 * 8


def _logits_chunk(config: TransformerConfig, settings: StepSettings, n_targets: int) -> int:
    """What the loss holds of the codebook: one chunk of logits, and in bf16 a copy of the chunk and of the matrix."""
    n_codes = config.vocab_size - config.visual_offset
    chunk = min(settings.chunk_size, n_targets) * n_codes
    return (FULL + HALF) * chunk + HALF * n_codes * config.dim if settings.mixed else FULL * chunk


def _communication(config: TransformerConfig, settings: StepSettings) -> dict[Moment, int]:
    """Buffers of the gradients' exchange (DDP), and of whole weights and gradients (FSDP2).

    DDP's are where the gradients themselves lie: they count where these are cleared, all but the head's.

    FSDP2 gathers layers and embedding in the precision of the products, the head in fp32; gradients come in the same,
    and are exchanged in fp32. The embedding and the head, each at the root of its group, stay whole from their
    first use to their gradient. Of the layers one is in use while the next is gathered, or all that went forward stay.
    """
    counts, placement = parameter_counts(config), settings.placement
    match settings.strategy:
        case "single":
            return {"loss": 0, "backward begins": 0, "backward ends": 0, "update": 0}
        case "ddp":
            late = trained_count(config, settings) - (counts.head if settings.adapter is None else 0)
            cleared = FULL * late if settings.accumulate == 1 else 0
            return {"loss": 0, "backward begins": cleared, "backward ends": 0, "update": 0}
        case "fsdp2":
            layer, embedding = settings.compute * counts.layer, settings.compute * counts.embedding
            head = FULL * counts.head  # also its gradient, and what is exchanged of the embedding's
            whole_gradients = FULL * counts.total if settings.reduces_once else 0
            stay = not placement.reshard_after_forward
            layers = layer * counts.n_layers
            return {
                # the head, and the buffer it was gathered in; a layer in the making
                "loss": whole_gradients + embedding + 2 * head + (layers if stay else layer),
                # the head's gradient being exchanged; two layers with their buffers; a layer's gradient
                "backward begins": whole_gradients + embedding + head + (layers if stay else 4 * layer) + layer,
                # the embedding's gradient, that being exchanged; still the head's
                "backward ends": whole_gradients + 2 * embedding + 2 * head,
                "update": 0,
            }
