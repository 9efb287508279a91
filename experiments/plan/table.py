"""How `lumos plan` prints a plan: tables for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from experiments.plan.plan import Plan
from experiments.units import size

GIB = 2**30


def to_json(plan: Plan) -> str:
    return json.dumps(asdict(plan) | {"fullest": plan.fullest, "peak": plan.peak})


def print_plan(plan: Plan) -> None:
    console = Console(highlight=False, soft_wrap=True)
    counts = plan.parameters
    console.print(
        f"{plan.experiment} on {plan.gpus} x {plan.gpu} ({plan.strategy}): {counts.total / 1e9:.3g} B parameters "
        f"({counts.embedding / 1e9:.3g} embedding, {counts.body / 1e9:.3g} in {counts.n_layers} layers, "
        f"{counts.head / 1e9:.3g} head)"
    )
    console.print(_batches(plan))
    console.print(_memory(plan))
    if plan.host:
        parts = ", ".join(f"{component} {n_bytes / GIB:.2f}" for component, n_bytes in plan.host.items())
        console.print(f"in the host's memory, GiB per GPU: {sum(plan.host.values()) / GIB:.2f} ({parts})")
    console.print(f"settled: {plan.placed}")
    console.print(verdict(plan))
    if any(traffic.total for traffic in plan.traffic.values()):
        console.print(_traffic(plan))
    if plan.days is not None:
        waiting = f", of which {plan.exposed:.1%} waiting for other GPUs" if plan.exposed else ""
        console.print(
            f"{plan.tokens_per_second:,.0f} tokens/s; {plan.steps:,} steps in {plan.days:.3g} days "
            f"({plan.days * 24 * plan.gpus:,.0f} GPU hours) at mfu {plan.mfu:g}{waiting}"
        )
    console.print(_data(plan))
    for line in _saves(plan):
        console.print(line)
    parts = ", ".join(f"{component} {n_bytes / GIB:.2f}" for component, n_bytes in plan.node.items())
    console.print(f"a node's host memory, GiB: {sum(plan.node.values()) / GIB:.1f} ({parts})")
    for advice in plan.advice:
        console.print(f"better here: {advice.setting} ({advice.why})")
    for line in plan.assumptions:
        console.print(f"  {line}")


def verdict(plan: Plan) -> str:
    """Whether it fits, and what would make it fit."""
    need = f"{plan.peak / GIB:.1f} GiB at `{plan.fullest}`"
    if plan.usable is None:
        return f"needs {need}"
    of = f"{need}, {plan.usable / GIB:.1f} GiB usable"
    if plan.fits:
        return f"fits {plan.gpu}: {of}"
    if plan.fix is None:
        return f"does not fit {plan.gpu}: {of}. No setting makes it fit: fewer frames, smaller pictures or a larger GPU"
    return f"does not fit {plan.gpu}: {of}. It does with {' '.join(plan.fix)}"


def _batches(plan: Plan) -> Table:
    table = _table("steps", *(batch.title for batch in plan.batches))
    table.add_row("share of the steps", *(f"{batch.share:.0%}" for batch in plan.batches))
    for name in ("samples", "tokens") if len(plan.batches) > 1 else ():
        parts = [batch.share * getattr(batch, name) for batch in plan.batches]
        table.add_row(f"  of the {name}", *(f"{part / sum(parts):.0%}" for part in parts))
    for name in "sample_tokens", "samples", "tokens":
        words = "tokens per sample" if name == "sample_tokens" else f"{name} per step"
        table.add_row(words, *(f"{getattr(batch, name):,.0f}" for batch in plan.batches))
    for part in "total", "body", "attention", "head":
        words = "PFLOPs per step" if part == "total" else f"  {part}"
        table.add_row(words, *(f"{getattr(batch.flops, part) / 1e15:.3g}" for batch in plan.batches))
    return table


def _memory(plan: Plan) -> Table:
    table = _table("GiB per GPU", *plan.memory)
    columns = list(plan.memory.values())
    for component in columns[0]:
        if any(column[component] for column in columns):
            table.add_row(component, *(f"{column[component] / GIB:.2f}" for column in columns))
    table.add_section()
    table.add_row("all", *(f"{sum(column.values()) / GIB:.2f}" for column in columns))
    return table


def _traffic(plan: Plan) -> Table:
    table = _table("a GPU sends, GB a step", *(batch.title for batch in plan.batches))
    columns = list(plan.traffic.values())
    for kind in "all_gather", "reduce_scatter", "all_reduce":
        if any(getattr(traffic, kind) for traffic in columns):
            table.add_row(kind.replace("_", "-"), *(f"{getattr(traffic, kind) / 1e9:.2f}" for traffic in columns))
    table.add_section()
    for name in "seconds", "exposed":
        words = "ms on the links" if name == "seconds" else "  ms not hidden"
        table.add_row(words, *(f"{1e3 * getattr(traffic, name):.1f}" for traffic in columns))
    return table


def _data(plan: Plan) -> Table:
    table = _table("data", *(batch.title for batch in plan.batches))
    columns = list(plan.data.values())
    known = [("samples there are", "samples", ","), ("epochs", "epochs", ".3g"), ("share that is seen", "seen", ".1%")]
    for words, name, form in known:
        values = [getattr(column, name) for column in columns]
        table.add_row(words, *("unknown: samples=N" if value is None else f"{value:{form}}" for value in values))
    table.add_row("samples trained on", *(f"{column.trained:,.0f}" for column in columns))
    table.add_row("streams", *(str(column.streams) for column in columns))
    table.add_row("  times a shard is read", *(f"{column.readers:.3g}" for column in columns))
    return table


def _saves(plan: Plan) -> Iterator[str]:
    saves = plan.saves
    takes = f"a checkpoint: {size(saves.n_bytes)}"
    if saves.seconds is not None:
        takes += f", {saves.seconds:.3g} s to write, of which the training waits {saves.blocking:.2g} s"
    yield takes
    yield f"disk of the run: {size(saves.disk)} for {saves.kept} checkpoints, one of them being written"
    if saves.stop is None:
        return
    given = "" if saves.grace is None else f", of {saves.grace:g} s (trainer.grace_s)"
    yield f"a stop takes {saves.stop:.3g} s: a step and a checkpoint{given}"
    yield (
        f"failures of GPUs to be expected: {saves.failures:.2g}, each costs {saves.lost:,.0f} steps on average;"
        f" saving costs the least with checkpoint.every_n_steps={saves.best_every} (Young)"
    )


def _table(first: str, *others: str) -> Table:
    table = Table(first)
    for heading in others:
        table.add_column(heading, justify="right")
    return table
