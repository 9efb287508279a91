"""The loops of a Trainer: their counts of batches, where they go on, what is told of a step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, cast

from lightning import LightningModule, Trainer
from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.prediction_loop import _PredictionLoop
from lightning.pytorch.profilers import PyTorchProfiler
from lightning.pytorch.trainer.states import RunningStage, TrainerFn

from lumos_pl.machinery.progress import mark
from lumos_pl.machinery.stop_request import BrokenOff, breaks

BATCH_PROGRESS, EPOCH_PROGRESS = "epoch_loop.batch_progress", "epoch_progress"  # in a checkpoint's "fit_loop"
LOOP_STATE, LOADERS = "state_dict", "combined_loader"  # in the same: what the loaders have saved of themselves
COUNTS = "ready", "started", "processed", "completed"
OPTIMIZER_STEPS = (  # in the same: of Lightning's own steps, and of a module's that takes them by itself
    ("epoch_loop.automatic_optimization.optim_progress", "optimizer", "step"),
    ("epoch_loop.manual_optimization.optim_step_progress",),
)


def set_hyperparameters(module: LightningModule, values: Mapping[str, Any]) -> None:
    """As `save_hyperparameters(values)`, which asks of each argument of the class if it is them, an array too."""
    module.hparams.update(values)
    initial = copy.deepcopy(module.hparams)
    vars(module).update(_log_hyperparams=True, _hparams_name=None, _hparams_initial=initial)


def steps_of_data(trainer: Trainer) -> int:
    """How many steps' batches were begun: the optimizer's, or the batches where a module takes its steps by itself.

    Such a module may step more often than once a batch, or less, so that its steps do not tell what it has read.
    """
    if getattr(trainer.lightning_module, "automatic_optimization", True):
        return trainer.global_step
    return trainer.fit_loop.total_batch_idx + 1


def accumulates(trainer: Trainer) -> bool:
    """Whether the batch that was just trained on left its step open."""
    return trainer.fit_loop._should_accumulate()


def log_step(trainer: Trainer) -> None:
    """Log the step now and once: Lightning does so after the hooks of the callbacks."""
    if getattr(trainer.fit_loop, "is_broken_off", False):
        return  # after them
    connector, step = trainer._logger_connector, trainer.global_step
    connector.update_train_step_metrics()

    def unless_logged() -> None:
        del connector.update_train_step_metrics  # it is the class's again
        if trainer.global_step != step:
            connector.update_train_step_metrics()

    connector.update_train_step_metrics = unless_logged  # type: ignore[method-assign]


def measure_fetches(trainer: Trainer, told: Callable[[float], None]) -> Callable[[], None]:
    """Have the training loop tell how many seconds it waited for each of its batches; before its first one.

    Returns:
        what ends this, for a Trainer that fits once more.
    """
    loop, begun = trainer.fit_loop.epoch_loop, 0.0
    told_before, told_after = loop._on_before_fetch, loop._on_after_fetch

    def before() -> None:
        nonlocal begun
        told_before()
        begun = time.perf_counter()

    def after() -> None:
        told(time.perf_counter() - begun)
        told_after()

    def end() -> None:
        loop._on_before_fetch, loop._on_after_fetch = told_before, told_after  # type: ignore[method-assign]

    loop._on_before_fetch, loop._on_after_fetch = before, after  # type: ignore[method-assign]
    return end


class LenientProfiler(PyTorchProfiler):
    """Lightning's, for a run that may be over before anything was traced; a trace's name is that of its table."""

    def _cache_functions_events(self) -> None:
        with suppress(AssertionError):  # of torch: there are no events
            super()._cache_functions_events()

    @property
    def worker_name(self) -> str:
        return self._prepare_filename(extension="")


@cache
def fresh_loops() -> dict[str, Any]:
    """What a checkpoint's "loops" are before the first step: every name and type that Lightning reads of them."""
    nobody = cast(Trainer, object())  # who is asked for nothing yet
    testing = TrainerFn.TESTING, RunningStage.TESTING
    return {
        "fit_loop": _FitLoop(nobody).state_dict(),
        "validate_loop": _EvaluationLoop(nobody, TrainerFn.VALIDATING, RunningStage.VALIDATING).state_dict(),
        "test_loop": _EvaluationLoop(nobody, *testing).state_dict(),
        "predict_loop": _PredictionLoop(nobody).state_dict(),
    }


def begin_at_a_step(
    loops: dict[str, Any], *, step: int, accumulate: int | None, limit: float | None, ends: bool = False
) -> None:
    """Let the saved counts of batches be those of the last finished optimizer step.

    Lightning counts micro-batches: a step may have had more or fewer of them when it was saved, and one that was not
    over is done again, for its gradients are lost.

    Nor is a training over whose last step was saved: it may be longer now.

    Args:
        loops: a checkpoint's "fit_loop", changed in place.
        step: its optimizer steps.
        accumulate: micro-batches of a step on this rank from now on; None: the module takes its steps by itself, and
            every batch that is over stays so.
        limit: those of an epoch; None: there is one epoch, without end.
        ends: the data have an end of their own, by which Lightning knew that an epoch was over.
    """
    progress = loops[BATCH_PROGRESS]
    current, total = progress["current"], progress["total"]
    done = current["processed"]  # batches that are over: an error in the middle of one leaves it `ready` alone
    whole = progress["is_last_batch"] and (ends or done == limit)
    if not whole and loops[EPOCH_PROGRESS]["current"]["processed"] == 0:
        progress["is_last_batch"] = False
        target = done if accumulate is None else step * accumulate
    elif whole or accumulate is None:  # the epoch's last step is done, whole or not
        target = done
    else:  # how many steps the epochs before had is not known
        target = done - done % accumulate
    in_its_end = current["ready"] == done == current["completed"] + 1  # saved in a hook of the batch's end
    for name in COUNTS:
        shift = target - (name == "completed" and in_its_end) - current[name]
        total[name] += shift
        current[name] += shift


class ResumableFitLoop(_FitLoop):
    """Makes up for what followed the step that a checkpoint was saved after.

    A checkpoint is saved as soon as its step is done. The validation that is due then comes first in a
    resumed run; Lightning takes it to be over. After the last step so do `on_train_end` and all that the
    callbacks do there; Lightning leaves before them. No step is trained again for it.

        step 5 | step 6, save | validation, judging | result.json
                              ^ from here

    What is broken off after a step, a validation or a part of the next step, leaves no trace: what is saved then is
    the state of the loops at the end of that step (`note_step`). The checkpoint callbacks save it and leave, by
    `on_broken_off(trainer)`.
    """

    is_broken_off = False
    _noted: dict[str, Any] | None = None

    @classmethod
    def put_into(cls, trainer: Trainer) -> None:
        """Have it run the trainer's `fit`."""
        loop = cls(trainer, min_epochs=trainer.min_epochs, max_epochs=trainer.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        loop.epoch_loop._on_before_fetch = loop._before_fetch  # type: ignore[method-assign]
        trainer.fit_loop = loop

    @property
    def skip(self) -> bool:
        return not self.restarting and super().skip

    def on_run_start(self) -> None:
        super().on_run_start()
        assert self._data_fetcher is not None
        if self.restarting and self.epoch_loop._should_check_val_fx(self._data_fetcher):
            validation = self.epoch_loop.val_loop
            validation.restarting = False  # from its first batch
            self.trainer.validating = True
            with self._leaving_when_broken_off():
                validation.run()
            self.trainer.training = True

    def advance(self) -> None:
        with self._leaving_when_broken_off():
            super().advance()

    def note_step(self) -> None:
        """Where a run that is broken off from now on is to go on: a step is over, in a hook of its last batch's end."""
        self._noted = super().state_dict()

    def state_dict(self, destination: dict[str, Any] | None = None, prefix: str = "") -> dict[str, Any]:
        if self.is_broken_off and self._noted is not None:
            return self._noted
        return cast(dict[str, Any], super().state_dict(destination, prefix))

    @contextmanager
    def _leaving_when_broken_off(self) -> Iterator[None]:
        try:
            yield
        except BrokenOff:
            self.trainer.training = True
            self.is_broken_off = True
            for callback in self.trainer.checkpoint_callbacks:
                if hasattr(callback, "on_broken_off"):
                    callback.on_broken_off(self.trainer)
            raise

    def _before_fetch(self) -> None:
        """One process may drop the step that it begins with a batch; of several, others may be amid an exchange."""
        type(self.epoch_loop)._on_before_fetch(self.epoch_loop)
        mark("waiting for a batch")
        if self.trainer.world_size == 1:
            breaks("late")


def note_step(trainer: Trainer) -> None:
    """A step is over: see `ResumableFitLoop`."""
    if isinstance(trainer.fit_loop, ResumableFitLoop):
        trainer.fit_loop.note_step()
