"""The released checkpoints: safetensors files and config.json in the Hugging Face format.

    DIR/config.json
    DIR/model.safetensors                              one file, or
    DIR/model.safetensors.index.json + the shards      several

Parameter names are our own. What the release has no word for stands under "lumos" in config.json: another
vocabulary and the ablations' rotations, with a model_type that other readers do not know; and the configuration of
the run that the weights come from, with the fingerprint of its visual tokenizer. Nothing in these files is trusted.
"""

from __future__ import annotations

import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lumos_pl.checkpoints.description import VISUAL_TOKENIZER, described, described_text, said_by
from lumos_pl.checkpoints.plain_content import check_plain
from lumos_pl.checkpoints.records import in_short
from lumos_pl.errors import CheckpointError
from lumos_pl.layout import LayoutConfig, TokenLayout
from lumos_pl.machinery.json_file import read_json
from lumos_pl.machinery.regular_file import open_regular
from lumos_pl.models.config import TransformerConfig
from lumos_pl.models.transformer import INIT_STD
from lumos_pl.settings.plain import read_value

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OWN = "lumos"  # key of what the release has no word for

_MOST_JSON = 64 << 20  # bytes; a whole vocabulary is a few of them
_NAMES = {  # our fields in config.json
    "dim": "hidden_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn_dim": "intermediate_size",
    "qk_norm_rows": "model_parallel_size",
    "norm_eps": "rms_norm_eps",
    "rope_theta": "rope_theta",
    "max_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
    "rope": "mm_rope",
}
_IGNORED = {  # tensors beside the decoder's, by their names, and what they are
    r"model\.vqmodel\..+": "Chameleon's image tokenizer, whose codes Lumos-1 does not use",
    r".+\.rotary_emb\.inv_freq": "frequencies that follow from rope_theta",
}
_FIXED: dict[str, object] = {  # what every Lumos-1 decoder is; another value is another architecture
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "swin_norm": False,
    "tie_word_embeddings": False,
}


def is_released(path: Path) -> bool:
    return (path / CONFIG).exists()


def read_layout(folder: Path) -> LayoutConfig:
    """The vocabulary of a released checkpoint; that of the release unless config.json says otherwise."""
    content = _read_json(folder / CONFIG)
    own = _part(_part(content, OWN, folder), "layout", folder)
    if own:
        return described(LayoutConfig, own, file=folder / CONFIG)
    released = LayoutConfig()
    codes, offset = content.get("vocab_size"), released.build().visual_offset
    if isinstance(codes, int):
        codes -= offset
    values = asdict(released) | {"codebook_size": codes}
    return described(LayoutConfig, values, file=folder / CONFIG, names={"codebook_size": f"vocab_size - {offset}"})


def read_run_config(folder: Path) -> dict[str, Any]:
    """The configuration of the run that an exported folder comes from; {} of the release's own."""
    return _part(_part(_read_json(folder / CONFIG), OWN, folder), "config", folder)


def read_visual_tokenizer(folder: Path) -> str | None:
    """The fingerprint of the visual tokenizer whose codes an exported decoder learned; None: not said."""
    own = _part(_read_json(folder / CONFIG), OWN, folder)
    return described_text(own.get(VISUAL_TOKENIZER), folder / CONFIG, f"{OWN}.{VISUAL_TOKENIZER}")


def _part(content: dict[str, Any], name: str, folder: Path) -> dict[str, Any]:
    with said_by(folder / CONFIG):
        return cast(dict[str, Any], read_value(content.get(name, {}), dict[str, Any], name))


def read_shape(folder: Path, layout: TokenLayout) -> TransformerConfig:
    """The shape of a released checkpoint over its vocabulary.

    Raises:
        CheckpointError: a field is missing or not what it should be, or asks for what this decoder does not do.
    """
    file = folder / CONFIG
    content = _with_rotation(_read_json(file), file)
    for key, expected in _FIXED.items():
        if content.get(key, expected) != expected:
            raise CheckpointError(
                "another architecture", file=file, where=key, got=str(content[key])[:100], expected=expected
            )
    values = {field: content.get(key) for field, key in _NAMES.items()}
    match values:
        case {"head_dim": None, "dim": int(dim), "n_heads": int(n_heads)} if n_heads > 0:
            values["head_dim"] = dim // n_heads
    if "model_parallel_size" not in content:
        values["qk_norm_rows"] = 1
    values["rope"] = _part(content, OWN, folder).get("rope")
    if values["rope"] is None:
        mm_rope = content.get("mm_rope", True)
        values["rope"] = {True: "mm", False: "1d"}[mm_rope] if isinstance(mm_rope, bool) else mm_rope
    values |= {"visual_offset": layout.visual_offset, "strides": list(layout.strides)}
    config = described(TransformerConfig, values, file=file, names=_NAMES)
    if config.vocab_size != layout.vocab_size:
        raise CheckpointError(
            "another vocabulary", file=file, where="vocab_size", got=config.vocab_size, expected=layout.vocab_size
        )
    return config


def _with_rotation(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The rotation as the release says it: transformers since 5.0 has it under `rope_parameters`.

    Raises:
        CheckpointError: it is not the plain one, or said twice and not alike.
    """
    content = dict(content)
    for key in "rope_parameters", "rope_scaling":
        with said_by(file):
            said = read_value(content.pop(key, None), dict[str, Any] | None, key) or {}
        for name, value in said.items():
            expected = content.setdefault("rope_theta", value) if name == "rope_theta" else "default"
            if name not in ("rope_theta", "rope_type", "type") or value != expected:
                where, got = f"{key}.{name}"[:100], ascii(value)[:100]
                raise CheckpointError("another rotation", file=file, where=where, got=got, expected=expected)
    return content


def released_config(
    layout: LayoutConfig,
    model: TransformerConfig,
    dtype: torch.dtype,
    run: dict[str, Any],
    visual_tokenizer: str | None = None,
) -> dict[str, Any]:
    """config.json of a decoder, with all that the release's code looks for; `read_shape` reads it.

    Args:
        run: the configuration of the run that it comes from; {} for none.
        visual_tokenizer: fingerprint of that whose codes it learned; None: unknown.
    """
    ids = layout.build()
    content: dict[str, Any] = {key: getattr(model, field) for field, key in _NAMES.items()}
    if model.head_dim * model.n_heads == model.dim:
        del content["head_dim"]  # the release has no word for it
    content |= {
        **_FIXED,
        "rope_scaling": None,
        "mm_rope": model.rope == "mm",
        "model_type": "chameleon",
        "architectures": ["ChameleonXLLMXForConditionalGeneration"],
        "torch_dtype": str(dtype).removeprefix("torch."),
        "transformers_version": "4.45.2",
        "vocabulary_map": {
            "<eoss>": ids.frame_end,
            "<racm3:break>": ids.frame_start,
            "<image>": 5,  # this and the next are looked up, and have no part in Lumos-1's sequences
            "<reserved08707>": 8711,
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "initializer_range": INIT_STD,
        "mask_image_logits": False,
        "use_cache": True,
        "z_loss_weight": 0.0,
    }
    own: dict[str, Any] = {"config": run} if run else {}
    if layout.preset != "lumos1" or model.rope not in ("mm", "1d"):
        content["model_type"] = "lumos_pl"
        own |= {"layout": asdict(layout), "rope": model.rope}
    if visual_tokenizer is not None:
        own[VISUAL_TOKENIZER] = visual_tokenizer
    if own:
        content[OWN] = own
    return dict(sorted(content.items()))


def map_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors by name, as views of their files: nothing is read before it is used.

    What is known to be beside a decoder without being of it is left out, and said.
    """
    mapped: dict[str, Tensor] = {}
    for file in weight_files(folder):
        for name, tensor in map_file(file).items():
            if name in mapped:
                raise CheckpointError("tensor given twice", file=file, where=name[:100])
            mapped[name] = tensor
    for pattern, what in _IGNORED.items():
        if ignored := [name for name in mapped if re.fullmatch(pattern, name)]:
            mebibytes = sum(mapped.pop(name).nbytes for name in ignored) / 2**20
            words = "ignored: %s | %s | %d tensors, %.1f MiB, %s the first"
            logging.getLogger(__name__).warning(words, what, folder, len(ignored), mebibytes, ignored[0][:100])
    return mapped


def map_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file of safetensors by name, as views of it."""
    open_regular(file, at_most=None, error=CheckpointError).close()
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError("weights cannot be read", file=file, got=in_short(error)) from None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights; all stand in the folder."""
    index = folder / INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError("the index is damaged", file=index, where="weight_map")
    names = weight_map.values()
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+\.safetensors", name):
            raise CheckpointError("the index points outside its folder", file=index, got=repr(name)[:100])
    if WEIGHTS not in names and (folder / WEIGHTS).exists():  # which transformers would read, and not the others
        got, fix = f"{WEIGHTS} and {INDEX}", "move away the one that is not meant, with its files"
        raise CheckpointError("two sets of weights", file=folder, got=got, fix=fix)
    return [folder / name for name in sorted(set(names))]


def _read_json(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise CheckpointError(f"no {file.name}", file=file.parent, fix="give the folder of a released checkpoint")
    content = read_json(file, dict[str, Any], at_most=_MOST_JSON, error=CheckpointError)
    check_plain(content, file=file)
    return content
