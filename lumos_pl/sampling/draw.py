"""Drawing codes from logits, and which of them are hidden again."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lumos_pl.masking import schedule_ratio
from lumos_pl.models.transformer import visual_logits
from lumos_pl.sampling.config import SamplingConfig

LOGITS_AT_ONCE = 2**24  # 64 MB in fp32


def draw_codes(
    hidden: Tensor, weight: Tensor, offset: int, *, uniform: Tensor, config: SamplingConfig
) -> tuple[Tensor, Tensor]:
    """A code for each hidden state, a chunk of logits at a time.

    Args:
        hidden: [M, D].
        weight, offset: the head, see `VisualHead`.
        uniform: a number in [0, 1) for each draw, fp64, [M].
    Returns:
        codes [M], and the log-probability of each under the model (before temperature, top-k and top-p).
    """
    chunk_size = max(1, LOGITS_AT_ONCE // (len(weight) - offset))
    codes, confidence = [], []
    for chunk, u in zip(hidden.split(chunk_size), uniform.split(chunk_size), strict=True):
        logits = visual_logits(chunk, weight, offset)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        drawn = log_p.argmax(-1, keepdim=True) if config.greedy else _draw(log_p, u, config)
        codes.append(drawn[:, 0])
        confidence.append(log_p.gather(1, drawn)[:, 0])
    return torch.cat(codes), torch.cat(confidence)


def _draw(log_p: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """Inverse of the distribution function: one number a draw, where Gumbel noise would take one a code; [M, 1]."""
    scores = restrict(log_p / config.temperature, top_k=config.top_k, top_p=config.top_p)
    reached = scores.softmax(-1).cumsum(-1, dtype=torch.float64)
    # The sum is 1 only up to rounding. right=True: a code of probability 0 is never the first to pass.
    return torch.searchsorted(reached, uniform[:, None] * reached[:, -1:], right=True)


def restrict(scores: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Scores with -inf at all but the best k codes, and of those at all but the fewest that hold top_p; [M, K]."""
    if top_k is not None and top_k < scores.shape[-1]:
        worst = scores.topk(top_k).values[:, -1:]
        scores = scores.masked_fill(scores < worst, -math.inf)
    if top_p is not None and top_p < 1:
        ordered, order = scores.sort(descending=True)
        p = ordered.softmax(-1)
        before = p.cumsum(-1) - p
        scores = scores.masked_fill((before >= top_p).scatter(1, order, before >= top_p), -math.inf)
    return scores


def least_confident(log_p: Tensor, n: int, *, noise: float, uniform: Tensor) -> Tensor:
    """Indices of the n drawn codes with the lowest log p + noise * Gumbel, [n].

    Args:
        log_p, uniform: per drawn code its log-probability, and a number in [0, 1) that the Gumbel noise is made of.
    """
    confidence = log_p - noise * (-uniform.log()).log() if noise > 0 else log_p
    return confidence.topk(n, largest=False).indices


def n_hidden_after(step: int, n_positions: int, n_hidden: int, config: SamplingConfig) -> int:
    """How many of the `n_hidden` codes drawn in `step` (from 0) are hidden again: none after the last."""
    if step == config.steps - 1:
        return 0
    wanted = math.floor(n_positions * schedule_ratio(config.schedule, (step + 1) / config.steps))
    return min(max(wanted, 1), n_hidden - 1)


def confidence_noise(step: int, n_generated: int, config: SamplingConfig) -> float:
    """Scale of the Gumbel noise in `step`, when `n_generated` frames of the clip are done."""
    if config.greedy:
        return 0.0
    match config.confidence_anneal:
        case "per_frame":
            return config.confidence_temperature * (1 - (step + 1) / config.steps)
        case "release":
            factors = [1 - (s + 1) / config.steps for s in range(step + 1)]
            return 0.0 if n_generated else config.confidence_temperature * math.prod(factors)


def partial_context_index(n_positions: int, share: float) -> Tensor:
    """The content positions of a finished frame that later frames see as MASK, evenly spaced: [max(1, round)].

    The same in every frame: the temporal tube of AR-DF at inference.
    """
    n_hidden = max(1, round(share * n_positions))
    return torch.tensor([round(i * n_positions / n_hidden) for i in range(n_hidden)])
