"""How often a generated clip shows what its caption says: measured in the world of shapes, without learned parts."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.steps import log_figures
from lumos_pl.machinery.progress import mark
from lumos_pl.module import LumosModule
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.shape_world.fidelity import FRESH_SEED, SPLITS, fidelity, format_of, fresh_scenes, round_trip
from lumos_pl.shape_world.scene import WorldConfig

LEAST_ROUND_TRIP = 0.97  # joint, of true clips; below it the figures do not judge the model


class CaptionFidelity(Callback):
    """Judges clips of new captions when training ends: share of them with each attribute right, and all (`joint`).

    `seen`: combinations of colour, shape and motion that training had (in other clips); `heldout`:
    ones it never had; `round_trip`: true clips of both through the visual tokenizer, which is the
    most that the detector lets anything reach.

    Args:
        captions: for each of the two.
        world: whose captions are asked for; a clip is of its size.
        sampling: how clips are made; None: as the module has it.
    """

    def __init__(self, captions: int, world: WorldConfig, sampling: SamplingConfig | None = None) -> None:
        self.captions, self.world, self.sampling = captions, world, sampling
        self._result: dict[str, dict[str, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ConfigError where there is no tokenizer, before a step is made."""
        if stage == "fit":
            cast(LumosModule, pl_module).check_makes_clips()

    def summary(self) -> dict[str, Any]:
        """`{"caption_fidelity": {"seen": {"color": ..., "joint": ...}, ...}}`; nothing before the end."""
        return {"caption_fidelity": self._result} if self._result else {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        lumos = cast(LumosModule, pl_module).pipeline()
        if lumos is None:
            return
        world = self.world
        scenes = {name: fresh_scenes(world, split, self.captions) for name, split in SPLITS.items()}
        both = [scene for drawn in scenes.values() for scene in drawn]
        true_clips = fidelity(both, (_marked(round_trip(scene, world, lumos)) for scene in both))
        if true_clips["joint"] < LEAST_ROUND_TRIP:
            rank_zero_warn(
                f"only {true_clips['joint']:.0%} of true clips are still right after the visual tokenizer:"
                " caption_fidelity says more of it than of the model"
            )
        for name, drawn in scenes.items():
            captions = [scene.caption for scene in drawn]
            clips = lumos.generate(
                captions, seed=FRESH_SEED, clip=format_of(world), sampling=self.sampling, on_step=_mark
            )
            self._result[name] = fidelity(drawn, [clip.frames for clip in clips])
        self._result["round_trip"] = true_clips
        log_figures(trainer, {f"fidelity/{name}/{key}": v for name, r in self._result.items() for key, v in r.items()})


def _mark(done: int, in_all: int) -> None:
    mark("generating clips to judge", slow=True)


def _marked(clip: Tensor) -> Tensor:
    mark("judging the visual tokenizer", slow=True)
    return clip
