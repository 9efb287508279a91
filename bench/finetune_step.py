"""A training step of `finetune_demo` with its adapter, and one of all of the model: operations, time, memory.

    python -m bench.finetune_step [key=value ...]

Both see the same batches, in turn, in one process. Operations are those that torch.utils.flop_counter counts. The
memory is the most that torch's allocator has given at once, of a model that is built and makes two steps: weights,
gradients, the optimizer's state, activations and what kernels take for a moment. The memory of the process is
not asked: torch itself takes hundreds of megabytes, whatever is trained.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from data_modules.token_data import TokenDataModule
from experiments.assemble import assemble
from experiments.config import load_experiment
from lumos_pl.batch import PackedBatch
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.module import LumosModule

ROUNDS = 12
KINDS = {"adapter": [], "all of it": ["adapter.kind=none"]}
QUIET = ["callbacks.fidelity_captions=0", "callbacks.prompts=[]"]


def build(overrides: Sequence[str]) -> Callable[[PackedBatch], None]:
    """A step of a model that is built as the experiment has it: forward and backward pass, and the update."""
    module = cast(LumosModule, assemble(load_experiment("finetune_demo", [*overrides, *QUIET])).module)
    module.configure_model()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True)

    def step(batch: PackedBatch) -> None:
        loss = module.training_step(cast(Any, module.on_before_batch_transfer(batch, 0)), 0)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that torch's allocator has given at once to `work`."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        work()
    with tempfile.TemporaryDirectory() as folder:
        recorded.export_chrome_trace(str(file := Path(folder) / "trace.json"))
        events = json.loads(file.read_text())["traceEvents"]
    return max(int(event["args"]["Total Allocated"]) for event in events if event.get("name") == "[memory]")


def measure(overrides: Sequence[str]) -> dict[str, dict[str, float]]:
    """Per kind the operations, CPU seconds and bytes of a step."""
    data = cast(TokenDataModule, assemble(load_experiment("finetune_demo", [*overrides, *QUIET])).data)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(4), strict=False)]
    found: dict[str, dict[str, float]] = {}
    steps = {}
    for kind, own in KINDS.items():
        steps[kind] = build([*overrides, *own])
        with FlopCounterMode(display=False) as counted:
            steps[kind](batches[0])

        def work(own: Sequence[str] = own) -> None:
            step = build([*overrides, *own])
            for batch in batches[:2]:
                step(batch)

        found[kind] = {"flops": counted.get_total_flops(), "peak_bytes": peak_bytes(work)}
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _, batch in zip(range(ROUNDS), cycle(batches), strict=False):
        for kind, step in steps.items():
            begun = time.process_time()
            step(batch)
            seconds[kind].append(time.process_time() - begun)
    return {kind: figures | {"cpu_seconds": statistics.median(seconds[kind])} for kind, figures in found.items()}


def main(overrides: Sequence[str]) -> None:
    set_up_memory()
    found = measure(overrides)
    adapter, whole = (found[kind] for kind in KINDS)
    print(f"{'a step of':24}" + "".join(f"{kind:>12}" for kind in KINDS) + f"{'ratio':>8}")
    for name, unit, scale in (("flops", "Gflop", 1e9), ("cpu_seconds", "s", 1.0), ("peak_bytes", "MiB", 2.0**20)):
        values = "".join(f"{figures[name] / scale:12.3f}" for figures in (adapter, whole))
        print(f"{f'{name} ({unit})':24}{values}{adapter[name] / whole[name]:8.2f}")


if __name__ == "__main__":
    main(sys.argv[1:])
