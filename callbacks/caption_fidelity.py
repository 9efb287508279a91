"""How often a generated clip shows what its caption says, measured in a world with a judge, without learned parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from callbacks.steps import log_figures
from callbacks.team import Team
from lumos_pl.checkpoints.decoder import load_decoder
from lumos_pl.checkpoints.named import resolve_named
from lumos_pl.machinery.progress import mark
from lumos_pl.module import LumosModule
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import SamplingConfig
from lumos_pl.sampling.generated_clip import clip_seed
from lumos_pl.settings.ranges import whole_number
from lumos_pl.shape_world.fidelity import (
    FRESH_SEED,
    LEAST_ROUND_TRIP,
    SPLITS,
    format_of,
    fresh_scenes,
    lost,
    round_trip,
    shares,
)
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import Captioned, build_world


class CaptionFidelity(Callback):
    """Judges clips of new captions when training ends: the share with each attribute right, and with all (`joint`).

    `seen`: combinations of colour, shape and motion that the training data has (in other clips); `heldout`: ones that
    it never has; `round_trip`: true clips of both after the visual tokenizer, the most that the judge lets anything
    reach. Every rank makes and judges its part of the clips.

    If the world has words that are new to the model, there are two more, of captions without such words: `old`, and
    `old_before`, the same with the model that the training began from. `forgotten` is `old_before` minus `old` over
    all attributes together, with the 95% interval of the mean over these captions.

    Args:
        captions: how many of each kind.
        world: whose captions are asked for; clips have its format.
        sampling: how clips are made; None: as the module does.
        timeout: how long a rank waits for another's part; by default torch's timeout.
    """

    def __init__(
        self,
        captions: int,
        world: WorldConfig,
        sampling: SamplingConfig | None = None,
        *,
        timeout: timedelta | None = None,
    ) -> None:
        self.captions, self.world, self.sampling = whole_number(captions, "captions"), build_world(world), sampling
        self._format = format_of(world)
        self._timeout, self._team = timeout, Team()
        self._result: dict[str, dict[str, float]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Raise ConfigError without a tokenizer, DataError for clips that do not fit, before the first step."""
        if stage == "fit":
            captions = [one.caption for split in SPLITS.values() for one in fresh_scenes(self.world, split, 1)]
            cast(LumosModule, pl_module).check_makes_clips(captions, self._format)

    def summary(self) -> dict[str, Any]:
        """`{"caption_fidelity": {"seen": {"color": ..., "joint": ...}, ...}}`; empty before the end of training."""
        return {"caption_fidelity": self._result} if self._result else {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._team = Team.of(trainer, self._timeout)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            return
        lumos = cast(LumosModule, pl_module).pipeline(ranks=trainer.world_size)
        if self._team.worst(lumos is None):
            rank_zero_warn("caption_fidelity judges nothing: there is no room for the decoder to make clips")
            return
        assert lumos is not None
        module = cast(LumosModule, pl_module)
        scenes = {name: fresh_scenes(self.world, split, self.captions) for name, split in SPLITS.items()}
        both = [scene for drawn in scenes.values() for scene in drawn]
        models = dict.fromkeys(scenes, lumos)
        if self.world.old is not None and module.init_from is not None:
            scenes["old"] = scenes["old_before"] = fresh_scenes(self.world.old, "val", self.captions)
            net = load_decoder(resolve_named(Path(module.init_from))).net
            before = replace(lumos, net=net).place(str(lumos.device))
            models |= {"old": lumos, "old_before": before}
        found = {name: self._team.gathered(self._judged(drawn, models[name])) for name, drawn in scenes.items()}
        found["round_trip"] = self._team.gathered(self._true_clips_judged(both, lumos))
        if not trainer.is_global_zero:
            return
        self._result = {name: shares(judged) for name, judged in found.items()}
        if "old" in found:
            self._result["forgotten"] = lost(found["old_before"], found["old"])
        if (share := self._result["round_trip"]["joint"]) < LEAST_ROUND_TRIP:
            rank_zero_warn(
                f"only {share:.0%} of true clips are still right after the visual tokenizer:"
                " caption_fidelity says more of it than of the model"
            )
        log_figures(trainer, {f"fidelity/{name}/{key}": v for name, r in self._result.items() for key, v in r.items()})

    def _judged(self, scenes: Sequence[Captioned], lumos: LumosPipeline) -> list[dict[str, bool]]:
        """Which attributes are right in the clips that the model makes for this rank's part of the scenes."""
        part = self._team.part(list(enumerate(scenes)))
        if not part:
            return []
        clips = lumos.generate(
            [scene.caption for _, scene in part],
            seed=[clip_seed(FRESH_SEED, place) for place, _ in part],
            clip=self._format,
            sampling=self.sampling,
            on_step=lambda done, in_all: mark("generating clips to judge", slow=True),
        )
        return [self.world.judge(scene, clip.frames.numpy()) for (_, scene), clip in zip(part, clips, strict=True)]

    def _true_clips_judged(self, scenes: Sequence[Captioned], lumos: LumosPipeline) -> list[dict[str, bool]]:
        """Which attributes are right in this rank's part of the true clips, after the visual tokenizer."""
        part = self._team.part(scenes)
        return [self.world.judge(scene, _marked(round_trip(scene, self.world, lumos)).numpy()) for scene in part]


def _marked(clip: Tensor) -> Tensor:
    mark("judging the visual tokenizer", slow=True)
    return clip
