from __future__ import annotations

import os
import signal
from io import BytesIO

import pytest
import torch
from PIL import Image

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.picture_table import paint_stills
from callbacks.sampled_clips import SampledClips, paint_animation
from lumos_pl.machinery.stop_request import StopRequest
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.shape_world.fidelity import fidelity, fresh_scenes
from lumos_pl.shape_world.render import render
from lumos_pl.world import build_world
from tests.callbacks.clips_to_show import CLIP, CONFIG, WORLD, TrueClips
from tests.callbacks.tiny_run import TinyModule, events, loader, make_batch, make_trainer


def clips_of(prompts, **kwargs):
    return SampledClips(prompts, every_n_steps=2, clip=CLIP, sampling=CONFIG, **kwargs)


def run(folder, callback, pipeline, steps, **kwargs):
    module = TinyModule()
    module.made_with = pipeline
    batches = [make_batch(f"t{i}", [(2, 4, 4)]) for i in range(steps)]
    trainer = make_trainer(folder, [callback], steps=steps, default_root_dir=folder, **kwargs)
    trainer.fit(module, loader(batches))
    return trainer


@pytest.mark.seconds
def test_prompts_are_drawn_at_intervals_and_at_the_end(tmp_path):
    pipeline = TrueClips()
    prompts = list(pipeline.drawn)[:2]
    run(tmp_path, clips_of(prompts), pipeline, steps=5)
    assert pipeline.asked == [(prompts, [clip_seed(0, place) for place in range(2)])] * 3
    logged = events(tmp_path)
    for tag in "samples/generated", "samples/generated_video":
        assert [event.step for event in logged.Images(tag)] == [1, 3, 4]
    last = logged.Images("samples/generated")[-1].encoded_image_string
    assert (tmp_path / "samples.png").read_bytes() == last
    with Image.open(tmp_path / "samples.gif") as animation:
        assert animation.n_frames == 17


def test_the_last_step_is_drawn_once(tmp_path):
    pipeline = TrueClips()
    run(tmp_path, clips_of(list(pipeline.drawn)[:2]), pipeline, steps=4)
    assert [event.step for event in events(tmp_path).Images("samples/generated")] == [1, 3]


def test_a_picture_that_takes_too_long_is_dropped_and_the_next_has_fewer_prompts(tmp_path):
    pipeline = TrueClips()
    prompts = list(pipeline.drawn)[:4]
    with pytest.warns(UserWarning, match=r"no sampled clips after -1 s; 2 prompts next time .*max_seconds"):
        run(tmp_path, clips_of(prompts, max_seconds=-1), pipeline, steps=5)
    # one prompt is done with its first step, whatever the time
    assert [len(event.encoded_image_string) > 0 for event in events(tmp_path).Images("samples/generated")] == [True]
    assert (tmp_path / "samples.png").is_file()


def test_no_room_for_pictures_does_not_end_the_training(tmp_path, monkeypatch):
    def gather(self, ranks):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(TinyModule, "pipeline", gather)
    with pytest.warns(UserWarning, match="no room for them beside the training"):
        trainer = run(tmp_path, clips_of(["a red circle"]), None, steps=2)
    assert trainer.global_step == 2


@pytest.mark.seconds
def test_clips_are_broken_off_for_a_signal_and_made_first_when_the_training_goes_on(tmp_path, handlers):
    class Interrupted(TrueClips):
        def generate(self, *arguments, **named):
            stop.defer()  # as `Checkpointing` does when the training starts: Lightning took the signals
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")

    broken_off = clips_of(list(TrueClips().drawn)[:2])
    with StopRequest() as stop:
        run(tmp_path / "first", broken_off, Interrupted(), steps=2)
    assert not (tmp_path / "first" / "samples.png").exists()

    pipeline, going_on = TrueClips(), clips_of(broken_off.prompts)
    going_on.load_state_dict(broken_off.state_dict())
    run(tmp_path / "second", going_on, pipeline, steps=3)
    assert [event.step for event in events(tmp_path / "second").Images("samples/generated")] == [0, 1, 2]
    assert going_on.state_dict() == {}


def test_a_rank_without_the_decoder_makes_nothing(tmp_path):
    judged = CaptionFidelity(4, WORLD, CONFIG)
    run(tmp_path, clips_of(["a red circle"]), None, steps=2)
    run(tmp_path, judged, None, steps=2)
    assert not (tmp_path / "samples.png").exists() and judged.summary() == {}


def test_stills_show_every_latent_frame_and_the_animation_all_frames():
    clips = torch.arange(17, dtype=torch.uint8)[None, :, None, None, None].expand(2, 17, 64, 64, 3).numpy()
    still = paint_stills("title", ["one", "two"], clips, 4)
    levels = {still.getpixel((x, 60))[0] for x in range(still.width)}
    assert {0, 4, 8, 12, 16} <= levels
    with Image.open(BytesIO(paint_animation("title", ["one", "two"], clips, 8))) as animation:
        assert animation.n_frames == 17 and animation.info["duration"] == 120  # GIFs count in hundredths


@pytest.mark.parametrize("wrong", [None, 1])
def test_fidelity_counts_what_the_clips_show(tmp_path, wrong):
    callback = CaptionFidelity(4, WORLD, CONFIG)
    assert callback.summary() == {}
    run(tmp_path, callback, TrueClips(wrong), steps=2)
    share = 1.0 if wrong is None else 0.75
    measured = callback.summary()["caption_fidelity"]
    assert measured["seen"] == measured["heldout"] == dict.fromkeys(("color", "shape", "motion", "joint"), share)
    assert measured["round_trip"]["joint"] == 1.0
    assert events(tmp_path).Scalars("fidelity/seen/joint")[0].value == share


def test_a_tokenizer_that_spoils_true_clips_is_told(tmp_path):
    pipeline = TrueClips()
    pipeline.decode = torch.zeros_like
    with pytest.warns(UserWarning, match="only 0% of true clips are still right"):
        run(tmp_path, CaptionFidelity(4, WORLD, CONFIG), pipeline, steps=2)


def test_nothing_is_judged_before_the_last_step(tmp_path):
    callback = CaptionFidelity(4, WORLD, CONFIG)
    run(tmp_path, callback, TrueClips(), steps=2, limit_train_batches=1, max_epochs=1)
    assert callback.summary() == {}


def test_an_attribute_that_no_caption_names_is_not_counted():
    scenes = fresh_scenes(build_world(WORLD), "val", 3)
    clips = [torch.from_numpy(render(scene, WORLD)) for scene in scenes]
    assert set(fidelity(scenes, clips)) == {"color", "shape", "motion", "joint"}
