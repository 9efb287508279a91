"""Drawing codes from logits, and which of them are hidden again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.masking import schedule_ratio
from lumos_pl.sampling.config import SamplingConfig

SHARES_AT_ONCE = 2**25  # of codes in a chunk's probability distributions: 128 MB in fp32
CACHED_LOGITS = 2**20  # of them made at a time on a CPU, so that they are still in its cache when they are used
BLOCK = 256  # codes whose shares are summed before any is looked at alone
LIKELIEST = 1024  # codes that are sorted first: all 64,000 take many times as long, and are seldom needed
BELOW_ONE = 1 - 2**-52  # times this, every positive fp64 number becomes smaller


class LogitsBuffers:
    """Memory for logits and what is made of them, used again by every chunk: getting it costs as much as filling it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape with anything in it; what was taken under this name before is lost."""
        key, n = (name, dtype, device), math.prod(shape)
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
    n_rows = max(1, min(len(hidden), SHARES_AT_ONCE // len(visual)))
    buffers = buffers or LogitsBuffers()
    drawn = [
        _draw_chunk(chunk.to(visual.dtype), visual, u, config, buffers)
        for chunk, u in zip(hidden.split(n_rows), uniform.split(n_rows), strict=True)
    ]
    codes, log_p = zip(*drawn, strict=True)
    return torch.cat(codes), torch.cat(log_p)


def _draw_chunk(
    hidden: Tensor, visual: Tensor, uniform: Tensor, config: SamplingConfig, buffers: LogitsBuffers
) -> tuple[Tensor, Tensor]:
    temperature = 1.0 if config.greedy else config.temperature
    made = share_out(hidden, visual, temperature=temperature, buffers=buffers)
    if config.greedy:
        block = made.tops.argmax(-1)
        code = _take(made.shares, block).argmax(-1)
    elif config.top_k is None and config.top_p is None:
        block, code = invert_distribution(made.shares, made.weights, uniform)
    else:
        shares = made.shares * made.scales[..., None]
        shares = restrict(shares.flatten(1), top_k=config.top_k, top_p=config.top_p).view(shares.shape)
        block, code = invert_distribution(shares, shares.sum(-1), uniform)
    share = _take(_take(made.shares, block), code)
    return block * BLOCK + code, _take(made.tops, block) + temperature * share.log() - made.log_total


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockShares:
    """What each code has of its row's probability, in B blocks of `BLOCK` codes.

    Args:
        shares: exp(logits / temperature), divided by the largest of the block; 0 behind the last code. [M, B, BLOCK]
        tops: the largest logit of each block, [M, B].
        scales: what makes the shares of different blocks comparable; at most 1, [M, B].
        weights: sum of the shares of each block, times its scale, [M, B].
        log_total: log of the sum of exp(logits), without temperature, [M].
    """

    shares: Tensor
    tops: Tensor
    scales: Tensor
    weights: Tensor
    log_total: Tensor


def share_out(hidden: Tensor, visual: Tensor, *, temperature: float, buffers: LogitsBuffers) -> BlockShares:
    """The distributions over all codes, [M, D] and [K, D]; on a CPU, some blocks of logits at a time.

    Logits are read and written several times, which takes longer than making them where they are all
    made before the first is looked at.
    """
    full = torch.promote_types(visual.dtype, torch.float32)
    take = partial(buffers.take, device=hidden.device)
    n_rows, n_blocks = len(hidden), -(-len(visual) // BLOCK)
    shares = take("shares", (n_rows, n_blocks, BLOCK), dtype=full)
    tops, sums, totals = torch.empty(3, n_rows, n_blocks, dtype=full, device=hidden.device)
    at_once = max(1, CACHED_LOGITS // (n_rows * BLOCK)) if hidden.device.type == "cpu" else n_blocks
    for first in range(0, n_blocks, at_once):
        part = slice(first, first + at_once)
        codes = visual[first * BLOCK : (first + at_once) * BLOCK]
        logits = take("logits", (n_rows, len(codes)), dtype=visual.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            torch.mm(hidden, codes.T, out=logits)
        blocks = _in_blocks(logits.to(full))
        tops[:, part] = blocks.amax(-1)
        blocks -= tops[:, part, None]
        if temperature != 1:
            totals[:, part] = blocks.exp().sum(-1)
            blocks /= temperature
        sums[:, part] = torch.exp(blocks, out=shares[:, part]).sum(-1)
    if temperature == 1:
        totals = sums
    top = tops.amax(-1, keepdim=True)
    scales = ((tops - top) / temperature).exp()
    log_total = top[:, 0] + (totals * (tops - top).exp()).sum(-1).log()
    return BlockShares(shares=shares, tops=tops, scales=scales, weights=sums * scales, log_total=log_total)


def _in_blocks(logits: Tensor) -> Tensor:
    """[M, K] to [M, B, BLOCK], filled with -inf."""
    filling = -logits.shape[-1] % BLOCK
    if filling:  # padding by nothing is a copy
        logits = F.pad(logits, (0, filling), value=-math.inf)
    return logits.view(len(logits), -1, BLOCK)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """`values[m, index[m]]` for every row m: [M, N, ...] and [M] to [M, ...]."""
    return values[torch.arange(len(index), device=index.device), index]


def invert_distribution(shares: Tensor, weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first code up to which more than `uniform` of a row's shares lie.

    One number a draw, where Gumbel noise would take one a code. The weights of blocks come first, so
    that only one block in each row is summed up code by code.

    Args:
        shares: [M, B, BLOCK], in each block to a scale of its own.
        weights: of the blocks, [M, B].
        uniform: in [0, 1), fp64, [M].
    Returns:
        the block, and the code within it, [M] each.
    """
    reached = weights.double().cumsum(-1)
    block, wanted = _first_beyond(reached, uniform)
    weight = _take(weights, block).double()
    # Two orders of summing differ by rounding, so this may leave [0, 1] by as much.
    within = ((wanted - _take(reached, block) + weight) / weight).clamp(min=0)
    code, _ = _first_beyond(_take(shares, block).cumsum(-1, dtype=torch.float64), within)
    return block, code


def _first_beyond(reached: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Where a running sum, [M, N], passes a share of its total, [M], and what that share is.

    Always somewhere, by being below the total even where rounding would reach it; and never where nothing is
    added (right=True).
    """
    total = reached[:, -1]
    wanted = (share * total).minimum(total * BELOW_ONE)
    return torch.searchsorted(reached, wanted[:, None], right=True)[:, 0], wanted


def restrict(shares: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Shares with 0 at all but the best k codes, and of those at all but the fewest that hold top_p; [M, K]."""
    if top_k is not None and top_k < shares.shape[-1]:
        worst = shares.topk(top_k).values[:, -1:]
        shares = shares.masked_fill(shares < worst, 0)
    if top_p is not None and top_p < 1:
        wanted = top_p * shares.sum(-1, keepdim=True)
        ordered, order = shares.topk(min(LIKELIEST, shares.shape[-1]))
        if (ordered.sum(-1, keepdim=True) < wanted).any():
            ordered, order = shares.sort(descending=True)
        before = ordered.cumsum(-1) - ordered
        shares = torch.zeros_like(shares).scatter_(1, order, ordered.masked_fill(before >= wanted, 0))
    return shares


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
