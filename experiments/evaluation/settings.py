"""What an evaluation measures, and on how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from lumos_pl.checkpoints.decoder import Weights
from lumos_pl.checkpoints.earlier_keys import current_key
from lumos_pl.errors import ConfigError, did_you_mean
from lumos_pl.machinery.devices import AUTO, check_device_name
from lumos_pl.machinery.json_file import as_json
from lumos_pl.settings.ranges import above, between, check_ranges

Part = Literal["loss", "context", "fidelity", "horizon", "i2v", "continuation", "drift", "frechet"]
PARTS: tuple[Part, ...] = get_args(Part)
ON_REQUEST: tuple[Part, ...] = ("context", "horizon")  # measured where `only` names them
POSITIONS = ("model.rope=", "model.rope_theta=")  # the weights may be asked at other positions than they learned
CHANGEABLE = ("data.", "world.", "sampling.", "visual_tokenizer", "trainer.precision", *POSITIONS)

OnProgress = Callable[[Part, int, int], None]  # called with (part, done, in all)
OnStep = Callable[[int, int], None]  # the same of one part: (done, in all)


@dataclass(frozen=True, kw_only=True)
class EvalSettings:
    """
    Args:
        only: the parts to measure; empty: all that the model's data and tokenizers allow.
        clips: validation clips for the losses.
        captions: captions of each kind, seen and held out, for caption fidelity.
        generated: validation clips that are made anew for each of the other parts.
        mask_ratios: shares of the content that are hidden.
        contexts: partial contexts behind which `context` asks for a frame.
        windows: clips that follow each other in `horizon`.
        growth: latent frames of a drifting clip over those of the run's, at most.
        fvd, fid: TorchScript files, see `FeatureExtractor`.
        overrides: `key=value` over the run's configuration, of what does not change the weights.
        weights: the model's, or their running average (`ema`).
        adapters: added to it, each with its weight.
        device: `cpu`, `cuda`, `cuda:N`, or `auto`.
        seed: of masks, generated clips and resampling.
        out: folder for the results; None: the run's.
    """

    only: tuple[Part, ...] = ()
    clips: int = 64
    captions: int = 128
    generated: int = 32
    mask_ratios: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9)
    contexts: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
    windows: int = 4
    growth: int = 2
    fvd: Path | None = None
    fid: Path | None = None
    overrides: tuple[str, ...] = ()
    weights: Weights = "model"
    adapters: tuple[tuple[Path, float], ...] = ()
    device: str = "auto"
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        for part in self.only:
            if part not in PARTS:
                raise ConfigError("unknown part", where="only", got=repr(part), expected=f"some of {', '.join(PARTS)}")
        if self.only and "frechet" not in self.only and (self.fvd or self.fid):
            where, fix = "fvd" if self.fvd else "fid", "name frechet, too"
            raise ConfigError("no part measures it", where=where, got=f"only {', '.join(self.only)}", fix=fix)
        some = between(2, 10**6)  # one sample alone has no interval
        check_ranges("", self, clips=some, captions=some, generated=some, windows=some, growth=some)
        for ratio in self.mask_ratios:
            above(0, up_to=1).check("mask_ratios", ratio)
        for share in self.contexts:
            between(0, 1).check("contexts", share)
        if self.device != AUTO:
            check_device_name(self.device)
        for override in self.overrides:
            if not override.startswith(CHANGEABLE):
                now, section = current_key(override), f"{override.partition('.')[0]}."
                raise ConfigError(
                    "not a setting of an evaluation",
                    got=override,
                    expected=f"one of {', '.join(CHANGEABLE)}",
                    fix=f"did you mean {now}?" if now.startswith(CHANGEABLE) else did_you_mean(section, CHANGEABLE),
                )

    @property
    def parts(self) -> tuple[Part, ...]:
        """Those to measure, as far as the model's data and tokenizers allow."""
        return tuple(part for part in PARTS if part in self.only or not (self.only or part in ON_REQUEST))

    def recorded(self) -> dict[str, Any]:
        """What the results say they were measured with, as JSON has it: all but where these lie."""
        values = asdict(self)
        del values["out"]
        if not self.adapters:  # as before there were any
            del values["adapters"]
        for part, setting in ("context", "contexts"), ("horizon", "windows"):
            if part not in self.only:
                del values[setting]
        recorded: dict[str, Any] = as_json(values)
        return recorded
