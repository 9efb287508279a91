"""What an adapter is: small matrices beside a decoder's frozen ones. Settings, names and shapes; nothing is built here.

    lora    y = (W + scaling * B A) x, scaling = alpha / rank; A [rank, in] is drawn, B [out, rank] zero at first
    dora    the same, and each row of the sum brought to a length of its own, m [out]: at first that of W's
    rows    of the embedding for words, of embedding and head for codes, [n, D], in the place of the decoder's own: at
            first the same

Sources: LoRA, arXiv:2106.09685; DoRA, arXiv:2402.09353.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any, Literal

from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.settings.ranges import Range, above, between, check_ranges

MATRICES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NAME = "default"  # of the adapter in training among those that a PEFT layer can hold
A, B, MAGNITUDE = "lora_A", "lora_B", "lora_magnitude_vector"
ROWS, EMBEDDING, HEAD = "trainable_tokens_delta", "model.embed_tokens", "lm_head"
OF_ADAPTERS = frozenset((A, B, MAGNITUDE, ROWS))  # parts of the names of all its parameters, and of no other's


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What is trained instead of the decoder, which stays as `init_from` has it. Needs the extra `finetune`.

    Args:
        kind: `none`: the whole decoder is trained. `lora`: low-rank matrices beside those of the layers. `dora`: the
            same, and the length of each of their rows apart.
        rank: of the product that is added to a matrix.
        alpha: the product is scaled by alpha / rank.
        dropout: share of a matrix's inputs that its low-rank product does not see, drawn anew in each batch.
        targets: patterns of the matrices' names: the last part alone, as `q_proj`, or all of it, as `*.layers.3.mlp.*`.
        words: text ids whose rows of the embedding are trained too: of words that the decoder never met.
        codes: numbers of codes whose rows of the embedding and of the head are trained too: of those that the decoder
            never met, and so never gives.
        frozen: what the matrices that it is beside are kept in while it is trained: `as_is`, which is bf16 in
            `bf16-mixed`; or by torchao (extra `low-bit`) `int8`, or `nf4` of 4 bits; those on one device, without
            dropout and for `lora` alone.
    """

    kind: Literal["none", "lora", "dora"] = "none"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=lambda: list(MATRICES))
    words: list[int] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    frozen: Literal["as_is", "int8", "nf4"] = "as_is"

    def __post_init__(self) -> None:
        dropout = Range(low=0, high=1, without=(1,), words="0 or more and below 1")
        check_ranges("adapter", self, rank=between(1, 1 << 16), alpha=above(0), dropout=dropout)
        if self.is_on and not self.targets:
            raise ConfigError("nothing to train", where="adapter.targets", got="no pattern", expected="at least one")
        if self.frozen != "as_is" and (self.kind != "lora" or self.dropout):
            got = f"{self.frozen} with kind {self.kind}, dropout {self.dropout}"
            raise ConfigError("matrices of few bits", where="adapter.frozen", got=got, expected="lora without dropout")
        for name, ids, of_these in ("words", self.words, "the text vocabulary"), ("codes", self.codes, "the codebook"):
            if len(set(ids)) != len(ids) or min(ids, default=0) < 0:
                got, expected = str(ids)[:100], f"ids of {of_these}, each once"
                raise ConfigError(f"no list of {name}", where=f"adapter.{name}", got=got, expected=expected)

    def idle(self) -> dict[str, str]:
        """See settings/idle.py."""
        return {} if self.is_on else {item.name: "kind" for item in fields(self) if item.name != "kind"}

    @property
    def is_on(self) -> bool:
        return self.kind != "none"

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def rows(self, visual_offset: int) -> dict[str, list[int]]:
        """The ids of the vocabulary whose rows are trained, by the module that has them; {} of none.

        Args:
            visual_offset: the id of the first code.
        """
        codes = [visual_offset + code for code in self.codes]
        of_module = {EMBEDDING: [*self.words, *codes], HEAD: codes}
        return {module: ids for module, ids in of_module.items() if ids}


def targeted(config: AdapterConfig, decoder: Mapping[str, Any]) -> list[str]:
    """The names of the matrices that an adapter is beside, as `model.layers.0.mlp.up_proj`, in the decoder's order.

    Args:
        decoder: its parameters, or anything else by their names.
    Raises:
        ConfigError: a pattern that no matrix of a layer is called by.
    """
    modules = [name.removesuffix(".weight") for name in decoder if name.rpartition(".")[0].endswith("_proj")]
    for place, pattern in enumerate(config.targets):
        if not any(_matches(name, pattern) for name in modules):
            raise ConfigError(
                "no matrix of this name in the decoder",
                where=f"adapter.targets[{place}]",
                got=repr(pattern)[:100],
                expected=f"one of {', '.join(MATRICES)}, or a pattern of whole names as *.layers.0.*",
                fix=did_you_mean(pattern, MATRICES),
            )
    return [name for name in modules if any(_matches(name, pattern) for pattern in config.targets)]


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name, pattern) or fnmatchcase(name.rpartition(".")[2], pattern)


def adapter_shapes(
    config: AdapterConfig, decoder: Mapping[str, Sequence[int]], visual_offset: int
) -> dict[str, tuple[int, ...]]:
    """The shapes of an adapter's parameters, by the names that they have in a decoder in training.

    Args:
        decoder: the shapes of the decoder's parameters by their names.
        visual_offset: the id of its first code.
    Raises:
        ConfigError: a pattern that no matrix is called by, or an id that the decoder does not have.
    """
    n_ids, dim = decoder[f"{EMBEDDING}.weight"]
    for name, ids, n_known in ("words", config.words, n_ids), ("codes", config.codes, n_ids - visual_offset):
        if max(ids, default=0) >= n_known:
            where, got, expected = f"adapter.{name}", str(ids)[:100], f"below {n_known}"
            raise ConfigError("no such id in the decoder", where=where, got=got, expected=expected)
    of_rows: dict[str, tuple[int, ...]] = {
        f"{module}.{ROWS}.{NAME}.weight": (len(ids), dim) for module, ids in config.rows(visual_offset).items()
    }
    shapes = {name: shape for name, shape in of_rows.items() if name.startswith(EMBEDDING)}
    for name in targeted(config, decoder):
        n_out, n_in = decoder[f"{name}.weight"]
        shapes[f"{name}.{A}.{NAME}.weight"] = (config.rank, n_in)
        shapes[f"{name}.{B}.{NAME}.weight"] = (n_out, config.rank)
        if config.kind == "dora":
            shapes[f"{name}.{MAGNITUDE}.{NAME}.weight"] = (n_out,)
    return shapes | of_rows


def n_adapter_parameters(config: AdapterConfig, decoder: Mapping[str, Sequence[int]], visual_offset: int) -> int:
    return sum(math.prod(shape) for shape in adapter_shapes(config, decoder, visual_offset).values())
