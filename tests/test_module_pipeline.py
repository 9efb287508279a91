"""The model in training, asked for clips: in anybody's Trainer, by callbacks and by `predict`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from callbacks.caption_fidelity import CaptionFidelity
from callbacks.sampled_clips import SampledClips
from data_modules.config import DataConfig, SourceConfig, SyntheticConfig
from data_modules.token_data import TokenDataModule
from lumos_pl import LumosPipeline
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.layout import LayoutConfig
from lumos_pl.models.config import ModelConfig
from lumos_pl.module import LumosModule
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.tokenizers.load import load_visual_tokenizer
from tests.refusals import refused

LAYOUT = LayoutConfig(preset="compact", codebook_size=1000)
MODEL = ModelConfig(size="debug", max_length=2048)
CLIP = ClipFormat(width=32, height=32, frames=5, fps=8)
PROMPTS = ["a red circle", "a blue square grows"]


def make_module(**changes: Any) -> LumosModule:
    settings: dict[str, Any] = {
        "visual_tokenizer": load_visual_tokenizer("embedded"),
        "clip": CLIP,
        "sampling": SamplingConfig(steps=1, guidance=1.0),
        **changes,
    }
    return LumosModule(MODEL, LAYOUT, **settings)


def make_data() -> TokenDataModule:
    config = DataConfig(
        kind="video",
        root="synthetic",
        video=SourceConfig(batch_size=1, frames=5),
        num_workers=0,
        synthetic=SyntheticConfig(n_samples=4, width=32, height=32, fps=8),
        prompt="a clip of {caption}",
    )
    return TokenDataModule(config, LAYOUT.build())


def make_trainer(folder: Path, *callbacks: Callback, **changes: Any) -> Trainer:
    settings: dict[str, Any] = {"max_steps": 2, "enable_checkpointing": False, "logger": False, **changes}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, callbacks=list(callbacks), **quiet, **settings)


def test_callbacks_make_clips_in_anybodys_trainer(tmp_path: Path) -> None:
    judged = CaptionFidelity(2, WorldConfig(side=32, frames=5))
    module = make_module()
    make_trainer(tmp_path, SampledClips(PROMPTS), judged).fit(module, make_data())
    assert (tmp_path / "samples.png").is_file() and (tmp_path / "samples.gif").is_file()
    assert set(judged.summary()["caption_fidelity"]) == {"seen", "heldout", "round_trip"}
    lumos = module.pipeline()
    assert lumos is not None and lumos.net is module.net
    assert lumos.wording("x", CLIP) == "a clip of x"  # as the data module has it
    assert (lumos.clip, lumos.sampling) == (module.clip, module.sampling)


@pytest.mark.parametrize("callback", [SampledClips(PROMPTS), CaptionFidelity(2, WorldConfig())], ids=["clips", "words"])
@pytest.mark.parametrize("missing", ["visual", "text"])
def test_a_missing_tokenizer_is_said_before_the_first_step(tmp_path: Path, missing: str, callback: Callback) -> None:
    module, data = make_module(), make_data()
    if missing == "visual":
        module = make_module(visual_tokenizer=None)
    else:
        module.layout = LayoutConfig().build()  # whose texts are not bytes
        data.setup = lambda stage=None: None  # type: ignore[method-assign]
    trainer = make_trainer(tmp_path, callback)
    with refused(ConfigError, where=f"{missing}_tokenizer"):
        trainer.fit(module, data)
    assert trainer.global_step == 0 and module.net is None


@pytest.mark.parametrize(
    "callback, changes",
    [
        (SampledClips(PROMPTS), {"clip": replace(CLIP, frames=999)}),
        (SampledClips(PROMPTS), {"clip": replace(CLIP, width=36)}),
        (SampledClips(["word " * 2000]), {}),
        (SampledClips(PROMPTS, clip=replace(CLIP, frames=999)), {}),
        (CaptionFidelity(2, WorldConfig(side=128, frames=33)), {}),
    ],
    ids=["frames", "width", "words", "own clip", "world"],
)
def test_clips_that_the_model_cannot_make_are_refused_before_the_first_step(
    tmp_path: Path, callback: Callback, changes: dict[str, Any]
) -> None:
    trainer, module = make_trainer(tmp_path, callback), make_module(**changes)
    with pytest.raises(DataError):
        trainer.fit(module, make_data())
    assert trainer.global_step == 0 and module.net is None


@pytest.mark.parametrize(
    "batches",
    [[PROMPTS[:1], PROMPTS[1:]], PROMPTS, DataLoader(PROMPTS, batch_size=2)],  # type: ignore[arg-type]
    ids=["two lists", "one list", "batches"],
)
def test_predict_makes_a_clip_of_each_caption(tmp_path: Path, batches: Any) -> None:
    module = make_module()
    found = make_trainer(tmp_path).predict(module, dataloaders=batches)
    clips = list(_flat(found))
    assert [clip.prompt for clip in clips] == PROMPTS
    assert all(clip.frames.shape == (5, 32, 32, 3) for clip in clips)
    assert len({clip.seed for clip in clips}) == 2
    lumos = module.pipeline()
    assert lumos is not None
    (again,) = lumos.generate(PROMPTS[1:], seed=[clips[1].seed])
    assert torch.equal(again.codes, clips[1].codes)


def _flat(found: Any) -> Any:
    for item in found:
        yield from _flat(item) if isinstance(item, list) else [item]


class Spy:
    """A visual tokenizer that notes whether it works under autocast."""

    def __init__(self) -> None:
        self._own = load_visual_tokenizer("embedded")
        self.fingerprint, self.codebook_size, self.strides = "spy", self._own.codebook_size, self._own.strides
        self.seen: set[bool] = set()

    def encode(self, frames: Tensor) -> Tensor:
        self.seen.add(torch.is_autocast_enabled("cpu"))
        return self._own.encode(frames)

    def decode(self, codes: Tensor) -> Tensor:
        self.seen.add(torch.is_autocast_enabled("cpu"))
        return self._own.decode(codes)


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_decoder_computes_as_in_the_training_and_the_tokenizer_never_so(tmp_path: Path, precision: Any) -> None:
    """Also within an autocast, which Lightning puts around every step."""
    tokenizer, decoder = Spy(), set[bool]()
    module = make_module(visual_tokenizer=tokenizer)
    trainer = make_trainer(tmp_path, precision=precision)
    trainer.predict(module, dataloaders=PROMPTS[:1])
    lumos = module.pipeline()
    assert lumos is not None and lumos.precision == precision
    lumos.net.model.register_forward_pre_hook(lambda *_: decoder.add(torch.is_autocast_enabled("cpu")))
    given = torch.zeros(1, 32, 32, 3, dtype=torch.uint8)
    for around in False, True:
        with torch.autocast("cpu", torch.bfloat16, enabled=around):
            lumos.generate(PROMPTS[:1], given=[given])
    assert decoder == {precision == "bf16-mixed"} and tokenizer.seen == {False}


def test_a_module_alone_makes_clips_too() -> None:
    module = make_module()
    module.configure_model()
    lumos = module.pipeline()
    assert lumos is not None and lumos.precision == "32-true"
    assert lumos.generate(PROMPTS[:1])[0].frames.shape == (5, 32, 32, 3)


def test_other_ranks_make_clips_of_nothing_but_their_own_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module()
    module.configure_model()
    monkeypatch.setattr(LumosModule, "global_rank", 1)
    assert module.pipeline() is None
    assert len(module.predict_step(PROMPTS, 0)) == len(PROMPTS)  # of its own batches, which no other rank has


def test_the_visual_tokenizer_is_no_part_of_what_is_trained_and_saved() -> None:
    module, bare = make_module(), make_module(visual_tokenizer=None)
    for one in module, bare:
        one.configure_model()
    assert module.state_dict().keys() == bare.state_dict().keys()


def test_what_a_trainer_saved_opens_and_makes_the_same_clips(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path, save_last=True)
    module = make_module()
    make_trainer(tmp_path, saving, enable_checkpointing=True).fit(module, make_data())
    lumos = LumosPipeline.load(saving.last_model_path, visual_tokenizer="embedded")
    assert lumos.saved is not None and lumos.saved.step == 2
    in_training = module.pipeline()
    assert in_training is not None
    requests = [in_training.request(PROMPTS[0], CLIP, seed=0)]
    (expected,) = in_training.generate_codes(requests)
    assert torch.equal(lumos.generate_codes(requests, module.sampling)[0], expected)
