"""The loss of a latent frame behind the frames before it as training and sampling show them: how far apart are these?

Of each frame after the first the same random positions are hidden, and asked for, whatever is before it:

    tube           earlier frames hide the same positions, as in training with tubes
    independent    each hides as many others, as in training with independent masks
    rho_0.4        each hides what sampling with partial_context 0.4 hides
    own_rho_0.4    the same, but the earlier frames, all but the first, are the model's, drawn with that partial context

The first frame is true everywhere: with the caption it tells how the clip goes on, so that own frames have a truth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from experiments.evaluation.bootstrap import Measured
from experiments.evaluation.loss import score
from experiments.evaluation.settings import EvalSettings, OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.ar_df import hide_positions
from lumos_pl.batch import MaskedBatch, pack
from lumos_pl.layout import TokenSequence
from lumos_pl.masking import tube_mask
from lumos_pl.sampling.draw import partial_context_index
from lumos_pl.seeding import generator

TRAINING = ("tube", "independent")
HIDDEN = 0.7  # of the frame that is asked for: the ratio of half of all training masks, by the paper's schedule


def context_rows(settings: EvalSettings) -> list[str]:
    """What may stand before a frame."""
    return [*TRAINING, *(f"{row}_{rho:g}" for row in ("rho", "own_rho") for rho in settings.contexts)]


def measure_context(subject: Subject, on_step: OnStep) -> Measured:
    """Per clip the loss in nats of each frame after the first, their mean, and how far it is over the training's."""
    settings = subject.settings
    samples = [sample for sample in subject.samples(settings.clips) if len(sample.codes) > 1]
    total = len(settings.contexts) + len(samples)
    own: dict[str, list[Tensor]] = {}
    for done, rho in enumerate(settings.contexts, start=1):
        sampling = replace(subject.lumos.sampling, partial_context=rho, given_context="partial")
        own[f"own_rho_{rho:g}"] = subject.generate(samples, [1] * len(samples), lambda *_: None, sampling=sampling)
        on_step(done, total)

    rows: dict[str, list[dict[str, float]]] = {row: [] for row in context_rows(settings)}
    for number, sample in enumerate(samples):
        sequence = subject.training_sequence(sample).sequence
        losses = {}
        for row in rows:
            before = own[row][number] if row in own else sequence.codes
            losses[row] = score(subject, behind(subject, sequence, before, row, sample.key))
        for row, found in losses.items():
            over = {f"over_{name}": found["loss"] - losses[name]["loss"] for name in TRAINING}
            rows[row].append(found | over)
        on_step(len(settings.contexts) + number + 1, total)

    return Measured.of("context", rows, [sample.key for sample in samples], seed=settings.seed)


def behind(subject: Subject, sequence: TokenSequence, before: Tensor, row: str, key: str) -> MaskedBatch:
    """A part of the clip for each frame after the first: up to that frame, which alone is asked for.

    Args:
        before: the codes of the earlier frames, [T, H, W].
    """
    layout = subject.lumos.layout
    n_positions = layout.spans(sequence).n_positions
    parts, masks = [], []
    for frame in range(1, len(sequence.codes)):
        draws = generator(subject.settings.seed, "eval_context", key, frame)
        asked = tube_mask(HIDDEN, 1, n_positions, generator=draws)
        if row == "tube":
            hidden = asked.repeat(frame, 1)
        elif row == "independent":
            hidden = torch.cat([tube_mask(HIDDEN, 1, n_positions, generator=draws) for _ in range(frame)])
        else:
            hidden = torch.zeros(frame, n_positions, dtype=torch.bool)
            hidden[:, partial_context_index(n_positions, float(row.rpartition("_")[2]))] = True
        parts.append(replace(sequence, codes=torch.cat([before[:frame], sequence.codes[frame : frame + 1]])))
        masks.append(torch.cat([hidden, asked]))
    batch = pack(parts, [f"{key}/{number}" for number in range(len(parts))], layout)
    return _asked_last(hide_positions(batch, layout, masks)).to(subject.lumos.device)


def _asked_last(batch: MaskedBatch) -> MaskedBatch:
    """The batch with the targets of each sample's last frame alone."""
    starts = torch.tensor(batch.offsets)
    sample = torch.searchsorted(starts, batch.target_index, right=True) - 1
    last = torch.tensor([spans.latent_frames - 1 for spans in batch.spans])
    kept = batch.target_frames == last[sample]
    targets = {name: getattr(batch, name)[kept] for name in ("target_index", "target_codes", "target_frames")}
    return replace(batch, **targets)
