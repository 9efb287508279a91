"""Which visual tokenizer a folder of clips is worth: the one given, or one that is trained on the clips."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from experiments.evaluation.bootstrap import of_samples
from experiments.merging import text_override
from experiments.own.clips import listed_clips, reconstructed
from experiments.own.judge import psnr
from experiments.own.page import HELD_CLIPS, TRAINED, TRIED, interval
from experiments.own.room import strides_of
from experiments.own.settings import TOKENIZER_SHARE, OwnSettings, tokenizer_steps
from experiments.own.steps import Steps
from experiments.own.trainings import Trainings, told
from lumos_pl.errors import DataError
from lumos_pl.tokenizers.load import load_visual_tokenizer
from lumos_pl.tokenizers.reconstruction import mean_motion_kept
from lumos_pl.weighted_mean import WeightedMean

DICTIONARY, NETWORK = "own_dictionary", "own_tokenizer"
JUDGED_CLIPS = 64  # held-out ones that tokenizers are compared on
# A dictionary that surely gains so much is taken at once. Of games, where it gained 14 dB, a network came to 6.
FAR_BETTER_DB = 8.0


def gain(own: Sequence[float], given: Sequence[float]) -> dict[str, Any]:
    """How much better the trained tokenizer is, by what each gives of the same clips; of one clip without interval."""
    found = of_samples([one - other for one, other in zip(own, given, strict=True)], seed=0)
    better = (found.mean if found.low is None else found.low) > 0
    return {"difference": found.mean, "low": found.low, "high": found.high, "n": found.n, "own_is_better": better}


class Choice:
    """Trains tokenizers of a folder's clips, and takes the best."""

    def __init__(self, out: Path, settings: OwnSettings, steps: Steps) -> None:
        self.settings, self.steps, self.say = settings, steps, steps.say
        self.trainings = Trainings(steps)
        self.held_clips = out / HELD_CLIPS
        self.data = [
            text_override("data.root", str(out / "clips.jsonl")),
            text_override("data.val_root", str(self.held_clips)),
            f"data.size={settings.size}",
            f"data.frames={settings.frames}",
            f"data.fps={settings.fps}",
            strides_of(load_visual_tokenizer(settings.tokenizer), "tokenizer"),  # both are judged with as many codes
        ]

    def best(self) -> str | None:
        """The experiment whose tokenizer gives held-out clips back best; None: the one given does.

        A dictionary is tried first, which takes half a minute, and a network unless that is far better.
        """
        about = "a dictionary of these clips' patches, for what comes back in them"
        self.trainings.run(DICTIONARY, about, DICTIONARY, TRAINED, *self.data)
        tried = {DICTIONARY: self._judged(DICTIONARY)}
        if (tried[DICTIONARY]["low"] or 0) < FAR_BETTER_DB:
            self._train_network()
            tried[NETWORK] = self._judged(NETWORK)
        better = [name for name, choice in tried.items() if choice["own_is_better"]]
        taken: str | None = self.steps.decide(
            "taken", lambda: max(better, key=lambda name: float(tried[name]["own"]), default=None)
        )
        self.say(f"  taken: {TRIED[taken] if taken else self.settings.tokenizer}")
        return taken

    def _train_network(self) -> None:
        """For what its share of the time leaves."""
        self.trainings.time("tokenizer", NETWORK, *self.data)
        spent = self.steps.record["steps"][DICTIONARY]["seconds"]
        steps = self.steps.decide(
            "tokenizer_steps", lambda: tokenizer_steps(self.settings, spent, self.trainings.step_seconds(NETWORK))
        )
        about = f"a tokenizer of these clips: {told(steps, f'{TOKENIZER_SHARE:.0%} of the time')}"
        length = f"trainer.max_steps={steps}", f"trainer.val_every_n_steps={max(1, steps // 4)}"
        self.trainings.run(NETWORK, about, NETWORK, TRAINED, *self.data, *length)

    def _judged(self, experiment: str) -> dict[str, Any]:
        """How much better its tokenizer gives held-out clips back than the one given, and the interval of that."""
        given = self.steps.decide("given_on_held_out", lambda: self._on_held_out(self.settings.tokenizer))
        choice: dict[str, Any] = self.steps.decide(f"choice_{experiment}", lambda: self._compared(experiment, given))
        self.say(
            f"  on held-out clips {choice['given']:.1f} dB by {self.settings.tokenizer}, "
            f"{choice['own']:.1f} dB by {TRIED[experiment]}, {choice['difference']:+.1f} dB ({interval(choice)})"
        )
        return choice

    def _compared(self, experiment: str, given: dict[str, Any]) -> dict[str, Any]:
        own = self._on_held_out(str(self.trainings.folder(experiment, TRAINED)))
        found = {"given": given, "own": own}
        return {
            **{name: of_samples(one["psnr"], seed=0).mean for name, one in found.items()},
            **{f"{name}_motion": one["motion"] for name, one in found.items()},
            **gain(own["psnr"], given["psnr"]),
        }

    def _on_held_out(self, tokenizer: str) -> dict[str, Any]:
        """What a tokenizer gives back: the PSNR of each held-out clip, and how much of what moves."""
        clips = listed_clips(self.held_clips, self.settings, JUDGED_CLIPS)
        if not clips:
            raise DataError("no held-out clip can be read", file=self.held_clips)
        opened = load_visual_tokenizer(tokenizer)
        made = [reconstructed(opened, clip.frames) for clip in clips]
        motion = WeightedMean()
        for one, clip in zip(made, clips, strict=True):
            motion.update(*mean_motion_kept(torch.from_numpy(one)[None], torch.from_numpy(clip.frames)[None]))
        share = float(motion.compute())
        values = [psnr(one, clip.frames) for one, clip in zip(made, clips, strict=True)]
        return {"psnr": values, "motion": None if math.isnan(share) else share}
