"""A decoder with an adapter in training: PEFT's layers around its matrices, and all else frozen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lumos_pl.adapters.config import MAGNITUDE, NAME, OF_ADAPTERS, ROWS, A, AdapterConfig, targeted
from lumos_pl.errors import ConfigError
from lumos_pl.models.transformer import Layer, LumosTransformer, VisualHead, copy_weight
from lumos_pl.seeding import generator

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
    peft.inject_adapter_in_model(settings, net, NAME)
    if config.words:
        net.model.add_module("embed_tokens", WordRows(net.model.embed_tokens, config.words))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(is_of_adapter(name))
    if frozen_dtype is not None:
        for name, module in net.named_modules():
            if isinstance(module, nn.Linear | VisualHead) and not is_of_adapter(name):
                module.weight.data = module.weight.data.to(frozen_dtype)
    for module in net.modules():
        if isinstance(module, Layer):
            module.draws = config.dropout > 0
        if isinstance(module, peft.tuners.lora.LoraLayer):  # autocast casts, and would to and fro for each matrix
            module.cast_input_dtype_enabled = False
    net.adapter = config
    net.register_state_dict_post_hook(_keep_trained)  # type: ignore[no-untyped-call]


class WordRows(nn.Module):
    """An embedding with rows of its own for some ids: what PEFT's `trainable_token_indices` computes.

    PEFT's layer copies all of the embedding in each pass, and makes a gradient of that size.
    """

    def __init__(self, base_layer: nn.Embedding, words: Sequence[int]) -> None:
        super().__init__()
        self.base_layer, self.words = base_layer, tuple(words)
        rows = nn.Module()
        rows.weight = nn.Parameter(torch.empty(len(words), base_layer.embedding_dim))
        self.add_module(ROWS, nn.ModuleDict({NAME: rows}))

    def forward(self, tokens: Tensor) -> Tensor:
        """[S] ids -> [S, D]."""
        rows = self.get_parameter(f"{ROWS}.{NAME}.weight")
        is_word = tokens[:, None] == torch.tensor(self.words, device=tokens.device)
        own = rows.index_select(0, is_word.int().argmax(1))
        given: Tensor = self.base_layer(tokens)
        return torch.where(is_word.any(1, keepdim=True), own.to(given.dtype), given)


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

    The decoder's own weights have to be there already: rows of words are copies of theirs. Every rank comes to the same
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
            copy_weight(parameter, _whole(frozen[f"{matrix}.weight"])[net.adapter.words])
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
