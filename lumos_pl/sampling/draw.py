"""Drawing codes from logits, and choosing which of them are hidden again."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_pl.masking import schedule_ratio
from lumos_pl.sampling.config import SamplingConfig

LOGITS_AT_ONCE = 2**25  # if they are kept: 128 MB in fp32
CACHED_LOGITS = 2**22  # if not: 16 MB, which stay in a CPU's cache until summed
BLOCK = 256  # codes whose shares are summed before any single one is looked at
LIKELIEST = 1024  # codes sorted first: sorting all 64,000 takes many times as long and is rarely needed
BELOW_ONE = 1 - 2**-52  # any positive fp64 number times this is smaller


class LogitsBuffers:
    """Memory for logits and their shares, reused by every chunk: allocating it costs as much as filling it."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of this shape with arbitrary content; whatever was taken under this name before is lost."""
        key, n = (name, dtype, device), math.prod(shape)
        if key not in self._held or self._held[key].numel() < n:
            self._held[key] = torch.empty(n, dtype=dtype, device=device)
        return self._held[key][:n].view(shape)


def draw_codes(
    states: Tensor,
    weight: Tensor,
    offset: int,
    *,
    uniform: Tensor,
    config: SamplingConfig,
    buffers: LogitsBuffers | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw a code for each of the decoder's states, a chunk of logits at a time.

    Args:
        states: [M, D].
        weight, offset: the head, see `VisualHead`.
        uniform: one number in [0, 1) per draw, fp64, [M].
        buffers: reused from call to call.
    Returns:
        codes [M], and the log-probability of each under the model (before temperature, top-k and top-p). If a row's
        largest logit is not finite, its log-probability is NaN, for the caller to check, and its code is arbitrary.
    """
    device = states.device.type
    visual = weight[offset:]
    if torch.is_autocast_enabled(device):
        visual = visual.to(torch.get_autocast_dtype(device))  # once instead of in every chunk
    buffers = buffers or LogitsBuffers()
    # A CPU computes one block of a row a second time faster than it writes all blocks to memory.
    hold = device != "cpu" or _is_restricted(config)
    n_rows = max(1, min(len(states), LOGITS_AT_ONCE // len(visual) if hold else len(states)))
    drawn = [
        _draw_chunk(chunk.to(visual.dtype), visual, u, config, hold, buffers)
        for chunk, u in zip(states.split(n_rows), uniform.split(n_rows), strict=True)
    ]
    codes, log_p = zip(*drawn, strict=True)
    return torch.cat(codes), torch.cat(log_p)


def _is_restricted(config: SamplingConfig) -> bool:
    return not config.greedy and (config.top_k is not None or config.top_p is not None)


def _draw_chunk(
    states: Tensor, visual: Tensor, uniform: Tensor, config: SamplingConfig, hold: bool, buffers: LogitsBuffers
) -> tuple[Tensor, Tensor]:
    temperature = 1.0 if config.greedy else config.temperature
    logits = BlockedLogits(states, visual, temperature=temperature, hold=hold, buffers=buffers)
    if config.greedy:
        block = logits.tops.argmax(-1)
        chosen = logits.of(block)
        code = chosen.argmax(-1)
    elif _is_restricted(config):
        shares = restrict(logits.all_shares().flatten(1), top_k=config.top_k, top_p=config.top_p)
        shares = shares.view(len(shares), -1, BLOCK)
        block, within = choose_block(shares.sum(-1), uniform)
        chosen = logits.of(block)
        code = choose_code(_take(shares, block), within)
    else:
        block, within = choose_block(logits.weights, uniform)
        chosen = logits.of(block)
        code = choose_code(((chosen - _take(logits.tops, block)[:, None]) / temperature).exp(), within)
    return block * BLOCK + code, _take(chosen, code) - logits.log_total


class BlockedLogits:
    """Logits of M states over K codes, in B blocks of `BLOCK` codes, and their sums.

    Args:
        states, visual: [M, D] and [K, D].
        temperature: of the shares, which are exp(logits / temperature), relative to the row's largest.
        hold: keep the logits. Otherwise a few blocks exist at a time, and a block asked for later is computed again.

    Attributes:
        tops: the largest logit of each block, [M, B].
        weights: sum of the shares of each block, [M, B].
        log_total: log of the sum of exp(logits), without temperature, [M]; fp64, because the codes' confidences
            differ by less than fp32 resolves.
    """

    def __init__(
        self, states: Tensor, visual: Tensor, *, temperature: float, hold: bool, buffers: LogitsBuffers
    ) -> None:
        self._states, self._visual, self._buffers = states, visual, buffers
        self._full = torch.promote_types(visual.dtype, torch.float32)
        n_rows, n_blocks = len(states), -(-len(visual) // BLOCK)
        tops, sums, totals = torch.empty(3, n_rows, n_blocks, dtype=self._full, device=states.device)
        at_once = n_blocks if hold else max(1, CACHED_LOGITS // (n_rows * BLOCK))
        for first in range(0, n_blocks, at_once):
            part = slice(first, first + at_once)
            blocks = self._make(states, part)
            tops[:, part] = blocks.amax(-1)
            shares = self._take_buffer("shares", blocks.shape) if hold else blocks
            torch.sub(blocks, tops[:, part, None], out=shares)
            if temperature != 1:
                totals[:, part] = shares.exp().sum(-1)
                shares /= temperature
            sums[:, part] = shares.exp_().sum(-1)
        if temperature == 1:
            totals = sums
        top = tops.amax(-1, keepdim=True)
        self.tops, self._scales = tops, ((tops - top) / temperature).exp()
        self.weights = sums * self._scales
        self.log_total = top[:, 0] + (totals.double() * (tops - top).double().exp()).sum(-1).log()
        self._held = (blocks, shares) if hold else None

    def of(self, block: Tensor) -> Tensor:
        """The logits of one block per row: indices [M] to [M, BLOCK]."""
        if self._held is not None:
            return _take(self._held[0], block)
        ordered, order = block.sort()
        numbers, counts = ordered.unique_consecutive(return_counts=True)
        parts = zip(numbers.tolist(), self._states[order].split(counts.tolist()), strict=True)
        made = [self._make(states, slice(number, number + 1))[:, 0].clone() for number, states in parts]
        return torch.cat(made)[order.argsort()]

    def all_shares(self) -> Tensor:
        """The shares of all codes, [M, B, BLOCK]; needs `hold`."""
        assert self._held is not None
        return torch.mul(self._held[1], self._scales[..., None])

    def _make(self, states: Tensor, part: slice) -> Tensor:
        """The logits of some blocks, [m, D] to [m, b, BLOCK]; those computed before are lost."""
        codes = self._visual[part.start * BLOCK : part.stop * BLOCK]
        logits = self._take_buffer("logits", (len(states), len(codes)), dtype=codes.dtype)
        with torch.autocast(states.device.type, enabled=False):
            torch.mm(states, codes.T, out=logits)
        return _in_blocks(logits.to(self._full))

    def _take_buffer(self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype | None = None) -> Tensor:
        return self._buffers.take(name, shape, dtype=dtype or self._full, device=self._states.device)


def _in_blocks(logits: Tensor) -> Tensor:
    """[M, K] to [M, B, BLOCK], padded with -inf."""
    filling = -logits.shape[-1] % BLOCK
    if filling:  # even an empty padding copies
        logits = F.pad(logits, (0, filling), value=-math.inf)
    return logits.view(len(logits), -1, BLOCK)


def _take(values: Tensor, index: Tensor) -> Tensor:
    """`values[m, index[m]]` for every row m: [M, N, ...] and [M] to [M, ...]."""
    return values[torch.arange(len(index), device=index.device), index]


def choose_block(weights: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The first block at which the running sum of a row's weights exceeds the share `uniform` of their total.

    This takes one random number per draw, where Gumbel noise would take one per code. Weights of blocks come first, so
    that only one block of each row is summed code by code.

    Args:
        weights: of the blocks, [M, B].
        uniform: in [0, 1), fp64, [M].
    Returns:
        the block, and the share of its weight that lies before the drawn code, [M] each.
    """
    reached = weights.double().cumsum(-1)
    block, wanted = _first_beyond(reached, uniform)
    weight = _take(weights, block).double()
    # Summing in two different orders differs by rounding, so this may leave [0, 1] by that much.
    return block, ((wanted - _take(reached, block) + weight) / weight).clamp(min=0)


def choose_code(shares: Tensor, within: Tensor) -> Tensor:
    """The first code at which the running sum of a block's shares, [M, BLOCK], exceeds `within` of it, [M]; [M]."""
    code, _ = _first_beyond(shares.cumsum(-1, dtype=torch.float64), within)
    return code


def _first_beyond(reached: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Where a running sum, [M, N], passes a share of its total, [M], and the value that it passes there.

    It always passes somewhere, since that value is kept below the total even if rounding would reach it, and never
    where nothing is added (right=True). With a NaN total it passes nowhere, and 0 is returned: see `draw_codes`.
    """
    total = reached[:, -1]
    wanted = (share * total).minimum(total * BELOW_ONE)
    return torch.searchsorted(reached, wanted[:, None], right=True)[:, 0] % reached.shape[1], wanted


def restrict(shares: Tensor, *, top_k: int | None, top_p: float | None) -> Tensor:
    """Set to 0 all shares, [M, K], but those of the best k codes, and of these all but the fewest that hold top_p."""
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
        log_p: log-probability of each drawn code.
        uniform: one number in [0, 1) per drawn code, from which the Gumbel noise is made.
    """
    confidence = log_p - noise * (-uniform.log()).log() if noise > 0 else log_p
    return confidence.topk(n, largest=False).indices


def n_remaining_after(step: int, n_positions: int, n_remaining: int, config: SamplingConfig) -> int:
    """How many of the `n_remaining` codes drawn in `step` (from 0) are hidden again; none after the last step."""
    if step == config.steps - 1:
        return 0
    wanted = math.floor(n_positions * schedule_ratio(config.schedule, (step + 1) / config.steps))
    return min(max(wanted, 1), n_remaining - 1)


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

    They are the same in every frame: the temporal tube of AR-DF at inference.
    """
    n_hidden = max(1, round(share * n_positions))
    return torch.tensor([round(i * n_positions / n_hidden) for i in range(n_hidden)])
