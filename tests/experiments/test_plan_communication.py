"""What GPUs send each other: by hand, and as FSDP2 asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.plan.communication import step_traffic
from experiments.plan.plan import plan_experiment
from experiments.plan.words import Machine, gpu_like
from lumos_pl.layout import compact_layout
from lumos_pl.loss.masked_cross_entropy import LossConfig, masked_cross_entropy
from lumos_pl.models.config import UNPLACED, ModelConfig, Placement
from lumos_pl.models.memory import StepSettings
from lumos_pl.models.parallel import shard_mesh, shard_model
from lumos_pl.models.parameters import ParameterCounts, parameter_counts
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.spans import SequenceSpans

MODEL = ModelConfig(size="debug").build(compact_layout(codebook_size=60))
COUNTS = ParameterCounts(embedding=200, layer=100, n_layers=10, norm=0, head=200)  # 1,400 in all


def settings(strategy: str, placement: Placement, **changes: object) -> StepSettings:
    rest = {"cpu_offload": False, "accumulate": 1, "optimizer": "adamw", "ema": False, "chunk_size": 256, "cuda": True}
    return StepSettings(strategy=strategy, placement=placement, **({"mixed": True} | rest | changes))  # type: ignore[arg-type]


def machine(gpus: int, *, node: int = 8, bandwidth: float = 1.0, gpu: str = "4090-24g") -> Machine:
    """A 4090 sends 32 GB/s inside its node."""
    return Machine(gpu=gpu, gpus=gpus, usable=None, mfu=0.4, node=node, bandwidth=bandwidth)


# -- by hand -----------------------------------------------------------------------------------------


def test_fully_sharded_in_a_node_by_hand() -> None:
    """Of 8, each sends 7/8: bf16 layers and embedding, the fp32 head; fp32 gradients."""
    kept = settings("fsdp2", Placement(shard_size=8, reshard_after_forward=False))
    traffic = step_traffic(COUNTS, kept, machine(8), seconds=1e3)
    assert traffic.all_gather == 7 / 8 * (2 * 200 + 2 * 1000 + 4 * 200)
    assert traffic.reduce_scatter == 7 / 8 * 4 * 1400 and traffic.all_reduce == 0
    assert traffic.seconds == pytest.approx((2800 + 4900) / 32e9)
    # embedding, a layer and the head before anything can run; the embedding's gradient after everything has
    assert traffic.exposed == pytest.approx(7 / 8 * (400 + 200 + 800 + 800) / 32e9)

    again = replace(kept, placement=replace(kept.placement, reshard_after_forward=True))
    twice = step_traffic(COUNTS, again, machine(8), seconds=1e3)
    assert twice.all_gather - traffic.all_gather == 7 / 8 * 2 * 1000
    assert twice.exposed - traffic.exposed == pytest.approx(7 / 8 * 2 * 100 / 32e9)  # the last layer's
    # without products to hide behind, all of it is waited for
    assert step_traffic(COUNTS, again, machine(8), seconds=0).exposed == pytest.approx(twice.seconds)
    # a third of them is the forward pass's: what is left of 9 layers there, and of 9 and 12 in fp32 in the other
    part = step_traffic(COUNTS, again, machine(8), seconds=3e-8).exposed - twice.exposed
    layers, gradients = 7 / 8 * 200 * 9 / 32e9, 7 / 8 * 4 * 1200 / 32e9
    assert part == pytest.approx((layers - 1e-8) + (layers + gradients - 2e-8))


def test_copies_per_node_against_one_copy_on_48() -> None:
    """A ring leaves each node once, through the adapters of its members there: 8 of one copy's, 1 of a shard's."""
    one = settings("fsdp2", Placement(shard_size=48), mixed=False)
    traffic = step_traffic(COUNTS, one, machine(48), seconds=0)
    assert traffic.all_gather == round(47 / 48 * 4 * (1400 + 1000))
    assert traffic.seconds == pytest.approx(47 / 48 * 4 * (2400 + 1400) / 8e9)
    per_node = settings("fsdp2", Placement(shard_size=8), mixed=False)
    copies = step_traffic(COUNTS, per_node, machine(48), seconds=0)
    assert copies.all_gather == 7 / 8 * 4 * 2400 and copies.reduce_scatter == 7 / 8 * 4 * 1400
    assert copies.all_reduce == round(2 * 5 / 6 * 4 * 1400 / 8)
    assert copies.seconds == pytest.approx(7 / 8 * 4 * 3800 / 32e9 + 2 * 5 / 6 * 4 * 1400 / 8 / 1e9)
    # fast adapters are no faster than the links to them
    assert step_traffic(COUNTS, one, machine(48, bandwidth=50), seconds=0).seconds == pytest.approx(
        47 / 48 * 4 * 3800 / 32e9
    )


def test_groups_that_straddle_nodes_leave_by_fewer_adapters() -> None:
    """12 of 24 GPUs, 8 to a node: 4 of them share the second node with the other 12's."""
    straddling = settings("fsdp2", Placement(shard_size=12), mixed=False)
    copies = step_traffic(COUNTS, straddling, machine(24), seconds=0)
    assert copies.seconds == pytest.approx(11 / 12 * 4 * 3800 / 4e9 + 2 / 2 * 4 * 1400 / 12 / 1e9)


def test_ddp_exchanges_once_a_step() -> None:
    """Twice 15/16 of all gradients, the embedding's after the last product."""
    traffic = step_traffic(COUNTS, settings("ddp", UNPLACED, accumulate=3), machine(16), seconds=1e3)
    assert (traffic.all_gather, traffic.reduce_scatter, traffic.all_reduce) == (0, 0, 2 * 15 / 16 * 4 * 1400)
    assert traffic.exposed == pytest.approx(2 * 15 / 16 * 4 * 200 / 8e9)
    alone = step_traffic(COUNTS, settings("single", UNPLACED), machine(1), seconds=0)
    assert (alone.total, alone.seconds, alone.exposed) == (0, 0, 0)


def test_gradients_of_several_batches_are_exchanged_with_each_or_with_the_last() -> None:
    each = settings("fsdp2", Placement(shard_size=8), accumulate=4)
    once = replace(each, placement=replace(each.placement, reduce_once=True))
    alone = replace(each, accumulate=1)
    four, last, one = (step_traffic(COUNTS, s, machine(8), seconds=0) for s in (each, once, alone))
    assert four.reduce_scatter == 4 * one.reduce_scatter and last.reduce_scatter == one.reduce_scatter
    assert four.all_gather == last.all_gather == 4 * one.all_gather
    assert four.exposed == pytest.approx(4 * one.exposed)
    assert four.exposed - last.exposed == pytest.approx(3 * one.reduce_scatter / 32e9)
    some, part = (step_traffic(COUNTS, s, machine(8), seconds=1e-7 * s.accumulate) for s in (each, alone))
    assert some.exposed == pytest.approx(4 * part.exposed) and part.exposed < one.exposed


def test_the_recipe_on_eight_gpus_by_hand() -> None:
    """1B: 1.5 B parameters, 0.265 B each in embedding and head; 450 GB/s."""
    plan = plan_experiment("t2v_1b", ["gpus=8", "trainer.reshard_after_forward=true"])
    traffic = plan.traffic["video"]
    table, body = 129_536 * 2048, plan.parameters.body
    assert traffic.all_gather == pytest.approx(7 / 8 * (2 * table + 4 * body + 4 * table), rel=1e-5)
    assert traffic.reduce_scatter == pytest.approx(7 / 8 * 4 * (2 * table + body), rel=1e-5)
    assert traffic.exposed == pytest.approx(7 / 8 * (6 * table + 4 * body / 16 + 4 * table) / 450e9, rel=1e-5)
    step = (plan.days or 0) * 86_400 / plan.steps
    products = sum(batch.share * batch.flops.total for batch in plan.batches) / (8 * 989e12 * 0.4)
    assert step == pytest.approx(products + traffic.exposed)
    assert plan.exposed == pytest.approx(traffic.exposed / step)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80g"),
        ("NVIDIA H200", "h200-141g"),
        ("NVIDIA H20", "h20-96g"),
        ("NVIDIA A100-SXM4-80GB", "a100-80g"),
        ("NVIDIA GeForce RTX 4090", "4090-24g"),
        ("NVIDIA B200", "h100-80g"),
    ],
)
def test_the_gpu_at_hand_is_known_by_its_name(name: str, gpu: str) -> None:
    assert gpu_like(name) == gpu


# -- as FSDP2 asks for it ----------------------------------------------------------------------------


class Sent(TorchDispatchMode):
    """Bytes that one process would send in rings, by collective."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        match func:
            case torch.ops.c10d._allgather_base_.default:
                self._note("all_gather", args[0], args[2])
            case torch.ops.c10d._reduce_scatter_base_.default:
                self._note("reduce_scatter", args[1], args[2])
            case torch.ops.c10d.allreduce_.default:
                self._note("all_reduce", args[0][0], args[1], times=2)
        return func(*args, **(kwargs or {}))

    def _note(self, kind: str, tensor: torch.Tensor, group: Any, times: int = 1) -> None:
        n = dist.ProcessGroup.unbox(group).size()
        self.bytes[kind] += times * tensor.nbytes * (n - 1) // n


@pytest.fixture
def fake_ranks() -> Iterator[Any]:
    """Process groups of any size, in which nothing is sent: FSDP2 asks for the same in them."""

    def start(n_ranks: int) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=n_ranks)

    yield start
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("placement", "mixed", "accumulate"),
    [
        (Placement(shard_size=8), False, 1),
        (Placement(shard_size=8), True, 1),
        (Placement(shard_size=8, reshard_after_forward=False), True, 1),
        (Placement(shard_size=2), True, 3),
        (Placement(shard_size=2, reduce_once=True), True, 3),
    ],
)
def test_fsdp2_asks_for_what_the_plan_says(placement: Placement, mixed: bool, accumulate: int, fake_ranks: Any) -> None:
    fake_ranks(8)
    with torch.device("meta"):
        net = LumosTransformer(MODEL)
    mesh = shard_mesh("cpu", 8, placement.shard_size)
    shard_model(net, mesh, mixed=mixed, reshard_after_forward=placement.reshard_after_forward)
    net.to_empty(device="cpu")
    net.init_weights(0)
    spans = SequenceSpans(prefix=8, latent_frames=2, rows=4, cols=4)
    objective = partial(masked_cross_entropy, targets=torch.zeros(20, dtype=torch.long), config=LossConfig())
    with Sent() as sent, torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        for batch in range(accumulate):
            if placement.reduce_once:
                for unit in (net.model, net.lm_head):
                    unit.set_requires_gradient_sync(batch == accumulate - 1)  # type: ignore[operator]
            states = net(torch.zeros(spans.length, dtype=torch.long), [spans])
            net.lm_head(states[:20], objective)[0].backward()
    planned = step_traffic(
        parameter_counts(MODEL),
        settings("fsdp2", placement, mixed=mixed, accumulate=accumulate),
        machine(8),
        seconds=1.0,
    )
    for kind in "all_gather", "reduce_scatter", "all_reduce":
        # rows that 8 ranks do not divide are padded: those of the head norms
        assert sent.bytes[kind] == pytest.approx(getattr(planned, kind), rel=0.02), kind
