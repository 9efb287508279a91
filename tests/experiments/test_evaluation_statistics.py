"""Intervals and Fréchet distances against what they are known to be, and feature extractors of every kind."""

# No `from __future__ import annotations`: TorchScript reads the classes' annotations as types.

import hashlib
import math
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from experiments.evaluation.bootstrap import of_rows, of_samples, of_statistic
from experiments.evaluation.evaluate import evaluate
from experiments.evaluation.frechet import FeatureExtractor, frechet_distance
from experiments.evaluation.settings import EvalSettings
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.seeding import generator
from tests.experiments.evaluated_run import make_run
from tests.refusals import refused


def draws(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(0, name))


def test_an_interval_is_that_of_the_mean_and_shrinks_as_samples_grow() -> None:
    for n in 25, 400, 6400:
        values = draws(n, name=str(n))
        measure = of_samples(values.tolist(), seed=0)
        assert measure.mean == pytest.approx(values.mean().item())
        assert measure.low is not None and measure.high is not None
        width = 2 * 1.96 * values.std().item() / math.sqrt(n)
        assert measure.high - measure.low == pytest.approx(width, rel=0.15)
        assert measure.low < measure.mean < measure.high


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    held = 0
    for trial in range(200):
        measure = of_samples(draws(50, name=f"trial {trial}").tolist(), seed=0)
        assert measure.low is not None and measure.high is not None
        held += measure.low < 0 < measure.high
    assert 0.89 <= held / 200 <= 0.99


def test_models_are_resampled_alike() -> None:
    """So a difference between models on the same samples has the interval of the samples' differences."""
    easy = draws(64) * 10
    hard = easy + 0.5
    difference = of_samples((hard - easy).tolist(), seed=0)
    assert (difference.low, difference.high) == pytest.approx((0.5, 0.5))
    left, right = (of_samples(values.tolist(), seed=0) for values in (easy, hard))
    assert left.low is not None and right.low is not None
    assert right.low - left.low == pytest.approx(0.5)
    assert of_samples(easy.tolist(), seed=1).low != left.low


def test_samples_without_a_value() -> None:
    rows = [{"a": 1.0, "b": 2.0}, {"a": 3.0}, {"a": 5.0}]
    measures = of_rows("part/row", rows, seed=0)
    assert set(measures) == {"part/row/a", "part/row/b"}
    lone = measures["part/row/b"]
    assert (lone.mean, lone.low, lone.high, lone.n, lone.values) == (2.0, None, None, 1, [2.0, None, None])
    perplexity = measures["part/row/a"].exp()
    assert perplexity.mean == pytest.approx(math.exp(3)) and perplexity.values is None
    assert perplexity.high is not None and perplexity.high <= math.exp(5)


def test_a_biased_statistic_has_its_interval_around_it() -> None:
    """Distances of resamples lie above: without the shift the interval would miss the value itself."""
    x, y = draws(40, 30, name="x"), draws(40, 30, name="y")
    raw = [frechet_distance(x[i], y[i]) for i in torch.randint(40, (50, 40), generator=generator(0, "i"))]
    value = frechet_distance(x, y)
    assert min(raw) > value
    measure = of_statistic(lambda i: frechet_distance(x[i], y[i]), 40, seed=0, resamples=50)
    assert measure.mean == value and measure.values is None
    assert measure.low is not None and measure.high is not None and measure.low < value < measure.high


@pytest.mark.parametrize("n", [5, 200])
def test_frechet_distance_against_the_square_root_of_a_matrix(n: int) -> None:
    """With fewer samples than features, and with more."""
    x, y = draws(n, 12, name="x"), draws(n + 3, 12, name="y") * 2 + 1
    a, b = torch.cov(x.T), torch.cov(y.T)
    values, vectors = torch.linalg.eigh(a)
    root = vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b @ root).clamp(min=0).sqrt().sum()  # tr (A B)^(1/2)
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.trace() + b.trace() - 2 * cross
    assert frechet_distance(x, y) == pytest.approx(expected.item(), rel=1e-6)
    assert frechet_distance(x.float(), x.float()) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + 3) == pytest.approx(12 * 9)


class Detector(nn.Module):
    """Mean colour and contrast; like those that StyleGAN-V publishes, of logits unless asked for features."""

    def forward(self, x: Tensor, rescale: bool = False, return_features: bool = False) -> Tensor:
        if not return_features or not rescale or x.dtype != torch.float32:
            return torch.zeros(1)
        flat = x.flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], 1) / 255


class Flat(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


class First(nn.Module):
    """The first numbers, infinite where a clip is not as grey as a trial."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, : self.length]
        return first if bool((x == 128).all()) else first / 0.0


class Long(nn.Module):
    """As many features as a row has pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)[:, 0]


class Narrow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix(x.flatten(1))


def save(module: nn.Module, file: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript is what is published
        torch.jit.script(module).save(str(file))
    return file


def open_extractor(file: Path) -> FeatureExtractor:
    return FeatureExtractor(file, shapes=[(3, 4, 4)], device="cpu")


def test_a_feature_extractor_that_does_not_fit(tmp_path: Path) -> None:
    flat, narrow = save(Flat(), tmp_path / "flat.pt"), save(Narrow(), tmp_path / "narrow.pt")
    empty = save(First(length=0), tmp_path / "empty.pt")
    long = save(Long(), tmp_path / "long.pt")
    with refused(CheckpointError, file=flat, where="on a trial, [2, 3, 4, 4]", got="[2, 4, 4]", expected="[2, F]"):
        open_extractor(flat)
    with refused(CheckpointError, file=empty, got="[2, 0]", expected="[2, F]"):  # whose distance would always be 0
        open_extractor(empty)
    with refused(CheckpointError, file=long, where="on a trial, [2, 3, 4, 8]", got="[2, 8]", expected="[2, 4]"):
        FeatureExtractor(long, shapes=[(3, 4, 4), (3, 4, 8)], device="cpu")
    with refused(CheckpointError, file=narrow, where="on a trial, [2, 3, 4, 4]"):
        open_extractor(narrow)
    with refused(ConfigError, file="nothing.pt", got="No such file or directory"):
        open_extractor(tmp_path / "nothing.pt")
    with refused(CheckpointError, file=Path(__file__)):
        open_extractor(Path(__file__))


def test_a_feature_extractor_that_fits_grey_clips_alone(tmp_path: Path) -> None:
    run, infinite = make_run(tmp_path / "run"), save(First(length=4), tmp_path / "infinite.pt")
    settings = EvalSettings(only=("frechet",), generated=2, fvd=infinite, device="cpu")
    with refused(CheckpointError, file=infinite, where="on the made clip val-000000, [1, 3, 9, 32, 32]"):
        evaluate(run, settings)


def test_a_feature_extractor_that_no_part_asks(tmp_path: Path) -> None:
    with refused(ConfigError, where="fid", got="only loss, drift"):
        EvalSettings(only=("loss", "drift"), fid=tmp_path / "inception.pt")


def too_late(part: str, done: int, in_all: int) -> None:
    raise AssertionError(f"{part} was begun")


def test_distances_of_a_run(tmp_path: Path) -> None:
    run, detector = make_run(tmp_path / "run"), save(Detector(), tmp_path / "detector.pt")
    settings = EvalSettings(only=("frechet",), generated=4, fvd=detector, fid=detector, device="cpu")
    result = evaluate(run, settings)
    assert set(result["measures"]) == {"frechet/fvd/distance", "frechet/fid/distance"}
    for measure in result["measures"].values():
        assert measure["mean"] > 0 and measure["low"] <= measure["mean"] <= measure["high"] and measure["n"] == 4
    assert result["settings"]["fvd"] == str(detector)
    digest = hashlib.sha256(detector.read_bytes()).hexdigest()  # what lies at a path may change
    assert result["extractors"] == {"fvd": digest, "fid": digest}
    assert evaluate(run, settings) == result
    with refused(ConfigError, file="nothing.pt"):  # before the other parts, which take long
        evaluate(run, replace(settings, only=("loss", "frechet"), fid=tmp_path / "nothing.pt"), on_progress=too_late)
