"""Drawing codes from logits, and which of them are hidden again."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.masking import schedule_ratio
from lumos_pl.sampling.config import SamplingConfig

LOGITS_AT_ONCE = 2**25  # 128 MB in fp32
BLOCK = 256  # codes whose shares are summed before any is looked at alone
BELOW_ONE = 1 - 2**-52  # times this, every positive fp64 number becomes smaller


class LogitsBuffers:
    """Memory for logits and what is made of them, used again by every chunk: getting it costs as much as filling it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape with anything in it; what was taken under this name before is lost."""
        key, n = (name, dtype, device), shape[0] * shape[1]
        if key not in self._held or self._held[key].numel() < n:
            self._held[key] = torch.empty(n, dtype=dtype, device=device)
        return self._held[key][:n].view(shape)


def draw_codes(
    hidden: Tensor,
    weight: Tensor,
    offset: int,
    *,
    uniform: Tensor,
    config: SamplingConfig,
    buffers: LogitsBuffers | None = None,
) -> tuple[Tensor, Tensor]:
    """A code for each hidden state, a chunk of logits at a time.

    Args:
        hidden: [M, D].
        weight, offset: the head, see `VisualHead`.
        uniform: a number in [0, 1) for each draw, fp64, [M].
        buffers: kept from call to call.
    Returns:
        codes [M], and the log-probability of each under the model (before temperature, top-k and top-p).
    """
    device = hidden.device.type
    visual = weight[offset:]
    if torch.is_autocast_enabled(device):
        visual = visual.to(torch.get_autocast_dtype(device))  # once, not in every chunk
    full = torch.promote_types(visual.dtype, torch.float32)
    n_rows = max(1, min(len(hidden), LOGITS_AT_ONCE // len(visual)))
    take = partial((buffers or LogitsBuffers()).take, device=hidden.device)
    codes, confidence = [], []
    for chunk, u in zip(hidden.split(n_rows), uniform.split(n_rows), strict=True):
        shape = len(chunk), len(visual)
        with torch.autocast(device, enabled=False):
            logits = torch.mm(chunk.to(visual.dtype), visual.T, out=take("logits", shape, dtype=visual.dtype)).to(full)
        logits -= logits.amax(-1, keepdim=True)
        shares = torch.exp(logits, out=take("shares", shape, dtype=full))  # of the total
        log_total = shares.sum(-1, keepdim=True).log()
        drawn = logits.argmax(-1, keepdim=True) if config.greedy else _draw(logits, shares, u, config)
        codes.append(drawn[:, 0])
        confidence.append((logits.gather(1, drawn) - log_total)[:, 0])
    return torch.cat(codes), torch.cat(confidence)


def _draw(logits: Tensor, shares: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """One code a row, [M, 1]; `shares` are exp(logits), the largest of which is 1."""
    if config.temperature != 1 or config.top_k is not None or config.top_p is not None:
        shares = restrict(logits / config.temperature, top_k=config.top_k, top_p=config.top_p).exp_()
    return invert_distribution(shares, uniform)


def invert_distribution(shares: Tensor, uniform: Tensor) -> Tensor:
    """The first code up to which more than `uniform` of a row's shares lie, [M, K] and [M] to [M, 1].

    One number a draw, where Gumbel noise would take one a code. Sums of blocks come first, so that
    only one block in each row is summed up code by code.
    """
    filling = -shares.shape[-1] % BLOCK
    blocks = (F.pad(shares, (0, filling)) if filling else shares).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1).double()  # [M, K / BLOCK]
    reached = sums.cumsum(-1)
    # Below the total even where rounding would reach it; and right=True: what has no share is never the first to pass.
    wanted = (uniform[:, None] * reached[:, -1:]).minimum(reached[:, -1:] * BELOW_ONE)
    block = torch.searchsorted(reached, wanted, right=True)
    in_block = blocks.take_along_dim(block[..., None], 1)[:, 0].cumsum(-1, dtype=torch.float64)
    # Two orders of summing differ by rounding: what is wanted of the block is cut to what is there.
    left = wanted - reached.gather(1, block) + sums.gather(1, block)
    left = left.clamp(min=0).minimum(in_block[:, -1:] * BELOW_ONE)
    return block * BLOCK + torch.searchsorted(in_block, left, right=True)


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
