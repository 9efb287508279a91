"""An adapter out of a file or a checkpoint: checked, joined with its base, and written in PEFT's layout.

    DIR/adapter_config.json          rank, scale and targets, as PEFT writes them
        adapter_model.safetensors    the matrices
        lumos.json                   ours: the base it belongs to, and a digest of the matrices

PEFT reads the first two alone. Nothing here goes through PEFT: a name in a file is a text, and imports nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from typing_extensions import TypedDict

from lumos_pl.adapters.config import EMBEDDING, HEAD, MAGNITUDE, NAME, ROWS, A, AdapterConfig, B, targeted
from lumos_pl.adapters.training import copy_adapter
from lumos_pl.checkpoints.description import adapter_tensors, check_tensors, decoder_tensors, said_by
from lumos_pl.checkpoints.digests import digest_of_file
from lumos_pl.checkpoints.huggingface import map_file
from lumos_pl.checkpoints.sharded import load_sharded_tensors
from lumos_pl.errors import CheckpointError, DataError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.json_file import Number, parse_json, read_json
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import LumosTransformer

CONFIG, WEIGHTS, OWN = "adapter_config.json", "adapter_model.safetensors", "lumos.json"
_PEFT = "base_model.model."  # before the names of the decoder's modules
_ROWS = f"token_adapter.{ROWS}"  # PEFT's name of what training has as f"{ROWS}.{NAME}.weight"
_IDS = "trainable_token_indices"
_MOST_JSON = 1 << 20
_MOST_DRAWN = 1 << 40  # nobody means a larger scale
_WITHOUT_EFFECT = {  # fields of PEFT's that say nothing of a trained adapter's function, or are looked at apart
    *("peft_type", "peft_version", "task_type", "inference_mode", "auto_mapping", "revision", "runtime_config"),
    *("base_model_name_or_path", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("ensure_weight_tying", "bias"),
    *("r", "lora_alpha", "use_dora", "lora_dropout", "init_lora_weights", "qalora_group_size"),
    *("loftq_config", "megatron_config", "megatron_core", "corda_config", "eva_config", "lora_ga_config"),
}
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _PeftNumbers(TypedDict):
    r: Annotated[int, Field(ge=1, le=1 << 16)]
    lora_alpha: Annotated[Number, Field(gt=0, le=_MOST_DRAWN)]


class Base(TypedDict):
    """What an adapter belongs to: the name that its training took it by, and the digest of its weights."""

    named: str | None
    weights: _Digest


class _Own(TypedDict):
    format: Literal[1]
    base: Base
    step: Annotated[int, Field(ge=0)]
    sha256: _Digest


@dataclass(frozen=True, kw_only=True)
class StoredAdapter:
    """
    Args:
        config: its kind, rank and scale, and the names of its matrices as targets.
        tensors: by the names of the parameters in training; of a sharded checkpoint only described.
        base: what it belongs to; None: it does not say.
        prefix: of the names in a sharded checkpoint.
        step: optimizer steps of its training.
    """

    config: AdapterConfig
    tensors: Mapping[str, Tensor]
    base: Base | None
    file: Path
    step: int = 0
    sharded: bool = False
    prefix: str = ""

    def copy_into(self, net: nn.Module) -> None:
        """Fill the adapter's parameters of a decoder in training, or of an average of them."""
        copy_adapter(net, self._read())

    def _read(self) -> Mapping[str, Tensor]:
        if not self.sharded:
            return self.tensors
        read = {name: torch.empty_like(tensor, device="cpu") for name, tensor in self.tensors.items()}
        load_sharded_tensors(read.items(), self.file, self.prefix)
        return read

    def digest(self) -> str:
        """The sha256 of its matrices, the same of a run's checkpoint and of the folder that was written with it."""
        return weights_sha256(self._read().items())

    def check_base(self, weights: str, named: object) -> None:
        """Raise CheckpointError unless weights of this digest are what the adapter belongs to.

        Args:
            named: where the weights are from, for the message.
        """
        _check_base(self.base, self.file, weights, named)

    @torch.no_grad()
    def merge_into(
        self, net: LumosTransformer, weight: float = 1.0, *, of_base: Mapping[str, Tensor] | None = None
    ) -> None:
        """Add it to a decoder's matrices, in fp32, in which they stay: rounded again they would lose part of it.

        What is added is the difference that it makes to its base, so that several come to the same in any order.

        Args:
            weight: how much of that difference.
            of_base: the decoder's parameters before other adapters were added; None: there were none.
        Raises:
            CheckpointError: a sum is not finite.
        """
        tensors = self._read()
        for name, ids in self.config.rows(net.config.visual_offset).items():
            merged, base = _to_add_to(net, name, of_base)
            merged[ids] += weight * (tensors[f"{name}.{ROWS}.{NAME}.weight"].float() - base[ids].float())
            self._check_sum(name, merged[ids], weight)
        for name in self.config.targets:
            merged, base = _to_add_to(net, name, of_base)
            a, b = (tensors[f"{name}.{part}.{NAME}.weight"].float() for part in (A, B))
            added = (b @ a) * self.config.scaling
            if self.config.kind == "dora":
                whole = base.float() + added
                lengths = torch.linalg.norm(whole, dim=1)
                scale = tensors[f"{name}.{MAGNITUDE}.{NAME}.weight"].float() / lengths
                added = whole * scale[:, None] - base.float()
            merged += added * weight
            self._check_sum(name, merged, weight)

    def _check_sum(self, name: str, merged: Tensor, weight: float) -> None:
        if not torch.isfinite(merged).all():
            what, got = "an adapter too large for its decoder", f"NaN or infinity, with weight {weight:g}"
            raise CheckpointError(what, file=self.file, where=name, got=got, fix="give it less weight, or leave it out")


def _to_add_to(net: LumosTransformer, name: str, of_base: Mapping[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """A matrix of the decoder, now a copy in fp32 that may be added to, and the same before any adapter was."""
    matrix = net.get_submodule(name)
    assert isinstance(matrix, nn.Embedding | nn.Linear)
    before = matrix.weight
    matrix.weight = nn.Parameter(before.detach().float().clone(), requires_grad=before.requires_grad)
    return matrix.weight, (before if of_base is None else of_base[f"{name}.weight"]).detach()


def weights_sha256(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Digest of weights in the order of their names, each whole even if sharded, in the precision that it has."""
    digest = hashlib.sha256()
    for name, weight in sorted(weights, key=lambda named: named[0]):
        whole = weight.full_tensor() if hasattr(weight, "full_tensor") else weight
        digest.update(name.encode())
        for part in _parts(whole.detach()):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts(weight: Tensor) -> list[Tensor]:
    """The plain tensors that one of few bits is made of, or it alone."""
    if not is_traceable_wrapper_subclass(weight):
        return [weight]
    parts = [getattr(weight, name) for name in weight.__tensor_flatten__()[0]]
    return [torch.cat([part.flatten()]) for part in parts]  # anew: a single number may have any stride


# -- PEFT's layout -------------------------------------------------------------------------------


def is_adapter_folder(path: Path) -> bool:
    return (path / CONFIG).is_file()


def write_adapter(
    folder: Path,
    config: AdapterConfig,
    tensors: Mapping[str, Tensor],
    *,
    visual_offset: int,
    base: Base,
    step: int,
    root: Path | None = None,
) -> None:
    """Write an adapter in PEFT's layout, each file whole or not at all, and what it belongs to last.

    Args:
        config: with the decoder's own names as targets, see `targeted`.
        tensors: by the names of the parameters in training.
        visual_offset: the id of the decoder's first code.
        root: the folder whose record notes the files, see `own_files.note`.
    """
    make_folder(folder)
    rows = {module.rpartition(".")[2]: ids for module, ids in config.rows(visual_offset).items()}
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base["named"],
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha.is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "use_dora": config.kind == "dora",
        "use_rslora": False,
        "target_modules": config.targets,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        _IDS: rows or None,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    named = {_PEFT + name.replace(f".{NAME}.", "."): tensor.cpu().contiguous() for name, tensor in tensors.items()}
    # PEFT keeps the vector under its module's name alone, and the rows in a module more
    named = {name.replace(f"{MAGNITUDE}.weight", MAGNITUDE): tensor for name, tensor in named.items()}
    data = save({name.replace(f"{ROWS}.weight", _ROWS): tensor for name, tensor in named.items()}, {"format": "pt"})
    own: _Own = {"format": 1, "base": base, "step": step, "sha256": hashlib.sha256(data).hexdigest()}
    write_atomically(folder / CONFIG, json.dumps(content, indent=1) + "\n", root=root)
    write_atomically(folder / WEIGHTS, data, root=root)
    write_atomically(folder / OWN, json.dumps(own, indent=1) + "\n", root=root)


def _check_base(base: Base | None, file: Path, weights: str, named: object) -> None:
    if base is None:
        logging.getLogger(__name__).warning("%s does not say to which base it belongs", file)
    elif base["weights"] != weights:
        raise CheckpointError(
            "the adapter belongs to another base",
            file=file,
            where="base",
            got=f"{named}, weights {weights[:12]}",
            expected=f"{base['named'] or 'a base'}, weights {base['weights'][:12]}",
            fix="give the base that it was trained on",
        )


def read_adapter(folder: Path, model: TransformerConfig, base: tuple[str, object] | None = None) -> StoredAdapter:
    """An adapter in PEFT's layout, whoever wrote it, for a decoder of this shape.

    Args:
        base: the digest of the decoder's weights, and where they are from: another's is told before its shapes are.
    Raises:
        CheckpointError: it is damaged or hostile, asks for what is not done here, or is for another decoder.
    """
    file = folder / WEIGHTS
    content = read_json(folder / CONFIG, dict[str, Any], at_most=_MOST_JSON, error=CheckpointError)
    config = _read_config(content, folder / CONFIG, model.visual_offset)
    own: _Own | None = None
    if (folder / OWN).exists():
        own = read_json(folder / OWN, _Own, at_most=_MOST_JSON, error=CheckpointError)
        if base is not None:
            _check_base(own["base"], folder, *base)
    if not file.exists():
        raise CheckpointError("no weights in the adapter's folder", file=folder, expected=WEIGHTS)
    if own is not None and (got := digest_of_file(file)) != own["sha256"]:
        fix = "copy the folder again, all of it"
        raise CheckpointError("the adapter is damaged", file=file, got=got[:12], expected=own["sha256"][:12], fix=fix)
    tensors = {_own_name(name): tensor for name, tensor in map_file(file).items()}
    decoder = decoder_tensors(model)
    every = targeted(replace(config, targets=["*"]), decoder)
    beside = {name.removesuffix(f".{NAME}.weight").rpartition(".")[0] for name in tensors}
    names = [name for name in every if name in beside]
    if not names:
        what, expected = "no matrix of this decoder in the adapter", f"{_PEFT}{every[0]}.{A}.weight"
        raise CheckpointError(what, file=file, got=min(tensors, default="nothing")[:100], expected=expected)
    config = replace(config, targets=names)
    check_tensors(adapter_tensors(config, model, file), tensors, file)
    return StoredAdapter(
        config=config,
        tensors=tensors,
        base=None if own is None else own["base"],
        file=folder,
        step=0 if own is None else own["step"],
    )


def _own_name(name: str) -> str:
    """A tensor of PEFT's by the name of the parameter in training."""
    name = name.removeprefix(_PEFT)
    if (module := name.removesuffix(f".{_ROWS}")) in (EMBEDDING, HEAD):
        return f"{module}.{ROWS}.{NAME}.weight"
    if name.endswith(f".{MAGNITUDE}"):
        return f"{name}.{NAME}.weight"
    for part in (A, B, MAGNITUDE):
        if name.endswith(f".{part}.weight"):
            return f"{name.removesuffix('.weight')}.{NAME}.weight"
    return name


def _read_config(content: Mapping[str, Any], file: Path, visual_offset: int) -> AdapterConfig:
    """What decides an adapter's function; every other field of PEFT's has to be off, since it is not done here."""
    if content.get("peft_type") != "LORA":
        got = ascii(content.get("peft_type"))[:60]
        raise CheckpointError("another kind of adapter", file=file, where="peft_type", got=got, expected="LORA")
    numbers = _read_numbers(content, file)
    for name, value in content.items():
        if name not in {"use_rslora", _IDS, *_WITHOUT_EFFECT} and value not in (
            None,
            False,
            {},
            [],
            "",
        ):
            raise CheckpointError(
                "not for this decoder", file=file, where=name[:60], got=ascii(value)[:60], expected="off"
            )
    if content.get("init_lora_weights", True) not in (True, False, "gaussian", "eva", "orthogonal"):
        got = ascii(content["init_lora_weights"])[:60]
        what, where = "an adapter of a base that was changed for it", "init_lora_weights"
        raise CheckpointError(what, file=file, where=where, got=got, expected="true")
    if content.get("bias", "none") != "none":
        raise CheckpointError("the decoder has no biases", file=file, where="bias", got=ascii(content["bias"])[:60])
    is_dora, by_root = (content.get(name, False) for name in ("use_dora", "use_rslora"))
    for name, value in ("use_dora", is_dora), ("use_rslora", by_root):
        if type(value) is not bool:
            got, expected = ascii(value)[:60], "true or false"
            raise CheckpointError("wrong field", file=file, where=name, got=got, expected=expected)
    words, codes = _read_rows(content, file, visual_offset)
    with said_by(file):
        return AdapterConfig(
            kind="dora" if is_dora else "lora",
            rank=numbers["r"],
            alpha=numbers["lora_alpha"] * (math.sqrt(numbers["r"]) if by_root else 1.0),
            words=words,
            codes=codes,
        )


def _read_rows(content: Mapping[str, Any], file: Path, visual_offset: int) -> tuple[list[int], list[int]]:
    """The words and codes whose rows are the adapter's, as PEFT says them: ids of the embedding, or by module."""
    embedding, said = EMBEDDING.rpartition(".")[2], content.get(_IDS)
    by_module = said if isinstance(said, dict) else {embedding: [] if said is None else said}
    lists = [by_module.get(module, []) for module in (embedding, HEAD)]
    is_known = by_module.keys() <= {embedding, HEAD} and all(isinstance(ids, list) for ids in lists)
    if not is_known or not all(type(row) is int and row >= 0 for ids in lists for row in ids):
        expected = f"ids of rows of {embedding}, and of {HEAD}"
        raise CheckpointError("wrong field", file=file, where=_IDS, got=ascii(said)[:60], expected=expected)
    rows, of_head = lists
    words = [row for row in rows if row < visual_offset]
    if rows != [*words, *of_head]:
        expected = f"words, then codes (from {visual_offset} on), which {HEAD} has too"
        raise CheckpointError("rows in another order", file=file, where=_IDS, got=ascii(said)[:60], expected=expected)
    return words, [row - visual_offset for row in of_head]


def _read_numbers(content: Mapping[str, Any], file: Path) -> _PeftNumbers:
    """The two numbers of an adapter, each of its type and range."""
    known = {name: content[name] for name in _PeftNumbers.__annotations__ if name in content}
    try:
        return parse_json(json.dumps(known).encode(), _PeftNumbers)
    except DataError as error:
        raise CheckpointError(**error.parts | {"file": file}) from None
