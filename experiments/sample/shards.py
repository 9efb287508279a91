"""Clips that were made, as shards that a training reads: distillation, or the prior of a model that is tuned."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data_modules.shards.sample import ShardSample
from data_modules.shards.writer import write_by_kind
from experiments.sample.arrangement import Job
from experiments.sample.folder import SampleFolder
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat
from lumos_pl.tokenizers.load import need_visual_tokenizer


def write_shards(
    out: Path, folder: SampleFolder, jobs: Sequence[Job], pipeline: LumosPipeline, clip: ClipFormat
) -> None:
    """Write the codes of clips that are all there, with their captions, to `out/videos`, or images to `out/images`.

    Written again, they are the same.

    Raises:
        DataError: other shards are there.
    """
    tokenizer = need_visual_tokenizer(pipeline.visual_tokenizer)
    write_by_kind(
        out,
        _samples(folder, jobs, clip),
        tokenizer=tokenizer.fingerprint,
        codebook_size=tokenizer.codebook_size,
        strides=tokenizer.strides,
        expected=len(jobs),
        text_tokenizer=pipeline.text_tokenizer,
        again=True,
    )


def _samples(folder: SampleFolder, jobs: Sequence[Job], clip: ClipFormat) -> Iterator[ShardSample]:
    for job in jobs:
        yield ShardSample(
            key=f"{job.index:05d}-{job.sample}",
            codes=np.load(io.BytesIO(read_regular(folder.path / job.codes)), allow_pickle=False),
            text=job.prompt.text,
            frames=clip.frames,
            fps=clip.fps,
            duration=clip.duration,
            width=clip.width,
            height=clip.height,
            source=job.file,
        )
