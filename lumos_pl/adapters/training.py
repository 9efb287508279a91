"""A decoder with an adapter in training: PEFT's layers around its matrices, and all else frozen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lumos_pl.adapters.config import EMBEDDING, HEAD, MAGNITUDE, NAME, OF_ADAPTERS, ROWS, A, AdapterConfig, targeted
from lumos_pl.errors import ConfigError
from lumos_pl.models.transformer import Layer, LumosTransformer, Result, VisualHead, copy_weight
from lumos_pl.seeding import generator

NF4_BLOCK, NF4_BLOCKS_OF_A_SCALE = 64, 256  # as in QLoRA, arXiv:2305.14314
BASE = ".base_layer"  # in the name of a matrix that stands inside a PEFT layer


def adapt(net: LumosTransformer, config: AdapterConfig, *, frozen_dtype: torch.dtype | None = None) -> None:
    """Put PEFT's layers around a decoder's matrices, in place, and freeze everything else.

    On the meta device too; the numbers come by `init_adapter`, or from a checkpoint. What the decoder saves from then
    on is the adapter alone.

    Args:
        frozen_dtype: what frozen matrices are kept in, e.g. the bf16 that autocast would make of them in every pass;
            None: as they are. The embedding and the norms stay as they are.
    Raises:
        ConfigError: PEFT is not installed, or a pattern matches nothing.
    """
    names = targeted(config, dict(net.named_parameters()))
    peft = _peft()
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_dora=config.kind == "dora",
        target_modules=names,
    )
    if config.kind == "lora" and not config.dropout:
        from lumos_pl.adapters.fused_lora import FusedLora

        settings._register_custom_module({nn.Linear: FusedLora})
    peft.inject_adapter_in_model(settings, net, NAME)
    rows = config.rows(net.config.visual_offset)
    if EMBEDDING in rows:
        net.model.add_module("embed_tokens", EmbeddingRows(net.model.embed_tokens, rows[EMBEDDING]))
    if HEAD in rows:
        net.add_module("lm_head", HeadRows(net.lm_head, rows[HEAD]))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_of_adapter(name))
    if frozen_dtype is not None:
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear) and not is_of_adapter(name):
                module.weight.data = module.weight.data.to(frozen_dtype)
    for module in net.modules():
        if isinstance(module, Layer):
            module.draws = config.dropout > 0
        if isinstance(module, peft.tuners.lora.LoraLayer):  # autocast casts, and would to and fro for each matrix
            module.cast_input_dtype_enabled = False
    net.adapter = config
    net.register_state_dict_post_hook(_keep_trained)  # type: ignore[no-untyped-call]


class _Rows(nn.Module):
    """A matrix of a row for each id, with rows of its own for some: what PEFT's `trainable_token_indices` computes."""

    def __init__(self, base_layer: nn.Module, ids: Sequence[int]) -> None:
        super().__init__()
        self.base_layer, self.ids = base_layer, tuple(ids)
        rows = nn.Module()
        rows.weight = nn.Parameter(torch.empty(len(ids), self.weight.shape[1]))
        self.add_module(ROWS, nn.ModuleDict({NAME: rows}))

    @property
    def weight(self) -> Tensor:
        """The matrix without them."""
        return self.base_layer.get_parameter("weight")

    @property
    def rows(self) -> nn.Parameter:
        return self.get_parameter(f"{ROWS}.{NAME}.weight")


class EmbeddingRows(_Rows):
    """PEFT's layer copies all of the embedding in each pass, and makes a gradient of that size; this one does not."""

    def forward(self, tokens: Tensor) -> Tensor:
        """[S] ids -> [S, D]."""
        is_own = tokens[:, None] == torch.tensor(self.ids, device=tokens.device)
        own = self.rows.index_select(0, is_own.int().argmax(1))
        given: Tensor = self.base_layer(tokens)
        return torch.where(is_own.any(1, keepdim=True), own.to(given.dtype), given)


class HeadRows(_Rows):
    """Copies the codes' part of the matrix in each pass, and has a gradient of that size; PEFT's, of all of it."""

    def forward(self, states: Tensor, objective: Callable[[Tensor, Tensor, int], Result]) -> Result:
        """As `VisualHead`."""
        assert isinstance(self.base_layer, VisualHead)
        offset = self.base_layer.visual_offset
        codes = torch.tensor(self.ids, device=states.device) - offset
        visual = self.weight[offset:]
        return objective(states, visual.index_copy(0, codes, self.rows.to(visual.dtype)), 0)


@torch.no_grad()
def pack_frozen(net: nn.Module, config: AdapterConfig) -> None:
    """Keep the matrices that an adapter is beside in few bits, if it asks for that; once their numbers are there.

    Raises:
        ConfigError: torchao is not installed.
    """
    if config.frozen == "as_is":
        return
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_, to_nf4
    except ImportError as error:
        fix = "pip install 'lumos_pl[low-bit]'"
        raise ConfigError(
            "matrices of few bits are torchao's", where="adapter.frozen", got=str(error), fix=fix
        ) from None
    for name, module in net.named_modules():
        if not (name.endswith(f"_proj{BASE}") and isinstance(module, nn.Linear)):
            continue
        if config.frozen == "int8":
            quantize_(module, Int8WeightOnlyConfig(set_inductor_config=False))
        else:
            blocks = module.weight.numel() // NF4_BLOCK
            packed = to_nf4(module.weight.detach(), NF4_BLOCK, math.gcd(blocks, NF4_BLOCKS_OF_A_SCALE))
            module.weight = nn.Parameter(packed, requires_grad=False)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        fix = "pip install 'lumos_pl[finetune]'"
        raise ConfigError("adapters are trained by PEFT", where="adapter.kind", got=str(error), fix=fix) from None
    return peft


def _keep_trained(net: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    """Leave the frozen weights out of what is saved: they are the base's, which is named instead."""
    for name in [name for name in state if name.startswith(prefix) and not is_of_adapter(name)]:
        del state[name]


def is_of_adapter(name: str) -> bool:
    """Whether a parameter, or module, of this name is an adapter's."""
    return not OF_ADAPTERS.isdisjoint(name.split("."))


def decoder_parameters(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of the decoder itself by the names they have without an adapter, whether it has one or not."""
    for name, parameter in net.named_parameters():
        if not is_of_adapter(name):
            yield name.replace(BASE, "", 1), parameter


def adapter_parameters(net: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those of its adapter."""
    return ((name, parameter) for name, parameter in net.named_parameters() if is_of_adapter(name))


@torch.no_grad()
def init_adapter(net: LumosTransformer, seed: int) -> None:
    """Draw A from (seed, its name), as nn.Linear would; B is zero and the rows are as long as they are: no change yet.

    The decoder's own weights have to be there already: rows are copies of theirs. Every rank comes to the same
    numbers.
    """
    frozen = dict(decoder_parameters(net))
    for name, parameter in adapter_parameters(net):
        matrix, _, of_it = name.removesuffix(f".{NAME}.weight").rpartition(".")
        if of_it == A:
            bound = 1 / math.sqrt(parameter.shape[1])
            drawn = torch.rand(parameter.shape, generator=generator(seed, "adapter", name))
            copy_weight(parameter, (2 * drawn - 1) * bound)
        elif of_it == ROWS:
            assert net.adapter is not None
            ids = net.adapter.rows(net.config.visual_offset)[matrix]
            copy_weight(parameter, _whole(frozen[f"{matrix}.weight"])[ids])
        elif of_it == MAGNITUDE:
            copy_weight(parameter, _row_norms(frozen[f"{matrix}.weight"]))
        else:
            parameter.zero_()


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.norm(_whole(weight), dim=1)  # as PEFT has it: divided by its own, exactly one
    return norms


def _whole(weight: Tensor) -> Tensor:
    """All of a weight that may be sharded: then all ranks call this alike."""
    whole: Tensor = weight.full_tensor() if hasattr(weight, "full_tensor") else weight.detach()
    return whole


@torch.no_grad()
def copy_adapter(net: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Fill what `adapter_parameters` gives of a module, whole or sharded."""
    for name, parameter in adapter_parameters(net):
        copy_weight(parameter, tensors[name])


def whole_adapter(net: nn.Module) -> dict[str, Tensor]:
    """The numbers of `adapter_parameters`, each whole even if sharded: then all ranks call this alike."""
    return {name: _whole(parameter) for name, parameter in adapter_parameters(net)}


class AdapterAverage(nn.Module):
    """A moving average of an adapter: its parameters alone, under the names that they have in the decoder."""

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> None:
        super().__init__()
        for name, parameter in parameters:
            *path, last = name.split(".")
            place: nn.Module = self
            for part in path:
                if part not in place._modules:
                    place.add_module(part, nn.Module())
                place = place.get_submodule(part)
            place.register_parameter(last, nn.Parameter(parameter.detach().clone(), requires_grad=False))
