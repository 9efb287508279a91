"""How many parameters a decoder and an adapter have, computed from their shapes; nothing is built."""

from __future__ import annotations

from dataclasses import dataclass

from lumos_pl.adapters.config import EMBEDDING, AdapterConfig, n_adapter_parameters, targeted
from lumos_pl.models.config import TransformerConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of each part; `layer` counts one of `n_layers`."""

    embedding: int
    layer: int
    n_layers: int
    norm: int
    head: int

    @property
    def body(self) -> int:
        return self.layer * self.n_layers

    @property
    def total(self) -> int:
        return self.embedding + self.body + self.norm + self.head


def parameter_counts(config: TransformerConfig) -> ParameterCounts:
    vectors = 2 * config.dim + 4 * config.qk_norm_rows * config.head_dim
    table = config.vocab_size * config.dim
    return ParameterCounts(table, layer_matrices(config) + vectors, config.n_layers, config.dim, table)


def matrix_shapes(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of each matrix of one layer, by its name in the layer."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return {
        "self_attn.q_proj": (queries, config.dim),
        "self_attn.k_proj": (keys, config.dim),
        "self_attn.v_proj": (keys, config.dim),
        "self_attn.o_proj": (config.dim, queries),
        "mlp.gate_proj": (config.ffn_dim, config.dim),
        "mlp.up_proj": (config.ffn_dim, config.dim),
        "mlp.down_proj": (config.dim, config.ffn_dim),
    }


def layer_matrices(config: TransformerConfig) -> int:
    """Elements of one layer's matrices: all its parameters except the norms."""
    return sum(n_out * n_in for n_out, n_in in matrix_shapes(config).values())


def adapter_count(config: TransformerConfig, adapter: AdapterConfig) -> int:
    """Parameters of an adapter in a decoder of this shape."""
    return n_adapter_parameters(adapter, every_matrix(config), config.visual_offset)


def every_matrix(config: TransformerConfig) -> dict[str, tuple[int, int]]:
    """Shapes of the layers' matrices and of the embedding, by the decoder's names."""
    of_layer = matrix_shapes(config).items()
    embedding = {f"{EMBEDDING}.weight": (config.vocab_size, config.dim)}
    return embedding | {f"{_layer(i)}{name}.weight": shape for i in range(config.n_layers) for name, shape in of_layer}


def _layer(number: int) -> str:
    return f"model.layers.{number}."


def adapted(config: TransformerConfig, adapter: AdapterConfig | None) -> list[frozenset[str]]:
    """For each layer, the matrices that have an adapter next to them."""
    names = [] if adapter is None else targeted(adapter, every_matrix(config))
    layers = [_layer(number) for number in range(config.n_layers)]
    return [frozenset(name.removeprefix(layer) for name in names if name.startswith(layer)) for layer in layers]
