"""The process of one cell: trains it, or goes on with it, then evaluates it. Started by run.py."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import _get_rank

from callbacks.caption_fidelity import FRESH_SEED, SPLITS, fresh_scenes
from data_modules.manifest import write_atomically
from data_modules.shape_world.detector import judge
from data_modules.shape_world.scene import WorldConfig
from experiments.study.cells import Cell, Evaluation, plan_cells
from experiments.study.config import load_study
from experiments.train import resume
from lumos_pl.allocator import keep_freed_memory
from lumos_pl.errors import LumosError
from lumos_pl.file_lock import file_lock
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig

SHOWN_PROMPTS = 4  # of the run's `callbacks.prompts`
SHOWN_SEED = 0


def run_cell(cell: Cell) -> None:
    """Do what is left to do; a second process on the same cell waits, and finds it done."""
    folder = cell.folder.path
    folder.mkdir(parents=True, exist_ok=True)
    is_first = not _get_rank()
    with ExitStack() as stack:
        if is_first:
            stack.enter_context(file_lock(folder / "cell.lock", wait=True))
            cell.begin()
        if not cell.is_trained():
            resume(folder, [])
        todo = [evaluation for evaluation in cell.evaluations if not evaluation.is_done()]
        if is_first and todo:
            pipeline = LumosPipeline.load(folder)
            for evaluation in todo:
                evaluate_clips(pipeline, cell, evaluation)


def evaluate_clips(pipeline: LumosPipeline, cell: Cell, evaluation: Evaluation) -> None:
    """Write an evaluation's two files, the figures last."""
    sampling = SamplingConfig(**evaluation.asked["sampling"])
    shown = cell.config.callbacks
    if prompts := shown.prompts[:SHOWN_PROMPTS]:
        made = pipeline.generate(prompts, seed=SHOWN_SEED, clip=shown.clip, sampling=sampling)
        stride = pipeline.parts.layout.strides[0]
        frames = np.stack([clip.frames.numpy()[::stride] for clip in made])
        evaluation.file.parent.mkdir(exist_ok=True)
        _write_npz(evaluation.clips_file, prompts=np.array(prompts), frames=frames)
    judged = judge_clips(pipeline, cell.config.clips.world, evaluation.asked["captions"], sampling)
    content = {"asked": evaluation.asked, **judged}
    write_atomically(evaluation.file, json.dumps(content).encode() + b"\n")


def judge_clips(pipeline: LumosPipeline, world: WorldConfig, captions: int, sampling: SamplingConfig) -> dict[str, Any]:
    """What `caption_fidelity` measures, caption by caption.

    Returns:
        `caption_fidelity`: for each kind of captions and each attribute 0 or 1 per clip; `seconds_per_clip`.
    """
    clip = ClipFormat(width=world.side, height=world.side, frames=world.frames, fps=world.fps)
    fidelity: dict[str, dict[str, list[int]]] = {}
    seconds = 0.0
    for name, split in SPLITS.items():
        scenes = fresh_scenes(world, split, captions)
        started = time.monotonic()
        made = pipeline.generate([scene.caption for scene in scenes], seed=FRESH_SEED, clip=clip, sampling=sampling)
        seconds += time.monotonic() - started
        judged = [judge(scene, generated.frames.numpy()) for scene, generated in zip(scenes, made, strict=True)]
        attributes = dict.fromkeys(attribute for right in judged for attribute in right)
        fidelity[name] = {a: [int(right[a]) for right in judged if a in right] for a in attributes}
    return {"caption_fidelity": fidelity, "seconds_per_clip": seconds / (captions * len(SPLITS))}


def _write_npz(file: Path, **arrays: Any) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    write_atomically(file, content.getvalue())


def _stop_with_parent() -> None:
    """End as on SIGTERM, with a checkpoint, once the process that started this one is gone: its pipe closes."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(name: str, cell_name: str, *overrides: str) -> int:
    keep_freed_memory()
    _stop_with_parent()
    try:
        (cell,) = (cell for cell in plan_cells(load_study(name), overrides) if cell.name == cell_name)
        run_cell(cell)
    except LumosError as error:
        print(f"lumos: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
