"""FVD and FID: Fréchet distances between clips made of the validation captions and the validation clips.

The features come from a network that the user has: a TorchScript file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.evaluation.bootstrap import Measured, of_statistic
from experiments.evaluation.settings import OnStep
from experiments.evaluation.subject import Subject
from lumos_pl.errors import CheckpointError
from lumos_pl.machinery.torchscript import open_program, read_program

RESAMPLES = 200  # each takes a decomposition
# Switches of the detectors that the authors of StyleGAN and StyleGAN-V publish; a file without them has none.
SWITCHES = ("return_features", "rescale", "resize")
FIX = "give a TorchScript file of the detector, such as those that StyleGAN-V publishes"


def frechet_distance(left: Tensor, right: Tensor) -> float:
    """Distance of the Gaussians that fit two sets of features, [n, F] and [m, F], in fp64.

    |mean - mean'|^2 + tr A + tr B - 2 tr (A B)^(1/2). With covariances A = X'X and B = Y'Y, the last trace is
    the sum of the singular values of X Y': no square root of a matrix, which is unstable for few samples.
    Source: arXiv:1706.08500 (FID), arXiv:1812.01717 (FVD).
    """
    centred = []
    for features in left.double(), right.double():
        scaled = (features - features.mean(0)) / (len(features) - 1) ** 0.5
        # Of more samples than features only the triangle matters: X'X = R'R.
        centred.append(torch.linalg.qr(scaled, mode="r").R if len(scaled) > scaled.shape[1] else scaled)
    x, y = centred
    shift = (left.double().mean(0) - right.double().mean(0)).square().sum()
    spread = x.square().sum() + y.square().sum() - 2 * torch.linalg.svdvals(x @ y.T).sum()
    return float((shift + spread).clamp(min=0))  # rounding can take equal sets below 0


class FeatureExtractor:
    """A TorchScript network: RGB float32 from 0 to 255, [B, 3, N, H, W] or for images [B, 3, H, W] -> [B, F].

    It is a program, and is executed. It scales and normalizes by itself.

    Args:
        shapes: of the clips or images that it will be asked for, without B; two of each are tried.
    Attributes:
        digest: sha256 of the file, for whoever compares results.
    Raises:
        ConfigError: the file cannot be read.
        CheckpointError: it is no TorchScript, fails on the trial, or returns something else.
    """

    def __init__(self, path: Path, *, shapes: Iterable[tuple[int, ...]], device: str) -> None:
        content = read_program(path, what="the feature extractor", fix=FIX)
        self.digest = hashlib.sha256(content).hexdigest()
        self._path, self._device = path, device
        self._network: Any = open_program(path, content, device=device, fix=FIX)
        known = {argument.name for argument in self._network.forward.schema.arguments}
        self._switches = {name: True for name in SWITCHES if name in known}
        self._length: int | None = None  # F
        for shape in shapes:
            self(torch.full((2, *shape), 128.0), of="a trial")

    @torch.no_grad()
    def __call__(self, pictures: Tensor, *, of: str) -> Tensor:
        """Features, [B, F], finite and as many as ever.

        Args:
            of: what the pictures are of, for a message.
        Raises:
            CheckpointError: it fails on them, or returns something else.
        """
        where = f"on {of}, {list(pictures.shape)}"
        try:
            features: Any = self._network(pictures.to(self._device), **self._switches)
        except Exception as error:  # whatever a foreign program raises
            what, said = "the feature extractor fails", str(error).strip().rpartition("\n")[2][:200]
            raise CheckpointError(what, file=self._path, where=where, got=said, fix=FIX) from error
        is_matrix = isinstance(features, Tensor) and features.dim() == 2 and len(features) == len(pictures)
        got = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        length = self._length or (features.shape[1] if is_matrix else 0)
        if not is_matrix or not length or features.shape[1] != length:
            expected = f"[{len(pictures)}, {self._length or 'F'}]"
            raise CheckpointError("not a feature extractor", file=self._path, where=where, got=got, expected=expected)
        if not features.isfinite().all():
            what = "the feature extractor gives NaN or infinity"
            raise CheckpointError(what, file=self._path, where=where, fix=FIX)
        self._length = length
        on_cpu: Tensor = features.cpu()
        return on_cpu


# From a clip's RGB frames, [N, H, W, 3], to what the extractor is given.
ARRANGED: dict[str, Callable[[Tensor], Tensor]] = {
    "fvd": lambda frames: frames.permute(3, 0, 1, 2)[None],
    "fid": lambda frames: frames.permute(0, 3, 1, 2),
}


def open_extractors(subject: Subject) -> dict[str, FeatureExtractor]:
    """The networks that the settings name, `fvd` and `fid`, tried on what they will be asked for."""
    settings = subject.settings
    shapes = sorted({(s.frames, s.height, s.width) for s in subject.samples(settings.generated)})
    return {
        name: FeatureExtractor(
            path,
            shapes={(3, *(shape if name == "fvd" else shape[1:])) for shape in shapes},
            device=str(subject.lumos.device),
        )
        for name, path in (("fvd", settings.fvd), ("fid", settings.fid))
        if path is not None
    }


def measure_frechet(subject: Subject, on_step: OnStep) -> Measured:
    """The distance at this number of clips, which is larger than that at many: compare equal numbers only.

    FID is over all frames, and a resample takes clips with all of theirs.
    """
    settings = subject.settings
    samples = subject.samples(settings.generated)
    extractors = open_extractors(subject)
    made = subject.generate(samples, [0] * len(samples), on_step)
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = {name: ([], []) for name in extractors}
    for sample, codes in zip(samples, made, strict=True):
        for side, clip in enumerate((codes, subject.truth(sample))):
            frames = subject.lumos.decode(clip)[: sample.frames].float()
            for name, extract in extractors.items():
                of = f"the {'true' if side else 'made'} clip {sample.key}"
                features[name][side].append(extract(ARRANGED[name](frames), of=of))
    measures = {}
    for name, sides in features.items():

        def distance(clips: Tensor, sides: tuple[list[Tensor], list[Tensor]] = sides) -> float:
            return frechet_distance(*(torch.cat([side[i] for i in clips.tolist()]) for side in sides))

        found = of_statistic(distance, len(samples), seed=settings.seed, resamples=RESAMPLES)
        measures[f"frechet/{name}/distance"] = found
    return Measured(measures, {"frechet": [sample.key for sample in samples]})
