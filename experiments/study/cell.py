"""The process of one cell: trains it, or goes on with it, then evaluates it. Started by run.py."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import cast

import numpy as np

from experiments.config import ExperimentConfig
from experiments.evaluation.evaluate import evaluate
from experiments.failures import report_failures
from experiments.read_config import with_overrides
from experiments.study.cells import Cell, Evaluation, plan_cells
from experiments.study.config import load_study
from experiments.train import resume
from lumos_pl.machinery.allocator import set_up_memory
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.lightning_private.ranks import process_rank
from lumos_pl.pipeline import LumosPipeline, Precision
from lumos_pl.shape_world.fidelity import format_of

SHOWN_PROMPTS = 4  # of the run's `callbacks.prompts`
SHOWN_SEED = 0


def run_cell(cell: Cell) -> None:
    """Do what is left to do; a second process on the same cell waits, and finds it done."""
    folder = cell.folder.path
    make_folder(folder)
    is_first = not process_rank()
    with ExitStack() as stack:
        if is_first:
            stack.enter_context(file_lock(folder / "cell.lock", wait=True))
            cell.begin()
            if not cell.is_trained() and (other := cell.take_over()) is not None:
                print(f"trained already: {other}")
        if not cell.is_trained():
            resume(folder, [], allow_imports=True)  # `plan_cells` has compared its settings with the user's
        todo = [evaluation for evaluation in cell.evaluations if not evaluation.is_done()]
        if is_first and todo:
            write_shown_clips(cell, todo)
            named = cast(ExperimentConfig, cell.config).visual_tokenizer  # by the user: `plan_cells` read their files
            for evaluation in todo:
                make_folder(evaluation.folder, within=folder)
                model = evaluation.model_of(cell.folder)
                evaluate(model, replace(evaluation.settings, out=evaluation.folder), visual_tokenizer=named)


def write_shown_clips(cell: Cell, evaluations: Sequence[Evaluation]) -> None:
    """Write some clips to look at for each evaluation of caption fidelity: in its world, sampled its way."""
    prompts = cell.config.callbacks.prompts[:SHOWN_PROMPTS]
    judged = [evaluation for evaluation in evaluations if "fidelity" in evaluation.settings.parts]
    if not (prompts and judged and cell.config.world.train):
        return
    for evaluation in judged:
        settings = evaluation.settings
        config = with_overrides(cast(ExperimentConfig, cell.config), settings.overrides)
        pipeline = LumosPipeline.load(
            evaluation.model_of(cell.folder),
            weights=settings.weights,
            visual_tokenizer=config.visual_tokenizer,
            device=settings.device,
            precision=cast(Precision, config.trainer.precision),
        )
        stride = pipeline.layout.strides[0]
        made = pipeline.generate(prompts, seed=SHOWN_SEED, clip=format_of(config.world), sampling=config.sampling)
        content = io.BytesIO()
        frames = np.stack([one.frames.numpy()[::stride] for one in made])
        np.savez_compressed(content, prompts=np.array(prompts), frames=frames)
        make_folder(evaluation.folder, within=cell.folder.path)
        write_atomically(evaluation.clips_file, content.getvalue())


def _stop_with_parent() -> None:
    """End as on SIGTERM, with a checkpoint, once the process that started this one is gone: its pipe closes."""

    def wait() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def main(name: str, cell_name: str, *words: str) -> int:
    """Run a cell as a command of its own.

    Args:
        words: overrides of all the study's cells; `--debug` among them as for `lumos`.
    """
    set_up_memory()
    _stop_with_parent()
    overrides = [word for word in words if word != "--debug"]

    def work() -> int:
        (cell,) = (cell for cell in plan_cells(load_study(name), overrides) if cell.name == cell_name)
        run_cell(cell)
        return 0

    return report_failures(work, debug="--debug" in words)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
