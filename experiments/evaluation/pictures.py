"""What becomes of validation clips whose first frames are given: image to video, continuation, and drift.

The truth is the validation clips as the visual tokenizer renders their codes, so that a perfect
model reaches the ceiling. A clip has one truth and many plausible futures: read PSNR and SSIM as
differences between models rather than for themselves.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from data_modules.shards.sample import ShardSample
from experiments.evaluation.bootstrap import Measured
from experiments.evaluation.settings import OnStep, Part
from experiments.evaluation.subject import Subject
from lumos_pl.layout import whole_seconds
from lumos_pl.tokenizers.reconstruction import PSNR_CEILING

Rows = dict[str, list[dict[str, float]]]  # by row, the values of each sample


def measure_continued(part: Part, subject: Subject, on_step: OnStep) -> Measured:
    """PSNR in dB and SSIM of the frames that were made, in all and by latent frame.

    The first latent frame, a picture, is given (`i2v`), or the first half of them, rounded down (`continuation`).
    `psnr_still` is the PSNR of the last given frame, repeated: what a model that makes nothing move would reach.
    `psnr_gain` is what the model is above that.
    """
    samples = continued_samples(part, subject)
    n_given = [_n_given(part, sample) for sample in samples]
    rows: Rows = {"psnr": [], "ssim": [], "psnr_still": [], "psnr_gain": []}
    made = subject.generate(samples, n_given, on_step)
    for sample, kept, codes in zip(samples, n_given, made, strict=True):
        pictures, truth = (subject.lumos.decode(c)[: sample.frames] for c in (codes, subject.truth(sample)))
        quality = frame_quality(pictures, truth)
        last = (kept - 1) * subject.lumos.layout.strides[0]
        quality["psnr_still"] = frame_quality(truth[last].expand_as(truth), truth)["psnr"]
        quality["psnr_gain"] = quality["psnr"] - quality["psnr_still"]
        for row, values in quality.items():
            groups = _by_latent_frame(values, subject.lumos.layout.strides[0])[kept:]
            of_all = torch.cat(groups).mean().item()
            rows[row].append({"all": of_all} | {f"frame_{kept + k}": g.mean().item() for k, g in enumerate(groups)})
    return Measured.of(part, rows, [sample.key for sample in samples], seed=subject.settings.seed)


def continued_samples(part: Part, subject: Subject, *, frames: int | None = None) -> list[ShardSample]:
    """The validation clips, of at most `frames` RGB frames, that are long enough to begin one with."""
    return [sample for sample in subject.samples(subject.settings.generated, frames=frames) if _n_given(part, sample)]


def _n_given(part: Part, sample: ShardSample) -> int:
    """Latent frames that a clip begins with; 0 if it has too few to leave one to make."""
    latent_frames = len(sample.codes)
    return min(1, latent_frames - 1) if part == "i2v" else latent_frames // 2


def frame_quality(made: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR in dB, at most `PSNR_CEILING`, and SSIM of every frame; RGB uint8 [N, H, W, 3] both -> [N] each."""
    left, right = ((frames.double() / 255).movedim(-1, 1) for frames in (made, truth))
    psnr = peak_signal_noise_ratio(left, right, data_range=1.0, reduction="none", dim=(1, 2, 3))
    ssim = structural_similarity_index_measure(left, right, data_range=1.0, reduction="none")
    assert isinstance(ssim, Tensor)
    return {"psnr": psnr.clamp(max=PSNR_CEILING), "ssim": ssim}


def measure_drift(subject: Subject, on_step: OnStep) -> Measured:
    """By latent frame, what becomes of a continuation that goes on beyond the length of the run's clips.

    `code_agreement` is the share of codes that come back when the clip is decoded and encoded again: pictures
    that the tokenizer knows come back, and it needs no truth. `code_agreement_truth` is that of the validation
    clips; PSNR and SSIM end where these do.
    """
    stride, frames = subject.lumos.layout.strides[0], _rgb_frames(subject, drift_length(subject))
    n_short = run_length(subject)
    samples = continued_samples("drift", subject, frames=frames)
    n_given = [min(len(sample.codes), n_short) // 2 for sample in samples]
    made = subject.generate([_said_to_have(frames, sample) for sample in samples], n_given, on_step)
    rows: Rows = {row: [] for row in ("code_agreement", "code_agreement_truth", "psnr", "ssim")}
    for sample, kept, codes in zip(samples, n_given, made, strict=True):
        truth = subject.truth(sample)
        pictures, true_pictures = subject.lumos.decode(codes), subject.lumos.decode(truth)
        n = sample.frames
        quality = frame_quality(pictures[:n], true_pictures[:n])
        by_frame = {row: [g.mean() for g in _by_latent_frame(values, stride)] for row, values in quality.items()}
        by_frame["code_agreement"] = _code_agreement(subject, codes, pictures)
        by_frame["code_agreement_truth"] = _code_agreement(subject, truth, true_pictures)
        for row, values in by_frame.items():
            rows[row].append({f"frame_{k}": float(value) for k, value in enumerate(values) if k >= kept})
    return Measured.of("drift", rows, [sample.key for sample in samples], seed=subject.settings.seed)


def drift_length(subject: Subject) -> int:
    """Latent frames of a drifting clip: `growth` times the run's, or as many as the model's context holds."""
    wanted = subject.settings.growth * run_length(subject)
    room = []
    for sample in subject.samples(subject.settings.generated):
        sequence = subject.training_sequence(_said_to_have(_rgb_frames(subject, wanted), sample)).sequence
        spans = subject.lumos.layout.spans(sequence, closed=False)
        room.append((subject.lumos.net.config.max_length - spans.prefix) // spans.frame_length)
    return min(wanted, *room)


def run_length(subject: Subject) -> int:
    """Latent frames of the clips that the run was trained on, whatever it is evaluated on."""
    return subject.lumos.layout.latent_frames(subject.trained.data.source(subject.source.plan.kind).frames)


def _rgb_frames(subject: Subject, latent_frames: int) -> int:
    return 1 + subject.lumos.layout.strides[0] * (latent_frames - 1)


def _said_to_have(frames: int, sample: ShardSample) -> ShardSample:
    """The sample with the words of a clip of `frames` RGB frames."""
    return replace(sample, frames=frames, duration=whole_seconds(frames, sample.fps))


def _code_agreement(subject: Subject, codes: Tensor, pictures: Tensor) -> list[Tensor]:
    """Share of the codes of each latent frame that come back, T numbers."""
    again = subject.lumos.encode(pictures)
    return list((again == codes).double().mean((1, 2)))


def _by_latent_frame(values: Tensor, stride: int) -> list[Tensor]:
    """Values of RGB frames, [N], those of each latent frame together: the first alone, then groups."""
    return [values[:1], *values[1:].split(stride)] if len(values) > 1 else [values]
