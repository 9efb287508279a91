"""Memory of a training step by arithmetic: what is held at its four peaks.

   loss              all activations, the last chunk of logits; gradients still those of the step before
   backward begins   all activations, the head's gradient
   backward ends     one layer's activations, all gradients
   update            all gradients, the optimizer's temporaries

Every term says which tensor it stands for. What one layer keeps is checked against the tensors that autograd
saves (tests/models/test_memory_plan.py), and the sums on a CPU against the resident memory of a run
(tests/experiments/test_plan.py). Nothing has been measured on CUDA: fused norms, autocast's fp32 norms and
FSDP2's buffers follow torch's code.
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
MOMENTS_IN_BLOCK = 256  # of `adamw_8bit`: moments that share one scale
FULL = 4  # bytes of an fp32 number: weights, gradients, optimizer, residual stream
HALF = 2  # bytes of a bf16 number
PACKED = {"int8": 1, "nf4": 0.5 + 1 / 64}  # bytes of a number by `adapter.frozen`, its block's scale included
STATES = "weights", "gradients", "optimizer", "EMA"  # `cpu_offload` keeps these in host memory


@dataclass(frozen=True, kw_only=True)
class StepSettings:
    """Everything that decides a step's memory besides the decoder's shape and the batch.

    Args:
        mixed: bf16 autocast over fp32 weights; otherwise fp32 throughout.
        placement: what is recomputed, and how fsdp2 shards and gathers.
        strategy: `single`, `ddp` or `fsdp2`.
        cpu_offload: keep in host memory what outlasts a step (fsdp2).
        accumulate: batches per step.
        chunk_size: rows of logits held at a time.
        cuda: a GPU's kernels; a CPU's keep a little more in the norms, and more in the optimizer.
        adapter: the only part that is trained; None: the whole decoder is.
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
        """Bytes of a number in matrix products."""
        return HALF if self.mixed else FULL

    @property
    def shards(self) -> int:
        return self.placement.shard_size if self.strategy == "fsdp2" else 1

    @property
    def reduces_once(self) -> bool:
        """Whether fsdp2 holds unsharded gradients between the batches of a step."""
        return self.strategy == "fsdp2" and self.placement.reduce_once and self.accumulate > 1


def trained_count(config: TransformerConfig, settings: StepSettings) -> int:
    """Number of parameters that have a gradient and optimizer state."""
    adapter = settings.adapter
    return parameter_counts(config).total if adapter is None else adapter_count(config, adapter)


def weight_bytes(config: TransformerConfig, settings: StepSettings) -> int:
    """Bytes of all parameters: fp32, but a frozen decoder's matrices as autocast or `adapter.frozen` holds them."""
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
    """Bytes per token that one layer keeps for its backward pass, with fused attention and no recomputation.

    Args:
        adapter: what is trained instead of the layer itself, next to the layer's matrices named in `beside`.
    """
    compute = HALF if mixed else FULL
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    norm_inputs = 2 * config.dim * FULL
    if not cuda and adapter is None:
        norm_inputs += 2 * config.dim * FULL  # an unfused RMSNorm also keeps the normalized input, for its gradient
    head_norm_inputs = (queries + keys) * (FULL if cuda else compute)  # autocast on CUDA runs norms in fp32
    attention = (2 * queries + 2 * keys) * compute  # q, the calls' outputs; k, v
    mlp = 3 * config.ffn_dim * compute  # gate, silu(gate), up
    # rstd of both norms; mean and rstd of the head norms; logsumexp of attention
    statistics = FULL * (2 + 2 * (config.n_heads + config.n_kv_heads) + config.n_heads)
    products = _kept_for_products(config, compute, cuda, adapter, beside)
    return norm_inputs + head_norm_inputs + attention + mlp + statistics + products


def _kept_for_products(
    config: TransformerConfig, compute: int, cuda: bool, adapter: AdapterConfig | None, beside: frozenset[str]
) -> int:
    """Bytes per token kept for the gradients of matrices: their inputs; with an adapter, what its own factors need."""
    shapes = matrix_shapes(config)
    alike = [("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",)]  # one input each
    kept = 0
    for names in alike:
        these = [shape for name, shape in shapes.items() if name.rpartition(".")[2] in names]
        trained = [shapes[name] for name in beside if name.rpartition(".")[2] in names]
        n_in = these[0][1]
        if adapter is None or (trained and not adapter.dropout):
            kept += n_in * compute
        elif adapter.dropout:  # each has its own input, and the dropout drawn for it
            kept += len(trained) * n_in * (compute + (1 if cuda else compute))
        if adapter is not None and (adapter.kind == "dora" or adapter.dropout):  # PEFT's layer, not ours
            kept += len(trained) * adapter.rank * compute
            if adapter.kind == "dora":  # the norms scale two products: the matrix's and the adapter's
                kept += sum(2 * n_out * compute for n_out, _ in trained)
    return kept


def kept_layer_bytes(config: TransformerConfig, settings: StepSettings, beside: frozenset[str] = frozenset()) -> int:
    """Bytes per token that one layer keeps until its turn in the backward pass, as `placement.recompute` says.

    Args:
        beside: the layer's matrices that have an adapter next to them.
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
        attention += keys if "self_attn.v_proj" in beside else 0  # v is then a sum, not a stored product
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
    """Bytes at the fullest moment."""
    return max(sum(components.values()) for components in memory.values())


def host_memory(config: TransformerConfig, settings: StepSettings) -> dict[str, int]:
    """Bytes of host memory per GPU, by component: what `cpu_offload` keeps there, and the copy being saved."""
    if not (settings.strategy == "fsdp2" and settings.cuda):
        return {}
    update = _step_memory(config, settings, n_tokens=0, n_targets=0)["update"]
    states = {component: update[component] for component in STATES if update[component]}
    saved = sum(states.values()) - states["gradients"]
    return (states if settings.cpu_offload else {}) | {"copy being saved": saved}


def saved_bytes(config: TransformerConfig, settings: StepSettings) -> int:
    """Bytes of a checkpoint, over all processes: weights, optimizer state, and the weights' running average."""
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
    gradients = 0 if settings.reduces_once else trained  # then unsharded until the update, see `_communication`
    beside = adapted(config, settings.adapter)
    layer = max(_activation_bytes(config, settings, names) for names in set(beside)) * n_tokens
    kept_layers = [kept_layer_bytes(config, settings, names) * n_tokens for names in beside]
    kept = sum(kept_layers) + _outside_layers(config, settings) * n_tokens
    # Autocast's copies of one layer; fsdp2 gathers bf16 instead.
    copied = settings.mixed and settings.strategy != "fsdp2" and not frozen
    copy = HALF * layer_matrices(config) if copied else 0
    copies = copy * config.n_layers
    # The MLP's product and its two factors, and the residual stream as it passes through the norm.
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
            "activations": kept - kept_layers[-1] + layer,  # the last layer is recomputed
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
            # AdamW on a CPU computes a root and a quotient of the largest parameter; on a GPU it is fused.
            "in flight": 0 if settings.cuda else 2 * (trained if frozen else head_gradient),
            "communication": between["update"],
        },
    }


def _of_lengths(config: TransformerConfig, settings: StepSettings) -> int:
    """Temporaries of DoRA's row norms for its widest matrix: an identity, the adapter's product, the sum."""
    if settings.adapter is None or settings.adapter.kind != "dora":
        return 0
    names = frozenset[str]().union(*adapted(config, settings.adapter))
    return max(
        FULL * (n_in * n_in + 3 * n_out * n_in) for n_out, n_in in (matrix_shapes(config)[name] for name in names)
    )


def _made_dense(config: TransformerConfig, settings: StepSettings) -> int:
    """The widest quantized matrix, dequantized while it is multiplied."""
    if settings.adapter is None or settings.adapter.frozen == "as_is":
        return 0
    return settings.compute * max(math.prod(shape) for shape in matrix_shapes(config).values())


def _of_codes(config: TransformerConfig, settings: StepSettings) -> int:
    """What trained rows of codes cost in the loss: the codes' part of the head with these rows, and its gradient."""
    if settings.adapter is None or not settings.adapter.codes:
        return 0
    return (settings.compute + FULL) * (config.vocab_size - config.visual_offset) * config.dim


def _optimizer_state(config: TransformerConfig, settings: StepSettings) -> int:
    """AdamW: two moments of everything. Muon: one moment of the layers' matrices, AdamW for the rest.

    With 8 bits a matrix's moments take a byte each, and 4 bytes per block; an adapter's are mostly too small for it.
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
    """Bytes per token: the last norm's input, the rotary angles, ids and positions."""
    norm = config.dim * FULL * (1 if settings.cuda else 2)
    return norm + 2 * config.head_dim * FULL + 8 * 8


def _logits_chunk(config: TransformerConfig, settings: StepSettings, n_targets: int) -> int:
    """What the loss holds over the codebook: one chunk of logits, and in bf16 copies of the chunk and of the matrix."""
    n_codes = config.vocab_size - config.visual_offset
    chunk = min(settings.chunk_size, n_targets) * n_codes
    return (FULL + HALF) * chunk + HALF * n_codes * config.dim if settings.mixed else FULL * chunk


def _communication(config: TransformerConfig, settings: StepSettings) -> dict[Moment, int]:
    """Buffers for exchanging gradients (DDP), and for gathered weights and gradients (FSDP2).

    DDP's buffers are the gradients' own memory, so they count only while these are cleared, all but the head's.

    FSDP2 gathers layers and embedding in the precision of the products, the head in fp32. Gradients come in the same
    precision and are exchanged in fp32. The embedding and the head, each the root of its group, stay gathered from
    their first use to their gradient. Of the layers one is in use while the next is gathered, or all stay gathered.
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
                # the head, and the buffer it was gathered in; a layer being gathered
                "loss": whole_gradients + embedding + 2 * head + (layers if stay else layer),
                # the head's gradient being exchanged; two layers with their buffers; a layer's gradient
                "backward begins": whole_gradients + embedding + head + (layers if stay else 4 * layer) + layer,
                # the embedding's gradient, that being exchanged; still the head's
                "backward ends": whole_gradients + 2 * embedding + 2 * head,
                "update": 0,
            }
