"""What a training's checkpoint holds to go on with: compared with what this Lightning and this optimizer would save."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lumos_pl.checkpoints.complete import step_of
from lumos_pl.checkpoints.contents import MOST_STEPS, OptimizerState, Training
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.lightning_private.loops import (
    BATCH_PROGRESS,
    EPOCH_PROGRESS,
    LOADERS,
    LOOP_STATE,
    OPTIMIZER_STEPS,
    fresh_loops,
)
from lumos_pl.optimizer import SETTINGS, OptimizerConfig, build_optimizer

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
KINDS = ("adamw", "muon", "muon_fp32")  # whose state is known
_OF_THE_DEVICE = ("foreach", "fused")  # settings that another machine may have otherwise
_OF_THE_RUN = (*SETTINGS, "initial_lr")  # which the configuration decides when a training goes on


class Misfit(NamedTuple):
    """A field that is not what it should be."""

    where: str
    got: object
    expected: object


def check_training(
    training: Training, file: Path, *, trained: Mapping[str, Tensor], kind: str | None, is_a_runs: bool
) -> None:
    """Raise CheckpointError at the first field with which a training could not go on, or would go on otherwise.

    Args:
        trained: the shapes of what the optimizer is of, by the module's names, in its order.
        kind: of the optimizer; None: it is not said.
        is_a_runs: whether `lumos train` saved it: always in the last batch of a step, and of one fit alone.
    """
    for misfit in _misfits(training, file, trained, kind, is_a_runs):
        raise CheckpointError(
            "not a training to go on with", file=file, where=misfit.where, got=misfit.got, expected=misfit.expected
        )


def _misfits(
    training: Training, file: Path, trained: Mapping[str, Tensor], kind: str | None, is_a_runs: bool
) -> Iterator[Misfit]:
    step = training.global_step
    try:
        called = step_of(file)
    except ValueError:  # it has a name of somebody's own
        called = step
    if called != step:
        yield Misfit("global_step", step, f"{called}, as the file is called")
    yield from _of_loops(training.loops, step, training.epoch)
    if is_a_runs:
        yield from _of_a_runs_loops(training.loops["fit_loop"], step)
    if kind not in KINDS and not is_a_runs:  # of a subclass or a callback: as many as it likes
        for optimizer in training.optimizer_states:
            yield from _of_any_optimizer(optimizer)
        return
    n_optimizers = len(training.optimizer_states)
    if n_optimizers != 1 and not (n_optimizers == step == 0):  # of a Trainer that validated, and saved
        yield Misfit("optimizer_states", f"{n_optimizers} optimizers", 1)
    if len(training.lr_schedulers) != n_optimizers:
        yield Misfit("lr_schedulers", f"{len(training.lr_schedulers)} schedules", n_optimizers)
    for optimizer, schedule in zip(training.optimizer_states, training.lr_schedulers, strict=True):
        template = _template(kind, trained) if kind in KINDS else None
        if template is None:
            yield from _of_any_optimizer(optimizer)
        else:
            yield from _of_optimizer(optimizer, template[0], list(trained), step, is_a_runs)
            yield from _of_schedule(schedule, template[1], step, is_a_runs)


def _of_loops(loops: Mapping[str, Any], step: int, epoch: int) -> Iterator[Misfit]:
    yield from unlike({name: _without_loaders(loop) for name, loop in loops.items()}, fresh_loops(), "loops")
    fit = loops["fit_loop"]
    done = sum(_at(fit, place)["total"]["completed"] for place in OPTIMIZER_STEPS)
    if done != step:
        yield Misfit("global_step", step, f"{done}, as the loops say")
    over = fit[EPOCH_PROGRESS]["current"]["processed"]
    if epoch not in (over, over - 1):  # the latter where it was saved at the end of an epoch
        yield Misfit("epoch", epoch, f"{over}, as the loops say")


def _of_a_runs_loops(fit: Mapping[str, Any], step: int) -> Iterator[Misfit]:
    """What Lightning counts of one endless epoch, from the hook in which a run saves."""
    expected: dict[str, Any] = {"epoch_loop.state_dict": {"_batches_that_stepped": step - 1}}
    begun = {"ready": 1, "completed": 0, "started": 1, "processed": 0}
    expected[EPOCH_PROGRESS] = {"total": begun, "current": begun}
    for loop, counts in expected.items():
        for name, count in counts.items():
            if fit[loop][name] != count:
                yield Misfit(f"loops.fit_loop.{loop}.{name}", fit[loop][name], count)
    if (loaders := fit[LOOP_STATE].get(LOADERS, [{}])) != [{}]:  # the step is all that a run's data need
        yield Misfit(f"loops.fit_loop.{LOOP_STATE}.{LOADERS}", _words(loaders), [{}])
    for part in "total", "current":
        progress = fit[BATCH_PROGRESS][part]
        batches = progress["ready"]
        if not progress["completed"] + 1 == progress["processed"] == progress["started"] == batches:
            yield Misfit(
                f"loops.fit_loop.{BATCH_PROGRESS}.{part}", progress, "all batches processed, one not completed"
            )


def _without_loaders(loop: Any) -> Any:
    """A loop without what the loaders of somebody's own data have saved of themselves, which is theirs to read."""
    own = loop.get(LOOP_STATE) if isinstance(loop, dict) else None
    loaders = own.get(LOADERS) if isinstance(own, dict) else None
    if not isinstance(own, dict) or not isinstance(loaders, list) or not all(isinstance(one, dict) for one in loaders):
        return loop
    return loop | {LOOP_STATE: {name: value for name, value in own.items() if name != LOADERS}}


def _at(content: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        content = content[name]
    return content


# -- the optimizer and its schedule ----------------------------------------------------------------


def _template(kind: str, trained: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an optimizer and its schedule save after a step, by the parameters' names and without numbers."""
    parameters = {name: nn.Parameter(torch.empty_like(tensor, device="meta")) for name, tensor in trained.items()}
    optimizer, schedule = build_optimizer(OptimizerConfig(kind=kind), parameters.items(), max_steps=1)
    for parameter in parameters.values():
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    saved = optimizer.state_dict()
    saved["state"] = {order[number]: state for number, state in saved["state"].items()}
    for group in saved["param_groups"]:
        group["params"] = [order[number] for number in group["params"]]
    return saved, schedule.state_dict()


def _of_optimizer(
    saved: OptimizerState, template: dict[str, Any], trained: list[str], step: int, is_a_runs: bool
) -> Iterator[Misfit]:
    where, expected = "optimizer_states[0]", template["param_groups"]
    if len(saved.param_groups) != len(expected):
        yield Misfit(f"{where}.param_groups", f"{len(saved.param_groups)} groups", len(expected))
    order = [name for group in expected for name in group["params"]]
    given = [key for group in saved.param_groups for key in group.params]
    by_name = any(isinstance(key, str) for key in given)  # a sharded one
    keys: dict[Any, str] = {name: name for name in order} if by_name else _by_number(given, order, trained)
    for i, (group, other) in enumerate(zip(saved.param_groups, expected, strict=True)):
        place = f"{where}.param_groups[{i}]"
        params = [str(keys.get(key)) if type(key) in (int, str) else "" for key in group.params]
        same = sorted(params) == sorted(other["params"]) if by_name else params == other["params"]
        if not same:
            got, wanted = f"{len(params)} parameters", f"{len(other['params'])}, those of the module"
            yield Misfit(f"{place}.params", got, wanted)
        yield from _of_settings(group.model_extra or {}, other, place)
    state = {keys.get(key, key) if type(key) in (int, str) else key: value for key, value in saved.state.items()}
    if not state and step == 0:
        return
    yield from unlike(state, template["state"], f"{where}.state")
    for name, numbers in state.items():
        yield from _of_numbers(numbers, f"{where}.state.{name}", step, is_a_runs)


def _by_number(given: list[Any], order: list[str], trained: list[str]) -> dict[Any, str]:
    """What an optimizer's numbers of its parameters stand for: torch counts in the optimizer's order, and Lightning's
    sharded strategies, where they save one file of the whole, in the module's."""
    if given == list(range(len(given))) or not all(type(number) is int for number in given):
        return dict(enumerate(order))
    return dict(zip(sorted(given), trained, strict=False))


def _of_settings(group: Mapping[str, Any], template: Mapping[str, Any], where: str) -> Iterator[Misfit]:
    for name in template.keys() - {"params"}:
        got, place = group.get(name), f"{where}.{name}"
        if name not in group:
            yield Misfit(place, "nothing", template[name])
        elif name in _OF_THE_RUN:
            yield from unlike(got, template[name], place)
        elif name in _OF_THE_DEVICE:
            if got is not None and type(got) is not bool:
                yield Misfit(place, _words(got), "true, false or null")
        elif type(got) is not type(template[name]) or got != template[name]:
            yield Misfit(place, _words(got), template[name])


def _of_numbers(numbers: Mapping[str, Tensor], where: str, step: int, is_a_runs: bool) -> Iterator[Misfit]:
    for name, tensor in numbers.items():
        if tensor.is_meta:  # of a sharded checkpoint, where the values were looked at in the files
            continue
        low, high = extremes(tensor)
        if not (math.isfinite(low) and math.isfinite(high)):
            yield Misfit(f"{where}.{name}", "NaN or infinity", "finite numbers")
        if name == "step" and not (low.is_integer() and (step if is_a_runs else 0) <= low <= step):
            yield Misfit(f"{where}.{name}", low, f"{step}, the steps of the training")
        if name.endswith("_sq") and low < 0:
            yield Misfit(f"{where}.{name}", low, "squares, none below 0")


def extremes(tensor: Tensor) -> tuple[float, float]:
    """The least and the largest number, NaN if there is one; of none 0."""
    if tensor.numel() == 0:
        return 0.0, 0.0
    low, high = torch.aminmax(tensor)
    return float(low), float(high)


def _of_schedule(saved: Mapping[str, Any], template: dict[str, Any], step: int, is_a_runs: bool) -> Iterator[Misfit]:
    yield from unlike(saved, template, "lr_schedulers[0]")
    if not (step if is_a_runs else 0) <= saved["last_epoch"] <= step:
        yield Misfit("lr_schedulers[0].last_epoch", saved["last_epoch"], step)
    if saved["_step_count"] != saved["last_epoch"] + 1:
        yield Misfit("lr_schedulers[0]._step_count", saved["_step_count"], saved["last_epoch"] + 1)


def _of_any_optimizer(saved: OptimizerState) -> Iterator[Misfit]:
    """One whose state nobody here knows: its parameters are each in one group, and its state is of them."""
    params = [key for group in saved.param_groups for key in group.params]
    if any(type(key) not in (int, str) for key in params) or len({*params}) < len(params) or not params:
        yield Misfit("optimizer_states[0].param_groups", "other parameters", "each parameter once, by number or name")
    elif not saved.state.keys() <= {*params}:
        yield Misfit("optimizer_states[0].state", "other parameters", "those of its groups")


# -- like a template --------------------------------------------------------------------------------


def unlike(value: Any, template: Any, where: str) -> Iterator[Misfit]:
    """Where a value is not of a template's structure: its names, lengths and types, the shapes of its tensors.

    Whole numbers are counts, others finite; a tensor is of floating-point numbers in any precision.
    """
    match template:
        case dict():
            if not isinstance(value, dict):
                yield Misfit(where, _words(value), "a dict")
                return
            for name in [*template, *(name for name in value if name not in template)]:
                place = f"{where}.{str(name)[:60]}"
                if name not in value or name not in template:
                    got, expected = ("nothing", "something") if name not in value else ("something", "nothing")
                    yield Misfit(place, got, expected)
                    return
                yield from unlike(value[name], template[name], place)
        case list() | tuple():
            if not isinstance(value, list | tuple) or len(value) != len(template):
                yield Misfit(where, _words(value), f"a list of {len(template)}")
                return
            for i, (item, other) in enumerate(zip(value, template, strict=True)):
                yield from unlike(item, other, f"{where}[{i}]")
        case Tensor():
            if not isinstance(value, Tensor) or value.dtype not in FLOATS or value.shape != template.shape:
                yield Misfit(where, _words(value), f"floating-point numbers {list(template.shape)}")
        case bool() | None:
            if type(value) is not type(template):
                yield Misfit(where, _words(value), type(template).__name__)
        case int():
            if type(value) is not int or not 0 <= value <= MOST_STEPS:
                yield Misfit(where, _words(value), "a count")
        case float():
            if type(value) not in (int, float) or not math.isfinite(value):
                yield Misfit(where, _words(value), "a finite number")


def _words(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {list(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return ascii(value)[:60] if isinstance(value, str | int | float | None) else type(value).__name__
