"""What a run measures and shows."""

from __future__ import annotations

from dataclasses import dataclass

from lumos_pl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class CallbackConfig:
    """Intervals are in optimizer steps.

    Args:
        log_every_n_steps: interval of the per-frame losses, throughput and the progress bar's figures.
        heatmap_every_n_steps: interval of the frame x step picture; 0 for none.
        sample_grid_every_n_steps: interval of the sample pictures; 0 for none, in validation too.
        sample_grid_samples: samples per picture.
        progress_bar: show a progress bar.
    """

    log_every_n_steps: int = 10
    heatmap_every_n_steps: int = 500
    sample_grid_every_n_steps: int = 500
    sample_grid_samples: int = 4
    progress_bar: bool = True

    def __post_init__(self) -> None:
        for key, least in (
            ("log_every_n_steps", 1),
            ("heatmap_every_n_steps", 0),
            ("sample_grid_every_n_steps", 0),
            ("sample_grid_samples", 1),
        ):
            if getattr(self, key) < least:
                raise ConfigError(
                    "out of range", where=f"callbacks.{key}", got=getattr(self, key), expected=f"{least} or more"
                )
