"""What a run will log, and say in its result, known before it is trained; nothing of Lightning is loaded for it."""

from __future__ import annotations

from experiments.config import Config, ExperimentConfig
from experiments.run_folder import RunResult

ALWAYS = "epoch", "loss/train", "loss/val", "grad_norm", "lr-*", "checkpoint/seconds", "checkpoint/failed"
OF_TOKENIZERS = "psnr/val", "motion/val", "codebook/used", "codebook/perplexity", "throughput/step_seconds_median"
OF_FRAMES = "mean", "min", "max", "spread", "fall", "[0-9]*"
THROUGHPUT = (
    *("tokens_per_second", "mfu", "step_seconds_median", "step_seconds_p95", "data_wait_share", "host_gib", "restarts"),
    *("slowest_rank", "slowest_rank_behind", "gpu_allocated_gib", "gpu_reserved_gib"),
)


def logged_names(config: Config) -> list[str] | None:
    """The names as measures have them, with a * for what only the training tells: of a result, those at its top.

    None: a callback of the user's may log anything.
    """
    if config.callbacks.extra:
        return None
    results = [*RunResult.__annotations__]
    if isinstance(config, ExperimentConfig):
        tags, results = [*ALWAYS, *_of_a_model(config)], [*results, "adapter"]
    else:
        tags, results = [*ALWAYS, *OF_TOKENIZERS], [*results, "tokenizer", "fingerprint", "psnr"]
    return [*(f"metrics.{tag}" for tag in tags), *(f"result.{name}" for name in results)]


def _of_a_model(config: ExperimentConfig) -> list[str]:
    kinds = config.data.kinds if len(config.data.kinds) > 1 else ()
    tags = [f"throughput/{name}" for name in THROUGHPUT] + [f"samples/{name}" for name in config.data.sources]
    for phase in "train", "val":
        tags += [f"loss_frame/{phase}/{name}" for name in OF_FRAMES]
        tags += [f"loss/{phase}/{kind}" for kind in kinds]
        tags += [f"loss_source/{phase}/{name}" for name in config.data.sources]
    return [*tags, "data/left_out"]
