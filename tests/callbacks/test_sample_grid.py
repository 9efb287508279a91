from contextlib import nullcontext
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import sample_grid
from callbacks.picture_table import Row, paint_table
from callbacks.sample_grid import HIDDEN_GREY, SampleGrid, cut_samples, paint_sample
from tests.callbacks.tiny_run import LAYOUT, TinyModule, events, loader, make_batch, make_trainer

SHAPES = [(3, 4, 4), (5, 4, 8)]


def upscale(codes):
    """A decoder of a causal tokenizer with strides 4, 8, 8: every pixel shows its code, never grey."""
    frames = torch.cat([codes[:1], codes[1:].repeat_interleave(4, 0)])
    pixels = frames.repeat_interleave(8, 1).repeat_interleave(8, 2) % HIDDEN_GREY
    return pixels[..., None].expand(-1, -1, -1, 3).to(torch.uint8).numpy()


def decoding(decode):
    """A module whose visual tokenizer decodes so, or that has none."""
    module = TinyModule()
    if decode is not None:
        module.visual_tokenizer = SimpleNamespace(decode=lambda codes: torch.from_numpy(decode(codes[0]))[None])
    return module


def test_a_packed_batch_is_cut_into_its_samples():
    batch = make_batch("a", SHAPES, n_given=1)
    predicted = torch.randint(LAYOUT.codebook_size, batch.target_codes.shape)
    samples = cut_samples(batch, predicted, LAYOUT)
    assert [tuple(sample.truth.shape) for sample in samples] == SHAPES
    hidden = torch.cat([sample.is_hidden.flatten() for sample in samples])
    truth = torch.cat([sample.truth.flatten() for sample in samples])
    prediction = torch.cat([sample.prediction.flatten() for sample in samples])
    assert torch.equal(truth[hidden], batch.target_codes)
    assert torch.equal(prediction[hidden], predicted)
    assert torch.equal(prediction[~hidden], truth[~hidden])
    assert not any(sample.is_hidden[0].any() for sample in samples)  # the given frame


@pytest.mark.parametrize("decode", [upscale, lambda codes: upscale(codes)[::4, ::8, ::8]], ids=["pixels", "codes"])
def test_the_input_is_grey_exactly_where_hidden(decode):
    batch = make_batch("a", SHAPES)
    sample = cut_samples(batch, batch.target_codes, LAYOUT)[1]
    clip = paint_sample(sample, decode)
    n_frames = len(decode(sample.truth))
    assert [len(frames) for frames in clip.panels] == [n_frames] * 3
    for n in range(n_frames):
        latent = n if n_frames == 5 else (n + 3) // 4
        truth, seen, predicted = (np.asarray(frames[n]) for frames in clip.panels)
        cell = truth.shape[0] // 4
        hidden = np.kron(sample.is_hidden[latent].numpy(), np.ones((cell, cell))) > 0
        assert truth.shape == (96, 192, 3)
        assert ((seen == HIDDEN_GREY).all(-1) == hidden).all()
        assert (seen[~hidden] == truth[~hidden]).all()
        assert (predicted == truth).all()
    assert clip.captions[1] == f"input\n{sample.is_hidden.float().mean():.0%} hidden"
    assert "100.0% of hidden right" in clip.captions[2]


@pytest.mark.parametrize(("decode", "n_frames"), [(None, 5), (upscale, 17)], ids=["codes", "pixels"])
def test_a_run_paints_training_and_validation(tmp_path, decode, n_frames):
    batches = [make_batch(f"t{i}", SHAPES) for i in range(8)]
    grid = SampleGrid(every_n_steps=2, max_samples=2)
    trainer = make_trainer(tmp_path, [grid], steps=4, accumulate_grad_batches=2, val_check_interval=8)
    trainer.fit(decoding(decode), loader(batches), loader(batches[:2]))
    log = events(tmp_path)
    assert [image.step for image in log.Images("samples/train")] == [1, 3]
    assert [image.step for image in log.Images("samples/val")] == [3]
    for tag, kind in (("samples/train", "PNG"), ("samples/train_video", "GIF"), ("samples/val_video", "GIF")):
        summary = log.Images(tag)[-1]
        with Image.open(BytesIO(summary.encoded_image_string)) as picture:
            assert (picture.format, picture.size) == (kind, (summary.width, summary.height))
            assert getattr(picture, "n_frames", 1) == (n_frames if kind == "GIF" else 1)


def test_a_validation_of_both_kinds_shows_both(tmp_path):
    images, videos = make_batch("image", [(1, 4, 4)]), make_batch("video", SHAPES)
    trainer = make_trainer(tmp_path, [SampleGrid(0, 2)], steps=2, val_check_interval=2)
    trainer.fit(TinyModule(), loader([videos] * 2), loader([images, images, videos, videos]))
    log = events(tmp_path)
    assert len(log.Images("samples/val")) == 2 and len(log.Images("samples/val_video")) == 1


def test_no_room_for_pictures_does_not_end_the_training(tmp_path):
    def decode(codes):
        raise torch.OutOfMemoryError

    trainer = make_trainer(tmp_path, [SampleGrid(1, 2)], steps=2)
    with pytest.warns(UserWarning, match="no room to decode them beside the training"):
        trainer.fit(decoding(decode), loader([make_batch("video", SHAPES)] * 2))
    assert trainer.global_step == 2


def test_images_get_no_animation(tmp_path):
    trainer = make_trainer(tmp_path, [SampleGrid(1, 4)], steps=1)
    trainer.fit(TinyModule(), loader([make_batch("image", [(1, 4, 4), (1, 8, 8)])]))
    assert events(tmp_path).Tags()["images"] == ["samples/train"]


def test_the_prediction_is_made_in_the_runs_precision(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        TinyModule,
        "predict_codes",
        lambda _, batch: seen.append(torch.is_autocast_enabled("cpu")) or batch.target_codes,
    )
    for precision in "bf16-mixed", "32-true":
        trainer = make_trainer(tmp_path, [SampleGrid(1, 4)], steps=1, precision=precision)
        trainer.fit(TinyModule(), loader([make_batch("image", [(1, 4, 4)])]))
    assert seen == [True, False]


def test_other_ranks_predict_but_do_not_paint(monkeypatch):
    monkeypatch.setattr(sample_grid, "log_image", lambda *_: pytest.fail("painted"))
    plugin = SimpleNamespace(forward_context=nullcontext)
    trainer = SimpleNamespace(
        is_global_zero=False,
        global_step=1,
        fit_loop=SimpleNamespace(_should_accumulate=lambda: False),
        loggers=[],
        precision_plugin=plugin,
    )
    module = TinyModule()
    SampleGrid(1, 4).on_train_batch_end(trainer, module, {}, make_batch("a", SHAPES), 0)
    assert module.predicted == 1


def test_table_keeps_pictures_of_any_size_apart():
    red, blue = Image.new("RGB", (20, 90), "red"), Image.new("RGB", (50, 60), "blue")
    table = np.asarray(paint_table("title", ["a", "b"], [Row("x", [red, red]), Row("y\nz", [blue])]))
    assert (table == (255, 0, 0)).all(-1).sum() == 2 * 20 * 90
    assert (table == (0, 0, 255)).all(-1).sum() == 50 * 60
