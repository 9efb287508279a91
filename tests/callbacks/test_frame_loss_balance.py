from io import BytesIO

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from callbacks.frame_loss_balance import FrameLossBalance
from callbacks.loss_history import MAX_ROWS, LossHistory, paint_curves, paint_heatmap
from tests.callbacks.tiny_run import TinyModule, events, frame_means, loader, make_batch, make_trainer, scalars

# Eight steps of two batches, every other one with images.
TRAIN = [make_batch(f"t{i}", [(1 if i % 4 == 3 else 3, 4, 4), (1 if i % 4 == 3 else 3, 4, 8)]) for i in range(16)]
VAL = [make_batch(f"v{i}", [(2 + i, 4, 4)]) for i in range(2)]


def run(folder, *, steps, callbacks=(), **kwargs):
    balance = FrameLossBalance(every_n_steps=3, heatmap_every_n_steps=6)
    trainer = make_trainer(folder, [balance, *callbacks], steps=steps, accumulate_grad_batches=2, **kwargs)
    trainer.fit(TinyModule(), loader(TRAIN), loader(VAL))
    return balance


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("balance")
    return folder, run(folder, steps=8, val_check_interval=16)


@pytest.mark.seconds
def test_each_logging_covers_the_batches_since_the_last(finished):
    folder, _ = finished
    intervals = {2: TRAIN[:6], 5: TRAIN[6:12], 7: TRAIN[12:]}  # steps 0-2, 3-5, and what was left at the end
    expected = {
        step: frame_means(b for b in batches if b.spans[0].latent_frames > 1) for step, batches in intervals.items()
    }
    for frame in range(3):
        found = scalars(folder, f"loss_frame/train/{frame:02d}")
        assert found == pytest.approx({step: losses[frame] for step, losses in expected.items()})
    spread = {step: (max(x.values()) - min(x.values())) / (sum(x.values()) / 3) for step, x in expected.items()}
    assert scalars(folder, "loss_frame/train/spread") == pytest.approx(spread)


def test_validation_covers_its_whole_epoch(finished):
    folder, _ = finished
    for frame, loss in frame_means(VAL).items():
        assert scalars(folder, f"loss_frame/val/{frame:02d}") == pytest.approx({7: loss})


def test_summary_holds_the_last_figures(finished):
    folder, balance = finished
    summary = balance.summary()["frame_loss"]
    assert summary["val"]["frames"] == pytest.approx(list(frame_means(VAL).values()))
    assert summary["train"]["step"] == 7
    assert summary["train"]["spread"] == pytest.approx(scalars(folder, "loss_frame/train/spread")[7])


def test_all_frames_share_one_chart(finished):
    folder, _ = finished
    tensor = events(folder).Tensors("custom_scalars__config__")[0].tensor_proto
    categories = Layout.FromString(tensor.string_val[0]).category
    lines = [list(category.chart[0].multiline.tag) for category in categories]
    assert lines == [[r"loss_frame/train/\d+$"], [r"loss_frame/val/\d+$"]]
    margin = categories[0].chart[1].margin.series[0]
    logged = events(folder).Tags()["scalars"]
    assert {margin.value, margin.lower, margin.upper} <= set(logged)


def test_the_heatmap_is_a_picture(finished):
    folder, _ = finished
    assert events(folder).Images("loss_frame/curves")
    pictures = events(folder).Images("loss_frame/heatmap")
    assert [picture.step for picture in pictures] == [5, 7]
    for picture in pictures:
        with Image.open(BytesIO(picture.encoded_image_string)) as image:
            assert (image.format, image.size) == ("PNG", (picture.width, picture.height))


def test_a_resumed_run_keeps_the_history(tmp_path):
    whole = run(tmp_path / "whole", steps=6)
    saving = ModelCheckpoint(tmp_path / "part", "part", every_n_train_steps=3)
    run(tmp_path / "part", steps=3, callbacks=[saving], enable_checkpointing=True)
    resumed = FrameLossBalance(every_n_steps=3, heatmap_every_n_steps=0)
    trainer = make_trainer(tmp_path / "rest", [resumed], steps=6, accumulate_grad_batches=2)
    trainer.fit(TinyModule(), loader(TRAIN[6:]), ckpt_path=tmp_path / "part" / "part.ckpt", weights_only=True)
    assert len(resumed.state_dict()["history"]["rows"]) == 2
    assert resumed.state_dict()["history"] == whole.state_dict()["history"]


def test_images_alone_give_no_figures(tmp_path):
    balance = FrameLossBalance(every_n_steps=1, heatmap_every_n_steps=1)
    images = [make_batch(f"i{i}", [(1, 4, 4)]) for i in range(2)]
    make_trainer(tmp_path, [balance], steps=2).fit(TinyModule(), loader(images))
    assert balance.summary() == {"frame_loss": {}}
    assert not [tag for tag in events(tmp_path).Tags()["scalars"] if tag.startswith("loss_frame")]


def test_history_stays_bounded_and_evenly_spaced():
    history = LossHistory()
    for step in range(10 * MAX_ROWS):
        history.add(step, [1.0, 2.0])
        history = LossHistory(**history.state_dict())  # as if resumed after every step
    steps = [row[0] for row in history.rows]
    assert MAX_ROWS // 2 <= len(steps) <= MAX_ROWS
    assert steps == list(range(0, 10 * MAX_ROWS, 16))


def test_the_pictures_draw_missing_frames():
    rows = [[0, None, 2.0], [9, None, 1.5, 1.0], [19, None, 1.0]]
    assert paint_heatmap(rows).startswith(b"\x89PNG")
    assert paint_curves(rows).startswith(b"\x89PNG")
