"""A mean over all samples of a validation, whatever batch or rank they are in."""

from __future__ import annotations

import torch
from torch import Tensor

from lumos_pl.machinery.reusable_metric import ReusableMetric


class WeightedMean(ReusableMetric):
    """The mean of batches' means, each weighed by what it is over.

    torchmetrics' own MeanMetric either makes the host wait for a GPU in every batch, to look for NaN, or, told not to,
    leaves the weights out.
    """

    total: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("weight", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, mean: Tensor, weight: int | Tensor) -> None:
        """
        Args:
            mean: of a batch, a scalar.
            weight: what it is over, such as a number of tokens.
        """
        self.total += mean.float() * weight
        self.weight += weight

    def compute(self) -> Tensor:
        return self.total / self.weight
