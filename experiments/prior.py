"""Samples of the model that is tuned, mixed with the data: what it could is learned again beside what is new.

FOLDER/prior.json             what they are samples of
       00003-0-a-red-...mp4   each, with its codes and how it was made, as `lumos sample` keeps them
       sheet.png              the first of them
       shards/videos          all as shards (of images: shards/images), which the training reads; written last

Source: prior preservation of DreamBooth, arXiv:2208.12242.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_modules.config import MixtureSource
from lumos_pl.errors import ConfigError, DataError
from lumos_pl.machinery.counted import counted
from lumos_pl.machinery.json_file import as_json, read_json
from lumos_pl.machinery.own_files import is_own
from lumos_pl.machinery.stop_request import StopRequest
from lumos_pl.settings.differences import differences
from lumos_pl.settings.ranges import Range, at_least, between, check_ranges

if TYPE_CHECKING:
    from experiments.config import ExperimentConfig
    from experiments.sample.prompts import Prompt
    from experiments.sample.run import OnProgress
    from lumos_pl.pipeline import LumosPipeline

NAME, RECORD, SHARDS = "prior", "prior.json", "shards"
OTHERWISE = "remove the folder, or set prior.folder to another"


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """Samples of `init_from` that are mixed with the data, so that the model keeps what it can while it is tuned.

    They are drawn before the training, as `clip` and `sampling` say, and kept.

    Args:
        share: of the optimizer steps that read them; 0: there are none.
        captions: what they show: a list as `lumos sample --prompts` reads it, of what the model is to keep.
        samples_per_caption: how many are drawn of each.
        seed: of all of them.
        folder: where they lie; another model, list or setting needs another folder.
    """

    share: float = 0.0
    captions: str | None = None
    samples_per_caption: int = 1
    seed: int = 0
    folder: str = "data/prior"

    def __post_init__(self) -> None:
        share = Range(low=0, high=1, without=(1,), words="0 or more and below 1")
        check_ranges("prior", self, share=share, samples_per_caption=between(1, 10**6), seed=at_least(0))
        if self.share and self.captions is None:
            fix = "give a list of captions of what the model is to keep, one a line"
            raise ConfigError("samples of what?", where="prior.captions", got="null", fix=fix)

    def idle(self) -> dict[str, str]:
        """See settings/idle.py."""
        return {} if self.share else {item.name: "share" for item in fields(self) if item.name != "share"}


def with_prior(config: ExperimentConfig) -> ExperimentConfig:
    """The settings with the samples as a source of the data; a run that goes on has it already.

    Raises:
        ConfigError: there is no model to draw from, or the data are none to mix them with.
    """
    prior, data = config.prior, config.data
    if not prior.share or NAME in data.sources:
        return config
    if config.init_from is None:
        raise ConfigError("samples of which model?", where="init_from", got="null", fix="set it, or prior.share=0")
    kind = _kind(config)
    sources: dict[str, Any] = {name: asdict(source) for name, source in data.sources.items()}
    if not sources and data.kind == "joint":
        fix = "name your data as data.sources, or one kind as data.kind"
        raise ConfigError("samples beside two kinds of data", where="data.kind", got="joint", fix=fix)
    if not sources:
        sources = {data.kind: {"root": data.root, "val_root": data.val_root, "kind": data.kind}}
    weights = [source.get("weight", 1.0) for source in sources.values()]
    if not all(isinstance(weight, int | float) for weight in weights):
        fix = "give the samples as one of data.sources: `lumos sample --shards`"
        raise ConfigError("samples beside weights that change", where="data.sources", fix=fix)
    if data.captions:
        what, fix = "samples have one caption, without a name", "leave it out: each of several captions is drawn"
        raise ConfigError(what, where="data.captions", got=f"[{', '.join(data.captions)}]", fix=fix)
    for source in sources.values():  # each says its own: samples have no columns to be chosen by
        source["where"] = data.where if source.get("where") is None else source["where"]
    root = str(_shards(config))
    validated = root if data.val_share is not None else None  # with all of them: there may be one shard alone
    weight = sum(weights) * prior.share / (1 - prior.share)
    sources[NAME] = {"root": root, "val_root": validated, "kind": kind, "weight": weight}
    made = {name: MixtureSource(**source) for name, source in sources.items()}
    return replace(config, data=replace(data, root=None, val_root=None, where=None, sources=made))


def _kind(config: ExperimentConfig) -> str:
    return "image" if config.clip.frames == 1 else "video"


def _shards(config: ExperimentConfig) -> Path:
    return Path(config.prior.folder) / SHARDS / f"{_kind(config)}s"


def draw_prior(config: ExperimentConfig, *, check: Callable[[], object] = lambda: None) -> None:
    """Draw the samples that are not there yet, and write them as shards; who else wants them waits.

    Args:
        check: what else could be wrong with the run, asked before the work of hours.
    Raises:
        DataError: the folder has samples of another model or list, or others than are asked for.
    """
    if not config.prior.share:
        return
    from data_modules.shards.manifest import MANIFEST_FILE
    from experiments.sample.arrangement import plan_jobs
    from experiments.sample.folder import SampleFolder
    from experiments.sample.pictures import paint_sheet
    from experiments.sample.prompts import read_prompts
    from experiments.sample.run import SampleSettings, make_clips
    from experiments.sample.shards import write_shards

    prior, clip = config.prior, config.clip
    assert config.init_from is not None and prior.captions is not None
    prompts = read_prompts(Path(prior.captions))
    folder = SampleFolder(Path(prior.folder), (0, 1))
    with StopRequest(), folder.lock(wait=True):
        record, wanted = folder.path / RECORD, as_json(_described(config, prompts))
        if not is_own(record, root=folder.path):
            folder.write(RECORD, json.dumps(wanted, indent=1).encode() + b"\n")
        for where, got, expected in differences(wanted, read_json(record, dict[str, Any], fix=OTHERWISE)):
            what = "other samples are here"
            raise DataError(what, file=folder.path, where=where, got=got, expected=expected, fix=OTHERWISE)
        if (_shards(config) / MANIFEST_FILE).is_file():
            return
        check()
        pipeline, suffix = _open(config), ".png" if clip.frames == 1 else ".mp4"
        jobs = plan_jobs(prompts, "plain", samples=prior.samples_per_caption, suffix=suffix)
        settings = SampleSettings(clip=clip, sampling=config.sampling, seed=prior.seed)
        with _progress() as show:
            made = make_clips(pipeline, jobs, folder, settings, on_progress=show)
        paint_sheet(folder, jobs, clip, stride=pipeline.layout.strides[0])
        write_shards(folder.path / SHARDS, folder, jobs, pipeline, clip)
    print(f"{folder.path}: {counted(len(jobs), 'sample')} of {config.init_from}, {made:,} made now")


def _described(config: ExperimentConfig, prompts: list[Prompt]) -> dict[str, Any]:
    """What the samples depend on."""
    from lumos_pl.checkpoints.decoder import open_decoder
    from lumos_pl.checkpoints.named import resolve_named

    captions = hashlib.sha256("\n".join(prompt.text for prompt in prompts).encode()).hexdigest()
    return {
        "init_from": open_decoder(resolve_named(Path(str(config.init_from)))).digest(),
        "prior": {
            "captions": f"{len(prompts)}, sha256 {captions[:12]}",
            "samples_per_caption": config.prior.samples_per_caption,
            "seed": config.prior.seed,
        },
        "clip": asdict(config.clip),
        "sampling": asdict(config.sampling),
    }


def _open(config: ExperimentConfig) -> LumosPipeline:
    from lumos_pl.machinery.devices import own_gpu
    from lumos_pl.pipeline import AUTOCAST, LumosPipeline

    asked = config.trainer
    return LumosPipeline.load(
        str(config.init_from),
        visual_tokenizer=config.visual_tokenizer,
        text_tokenizer=config.data.text_tokenizer,
        device="cpu" if asked.works_on_cpu else str(own_gpu()),
        precision="bf16-mixed" if asked.precision in AUTOCAST else "32-true",
    )


@contextmanager
def _progress() -> Iterator[OnProgress]:
    from lumos_pl.machinery.progress_bar import ProgressBar

    with ProgressBar() as progress:
        task = progress.add_task("drawing samples of the model", total=None)
        yield lambda report: progress.update(task, completed=report.clips, total=report.total)
