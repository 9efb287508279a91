"""`lumos verify-golden DIR`: compare this code with numbers the release computed.

DIR holds a checkpoint in the released format, cases.json and cases.safetensors; `tests/test_golden.py` has an excerpt.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.errors import DataError
from lumos_pl.layout import TokenLayout
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.machinery.json_file import read_json
from lumos_pl.models.attention import attn_mask
from lumos_pl.models.mm_rope import rope_cos_sin
from lumos_pl.models.transformer import LumosTransformer, visual_logits
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generate import GenerationRequest, generate

TOLERANCE = 2e-5  # against fp32
LOGIT_STEP = 8  # the cases keep every 8th code's logits


def verify_golden(folder: Path) -> dict[str, int | float]:
    """Worst deviation of every kind over all cases, in fp32 and (`*_fp64`) in fp64; counts are of wrong elements."""
    cases, tensors = _read_cases(folder)
    saved = load_decoder(folder)
    model, layout = saved.net, saved.layout

    worst: dict[str, int | float] = {}
    for suffix, dtype in ("", torch.float32), ("_fp64", torch.float64):
        model.to(dtype)
        checks = [(_verify_case, case) for case in cases["cases"]]
        checks += [(verify_generation, case) for case in cases["generation"]]
        for verify, case in checks:
            own = {name.split(".", 1)[1]: t for name, t in tensors.items() if name.startswith(f"{case['name']}.")}
            for name, value in verify(model, layout, case, own).items():
                key = name + suffix
                worst[key] = worst.get(key, 0) + value if isinstance(value, int) else max(worst.get(key, 0.0), value)
    return worst


def is_golden(deviations: dict[str, int | float]) -> bool:
    """All counts 0 and all errors below `TOLERANCE` (a NaN is not)."""
    return all(v < TOLERANCE for v in deviations.values())


def _read_cases(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        cases: dict[str, Any] = read_json(folder / "cases.json", dict[str, Any])
        tensors = load_file(folder / "cases.safetensors")
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError("no golden cases here", file=folder, got=str(error)) from None
    match cases:
        case {"cases": [_, *_], "generation": [_, *_], "visual_offset": int(), "codebook_size": int()}:
            return cases, tensors
    raise DataError(
        "no golden cases here",
        file=folder / "cases.json",
        expected="cases, generation, visual_offset and codebook_size",
    )


@torch.no_grad()
def _verify_case(
    model: LumosTransformer, layout: TokenLayout, case: dict[str, Any], golden: dict[str, Tensor]
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
    if golden["rope_cos"].numel():
        config = model.config
        cos_sin = rope_cos_sin(positions, kind=config.rope, head_dim=config.head_dim, theta=config.rope_theta)
        pairs = zip(cos_sin, (golden["rope_cos"], golden["rope_sin"]), strict=True)
        deviations["rope_max_err"] = max(max_error(own, ref) for own, ref in pairs)

    index = golden["loss_positions"].long()
    codes = tokens[index] - layout.visual_offset
    states = model(golden["masked_tokens"].long(), [spans])[index]
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
    model: LumosTransformer, layout: TokenLayout, case: dict[str, Any], golden: dict[str, Tensor]
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
    own = replace(request.sequence, text_ids=None, codes=codes)
    return {"greedy_mismatch": int((layout.build(own) != torch.cat([golden["generated"].long(), closing])).sum())}


def max_error(own: Tensor, reference: Tensor) -> float:
    error = (own.double() - reference.double()).abs().max().item()
    return math.inf if math.isnan(error) else error  # a NaN would hide in max()
