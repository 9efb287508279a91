from __future__ import annotations

import pickle
import time
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import count, islice, takewhile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_modules.config import SourceConfig
from data_modules.shards.manifest import Manifest
from data_modules.shards.table import ShardEntry
from data_modules.stream.joint import Alternation
from data_modules.stream.plan import PlannedBatch, PlannedSample, StreamPlan
from data_modules.stream.position import StreamPosition
from data_modules.stream.token_stream import training_order
from lumos_pl.errors import ConfigError
from lumos_pl.layout import compact_layout
from tests.refusals import refused

LAYOUT = compact_layout()
SHAPES = ((6, 4, 8), (6, 8, 4), (2, 8, 8))


def manifest(*sizes: int) -> Manifest:
    """One shard per size; shapes and text lengths vary from sample to sample."""
    shards = tuple(
        ShardEntry(
            file=f"{number}.tar",
            n_samples=size,
            n_bytes=1,
            sha256="",
            shapes=tuple((number + place) % 3 for place in range(size)),
            text_lengths=tuple(1 + (7 * number + 5 * place) % 40 for place in range(size)),
        )
        for number, size in enumerate(sizes)
    )
    return Manifest(tokenizer="t", codebook_size=240, strides=(4, 8, 8), shapes=SHAPES, shards=shards)


def plan(
    shards: Manifest,
    *,
    seed: int = 1,
    kind: str = "video",
    selected: NDArray[np.bool_] | None = None,
    **settings: object,
) -> StreamPlan:
    config = SourceConfig(**{"frames": 13, **settings})  # type: ignore[arg-type]
    return StreamPlan(shards, config, LAYOUT, kind=kind, seed=seed, selected=selected)


def first_batches(stream_plan: StreamPlan, n: int) -> list[PlannedBatch]:
    walk = stream_plan.walk()
    return [walk.batch(index) for index in range(n)]


MANIFEST = manifest(7, 5, 9, 4, 8, 6, 5, 7, 3)
SETTINGS = {"batch_size": 3, "streams": 4, "shuffle_shards": 2}


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("n_workers", [1, 2, 3])
@pytest.mark.parametrize("step", [0, 5])
def test_any_ranks_and_workers_divide_one_order(world_size: int, n_workers: int, step: int) -> None:
    """12 micro-batches a step, as every world size here can have; images and videos in turn."""
    plans = {kind: plan(MANIFEST, kind=kind, **SETTINGS) for kind in ("image", "video")}
    alternation = Alternation(pattern=("video", "image", "image"), per_step=12)
    whole = training_order(0, 1, plans=plans, order=alternation, position=StreamPosition(per_step=12))
    expected = list(islice(whole, step * 12, step * 12 + 48))

    got: list[PlannedBatch | None] = [None] * 48
    for rank in range(world_size):
        position = StreamPosition(start=step * 12, per_step=12, rank=rank, world_size=world_size)
        workers = [
            training_order(w, n_workers, plans=plans, order=alternation, position=position) for w in range(n_workers)
        ]
        for local in range(48 // world_size):  # the DataLoader takes from its workers in turn
            got[local * world_size + rank] = next(workers[local % n_workers])
    assert got == expected


def test_a_plan_that_was_gone_through_is_sent_to_another_process() -> None:
    gone_through = plan(MANIFEST, **SETTINGS)
    assert gone_through.dealing is not None
    expected = first_batches(gone_through, 9)
    assert first_batches(pickle.loads(pickle.dumps(gone_through)), 9) == expected


def test_ranks_of_a_step_take_the_same_kind() -> None:
    alternation = Alternation(pattern=("video", "image", "image"), per_step=2)
    located = [alternation.locate(m) for m in range(12)]
    v, i = "video", "image"
    assert located == [
        (v, 0), (v, 1), (i, 0), (i, 1), (i, 2), (i, 3),
        (v, 2), (v, 3), (i, 4), (i, 5), (i, 6), (i, 7),
    ]  # fmt: skip


@pytest.mark.parametrize("start", [0, 1, 17, 90])
def test_resuming_anywhere_equals_the_tail(start: int) -> None:
    whole = first_batches(plan(MANIFEST, **SETTINGS), 120)
    walk = plan(MANIFEST, **SETTINGS).walk()
    assert [walk.batch(index) for index in range(start, 120)] == whole[start:]


@pytest.mark.parametrize("shards", [manifest(7, 5, 9, 4, 8, 6, 5, 7, 3), manifest(4), manifest(2, 3, 2)])
@pytest.mark.parametrize("shuffle_shards", [1, 2, 5])
def test_every_sample_comes_once_an_epoch(shards: Manifest, shuffle_shards: int) -> None:
    """With carry-over: an epoch's last samples may come in the next epoch's batches, but all come."""
    settings = {"batch_size": 3, "shuffle_shards": shuffle_shards}
    seen = Counter(sample for batch in first_batches(plan(shards, **settings), 400) for sample in batch.samples)
    assert set(seen.values()) == {1}
    every = {(shard, place) for shard, entry in enumerate(shards.shards) for place in range(entry.n_samples)}
    epochs: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for sample in seen:
        epochs[sample.epoch].add((sample.shard, sample.place))
    n_epochs = 1200 // len(every)
    assert all(epochs[epoch] == every for epoch in range(n_epochs // 2))
    assert max(epochs) < 2 * n_epochs


@pytest.mark.parametrize("sizes", [[30], [1] * 30])
def test_epochs_and_seeds_and_kinds_have_their_own_order(sizes: list[int]) -> None:
    """Of the samples of a shard, and of the shards."""
    shards = manifest(*sizes)
    settings = {"batch_size": 10, "bucket": False, "streams": 1, "shuffle_shards": 1}

    def order(stream_plan: StreamPlan, epoch: int) -> list[tuple[int, int]]:
        samples = [sample for batch in first_batches(stream_plan, 6) for sample in batch.samples]
        return [(sample.shard, sample.place) for sample in samples if sample.epoch == epoch]

    unshuffled = [(shard, place) for shard, size in enumerate(sizes) for place in range(size)]
    orders = [
        order(plan(shards, **settings), 0),
        order(plan(shards, **settings), 1),
        order(plan(shards, seed=2, **settings), 0),
        order(plan(shards, kind="image", **settings), 0),
        unshuffled,
    ]
    assert all(sorted(found) == unshuffled for found in orders)
    assert len(set(map(tuple, orders))) == 5


def test_streams_keep_pace() -> None:
    """9 equal shards over 4 streams: dealing goes on from epoch to epoch, so each gets as many."""
    stream_plan = plan(manifest(*[6] * 9), **SETTINGS)
    taken = Counter[int]()
    for stream in range(4):
        samples = (s for batch in islice(stream_plan.stream(stream), 200) for s in batch.samples)
        taken[stream] = len({(s.epoch, s.shard) for s in samples if s.epoch < 4})
    assert set(taken.values()) == {9}


SIZES = {
    "as in the recipe": [16] * 390 + [1024] * 10,
    "one giant": [5000, *[10] * 100],
    "one giant, and hardly anything else": [5000, *[1] * 80],
    "growing": [16] * 64 + [32] * 32 + [64] * 32,
    "drawn": [1 + 7 * n * n % 99 for n in range(100)],
    "fewer than a batch a stream": [3, 1, 2, 5, 1],
}


def epochs_of(stream_plan: StreamPlan, n: int) -> list[Counter[int]]:
    """Of each stream, how many samples of each of the first epochs it takes."""
    counts = []
    for stream in range(stream_plan.n_streams):
        counts.append(Counter[int]())
        for batch in stream_plan.stream(stream):
            counts[-1].update(sample.epoch for sample in batch.samples)
            if max(counts[-1]) >= n:
                break
    return counts


@pytest.mark.parametrize("name", SIZES)
def test_streams_have_as_much_to_take_of_shards_of_any_sizes(name: str) -> None:
    """So that none is still in an epoch when others are through: within one sample, summed over all epochs."""
    sizes = SIZES[name]
    stream_plan = plan(manifest(*sizes), batch_size=1)
    counts = epochs_of(stream_plan, 2)
    for epochs in 1, 2:
        through = [sum(count[epoch] for epoch in range(epochs)) for count in counts]
        assert sum(through) == epochs * sum(sizes)
        assert max(through) - min(through) <= 1


def test_with_a_budget_streams_have_as_many_tokens_to_take() -> None:
    """Shards of long samples and of short ones: as many samples would be as many batches only by chance."""
    whole = manifest(*[50 + n % 40 for n in range(40)])
    shards = [replace(shard, shapes=[number % 3] * shard.n_samples) for number, shard in enumerate(whole.shards)]
    stream_plan = plan(replace(whole, shards=tuple(shards)), batch_size=100, max_tokens=400, streams=4)
    tokens = [0] * 4
    for stream in range(4):
        for batch in stream_plan.stream(stream):
            tokens[stream] += sum(stream_plan.tokens(sample) for sample in batch.samples if sample.epoch == 0)
            if batch.samples[0].epoch > 0:
                break
    assert max(tokens) - min(tokens) < 0.02 * max(tokens)


@pytest.mark.parametrize("every", [2, 3, 10])
def test_streams_have_as_much_to_take_of_what_is_selected(every: int) -> None:
    """Of the shards that a cut goes through, too: to the sample, and each sample once an epoch."""
    shards = manifest(600, 40, 90, 7)
    selected = np.arange(shards.n_samples) % every == 0
    stream_plan = plan(shards, batch_size=1, streams=4, selected=selected)
    counts = epochs_of(stream_plan, 1)
    assert sum(count[0] for count in counts) == selected.sum()
    assert max(count[0] for count in counts) - min(count[0] for count in counts) <= 1
    with_budget, tokens = plan(shards, batch_size=1, max_tokens=400, streams=4, selected=selected), [0] * 4
    for stream in range(4):
        samples = (batch.samples[0] for batch in with_budget.stream(stream))
        tokens[stream] = sum(with_budget.tokens(sample) for sample in takewhile(lambda one: one.epoch == 0, samples))
    assert max(tokens) - min(tokens) < 400


@pytest.mark.parametrize("max_tokens", [None, 400])
@pytest.mark.parametrize("sizes", [[10, 1], [1, 9, 1, 1], [2, 3, 2]])
def test_streams_of_few_samples_have_something_to_take(sizes: list[int], max_tokens: int | None) -> None:
    """A part that is shorter than a sample may have none that begins in it; its stream went on looking for ever."""
    shards = manifest(*sizes)
    for some in slice(0, 1), slice(0, 3), slice(1, 5, 2), slice(0, None):
        selected = np.zeros(shards.n_samples, bool)
        selected[some] = True
        stream_plan = plan(shards, batch_size=1, streams=len(sizes), max_tokens=max_tokens, selected=selected)
        for stream in range(len(sizes)):
            assert len(next(stream_plan.stream(stream)).samples) == 1


def test_a_run_of_before_keeps_its_parts_of_what_is_selected() -> None:
    """A shard was cut where its samples were counted that are not selected, too."""
    shards = manifest(60, 4, 9)
    stream_plan = plan(shards, batch_size=1, streams=2, selected=np.arange(shards.n_samples) % 3 == 0)
    assert stream_plan.dealing == "equal_shares"
    stream_plan.deal_as("equal_parts")
    assert [count[0] for count in epochs_of(stream_plan, 1)] == [23, 2]


@pytest.mark.parametrize("settings", [{"batch_size": 2}, {"batch_size": 100, "max_tokens": 1500, "streams": 8}])
def test_an_epoch_of_unequal_shards_leaves_hardly_a_sample_out(settings: dict[str, int]) -> None:
    """As many batches as an epoch has samples for: whole shards in turn would leave a tenth out, or more."""
    stream_plan = plan(manifest(*SIZES["as in the recipe"]), **settings)
    n_samples = stream_plan.n_samples

    def unseen(dealt: str | None) -> float:
        stream_plan.deal_as(dealt)
        walk, seen, taken, number = stream_plan.walk(), set[PlannedSample](), 0, 0
        while taken < n_samples:
            samples = walk.batch(number).samples
            seen.update(sample for sample in samples if sample.epoch == 0)
            taken, number = taken + len(samples), number + 1
        return 1 - len(seen) / n_samples

    assert unseen("equal_parts") < 0.01
    assert unseen(None) > 0.05


DEALT_BEFORE = {
    0: [(2, 3), (8, 0), (2, 6)],
    1: [(4, 6), (6, 4), (4, 3)],
    2: [(3, 0), (3, 3), (1, 2)],
    3: [(0, 1), (7, 6), (0, 4)],
}


def test_a_run_of_before_keeps_the_order_of_unequal_shards() -> None:
    """The first batches that the plan gave when whole shards were all that was dealt."""
    stream_plan = plan(MANIFEST, **SETTINGS)
    assert stream_plan.dealing == "equal_parts"
    stream_plan.deal_as(None)
    dealt = {stream: next(stream_plan.stream(stream)).samples for stream in range(4)}
    assert {stream: [(s.shard, s.place) for s in samples] for stream, samples in dealt.items()} == DEALT_BEFORE


def test_windows_mix_their_shards() -> None:
    def shards_in(shuffle_shards: int) -> set[int]:
        stream_plan = plan(manifest(20, 20), batch_size=20, bucket=False, streams=1, shuffle_shards=shuffle_shards)
        return {sample.shard for sample in first_batches(stream_plan, 1)[0].samples}

    assert len(shards_in(1)) == 1
    assert len(shards_in(2)) == 2


def clip_shape(sample: PlannedSample) -> tuple[int, int, int]:
    t, h, w = SHAPES[MANIFEST.shards[sample.shard].shapes[sample.place]]
    return min(t, 4), h, w  # 13 frames


def test_buckets_hold_one_shape_after_the_cut() -> None:
    batches = first_batches(plan(MANIFEST, **SETTINGS), 200)
    assert {len(batch.samples) for batch in batches} == {3}
    assert all(len({clip_shape(sample) for sample in batch.samples}) == 1 for batch in batches)
    mixed = first_batches(plan(MANIFEST, bucket=False, **SETTINGS), 200)
    assert any(len({clip_shape(sample) for sample in batch.samples}) > 1 for batch in mixed)


@pytest.mark.parametrize("bucket", [True, False])
def test_the_token_budget_is_filled_but_never_exceeded(bucket: bool) -> None:
    def tokens(sample: PlannedSample) -> int:
        t, h, w = clip_shape(sample)
        text = MANIFEST.shards[sample.shard].text_lengths[sample.place]
        return 1 + text + 1 + 3 + t * (h * (w + 1) + 4)  # BOS text SEP, VIDEO_START dur fps, frames

    settings = {**SETTINGS, "batch_size": 5, "max_tokens": 700, "bucket": bucket}
    sizes = [sum(map(tokens, batch.samples)) for batch in first_batches(plan(MANIFEST, **settings), 300)]
    assert max(sizes) <= 700
    assert max(sizes) > 600
    longest = max(
        tokens(PlannedSample(0, shard, place))
        for shard, entry in enumerate(MANIFEST.shards)
        for place in range(entry.n_samples)
    )
    plan(MANIFEST, **{**settings, "max_tokens": longest})
    with refused(ConfigError, where="data.video.max_tokens", got=longest - 1, expected=f"{longest} or more"):
        plan(MANIFEST, **{**settings, "max_tokens": longest - 1})


def test_a_mixed_set_leaves_little_of_the_budget_unused() -> None:
    """Images and videos of many shapes, up to a quarter of the budget: next-fit would leave a tenth."""
    lengths = torch.randint(20, 4_000, (400,), generator=torch.Generator().manual_seed(0)).tolist()
    entry = replace(manifest(400).shards[0], shapes=(0,) * 400, text_lengths=tuple(lengths))
    mixed = replace(manifest(400), shards=(entry,))
    stream_plan = plan(mixed, bucket=False, batch_size=1000, max_tokens=16_384, streams=1)
    t, h, w = SHAPES[0]
    around = 1 + 1 + 3 + min(t, 4) * (h * (w + 1) + 4)
    tokens = [sum(lengths[s.place] + around for s in batch.samples) for batch in first_batches(stream_plan, 100)]
    assert max(tokens) <= 16_384
    assert sum(tokens) / (100 * 16_384) > 0.98


def test_streams_follow_the_shards() -> None:
    assert plan(MANIFEST).n_streams == 8
    assert plan(manifest(*[1] * 200)).n_streams == 64
    assert plan(manifest(1)).n_streams == 1
    with refused(ConfigError, where="data.video.streams", got="10", expected="1 to 9"):
        plan(MANIFEST, streams=10)


def test_validation_takes_every_sample_once_in_order() -> None:
    batches = list(plan(MANIFEST, batch_size=4, bucket=False).sequential())
    samples = [sample for batch in batches for sample in batch.samples]
    assert samples == [PlannedSample(0, s, p) for s, e in enumerate(MANIFEST.shards) for p in range(e.n_samples)]
    assert [len(batch.samples) for batch in batches] == [4] * 13 + [2]
    bucketed = list(plan(MANIFEST, batch_size=4).sequential())
    assert sorted(s for batch in bucketed for s in batch.samples) == samples


def test_a_worker_plans_only_its_own_streams() -> None:
    """With R * W dividing the streams, a stream is some worker's own."""
    stream_plan = plan(MANIFEST, **SETTINGS)
    owners: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for rank in range(2):
        for worker in range(2):
            order = training_order(
                worker,
                2,
                plans={"video": stream_plan},
                order=Alternation(pattern=("video",), per_step=2),
                position=StreamPosition(start=6, per_step=2, rank=rank, world_size=2),
            )
            for batch in islice(order, 20):
                owners[batch.stream].add((rank, worker))
    assert all(len(owner) == 1 for owner in owners.values())
    assert len(owners) == 4


def test_skipping_thousands_of_samples_is_quick() -> None:
    """Planning is arithmetic: an epoch of 10,000 samples is gone through in well under a second."""
    stream_plan = plan(manifest(*[100] * 100), batch_size=1)
    started = time.process_time()  # whatever else keeps the machine busy
    walk = stream_plan.walk()
    for index in islice(count(5000), stream_plan.n_streams):
        walk.batch(index)
    assert time.process_time() - started < 1


@settings(max_examples=40)
@given(data=st.data())
def test_any_plan_takes_every_sample_once_an_epoch_and_can_be_entered_anywhere(data: st.DataObject) -> None:
    shards = manifest(*data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=7)))
    drawn = {
        "seed": data.draw(st.integers(0, 2**40)),
        "streams": data.draw(st.none() | st.integers(1, len(shards.shards))),
        "shuffle_shards": data.draw(st.integers(1, 3)),
    }
    order = plan(shards, **drawn, batch_size=data.draw(st.integers(1, 4)), bucket=data.draw(st.booleans()))
    one_by_one = plan(shards, **drawn, batch_size=1)
    for epoch in range(2):
        streams = [one_by_one.stream(stream) for stream in range(order.n_streams)]
        taken: Counter[PlannedSample] = Counter()
        for batches in streams:
            for batch in batches:
                (sample,) = batch.samples
                if sample.epoch > epoch:
                    break
                taken[sample] += 1
        expected = {
            PlannedSample(e, shard, place)
            for e in range(epoch + 1)
            for shard, entry in enumerate(shards.shards)
            for place in range(entry.n_samples)
        }
        assert taken == Counter(expected)
    start = data.draw(st.integers(0, 12))
    walk = order.walk()
    assert [walk.batch(index) for index in range(start, start + 6)] == first_batches(order, start + 6)[start:]
