"""`lumos verify-golden DIR`: compare this code with numbers the release computed.

DIR holds a checkpoint in the released format; cases.json, of the type `Cases`; and cases.safetensors, in which the
tensors of a case are called NAME.FIELD, see `FIELDS`. `tests/test_golden.py` has an excerpt.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field, with_config
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from typing_extensions import TypedDict

from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import DataError, LumosError
from lumos_pl.layout import TokenLayout
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.machinery.json_file import Number, read_json
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.mm_rope import rope_cos_sin
from lumos_pl.models.transformer import LumosTransformer, visual_logits
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate

TOLERANCE = 2e-5  # against fp32
LOGIT_STEP = 8  # the cases keep every 8th code's logits
TENSORS = "cases.safetensors"

# The tensors of a case: S tokens, N of them asked for, D numbers of a head, L logits of a position.
FIELDS = {
    "tokens": "S",
    "pos_t": "S",
    "pos_h": "S",
    "pos_w": "S",
    "is_visual": "S",
    "attend": "SS",
    "rope_cos": "SD",
    "rope_sin": "SD",
    "masked_tokens": "S",
    "loss_positions": "N",
    "visual_logits_every8": "NL",
    "token_loss": "N",
}
MAY_BE_EMPTY = "rope_cos", "rope_sin"
FIELDS_OF_GENERATION = {"prompt": "P", "generated": "G"}

Size = Annotated[int, Field(ge=1, le=10**6)]


@with_config(extra="allow")
class Case(TypedDict):
    """A masked sequence, and what the release computed of it."""

    name: str
    loss: Number
    frame_loss_exact: list[Number]


@with_config(extra="allow")
class Generation(TypedDict):
    """How a clip was made, by the likeliest codes."""

    name: str
    resolution_wh: tuple[Size, Size]
    duration: Size
    fps: Size
    guidance: Number
    steps: Size
    context_mask_ratio: Number
    greedy: bool


@with_config(extra="allow")
class Cases(TypedDict):
    """What cases.json holds."""

    cases: Annotated[list[Case], Field(min_length=1)]
    generation: Annotated[list[Generation], Field(min_length=1)]
    visual_offset: int
    codebook_size: int


def verify_golden(folder: Path) -> dict[str, int | float]:
    """Worst deviation of every kind over all cases, in fp32 and (`*_fp64`) in fp64; counts are of wrong elements.

    Raises:
        DataError: the cases are not there or damaged.
        CheckpointError: of the checkpoint.
    """
    cases, tensors = _read_cases(folder)
    saved = load_decoder(folder)
    model, layout = saved.net, saved.layout
    theirs, ours = (cases["visual_offset"], cases["codebook_size"]), (layout.visual_offset, layout.codebook_size)
    if theirs != ours:
        where = "visual_offset, codebook_size"
        raise DataError("cases of another model", file=folder / "cases.json", where=where, got=theirs, expected=ours)

    worst: dict[str, int | float] = {}
    for suffix, dtype in ("", torch.float32), ("_fp64", torch.float64):
        model.to(dtype)
        for case in cases["cases"]:
            with _named(folder, case["name"]):
                sizes = {"D": model.config.head_dim, "L": -(-layout.codebook_size // LOGIT_STEP)}
                fields = _fields(tensors, case["name"], FIELDS, **sizes)
                worst = _worse(worst, _verify_case(model, layout, case, fields), suffix)
        for made in cases["generation"]:
            with _named(folder, made["name"]):
                fields = _fields(tensors, made["name"], FIELDS_OF_GENERATION)
                worst = _worse(worst, verify_generation(model, layout, made, fields), suffix)
    return worst


def off(deviations: dict[str, int | float]) -> dict[str, int | float]:
    """Those that are not the release's: counts above 0, and errors not below `TOLERANCE`, as a NaN is not."""
    return {name: value for name, value in deviations.items() if not value < TOLERANCE}


def _worse(worst: dict[str, int | float], found: dict[str, int | float], suffix: str) -> dict[str, int | float]:
    """Counts are added up, and of errors the larger one stays."""
    both = dict(worst)
    for name, value in found.items():
        before = worst.get(name + suffix, type(value)(0))
        both[name + suffix] = before + value if isinstance(value, int) else max(before, value)
    return both


def _read_cases(folder: Path) -> tuple[Cases, dict[str, Tensor]]:
    cases, file = read_json(folder / "cases.json", Cases, fix="give a folder of golden cases"), folder / TENSORS
    try:
        return cases, load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError("cannot read the golden cases", file=file, got=error) from None


@contextmanager
def _named(folder: Path, name: str) -> Iterator[None]:
    """What is wrong with a case is told with its name."""
    try:
        yield
    except LumosError as error:
        where = f"{name}: {error.where}" if error.where else name
        raise DataError(**error.parts | {"file": folder / TENSORS, "where": where}) from error


def _fields(tensors: dict[str, Tensor], name: str, fields: dict[str, str], **sizes: int) -> dict[str, Tensor]:
    """A case's tensors, all of them and of one size where they have one letter.

    Args:
        sizes: of letters that are known already.
    """
    own = {}
    for field, letters in fields.items():
        if f"{name}.{field}" not in tensors:
            raise DataError("missing tensor", where=field)
        shape = list(tensors[f"{name}.{field}"].shape)
        if not (field in MAY_BE_EMPTY and shape == [0]):
            for letter, size in zip(letters, shape, strict=False):
                sizes.setdefault(letter, size)
            if shape != [sizes.get(letter) for letter in letters] or 0 in shape:
                expected = ", ".join(str(sizes.get(letter) or letter) for letter in letters)
                raise DataError("wrong shape", where=field, got=shape, expected=f"[{expected}]")
        own[field] = tensors[f"{name}.{field}"]
    return own


@torch.no_grad()
def _verify_case(
    model: LumosTransformer, layout: TokenLayout, case: Case, golden: dict[str, Tensor]
) -> dict[str, int | float]:
    tokens = golden["tokens"].long()
    sequence = layout.parse(tokens)
    spans = layout.spans(sequence)
    axes = torch.stack([golden["pos_t"], golden["pos_h"], golden["pos_w"]], dim=1)
    positions = model.positions(spans)
    deviations: dict[str, int | float] = {
        "tokens_wrong": int((layout.build(sequence) != tokens).sum()),
        "positions_wrong": int((positions != axes).sum() + (spans.is_content() != golden["is_visual"]).sum()),
        "attend_wrong": int((attn_mask(spans) != golden["attend"]).sum()),
    }
    config = model.config
    cos_sin = rope_cos_sin(positions, kind=config.rope, head_dim=config.head_dim, theta=config.rope_theta)
    pairs = zip(cos_sin, (golden["rope_cos"], golden["rope_sin"]), strict=True)
    if errors := [max_error(own, reference) for own, reference in pairs if reference.numel()]:
        deviations["rope_max_err"] = max(errors)

    index, masked = golden["loss_positions"].long(), golden["masked_tokens"].long()
    _within("loss_positions", index, len(tokens))
    _within("masked_tokens", masked, layout.vocab_size)
    codes = tokens[index] - layout.visual_offset
    _within("tokens at loss_positions, as codes", codes, layout.codebook_size)
    n_frames = len(case["frame_loss_exact"])
    if n_frames != spans.latent_frames:
        raise DataError("wrong length", where="frame_loss_exact", got=n_frames, expected=spans.latent_frames)
    states = model(masked, [spans])[index]
    logits = model.lm_head(states, visual_logits)
    objective = partial(masked_cross_entropy, targets=codes, config=LossConfig(chunk_size=64))
    loss, token_loss = model.lm_head(states, objective)
    frames = (index - spans.prefix) // spans.frame_length
    sums, counts = frame_loss_sums(token_loss, frames, spans.latent_frames)
    return deviations | {
        "logits_max_err": max_error(logits[:, ::LOGIT_STEP], golden["visual_logits_every8"]),
        "token_loss_max_err": max_error(token_loss, golden["token_loss"]),
        "loss_err": abs(loss.item() - case["loss"]),
        "frame_loss_max_err": max_error(sums / counts, torch.tensor(case["frame_loss_exact"])),
    }


def verify_generation(
    model: LumosTransformer, layout: TokenLayout, case: Generation, golden: dict[str, Tensor]
) -> dict[str, int | float]:
    """Generate with the likeliest codes; the prompt is BOS text SEP, or a closed sequence with the given frame."""
    prompt, closing = golden["prompt"].long(), torch.tensor([layout.sep])
    given = layout.parse(prompt) if layout.video_start in prompt else None
    text_ids = tuple(prompt[1:-1].tolist()) if given is None else given.text_ids
    rows, cols = layout.latent_size(*case["resolution_wh"])
    request = GenerationRequest(
        text_ids=text_ids,
        latent_frames=layout.latent_frames(case["duration"] * case["fps"]),
        rows=rows,
        cols=cols,
        duration=case["duration"],
        fps=case["fps"],
        seed=0,
        given_codes=None if given is None else given.codes,
    )
    settings = SamplingConfig(
        steps=case["steps"],
        guidance=case["guidance"],
        partial_context=case["context_mask_ratio"],
        greedy=case["greedy"],
    )
    (codes,) = generate(model, layout, [request], settings)
    own = layout.build(replace(request.sequence, text_ids=None, codes=codes))
    released = torch.cat([golden["generated"].long(), closing])
    if len(released) != len(own):
        raise DataError("wrong length", where="generated", got=len(released) - 1, expected=len(own) - 1)
    return {"greedy_mismatch": int((own != released).sum())}


def _within(field: str, values: Tensor, end: int) -> None:
    wrong = values[(values < 0) | (values >= end)]
    if len(wrong):
        raise DataError("out of range", where=field, got=int(wrong[0]), expected=f"0 to {end - 1}")


def max_error(own: Tensor, reference: Tensor) -> float:
    error = (own.double() - reference.double()).abs().max().item()
    return math.inf if math.isnan(error) else error  # a NaN would hide in max()
