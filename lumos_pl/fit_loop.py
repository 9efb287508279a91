"""Lightning's training loop, for runs that may have been stopped right after any step, the last one too."""

from __future__ import annotations

from typing import Any

from lightning import Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop


class ResumableFitLoop(_FitLoop):
    """Makes up for what followed the step that a checkpoint was saved after.

    A checkpoint is saved as soon as its step is done. The validation that is due then comes first in a
    resumed run; Lightning takes it to be over. After the last step so do `on_train_end` and all that the
    callbacks do there; Lightning leaves before them. No step is trained again for it.

        step 5 | step 6, save | validation, judging | result.json
                              ^ from here
    """

    @classmethod
    def put_into(cls, trainer: Trainer) -> None:
        """Have it run the trainer's `fit`."""
        loop = cls(trainer, min_epochs=trainer.min_epochs, max_epochs=trainer.max_epochs)
        loop.epoch_loop = trainer.fit_loop.epoch_loop
        trainer.fit_loop = loop

    def load_state_dict(self, state_dict: dict[str, Any], prefix: str = "") -> None:
        """Lightning counts micro-batches, of which a step may have had more or fewer when it was saved.

        And it takes a run whose last step was saved to be over, also where it is to be longer now.
        """
        super().load_state_dict(state_dict, prefix)
        self.epoch_loop.batch_progress.is_last_batch = False
        done = self.epoch_loop.global_step * self.trainer.accumulate_grad_batches
        for counts in self.epoch_loop.batch_progress.total, self.epoch_loop.batch_progress.current:
            shift = done - counts.ready
            for name in "ready", "started", "processed", "completed":
                setattr(counts, name, getattr(counts, name) + shift)

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
            validation.run()
            self.trainer.training = True
