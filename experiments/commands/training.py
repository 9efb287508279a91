"""`lumos train`, `resume`, `plan` and `experiments`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.commands.config import ShowKeys
from experiments.commands.options import Add
from experiments.environment import check_environment

if TYPE_CHECKING:
    from experiments.run_folder import RunFolder


def add_commands(add: Add) -> None:
    one = add("train", _train, "train an experiment", help=ShowKeys)
    one.add_argument("experiment", metavar="EXP", help="a name from `lumos experiments`, or a .yaml file")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trainer.max_steps=10 seed=1")
    one.add_argument(
        "--resume-or-start",
        action="store_true",
        help="start the run of this name, resume it, or do nothing if it is finished: for schedulers",
    )
    one.epilog = "`lumos train EXP --help` also lists its keys, `lumos config EXP --keys SECTION` those of a section"

    one = add("resume", _resume, "resume a run as if it had never stopped")
    one.add_argument("run", metavar="RUN_DIR", type=Path, help="runs/EXP/NAME, or runs/EXP/latest")
    one.add_argument("overrides", nargs="*", metavar="key=value", help="written to the run's config.yaml")
    one.add_argument(
        "--allow-changes", action="store_true", help="resume even if data, batches, model, layout or optimizer differ"
    )
    one.add_argument(
        "--allow-imports", action="store_true", help="import your own parts that the run's config.yaml names"
    )
    one.add_argument(
        "--imports-from", type=Path, metavar="DIR", help="the same, from files in DIR, the folder where the YAML was"
    )

    one = add("plan", _plan, "what a run needs and costs: memory, operations, days; works without a GPU and data")
    one.add_argument("experiment", metavar="EXP", help="a name from `lumos experiments`, or a .yaml file")
    own_words = "gpu=h100-80g gpus=48 mfu=0.4 size=448x256 text=200, or the experiment's settings"
    one.add_argument("overrides", nargs="*", metavar="key=value", help=own_words)
    one.add_argument("--json", action="store_true", help="print the same and more as one line of JSON")

    add("experiments", _experiments, "list the experiments and studies")


def _train(options: argparse.Namespace) -> int:
    from experiments.read_config import load_experiment, run_group
    from experiments.train import train

    check_environment()
    config = load_experiment(options.experiment, options.overrides)
    folder = train(run_group(options.experiment), config, resume_or_start=options.resume_or_start)
    _print_end(folder)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from experiments.train import resume
    from experiments.user_files import search_in

    check_environment()
    if options.imports_from is not None:
        search_in([options.imports_from])
    allow_imports = options.allow_imports or options.imports_from is not None
    folder = resume(options.run, options.overrides, allow_changes=options.allow_changes, allow_imports=allow_imports)
    _print_end(folder)
    return 0


def _print_end(folder: RunFolder) -> None:
    from lumos_pl.machinery.lightning_private.ranks import process_rank

    if process_rank():
        return
    run = folder.path
    if not folder.result.is_file():  # as after trainer.fast_dev_run
        print(f"done: a few batches went through, nothing was saved or logged: {run}")
        return
    result = folder.read_result()
    print(f"done: {folder.result}")
    for name, shares in result.get("caption_fidelity", {}).items():
        print(f"  {name:11}" + ", ".join(f"{key} {share:.0%}" for key, share in shares.items()))
    for picture in sorted([*run.glob("*.png"), *run.glob("*.gif")]):
        print(f"  look at    {picture}")
    if any(run.glob("events.out.*")):
        print(f"  curves     tensorboard --logdir {shlex.quote(str(run))}")


def _plan(options: argparse.Namespace) -> int:
    from experiments.plan.plan import plan_experiment
    from experiments.plan.table import print_plan, to_json

    plan = plan_experiment(options.experiment, options.overrides)
    if options.json:
        print(to_json(plan))
    else:
        print_plan(plan)
    return 0


def _experiments(options: argparse.Namespace) -> int:
    from experiments.yaml_text import read_yaml_file  # only their text: tests load each

    folder = Path(__file__).parents[1]
    files = {file.stem: file for file in folder.glob("*.yaml")}
    studies = {f"study {file.stem}": file for file in (folder / "studies").glob("*.yaml")}
    listed = sorted(files.items()) + sorted(studies.items())
    width = max(len(name) for name, _ in listed)
    for name, file in listed:
        print(f"{name:{width}}  {read_yaml_file(file)['about']}")
    return 0
