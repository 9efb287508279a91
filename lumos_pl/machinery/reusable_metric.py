"""A torchmetrics metric that outlives `Trainer.validate`."""

from __future__ import annotations

import torch
from torchmetrics import Metric


class ReusableMetric(Metric):
    """A metric whose state may be written to after any reset.

    Lightning validates, tests and predicts in inference mode, but not the validations of a fit. A state that is reset
    in that mode is an inference tensor, and the fit that comes next could not add to it.
    """

    def reset(self) -> None:
        with torch.inference_mode(False):
            super().reset()
