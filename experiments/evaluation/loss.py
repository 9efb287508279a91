"""Validation loss on common ground: the same hidden tokens for every model, whatever it was trained with.

Clips go through the model one at a time, so nothing depends on how a run batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from data_modules.stream.training_sequence import TrainingSequence
from experiments.evaluation.bootstrap import Measured
from experiments.evaluation.settings import OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.ar_df import hide_positions
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.loss.frame_loss import frame_loss_sums
from lumos_pl.loss.masked_cross_entropy import chunk_rows, masked_cross_entropy
from lumos_pl.masking import random_mask, tube_mask
from lumos_pl.models.transformer import likeliest_codes
from lumos_pl.seeding import generator

MASKS: dict[str, Callable[..., Tensor]] = {"tube": tube_mask, "random": random_mask}


def loss_rows(ratios: Sequence[float]) -> dict[str, tuple[str, float]]:
    """The conditions, kind and ratio of the mask, by the names of their rows: `tube_0.7`."""
    return {f"{kind}_{ratio:g}": (kind, ratio) for kind, ratio in product(MASKS, ratios)}


def measure_loss(subject: Subject, on_step: OnStep) -> Measured:
    """Per clip the mean cross-entropy of the hidden codes in nats, that of each latent frame, and the share guessed.

    `perplexity` is the exponential of the mean loss.
    """
    settings = subject.settings
    samples = subject.samples(settings.clips)
    conditions = loss_rows(settings.mask_ratios)
    rows: dict[str, list[dict[str, float]]] = {row: [] for row in conditions}
    for done, sample in enumerate(samples, start=1):
        clip = subject.training_sequence(sample)
        for row, (kind, ratio) in conditions.items():
            rows[row].append(score(subject, hide_clip(clip, kind, ratio, subject)))
        on_step(done, len(samples))

    measured = Measured.of("loss", rows, [sample.key for sample in samples], seed=settings.seed)
    for row in rows:
        measured.measures[f"loss/{row}/perplexity"] = measured.measures[f"loss/{row}/loss"].exp()
    return measured


def hide_clip(clip: TrainingSequence, kind: str, ratio: float, subject: Subject) -> MaskedBatch:
    """A clip by itself, its mask drawn from (seed, kind, its key): what one ratio hides, higher ones hide too.

    Few hidden positions of a small frame may all be NEWLINEs, which have no loss: then they are drawn again.
    """
    batch = pack([clip.sequence], [clip.appearance], subject.lumos.layout)
    (spans,) = batch.spans
    draws = generator(subject.settings.seed, "eval_mask", kind, clip.appearance)
    while True:
        mask = MASKS[kind](ratio, spans.latent_frames, spans.n_positions, generator=draws)
        hidden = hide_positions(batch, subject.lumos.layout, [mask])
        if len(hidden.target_index):
            return hidden.to(subject.lumos.device)


@torch.no_grad()
def score(subject: Subject, batch: MaskedBatch) -> dict[str, float]:
    """The mean loss of a batch's targets, that of each latent frame, and the share of the codes guessed."""
    net, config = subject.lumos.net, subject.config.loss
    with subject.lumos.autocast():
        states = net(batch.inputs, batch.spans)[batch.target_index]
        rows = chunk_rows(config, batch.inputs.device.type)
        _, token_loss = net.lm_head(states, partial(masked_cross_entropy, targets=batch.target_codes, config=config))
        codes = net.lm_head(states, partial(likeliest_codes, chunk_size=rows))
    sums, counts = (x.tolist() for x in frame_loss_sums(token_loss, batch.target_frames, batch.spans[-1].latent_frames))
    frames = {f"frame_{i}": total / count for i, (total, count) in enumerate(zip(sums, counts, strict=True)) if count}
    accuracy = (codes == batch.target_codes).double().mean().item()
    return {"loss": sum(sums) / sum(counts), "accuracy": accuracy, **frames}
