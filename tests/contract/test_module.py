"""A module says itself what it is, in every file that it is saved in."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch.utils.data import DataLoader

import callbacks
import data_modules
import lumos_pl
from data_modules.token_data import TokenDataModule
from lumos_pl.adapters.config import AdapterConfig
from lumos_pl.errors import CheckpointError, ConfigError
from lumos_pl.models.config import ModelConfig
from lumos_pl.module import LumosModule
from lumos_pl.optimizer import OptimizerConfig
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.text import ByteTokenizer
from lumos_pl.tokenizers.tokenizer_module import TokenizerModule
from tests.contract.conftest import MODEL, Appearances, MakeTrainer, make_data, make_module, same_weights
from tests.refusals import refused

Fit = Callable[..., tuple[LumosModule, Appearances]]
MADE_BEFORE = Path(__file__).parents[1] / "made_before" / "run"


def test_hyperparameters_are_plain_values_that_make_the_module_again() -> None:
    module = make_module()
    again = LumosModule(**json.loads(json.dumps(dict(module.hparams))))
    assert again.hparams == module.hparams
    assert (again.model_config, again.optimizer_config) == (module.model_config, module.optimizer_config)


@pytest.mark.parametrize("wrong", [{"optimizer": {"lr": "fast"}}, {"optimizer": {"speed": 1}}, {"model": {"dim": 0.5}}])
def test_plain_values_that_do_not_fit_name_the_field(wrong: dict[str, dict[str, object]]) -> None:
    with pytest.raises(ConfigError) as refused:
        LumosModule(**wrong)  # type: ignore[arg-type]
    assert str(refused.value.where).startswith(next(iter(wrong)))


def test_a_checkpoint_of_any_trainer_is_loaded_without_further_arguments(fit: Fit, tmp_path: Path) -> None:
    module, _ = fit(max_steps=2, module=make_module(optimizer=OptimizerConfig(lr=1e-2, ema_decay=0.5)))
    loaded = LumosModule.load_from_checkpoint(tmp_path / "run" / "step=2.ckpt")
    assert same_weights(module, loaded) and loaded.hparams == module.hparams
    assert loaded.ema is not None and loaded.net is not None
    changed = LumosModule.load_from_checkpoint(tmp_path / "run" / "step=2.ckpt", optimizer=OptimizerConfig(lr=0.5))
    assert changed.optimizer_config.lr == 0.5 and changed.ema is None
    assert changed.net is not None and torch.equal(changed.net.lm_head.weight, loaded.net.lm_head.weight)


@pytest.mark.parametrize("path", [MADE_BEFORE, MADE_BEFORE / "checkpoints" / "step-00000004.ckpt"])
def test_a_run_of_before_is_loaded(path: Path) -> None:
    module = LumosModule.load_from_checkpoint(path)
    saved = torch.load(MADE_BEFORE / "checkpoints" / "step-00000004.ckpt", weights_only=True)["state_dict"]
    assert {name: torch.equal(tensor, saved[name]) for name, tensor in module.state_dict().items()} == dict.fromkeys(
        saved, True
    )
    assert (module.seed, module.optimizer_config.ema_decay, module.sampling.guidance) == (5, 0.9, 3.0)


def test_the_shipped_model_is_loaded() -> None:
    module = LumosModule.load_from_checkpoint("embedded")
    assert module.model_config.rope == "mm" and module.net is not None


class WithAHead(LumosModule):
    def __init__(self, *arguments: Any, alpha: float = 1.0, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.save_hyperparameters("alpha")
        self.alpha, self.head = alpha, torch.nn.Linear(2, 2)


def test_a_module_of_ones_own_is_loaded_whole(trainer: MakeTrainer, tmp_path: Path) -> None:
    plain = make_module()
    module = WithAHead(plain.model_config, plain.layout_config, alpha=5.0)
    trainer(max_steps=1).fit(module, datamodule=make_data())
    loaded = WithAHead.load_from_checkpoint(tmp_path / "run" / "step=1.ckpt")
    assert loaded.alpha == 5.0 and same_weights(loaded, module)
    with pytest.raises(CheckpointError) as refused:
        LumosModule.load_from_checkpoint(tmp_path / "run" / "step=1.ckpt")
    assert refused.value.where == "head.bias"


class OfItsOwnShape(LumosModule):
    def __init__(self, width: int, depth: int = 1) -> None:
        model = ModelConfig(size="debug", dim=width, n_layers=depth, n_heads=1, n_kv_heads=1, max_length=512)
        super().__init__(model, make_module().layout_config)
        self.save_hyperparameters("width")


def test_a_module_that_takes_arguments_of_its_own_alone_is_given_those(trainer: MakeTrainer, tmp_path: Path) -> None:
    module, file = OfItsOwnShape(32, depth=2), tmp_path / "run" / "step=1.ckpt"
    trainer(max_steps=1).fit(module, datamodule=make_data())
    assert same_weights(OfItsOwnShape.load_from_checkpoint(file, depth=2), module)
    with refused(CheckpointError, where="model.n_layers"):
        OfItsOwnShape.load_from_checkpoint(file)
    with refused(ConfigError, where="LumosModule.load_from_checkpoint"):
        LumosModule.load_from_checkpoint(file, depth=2)
    with refused(ConfigError, where="LumosModule.load_from_checkpoint", fix="did you mean optimizer?"):
        LumosModule.load_from_checkpoint(file, optimiser={"lr": 1e-5})
    module.hparams.pop("width")
    trainer(max_steps=1).fit(module, datamodule=make_data())
    with refused(ConfigError, where="OfItsOwnShape.load_from_checkpoint"):
        OfItsOwnShape.load_from_checkpoint(tmp_path / "run" / "step=1-v1.ckpt")


@pytest.mark.parametrize("captions", ["a red circle", DataLoader([{"caption": "a red circle"}]), [["a", 3]], [5]])
def test_what_is_no_batch_of_captions_is_refused(captions: Any, trainer: MakeTrainer) -> None:
    module = make_module(visual_tokenizer="embedded", clip=ClipFormat(width=16, height=16, frames=1))
    with refused(ConfigError):
        trainer().predict(module, dataloaders=captions)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"nothing")
    with pytest.raises(CheckpointError):
        LumosModule.load_from_checkpoint(tmp_path / "x.ckpt")


def test_the_pipeline_opens_what_any_trainers_model_checkpoint_wrote(trainer: MakeTrainer) -> None:
    small = ClipFormat(width=16, height=16, frames=5, fps=12)
    module = make_module(visual_tokenizer="embedded", clip=small, sampling=SamplingConfig(steps=2, guidance=2.0))
    own = trainer(max_steps=2)
    own.fit(module, datamodule=make_data())
    saved = own.checkpoint_callback
    assert isinstance(saved, ModelCheckpoint)
    pipeline = LumosPipeline.load(saved.best_model_path)
    (clip,) = pipeline.generate(["blob 3 moving left"])
    assert clip.frames.shape == (5, 16, 16, 3)
    assert pipeline.sampling.guidance == 2.0


def test_the_module_is_called_tested_and_validated(trainer: MakeTrainer) -> None:
    module, data = make_module(), make_data()
    (tested,) = trainer().test(module, datamodule=data, verbose=False)
    (validated,) = trainer().validate(module, datamodule=data, verbose=False)
    assert tested["loss/test"] > 0 and validated["loss/val"] > 0
    batch = next(iter(data.val_dataloader()))
    logits = module(batch.tokens, batch.spans)
    assert logits.shape == (len(batch.tokens), module.layout.codebook_size)


def test_a_module_that_was_validated_and_tested_is_trained_on(trainer: MakeTrainer) -> None:
    module, data = make_module(), make_data()
    trainer().validate(module, datamodule=data, verbose=False)
    trainer().test(module, datamodule=data, verbose=False)
    own = trainer(max_steps=2, val_check_interval=1)
    own.fit(module, datamodule=data)
    assert own.global_step == 2 and own.callback_metrics["loss/val"] > 0


def test_what_was_only_validated_is_saved_too(trainer: MakeTrainer, tmp_path: Path) -> None:
    module, own = make_module(), trainer()
    own.validate(module, datamodule=make_data(), verbose=False)
    own.save_checkpoint(tmp_path / "x.ckpt")
    assert same_weights(LumosModule.load_from_checkpoint(tmp_path / "x.ckpt"), module)


def test_a_module_in_a_loop_of_ones_own() -> None:
    module, data = make_module(), make_data()
    module.configure_model()
    data.setup()
    optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index,call-overload]
    losses = []
    for _, batch in zip(range(3), data.train_dataloader(), strict=False):
        loss = module.training_step(module.on_before_batch_transfer(batch, 0), 0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0]


def test_the_context_is_the_modules(trainer: MakeTrainer) -> None:
    """Clips longer than the model's context are refused, though the data module was told of no limit."""
    module = LumosModule({**MODEL.__dict__, "max_length": 20}, make_module().layout_config)
    with pytest.raises(ConfigError) as refused:
        trainer(max_steps=1).fit(module, datamodule=make_data(kind="video"))
    assert refused.value.where == "data.video.frames"


class Remembers(Callback):
    def __init__(self, state: object) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return {"seen": {"last": self.state}}


@pytest.mark.parametrize("state", [Path("a"), np.float64(1), {1.5: 2}, lambda: 1, "a\ud800"])
def test_a_callback_whose_state_could_not_be_read_back_is_refused_before_anything_is_written(
    state: object, trainer: MakeTrainer, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as refused:
        trainer(Remembers(state), max_steps=1).fit(make_module(), datamodule=make_data())
    assert refused.value.where == "callbacks.Remembers.seen.last"
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_callback_of_plain_values_and_tensors_is_saved_and_read_back(
    fit: Fit, trainer: MakeTrainer, tmp_path: Path
) -> None:
    state = {"a": (1, None), "b": torch.ones(2), "c": {1, 2}, 3: b"x", "inf": float("inf")}
    fit(Remembers(state), max_steps=1)
    fit(Remembers(0), max_steps=2, resume=("run", 1), folder="more")


@pytest.fixture
def base(fit: Fit, tmp_path: Path) -> Path:
    module = make_module(visual_tokenizer="embedded")
    fit(module=module, max_steps=1, folder="base")
    return tmp_path / "base" / "step=1.ckpt"


def test_sections_given_as_mappings_change_what_they_name(base: Path) -> None:
    loaded = LumosModule.load_from_checkpoint(base, optimizer={"lr": 0.5}, model={"attention": "padded"})
    assert loaded.optimizer_config == OptimizerConfig(lr=0.5, warmup_steps=2)
    assert loaded.model_config.attention == "padded" and loaded.model_config.dim == MODEL.dim
    with refused(CheckpointError, where="model.n_layers", got=1, expected=2):
        LumosModule.load_from_checkpoint(base, model={"n_layers": 2})


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ({"optimizer": {"lr": "fast"}}, "optimizer.lr"),
        ({"checkpoint_path": None}, "checkpoint_path"),
        ({"init_from": 3}, "init_from"),
        ({"visual_tokenizer": 3}, "visual_tokenizer"),
        ({"map_location": "gpu"}, "map_location"),
    ],
)
def test_what_is_asked_wrongly_is_not_the_files_fault(arguments: dict[str, Any], where: str, base: Path) -> None:
    with refused(ConfigError, where=where):
        LumosModule.load_from_checkpoint(**{"checkpoint_path": base, **arguments})


@pytest.mark.seconds
def test_an_adapter_begins_on_a_checkpoint_that_is_loaded(base: Path, fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = AdapterConfig(kind="lora", rank=2)
    plain, module = (LumosModule.load_from_checkpoint(base, adapter=adapter) for adapter in (None, lora))
    batch = next(iter(_set_up(make_data()).val_dataloader()))
    with torch.no_grad():
        assert torch.equal(plain(batch.tokens, batch.spans), module(batch.tokens, batch.spans))
    fit(module=module, max_steps=2, folder="tuned")
    tuned = tmp_path / "tuned" / "step=2.ckpt"
    loaded = LumosModule.load_from_checkpoint(tuned, adapter={"dropout": 0.1})
    assert loaded.adapter_config == AdapterConfig(kind="lora", rank=2, dropout=0.1) and same_weights(loaded, module)
    for changed in AdapterConfig(), AdapterConfig(kind="lora", rank=4), {"alpha": 3.0}, {"targets": ["q_proj"]}:
        with refused(CheckpointError):
            LumosModule.load_from_checkpoint(tuned, adapter=changed)
    moved = base.rename(tmp_path / "moved.ckpt")
    with refused(CheckpointError, file=tuned):
        LumosModule.load_from_checkpoint(tuned)
    assert same_weights(LumosModule.load_from_checkpoint(tuned, init_from=moved), module)


def _set_up(data: Any) -> Any:
    data.setup()
    return data


class NoTokenizer:
    codebook_size, strides, fingerprint = 64, (4, 8, 8), "other"

    def encode(self, frames: torch.Tensor) -> torch.Tensor: ...
    def decode(self, codes: torch.Tensor) -> torch.Tensor: ...


def test_tokenizers_are_given_by_name_or_themselves_everywhere(base: Path) -> None:
    own = load_visual_tokenizer("embedded")
    assert make_module(visual_tokenizer=own).visual_tokenizer is own
    assert LumosPipeline.load(base, visual_tokenizer=own, text_tokenizer=ByteTokenizer()).visual_tokenizer is own
    for wrong in NoTokenizer(), 3:
        with refused(ConfigError, where="visual_tokenizer"):
            make_module(visual_tokenizer=wrong)
        with refused(ConfigError, where="visual_tokenizer"):
            LumosPipeline.load(base, visual_tokenizer=wrong)  # type: ignore[arg-type]
    with refused(ConfigError, where="text_tokenizer"):
        LumosPipeline.load(base, text_tokenizer=3)  # type: ignore[arg-type]


class WithoutSuper(LumosModule):
    """As most write hooks, since Lightning's are empty."""

    def __init__(self, *arguments: Any, note: int = 0, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.save_hyperparameters()
        self.note = note

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["note"] = {"of": self.note}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.note = checkpoint["note"]["of"]

    def on_fit_start(self) -> None: ...
    def on_train_start(self) -> None: ...


def test_hooks_of_ones_own_come_beside_ours(fit: Fit, tmp_path: Path) -> None:
    module = WithoutSuper(MODEL, make_module().layout_config, optimizer=OptimizerConfig(ema_decay=0.5))
    module.note = 7
    fit(module=module, max_steps=1)
    loaded = WithoutSuper.load_from_checkpoint(tmp_path / "run" / "step=1.ckpt")
    assert loaded.note == 7 and same_weights(loaded, module) and loaded.hparams == module.hparams
    with refused(CheckpointError, where="seed"):
        other = WithoutSuper(MODEL, make_module().layout_config, optimizer=OptimizerConfig(ema_decay=0.5), seed=4)
        fit(module=other, max_steps=2, resume=("run", 1), folder="other")
    with refused(ConfigError, where="Trainer(precision)"):
        fit(module=WithoutSuper(MODEL, make_module().layout_config), max_steps=1, precision="bf16-true")


class OfAnArray(LumosModule):
    def __init__(
        self, *arguments: Any, weights: Any = None, save: tuple[str, ...] = (), own: Any = None, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        self.save_hyperparameters("save", *save)
        if own is not None:
            self.save_hyperparameters(own, ignore="left")


class TokenizerOfAnArray(TokenizerModule):
    def __init__(self, weights: Any) -> None:
        super().__init__()


class DataOfAnArray(TokenDataModule):
    def __init__(self, weights: Any) -> None:
        super().__init__(make_data().config, make_module().layout)
        self.save_hyperparameters()


@pytest.mark.parametrize("odd", [np.ones(3), np.ones((2, 2)), torch.ones(3), [np.ones(2)]])
def test_an_argument_that_has_no_truth_is_taken_and_as_a_hyperparameter_refused_at_once(odd: Any, fit: Fit) -> None:
    """Lightning would compare it with the settings that are saved."""
    layout = make_module().layout_config
    fit(module=OfAnArray(MODEL, layout, weights=odd), max_steps=1)
    assert TokenizerOfAnArray(odd).hparams == TokenizerModule().hparams
    with refused(ConfigError, where="hparams.weights"):
        fit(module=OfAnArray(MODEL, layout, weights=odd, save=("weights",)), max_steps=1, folder="saved")
    with refused(ConfigError, where="datamodule.hparams.weights"):  # and not as it is first saved
        fit(data=DataOfAnArray(odd), max_steps=1, folder="data")


@pytest.mark.parametrize("own", [{"note": 3, "left": 4}, Namespace(note=3, left=4)])
def test_values_of_ones_own_are_hyperparameters_beside_an_array(own: Any) -> None:
    module = OfAnArray(MODEL, make_module().layout_config, weights=np.ones(3), own=own)
    assert module.hparams["note"] == module.hparams_initial["note"] == 3
    assert module.hparams.keys() == {*make_module().hparams, "save", "note"}


def test_public_names_are_listed_and_there() -> None:
    for package in lumos_pl, data_modules, callbacks:
        assert set(dir(package)) == set(package.__all__)
        assert all(getattr(package, name) is not None for name in package.__all__)


def test_what_the_settings_of_data_are_made_of_is_public() -> None:
    """In Python a part of the settings is an object of its class, which has to be found."""
    for settings in data_modules.DataConfig, data_modules.PixelDataConfig:
        for hint in get_type_hints(settings).values():
            asked = [one for one in (hint, *get_args(hint)) if is_dataclass(one)]
            assert [one.__name__ for one in asked if one.__name__ not in data_modules.__all__] == []
