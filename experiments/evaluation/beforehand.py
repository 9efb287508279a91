"""What is known of an evaluation before there is a model: what it will measure, and why it cannot."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from experiments.config import ExperimentConfig
from experiments.evaluation.context import TRAINING, context_rows
from experiments.evaluation.fidelity import ROWS as FIDELITY_ROWS
from experiments.evaluation.horizon import horizon_rows
from experiments.evaluation.loss import loss_rows
from experiments.evaluation.settings import EvalSettings, Part
from experiments.evaluation.world import FOLDER_KEY
from experiments.read_config import with_overrides
from lumos_pl.errors import ConfigError
from lumos_pl.tokenizers.load import load_text_tokenizer

FRAME = "frame_*"
OF_SHAPES = ("color", "shape", "motion", "relation", "size", "speed", "joint", "alone")  # see `judge`
CONTINUED = ("psnr", "ssim", "psnr_still", "psnr_gain")
DRIFTING = ("code_agreement", "code_agreement_truth", "psnr", "ssim")


def check_beforehand(settings: EvalSettings, config: ExperimentConfig, where: str) -> None:
    """Raise ConfigError where an evaluation that is to be made after a training of `config` is known not to succeed."""
    told = with_overrides(config, settings.overrides)  # refuses what does not fit
    obstacles = _obstacles(settings, told)
    for part, why in obstacles.items():
        if why is not None and (settings.only or all(obstacles.values())):
            raise ConfigError(f"cannot measure {part}", where=where, got=why)
    if settings.weights == "ema" and not config.optimizer.ema_decay:
        raise ConfigError("no averaged weights are trained", where=f"{where}.weights", fix="set optimizer.ema_decay")
    files = {"fvd": settings.fvd, "fid": settings.fid} | {f"adapters: {path}": path for path, _ in settings.adapters}
    for name, file in files.items():
        if file is not None and not file.exists():
            raise ConfigError("no such file", file=file, where=f"{where}.{name}")


def _obstacles(settings: EvalSettings, config: ExperimentConfig) -> dict[Part, str | None]:
    reads_text = load_text_tokenizer(config.data.text_tokenizer, config.layout.build()) is not None
    return {part: obstacle(part, settings, config, reads_text=reads_text) for part in settings.parts}


def obstacle(part: Part, settings: EvalSettings, config: ExperimentConfig, *, reads_text: bool) -> str | None:
    """Why a part cannot be measured of any model of a run, in the words of the setting that would change it.

    Args:
        reads_text: whether there is a text tokenizer.
    """
    makes_val = any(override.startswith(FOLDER_KEY) for override in settings.overrides)
    if part in ("fidelity", "horizon") and not config.world.train:
        return "not trained in the world of shapes: world.train is 0"
    if part == "horizon" and config.world.kind != "shapes":
        return "a world whose motions have no known way back: world.kind"
    if part in ("fidelity", "horizon") and not reads_text:
        return "no text tokenizer: data.text_tokenizer"
    if part not in ("loss", "context") and config.visual_tokenizer is None:
        return "no visual tokenizer: visual_tokenizer"
    if part not in ("fidelity", "horizon") and not (config.data.has_validation or makes_val):
        return "no validation data: data.val_root"
    if part == "frechet" and settings.fvd is None and settings.fid is None:
        return "no feature extractor: --fvd, --fid"
    return None


def measured_names(settings: EvalSettings, config: ExperimentConfig) -> list[str]:
    """The names of measures and times, PART/ROW/COLUMN, with a * for what only the clips or a world's judge tell."""
    told = with_overrides(config, settings.overrides)
    obstacles = _obstacles(settings, told)
    scored = ("loss", "accuracy", FRAME)
    judged = OF_SHAPES if told.world.kind == "shapes" else ("*",)
    tables: dict[Part, tuple[Iterable[str], Iterable[str]]] = {
        "loss": (loss_rows(settings.mask_ratios), (*scored, "perplexity")),
        "context": (context_rows(settings), (*scored, *(f"over_{name}" for name in TRAINING))),
        "fidelity": (FIDELITY_ROWS, (*judged, "seconds")),
        "horizon": (horizon_rows(settings), (*judged, "codes", "loss", "mean")),
        "i2v": (CONTINUED, ("all", FRAME)),
        "continuation": (CONTINUED, ("all", FRAME)),
        "drift": (DRIFTING, (FRAME,)),
        "frechet": (("fvd", "fid"), ("distance",)),
    }
    return [
        f"{part}/{row}/{column}"
        for part in settings.parts
        if obstacles[part] is None
        for row in tables[part][0]
        for column in tables[part][1]
    ]


def is_measured(name: str, names: Iterable[str]) -> bool:
    """Whether a name is one of those that `measured_names` gives."""
    return any(fnmatchcase(name, pattern) for pattern in names)
