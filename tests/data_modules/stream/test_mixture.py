"""Mixtures of data sets: which source each step is of, and what a run reads of them."""

from __future__ import annotations

import random
import time
from collections import Counter
from fractions import Fraction
from itertools import islice
from typing import Any

import pytest
from omegaconf import OmegaConf

from data_modules.config import DataConfig, MixtureSource, SourceConfig, SyntheticConfig
from data_modules.stream.mixture import BLOCK, Mixture, Weights
from data_modules.token_data import TokenDataModule
from experiments.config import ExperimentConfig
from experiments.read_config import load_experiment
from lumos_pl.batch import PackedBatch
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.layout import compact_layout
from tests.data_modules.fake_trainer import fake_trainer
from tests.refusals import refused


def mixture(per_step: int = 1, **weights: Any) -> Mixture:
    return Mixture({name: Weights.parse(weight, name) for name, weight in weights.items()}, per_step)


# -- the order of the steps ------------------------------------------------------------------------


def test_a_weight_of_many_points_is_read_at_once() -> None:
    """A time that grew with the square of their number would be minutes."""
    began = time.monotonic()
    weights = Weights.parse([[step, step % 3] for step in range(100_000)], "weight")
    assert time.monotonic() - began < 10
    assert len(weights.points) == 100_000


def by_the_rule(weights: list[Any], steps: int) -> list[int]:
    """Pairs and their sums in fractions, step by step, as the module's drawing has them."""
    sums: dict[tuple[int, int], Fraction] = {}

    def weight(source: int, step: int) -> Fraction:
        points = weights[source] if isinstance(weights[source], list) else [[0, weights[source]]]
        before = [point for point in points if point[0] <= step]
        after = [point for point in points if point[0] > step]
        if not (before and after):
            return Fraction((before or after[:1])[-1][1])
        (start, low), (end, high) = before[-1], after[0]
        return low + Fraction(step - start, end - start) * (Fraction(high) - Fraction(low))

    def choose(low: int, high: int, step: int) -> int:
        if high - low == 1:
            return low
        middle = next(low + 2**power for power in reversed(range(9)) if low + 2**power < high)
        left = sum(weight(source, step) for source in range(low, middle))
        both = sum(weight(source, step) for source in range(low, high))
        total = sums.get((low, high), Fraction(1, 2)) + left / both
        sums[low, high] = total % 1
        return choose(low, middle, step) if total >= 1 else choose(middle, high, step)

    return [choose(0, len(weights), step) for step in range(steps)]


@pytest.mark.parametrize(
    "weights",
    [
        [3],
        [1, 1, 1, 1],
        [2, 1, 1],
        [1, 2, 4, 8, 16],
        [1, [[0, 0], [50, 0], [50, 3]], [[10, 1], [90, 0]]],
        [[[0, 1], [60, 1], [60, 0]], [[0, 0], [100, 4]], 2, [[7, 1], [7, 5], [8, 2]]],
    ],
)
def test_steps_are_divided_pair_by_pair(weights: list[Any]) -> None:
    found = mixture(**{f"s{number}": weight for number, weight in enumerate(weights)})
    assert [found.locate(step)[0] for step in range(200)] == [f"s{source}" for source in by_the_rule(weights, 200)]


@pytest.mark.parametrize("weights", [(7, 3), (1, 1, 1), (0.01, 0.99), (5, 0.5, 3, 1, 0.25, 2, 2, 1), (1,) * 20])
def test_shares_are_those_of_the_weights_at_any_moment(weights: tuple[float, ...]) -> None:
    """Less than half a step away for each pair that a source is in: far less than 1% of 10,000."""
    found = mixture(**{f"s{number}": weight for number, weight in enumerate(weights)})
    counts: Counter[str] = Counter()
    for step in range(10_000):
        name, number = found.locate(step)
        assert number == counts[name]  # each source's batches come one after the other, and none is left out
        counts[name] += 1
        for one, weight in zip(found.names, weights, strict=True):
            assert (
                abs(counts[one] - (step + 1) * weight / sum(weights)) < max(1, len(weights) - 1).bit_length() / 2 + 1e-6
            )
    for one, weight in zip(found.names, weights, strict=True):
        assert counts[one] / 10_000 == pytest.approx(weight / sum(weights), abs=0.0003)


def test_weights_follow_their_schedule() -> None:
    """From all to none of one source over 10,000 steps: half of them, three quarters of its steps in the first half."""
    found = mixture(old=[[0, 1], [10_000, 0]], new=[[0, 0], [10_000, 1]])
    assert found.steps_before(10_000)["new"] == pytest.approx(5000, abs=1)
    assert found.steps_before(5000)["new"] == pytest.approx(1250, abs=1)
    assert {found.locate(step)[0] for step in range(10_000, 10_100)} == {"new"}  # of old there is nothing any more


def test_all_micro_batches_of_a_step_are_of_one_source() -> None:
    located = [mixture(3, a=1, b=2).locate(micro_batch) for micro_batch in range(12)]
    assert located == [("b", 0), ("b", 1), ("b", 2), ("a", 0), ("a", 1), ("a", 2), *(("b", n) for n in range(3, 9))]


def test_any_step_is_found_without_those_before() -> None:
    """Over several blocks of steps, in any order, with weights that stay and that change."""
    weights: dict[str, Any] = {
        "a": 1,
        "b": [[BLOCK // 2, 1], [3 * BLOCK, 5]],
        "c": [[4 * BLOCK + 9, 0], [5 * BLOCK, 1]],
    }
    walking = mixture(2, **weights)
    whole = [walking.locate(micro_batch) for micro_batch in range(0, 13 * BLOCK, 2)]
    draw = random.Random(0)
    jumping = mixture(2, **weights)
    for step in draw.sample(range(13 * BLOCK // 2), 20):
        assert jumping.locate(2 * step) == mixture(2, **weights).locate(2 * step) == whole[step]
        counts = Counter(name for name, _ in whole[:step])
        assert jumping.steps_before(step) == {name: counts[name] for name in weights}


def test_a_source_that_has_no_weight_yet_changes_nothing_before() -> None:
    before = mixture(a=2, b=1, c=3)
    for n_more in 1, 2, 3:
        more = {f"more{number}": [[0, 0], [100, 0], [100, 1]] for number in range(n_more)}
        after = mixture(a=2, b=1, c=3, **more)
        assert [after.locate(step) for step in range(100)] == [before.locate(step) for step in range(100)]


def test_the_way_to_step_500_000_is_short() -> None:
    """Of eight sources whose weights change in every step until then, and of as many that stay."""
    start = time.process_time()
    changing = mixture(96, **{f"s{number}": [[0, number], [600_000, 9 - number]] for number in range(1, 9)})
    name, number = changing.locate(500_000 * 96 + 5)
    assert number == changing.steps_before(500_000)[name] * 96 + 5
    assert time.process_time() - start < 3  # it takes a quarter of a second
    start = time.process_time()
    mixture(**{f"s{number}": number for number in range(1, 9)}).locate(500_000)
    assert time.process_time() - start < 0.5


# -- settings --------------------------------------------------------------------------------------

FILMS = {"root": "synthetic", "kind": "video"}
POINTS = "data.sources.a.weight"


@pytest.mark.parametrize(
    ("sources", "where"),
    [
        ({"a": FILMS | {"weight": 0}}, POINTS),
        ({"a": FILMS | {"weight": -1}}, POINTS),
        ({"a": FILMS | {"weight": float("nan")}}, POINTS),
        ({"a": FILMS | {"weight": "much"}}, POINTS),
        ({"a": FILMS | {"weight": True}}, POINTS),
        ({"a": FILMS | {"weight": []}}, POINTS),
        ({"a": FILMS | {"weight": [[0, 1], [5]]}}, POINTS),
        ({"a": FILMS | {"weight": [[9, 1], [5, 1]]}}, POINTS),
        ({"a": FILMS | {"weight": [[0, 1], [5, -1]]}}, POINTS),
        ({"a": FILMS | {"weight": [[0.5, 1]]}}, POINTS),
        ({"a": FILMS | {"weight": [[5, 1], [5, 2], [5, 3]]}}, POINTS),
        ({"a": FILMS | {"weight": [[0, 0], [5, 0]]}}, POINTS),
        (
            {"a": FILMS | {"weight": [[0, 1], [5, 1], [5, 0]]}, "b": FILMS | {"weight": [[7, 0], [9, 1]]}},
            "data.sources",
        ),
        ({"a": FILMS | {"weight": [[0, 0], [5, 1]]}}, "data.sources"),
        ({"a": {"root": "synthetic"}}, "data.sources.a.kind"),
        ({"a": {"kind": "video"}}, "data.sources.a.root"),
        ({"a": FILMS | {"batch_size": 0}}, "data.sources.a.batch_size"),
        ({"a/b": FILMS}, "data.sources.a/b"),
    ],
)
def test_a_mixture_that_cannot_be_is_refused_with_its_key(sources: dict[str, Any], where: str) -> None:
    with refused(ConfigError, where=where):
        DataConfig(sources={name: MixtureSource(**values) for name, values in sources.items()})


@pytest.mark.parametrize("setting", ["root", "val_root"])
def test_a_root_beside_sources_is_refused(setting: str) -> None:
    with refused(ConfigError, where=f"data.{setting}"):
        DataConfig(sources={"a": MixtureSource(**FILMS)}, **{setting: "synthetic"})  # type: ignore[arg-type]


def load(*overrides: str) -> ExperimentConfig:
    config = load_experiment("debug", ["data.root=null", "data.val_root=null", *overrides])
    assert isinstance(config, ExperimentConfig)
    return config


def test_sources_are_named_on_the_command_line() -> None:
    """As a mapping or a list, and each setting of one by its name."""
    mapping = "data.sources={films: {root: a, kind: video}, art: {root: b, kind: image, weight: 2}}"
    listed = "data.sources=[{name: films, root: a, kind: video}, {name: art, root: b, kind: image, weight: 2}]"
    assert load(mapping).data == load(listed).data
    changed = load(mapping, "data.sources.films.weight=[[0, 1], [9, 3]]", "data.sources.films.batch_size=3").data
    assert changed.sources["films"].weight == [[0, 1], [9, 3]] and changed.sources["art"].weight == 2
    assert changed.source("films") == SourceConfig(batch_size=3, frames=17)  # the rest as data.video
    assert load(mapping, "data.sources.art.weight=1").data.source("art") == load().data.image


@pytest.mark.parametrize(
    ("overrides", "fields"),
    [
        (["data.sources=[{root: a}]"], {"where": "data.sources[0]"}),
        (["data.sources=[{name: a, root: a}, {name: a, root: b}]"], {"where": "data.sources[1].name"}),
        (["data.sources={a: {weigth: 1}}"], {"fix": "did you mean data.sources.a.weight?"}),
        (["data.sources.a.root=1e5"], {"where": "data.sources.a.root"}),
        (["data.sources=3"], {}),
        (["data.sources.a=3"], {"where": "data.sources.a"}),
        (["data.sources={a: null}"], {"where": "data.sources.a"}),
        (["data.sources=[3]"], {"where": "data.sources[0]"}),
        (["data.sources[0].root=b"], {"where": "data.sources.0"}),
        (["data.sources.a.kind=audio"], {}),
    ],
)  # fmt: skip
def test_sources_that_are_none_are_one_line(overrides: list[str], fields: dict[str, str]) -> None:
    with refused(ConfigError, **fields):
        load(*overrides)


# -- what a run reads ------------------------------------------------------------------------------

SMALL = {"frames": 5, "batch_size": 2, "shuffle_shards": 2}
SOURCES = {
    "films": MixtureSource(root="synthetic", val_root="synthetic", kind="video", weight=3),
    "again": MixtureSource(root="synthetic", kind="video", weight=[[0, 1], [9, 3]], batch_size=3, frames=9),
    "art": MixtureSource(root="synthetic", val_root="synthetic", kind="image", weight=2),
}


def data(*, step: int = 0, rank: int = 0, ranks: int = 1, accumulate: int = 4, **changes: Any) -> TokenDataModule:
    settings = {
        "sources": SOURCES,
        "num_workers": 0,
        "image": SourceConfig(batch_size=3),
        "video": SourceConfig(**SMALL),  # type: ignore[arg-type]
        "synthetic": SyntheticConfig(n_samples=24, width=32, height=16),
        "caption_dropout": 0.4,
        "given_prob": 0.5,
        "val_batches": 2,
        **changes,
    }
    module = TokenDataModule(DataConfig(**settings), compact_layout(), seed=1)
    module.setup()
    module.trainer = fake_trainer(step=step, rank=rank, ranks=ranks, accumulate=accumulate)
    return module


def take(n: int, **settings: Any) -> list[PackedBatch]:
    return list(islice(data(**settings).train_dataloader(), n))


def names(batches: list[PackedBatch]) -> list[tuple[str, ...]]:
    return [batch.appearances for batch in batches]


def source_of(batch: PackedBatch) -> str:
    (found,) = {appearance.rsplit("/", 2)[0] for appearance in batch.appearances}
    return found


def test_ranks_workers_and_resuming_do_not_change_the_order() -> None:
    """4 micro-batches a step: of one rank, of two that take two each, of four; from step 0 and from step 5."""
    whole = take(40)
    assert {source_of(batch) for batch in whole} == set(SOURCES)
    assert names(take(20, num_workers=2, step=5)) == names(whole)[20:]
    for ranks, step in (2, 0), (4, 5):
        got: list[Any] = [None] * 40
        for rank in range(ranks):
            shared = take((40 - 4 * step) // ranks, rank=rank, ranks=ranks, accumulate=4 // ranks, step=step)
            got[4 * step + rank :: ranks] = names(shared)
        assert got[4 * step :] == names(whole)[4 * step :]
    tokens = [batch.tokens.tolist() for batch in whole]
    assert [batch.tokens.tolist() for batch in take(4, step=9)] == tokens[36:]


def test_each_source_has_its_own_batches() -> None:
    batches = take(48)
    sizes = {source_of(batch): (len(batch.spans), batch.spans[0].latent_frames) for batch in batches}
    assert sizes == {"films": (2, 2), "again": (3, 3), "art": (3, 1)}


def test_two_sources_of_the_same_data_do_not_walk_in_step() -> None:
    twice = {name: MixtureSource(root="synthetic", kind="video") for name in ("one", "other")}
    batches = take(12, sources=twice, accumulate=1)
    keys = {
        name: [appearance.rsplit("/")[-1] for batch in batches[at::2] for appearance in batch.appearances]
        for at, name in enumerate(map(source_of, batches[:2]))
    }
    assert set(keys) == set(twice) and keys["one"] != keys["other"]


def test_each_source_is_validated_with_its_own() -> None:
    loader = data().val_dataloader()
    assert Counter(map(source_of, loader)) == {"val/films": 2, "val/art": 2}
    held = data(val_share=0.3)
    assert {source_of(batch) for batch in held.val_dataloader()} == {"val/films", "val/again", "val/art"}
    trained = {batch.appearances for batch in islice(held.train_dataloader(), 60) if source_of(batch) == "again"}
    keys = {appearance.rsplit("/")[-1] for appearances in trained for appearance in appearances}
    tried = {key.rsplit("/")[-1] for batch in held.val_dataloader() for key in batch.appearances if "again" in key}
    assert keys and tried and not keys & tried


def resumed(step: int, **changes: Any) -> None:
    """What a run of `SOURCES` saved at a step is gone on with by changed settings."""
    saved = data(step=step).state_dict()
    assert OmegaConf.create(saved)  # plain values
    module = data(step=step, **changes)
    module.trainer.training = True  # type: ignore[union-attr]
    module.load_state_dict(saved)


def test_weights_may_change_from_a_step_on_but_not_before_it() -> None:
    def changed(**sources: MixtureSource) -> dict[str, Any]:
        return {"sources": SOURCES | sources}

    def films(weight: Any) -> MixtureSource:
        return MixtureSource(root="synthetic", val_root="synthetic", kind="video", weight=weight)

    resumed(10)
    resumed(10, **changed(films=films([[0, 3], [10, 3], [10, 1]])))
    with refused(CheckpointError, where="data.sources.films.weight"):
        resumed(10, **changed(films=films(1)))
    added = MixtureSource(root="synthetic", kind="image", weight=[[0, 0], [10, 0], [10, 1]])
    resumed(10, **changed(more=added))
    with refused(CheckpointError):
        resumed(30, **changed(more=added))
    with refused(CheckpointError, where="data.sources.art.batch_size"):
        resumed(10, image=SourceConfig(batch_size=4))


def test_the_source_that_is_gone_or_has_come_is_named_not_those_whose_steps_it_moved() -> None:
    without = {name: source for name, source in SOURCES.items() if name != "again"}
    with refused(CheckpointError, where="data.sources.again.weight", got="nothing"):
        resumed(10, sources=without)
    with refused(CheckpointError, where="data.sources.again.weight", got="nothing"):
        resumed(10, sources={**without, "renamed": SOURCES["again"]})
    with refused(CheckpointError, where="data.sources.more.weight", expected="nothing"):
        resumed(10, sources={**SOURCES, "more": SOURCES["art"]})
