"""A training step with an adapter, and one of all of the model: operations, time, memory, and their ratios.

    python -m bench.finetune_step [key=value ...]                  of `finetune_demo`
    python -m bench.finetune_step --size 0.5b [--rank 16] ...      of a decoder with drawn weights, and one clip

Both see the same batches, in turn, in one process. Operations are those that torch.utils.flop_counter counts. The
memory is the most that torch's allocator has given at once, of a model that is built and makes two steps: weights,
gradients, the optimizer's state, activations and what kernels take for a moment. The memory of the process is
not asked: torch itself takes hundreds of megabytes, whatever is trained.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from bench.model import MAX_LENGTH, build_decoder
from bench.training_step import hidden_as_in_training, our_loss, packed_clip
from data_modules.token_data import TokenDataModule
from experiments.assemble import assemble
from experiments.read_config import load_experiment
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.adapters.training import adapt, init_adapter
from lumos_pl.batch import PackedBatch
from lumos_pl.layout import lumos1_layout
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.models.config import ModelConfig, Size
from lumos_pl.module import LumosModule

ROUNDS = 12
KINDS = {"adapter": [], "all of it": ["adapter.kind=none"]}
QUIET = ["callbacks.fidelity_captions=0", "callbacks.prompts=[]"]

Step = Callable[[Any], None]


def _step(loss_of: Callable[[Any], Tensor], parameters: Iterable[nn.Parameter]) -> Step:
    """Forward and backward pass, and the update."""
    optimizer = torch.optim.AdamW([one for one in parameters if one.requires_grad], fused=True)

    def step(batch: Any) -> None:
        loss = loss_of(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def build_demo(overrides: Sequence[str]) -> Step:
    """A step of a model as the experiment has it."""
    module = cast(LumosModule, assemble(load_experiment("finetune_demo", [*overrides, *QUIET])).module)
    module.configure_model()

    def loss_of(batch: PackedBatch) -> Tensor:
        return module.training_step(cast(Any, module.on_before_batch_transfer(batch, 0)), 0)["loss"]

    return _step(loss_of, module.parameters())


def demo_batches(overrides: Sequence[str]) -> list[PackedBatch]:
    data = cast(TokenDataModule, assemble(load_experiment("finetune_demo", [*overrides, *QUIET])).data)
    return [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]


def build_size(size: Size, adapter: AdapterConfig) -> Step:
    """A step of a decoder of a size, with an adapter if it is on."""
    net = build_decoder(ModelConfig(size=size, max_length=MAX_LENGTH), lumos1_layout(), "cpu")
    if adapter.is_on:
        adapt(net, adapter)
        init_adapter(net, seed=0)
    return _step(partial(our_loss, net), net.parameters())


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch's allocator has given at once to `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    return max(int(event["args"]["Total Allocated"]) for event in events if event.get("name") == "[memory]")


def measure(
    builds: Mapping[str, Callable[[], Step]], batches: Sequence[Any], rounds: int
) -> dict[str, dict[str, float]]:
    """Per kind the operations, CPU seconds and bytes of a step."""
    found: dict[str, dict[str, float]] = {}
    steps = {}
    for kind, build in builds.items():

        def work(build: Callable[[], Step] = build) -> None:
            step = build()
            for batch in batches[:2]:
                step(batch)

        peak = peak_bytes(work)
        steps[kind] = build()
        with FlopCounterMode(display=False) as counted:
            steps[kind](batches[0])
        found[kind] = {"flops": counted.get_total_flops(), "peak_bytes": peak}
    seconds: dict[str, list[float]] = {kind: [] for kind in builds}
    for _, batch in zip(range(rounds), cycle(batches), strict=False):
        for kind, step in steps.items():
            begun = time.process_time()
            step(batch)
            seconds[kind].append(time.process_time() - begun)
    return {kind: figures | {"cpu_seconds": statistics.median(seconds[kind])} for kind, figures in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of finetune_demo")
    parser.add_argument("--size", choices=get_args(Size), help="of a decoder instead of finetune_demo's")
    parser.add_argument("--rank", type=int, default=16, help="of its adapter, beside every matrix")
    parser.add_argument("--side", type=int, default=16, help="of its clip's only latent frame")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    set_up_memory()
    builds: dict[str, Callable[[], Step]]
    batches: Sequence[Any]
    if options.size is None:
        builds = {kind: partial(build_demo, [*options.overrides, *own]) for kind, own in KINDS.items()}
        batches = demo_batches(options.overrides)
    else:
        layout, configs = lumos1_layout(), (AdapterConfig(kind="lora", rank=options.rank), AdapterConfig())
        builds = {kind: partial(build_size, options.size, config) for kind, config in zip(KINDS, configs, strict=True)}
        clip = packed_clip(layout, (1, options.side, options.side), n_text=100)
        batches = [hidden_as_in_training(clip, layout)] * 2
    found = measure(builds, batches, options.rounds)
    adapter, whole = (found[kind] for kind in KINDS)
    print(f"{'a step of':24}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'ratio':>8}")
    for name, unit, scale in (("flops", "Gflop", 1e9), ("cpu_seconds", "s", 1.0), ("peak_bytes", "MiB", 2.0**20)):
        values = "".join(f"{figures[name] / scale:12.3f}" for figures in (adapter, whole))
        print(f"{f'{name} ({unit})':24}{values}{adapter[name] / whole[name]:8.2f}")


if __name__ == "__main__":
    main()
