"""What a training costs, reckoned from its settings, so that arms of any study can be set against each other."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from experiments.config import Config, ExperimentConfig
from experiments.plan.batches import batch_plan
from lumos_pl.models.transformer import LumosTransformer
from lumos_pl.spans import SequenceSpans

CAPTION_IDS = 6  # about as many as a caption of these worlds has
TERA = 1e12
COSTS = "teraflops", "parameters", "steps"


def cost_of(config: Config, step: int | None) -> Mapping[str, float]:
    """Operations up to a step (None: the last), parameters of the decoder, and the steps.

    Operations are those of `step_flops`, of clips of the run's own world; nothing of another kind of run.
    """
    if not isinstance(config, ExperimentConfig) or not config.world.train:
        return {}
    layout, steps = config.layout.build(), config.trainer.max_steps if step is None else step
    rows, cols = layout.latent_size(config.world.side, config.world.side)
    latent_frames = layout.latent_frames(config.world.frames)
    spans = SequenceSpans(layout.prefix_length(CAPTION_IDS), latent_frames, rows, cols, closing=2)
    again = config.mask.self_forcing / 3  # whose share of the batches has a second pass forward
    plans = [batch_plan(config, source.name, {spans: 1.0}, 1) for source in config.data.all_sources]
    flops = sum(plan.share * plan.flops.total for plan in plans) * (1 + again)
    with torch.device("meta"):
        net = LumosTransformer(config.model.build(layout), config.model)
    n_parameters = sum(parameter.numel() for parameter in net.parameters())
    return dict(zip(COSTS, (steps * flops / TERA, float(n_parameters), float(steps)), strict=True))
