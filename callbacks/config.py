"""What a run measures and shows."""

from __future__ import annotations

from dataclasses import dataclass, field

from lumos_pl.settings.kinds import ClassPath
from lumos_pl.settings.ranges import at_least, between, check_ranges


@dataclass(frozen=True, kw_only=True)
class CallbackConfig:
    """What is measured and shown; intervals are in optimizer steps.

    Args:
        log_every_n_steps: interval of the per-frame losses, throughput and the progress bar's figures.
        heatmap_every_n_steps: interval of the frame x step picture; 0: none.
        sample_grid_every_n_steps: interval of the sample pictures; 0: none, not in validation either.
        sample_grid_samples: samples per picture.
        prompts: captions to generate clips for, shown by `sampled_clips`; none: no such pictures. They need a visual
            tokenizer and a text tokenizer.
        prompts_optional: if a tokenizer that these captions need is not configured, go on without their pictures.
        sampled_clips_every_n_steps: interval of these pictures; 0: one at the end only.
        sampled_clips_max_seconds: seconds that generating the codes of one picture may take; decoding comes on top.
        fidelity_captions: captions of each kind that `caption_fidelity` judges at the end; 0: none.
        progress_bar: show a progress bar.
        extra: further Lightning callbacks, each {class_path, init_args}.
    """

    log_every_n_steps: int = 10
    heatmap_every_n_steps: int = 500
    sample_grid_every_n_steps: int = 500
    sample_grid_samples: int = 4
    prompts: list[str] = field(default_factory=list)
    prompts_optional: bool = False
    sampled_clips_every_n_steps: int = 0
    sampled_clips_max_seconds: int = 120
    fidelity_captions: int = 0
    progress_bar: bool = True
    extra: list[ClassPath] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_ranges(
            "callbacks",
            self,
            log_every_n_steps=at_least(1),
            heatmap_every_n_steps=at_least(0),
            sample_grid_every_n_steps=at_least(0),
            sample_grid_samples=between(1, 1024),
            sampled_clips_every_n_steps=at_least(0),
            sampled_clips_max_seconds=between(1, 10**6),
            fidelity_captions=between(0, 10**6),
        )

    def idle(self) -> dict[str, str]:
        """See settings/idle.py; intervals of 0 turn pictures off, which needs no mention."""
        of_clips = "sampled_clips_every_n_steps", "sampled_clips_max_seconds"
        return {} if self.prompts else {name: "prompts" for name in of_clips if getattr(self, name)}
