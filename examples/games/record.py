"""Records captioned clips of games, the same bytes every time.

    python -m examples.games.record --out data/games --clips 300

writes `train`, `val` and `heldout`, folders of videos with a list of captions each, as `lumos tokenize` reads them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from examples.games.catalogue import GAMES
from examples.games.world import KIND, Games
from experiments.failures import report_failures
from lumos_pl.machinery.progress_bar import ProgressBar
from lumos_pl.shape_world.clips import record_clips
from lumos_pl.shape_world.scene import WorldConfig
from lumos_pl.world import Split


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    return report_failures(lambda: _record(options), debug=options.debug)


def _record(options: argparse.Namespace) -> int:
    config = WorldConfig(kind=KIND, side=options.side, frames=options.frames, fps=options.fps)
    world = Games(config, [name.replace("_", " ") for name in options.games])
    counts: dict[Split, int] = {"train": options.clips, "val": options.val, "heldout": options.heldout}
    with ProgressBar() as progress:
        for split, count in counts.items():
            task = progress.add_task(f"recording {split} clips", total=count)
            listed = record_clips(
                Path(options.out) / split,
                world,
                split=split,
                count=count,
                fps=options.fps,
                seed=options.seed,
                on_progress=lambda done, _, task=task: progress.update(task, completed=done),  # type: ignore[misc]
            )
            print(f"{count} clips: {listed}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.games.record", description=__doc__.split("\n")[0])
    parser.add_argument("--out", required=True, metavar="DIR", help="where the splits' folders go")
    parser.add_argument("--clips", type=int, default=300, help="to train on")
    parser.add_argument("--val", type=int, default=48, help="others of the same captions")
    parser.add_argument("--heldout", type=int, default=48, help="of captions that the training clips have not")
    names = [name.replace(" ", "_") for name in GAMES]
    parser.add_argument("--games", nargs="+", default=names, metavar="GAME", help=f"some of {', '.join(names)}")
    parser.add_argument("--side", type=int, default=128, help="pixels of the square picture")
    parser.add_argument("--frames", type=int, default=17, help="of a clip")
    parser.add_argument(
        "--fps", type=int, default=8, help="at which they are shown; a game runs on for 3 to 6 of its 60"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--debug", action="store_true", help="show the traceback of a failure")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
