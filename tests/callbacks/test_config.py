import pytest
from omegaconf import OmegaConf

from callbacks.build import build_callbacks
from callbacks.config import CallbackConfig
from callbacks.sample_grid import SampleGrid
from lumos_pl.errors import ConfigError
from tests.callbacks.tiny_run import TinyModule, events, loader, make_batch, make_trainer
from tests.refusals import refused


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("log_every_n_steps", 0),
        ("heatmap_every_n_steps", -1),
        ("sample_grid_every_n_steps", -1),
        ("sample_grid_samples", 0),
    ],
)
def test_a_bad_value_is_named(key, value):
    merged = OmegaConf.merge(OmegaConf.structured(CallbackConfig), {key: value})
    with refused(ConfigError, where=f"callbacks.{key}", got=value):
        OmegaConf.to_object(merged)


def test_pictures_can_be_switched_off():
    callbacks = build_callbacks(CallbackConfig(sample_grid_every_n_steps=0))
    assert not any(isinstance(callback, SampleGrid) for callback in callbacks)


def test_a_run_with_all_of_them(tmp_path, capsys):
    config = CallbackConfig(log_every_n_steps=2, heatmap_every_n_steps=2, sample_grid_every_n_steps=2)
    batches = [make_batch(f"b{i}", [(3, 4, 4)]) for i in range(4)]
    callbacks = build_callbacks(config)
    trainer = make_trainer(tmp_path, callbacks, steps=4, limit_train_batches=4, enable_progress_bar=True)
    trainer.fit(TinyModule(), loader(batches))
    tags = events(tmp_path).Tags()
    assert {"loss_frame/train/02", "throughput/tokens_per_second"} <= set(tags["scalars"])
    assert set(tags["images"]) == {
        "loss_frame/curves",
        "loss_frame/heatmap",
        "samples/train",
        "samples/train_video",
    }
    shown = capsys.readouterr().out
    print(shown)
    assert "Training" in shown and "4/4" in shown and "step: 4" in shown and "tokens/s:" in shown
