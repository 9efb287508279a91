from pathlib import Path

import pytest
import torch

from callbacks.frame_loss_metric import MAX_FRAMES, FrameLoss
from lumos_pl.errors import ConfigError
from tests.callbacks.tiny_run import frame_means, make_batch, planted_loss
from tests.processes import on_ranks
from tests.refusals import refused

VIDEOS = [
    make_batch("a", [(3, 4, 4), (5, 4, 8)]),
    make_batch("b", [(2, 8, 8)]),
    make_batch("c", [(4, 4, 4)], n_given=1),
]
IMAGES = make_batch("image", [(1, 4, 4), (1, 8, 8)])


def gather(batches):
    metric = FrameLoss()
    for batch in batches:
        metric.update(planted_loss(batch), batch.target_frames, batch)
    return metric.compute()


def test_every_token_counts_for_its_own_frame():
    assert gather(VIDEOS) == pytest.approx(frame_means(VIDEOS))


def test_given_frames_are_absent():
    assert sorted(gather([VIDEOS[2]])) == [1, 2, 3]


def test_images_do_not_count():
    assert gather([VIDEOS[0], IMAGES]) == gather(VIDEOS[:1])
    assert gather([IMAGES]) == {}


def test_a_clip_with_too_many_frames_is_refused():
    with refused(ConfigError, where="sample long/1", got="65", expected="at most 64"):
        gather([make_batch("long", [(2, 4, 4), (MAX_FRAMES + 1, 4, 4)])])


def on_one_of_two(rank: int, world: int, folder: Path) -> None:
    shares = [[*VIDEOS[:2]], [VIDEOS[2], IMAGES]]
    torch.save(gather(shares[rank]), folder / f"{rank}.pt")


@pytest.mark.seconds
def test_two_ranks_report_the_loss_over_both(tmp_path):
    on_ranks(2, on_one_of_two, tmp_path, tmp_path)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt", weights_only=True) == pytest.approx(frame_means(VIDEOS))
