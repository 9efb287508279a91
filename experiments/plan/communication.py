"""What the GPUs of a run send each other in a step, how long it takes, and how much of that nothing hides."""

from __future__ import annotations

import math
from dataclasses import dataclass

from experiments.plan.words import Machine
from lumos_pl.models.memory import FULL, StepSettings
from lumos_pl.models.parameters import ParameterCounts

# Each GPU's share of what a collective handles, in a ring of n, as NCCL's tests count it (their PERFORMANCE.md):
# (n - 1) / n of an all-gather's or a reduce-scatter's bytes, twice that of an all-reduce's.


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one step.

    Args:
        all_gather, reduce_scatter, all_reduce: bytes that one GPU sends.
        seconds: that the links are busy.
        exposed: of these seconds, those in which the GPU waits.
    """

    all_gather: int = 0
    reduce_scatter: int = 0
    all_reduce: int = 0
    seconds: float = 0.0
    exposed: float = 0.0

    @property
    def total(self) -> int:
        return self.all_gather + self.reduce_scatter + self.all_reduce


def step_traffic(counts: ParameterCounts, settings: StepSettings, machine: Machine, *, seconds: float) -> Traffic:
    """What one GPU sends in a step, by a model of rings without latency.

    Weights (fsdp2) are gathered among `shard_size` neighbours: layers and the embedding in the precision of the
    products, the head in fp32; for each batch once, layers twice where they are not kept. Gradients are fp32: they are
    scattered among the same neighbours and, where there are several copies (HSDP, DDP), all-reduced with the same part
    of the others; after every batch, or once (DDP, `reduce_once`).

    A layer's gather runs while the layer before it computes, its gradient's exchange while the next one does. So a
    pass waits for what has nothing to hide behind, and for what takes longer than all its products:

        forward    embedding, first layer, head (torch starts no gather at the root of a group before it is called),
                   and max(0, the other layers - products)
        backward   the last layer if it is gathered again, the exchange of the embedding's gradient,
                   and max(0, the other gathers and exchanges - products)

    A forward pass is a third of the products. Not counted: the sums of norms and losses, buffers of no parameters, and
    the way to and from the host's memory (`cpu_offload`).

    Args:
        settings: those of the step; `machine.gpus` run it.
        seconds: that the products of a step take, of all its batches.
    """
    shards, copies = settings.shards, machine.gpus // settings.shards
    gather_rate, reduce_rate = _rate(machine, shards, stride=1), _rate(machine, copies, stride=shards)

    def gather(n_parameters: int, n_bytes: int = settings.compute) -> float:
        return n_parameters * n_bytes * (shards - 1) / shards

    def reduce(n_parameters: int) -> float:
        return n_parameters * FULL / shards * 2 * (copies - 1) / copies

    def exchange_seconds(n_parameters: int) -> float:
        return gather(n_parameters, FULL) / gather_rate + reduce(n_parameters) / reduce_rate

    first = counts.embedding + counts.norm  # forward; its gradient is the last
    layer, others = (gather(n * counts.layer) for n in (1, counts.n_layers - 1))
    begin = gather(first) + layer + gather(counts.head, FULL)
    again = settings.placement.reshard_after_forward
    n_batches = settings.accumulate
    n_exchanges = 1 if settings.strategy == "ddp" or settings.reduces_once else n_batches

    def pass_waits(gathered: float, overlapped: float, products: float, exchanged: int = 0) -> float:
        """Of a pass that gathers bytes before its products and beside them, and exchanges gradients beside them."""
        beside = overlapped / gather_rate + exchange_seconds(exchanged)
        return gathered / gather_rate + max(0.0, beside - products)

    products = seconds / 3 / n_batches  # of a forward pass
    forward = pass_waits(begin, others, products)
    plain_backward = pass_waits(again * layer, again * others, 2 * products)
    last_backward = pass_waits(again * layer, again * others, 2 * products, counts.total - first)
    last_backward += exchange_seconds(first)
    gathered = n_batches * (begin + others + again * (layer + others))
    return Traffic(
        all_gather=round(gathered),
        reduce_scatter=round(n_exchanges * gather(counts.total, FULL)),
        all_reduce=round(n_exchanges * reduce(counts.total)),
        seconds=gathered / gather_rate + n_exchanges * exchange_seconds(counts.total),
        exposed=n_batches * forward + n_exchanges * last_backward + (n_batches - n_exchanges) * plain_backward,
    )


def _rate(machine: Machine, n_members: int, *, stride: int) -> float:
    """Bytes per second that a GPU sends in rings of `n_members`, every `stride`-th of the GPUs.

    Inside a node the GPUs' own links carry them. Between nodes a ring leaves each once, and there are as many rings
    as it has adapters to leave by: one for each of its GPUs among the members.
    """
    assert machine.link is not None
    inside, span = 1e9 * machine.link, n_members * stride
    if machine.gpus <= machine.node or (span <= machine.node and machine.node % span == 0):
        return inside
    here = max(1, math.gcd(span, machine.node) // stride)
    return min(inside, 1e9 * machine.bandwidth * here)
