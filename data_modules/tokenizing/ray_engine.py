"""The same work over a Ray cluster: files are decoded on CPUs, clips are encoded in batches on GPUs, by Ray Data.

    groups of items ── decode: an actor a CPU, each with its own child process ──> clips
                    ── encode: an actor a GPU (or some CPUs) with the tokenizer ──> outcomes ──> this process

Outcomes come in the order of the items, and this process alone writes: what lies on disk is what it is without Ray.
All nodes read the media by the same paths. What these processes hand each other is pickled, as all that Ray carries is;
nothing that came from a file or a list is ever unpickled, it is inside of what is.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any

import numpy as np

from data_modules.tokenizing.clips_of_video import Task, grouped
from data_modules.tokenizing.journal import Outcome
from data_modules.tokenizing.workers import SHAPES_IN_HAND, ClipMaker, Made, Station, checked
from lumos_pl.errors import ConfigError, LumosError, TemporaryError

GROUPS_AT_ONCE = 20_000  # that one run of Ray Data is given: it starts its actors anew for each
_COLUMN = "pickled"
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

Batch = dict[str, Any]


class _Decode:
    """Groups of items to what is found in their files, a clip at a time."""

    def __init__(self, maker: ClipMaker) -> None:
        self._tools = ExitStack()  # which end with the actor's process
        self._reader = self._tools.enter_context(maker.group_reader())

    def __call__(self, batch: Batch) -> Iterator[Batch]:
        for pickled in batch[_COLUMN]:
            for found in self._reader.decoded(pickle.loads(pickled)):
                yield _batch([found])


class _Encode:
    """What was found to outcomes, in the same order."""

    def __init__(self, maker: ClipMaker) -> None:
        self._tools = ExitStack()
        self._encoder = self._tools.enter_context(maker.encoder())

    def __call__(self, batch: Batch) -> Batch:
        station, made = Station(self._encoder), list[Made | None]()
        try:
            for pickled in batch[_COLUMN]:
                made.extend(station.hold(pickle.loads(pickled)))
            while station.is_waiting:
                made.extend(station.encode_first())
        except LumosError as error:
            made.append((0, error))
        return _batch(made)


def _batch(values: list[Any]) -> Batch:
    column = np.empty(len(values), object)
    column[:] = [pickle.dumps(value) for value in values]
    return {_COLUMN: column}


@contextmanager
def _cluster() -> Iterator[Any]:
    """Ray, on the cluster that `RAY_ADDRESS` names, or that this process is in, or else on this machine alone.

    Raises:
        ConfigError: it is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        fix = "pip install 'lumos_pl[ray]', or leave --engine out"
        raise ConfigError("Ray is not installed", where="--engine ray", got=str(error), fix=fix) from None
    ours = not ray.is_initialized()
    try:
        if ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", configure_logging=False)
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        yield ray
    except ray.exceptions.RayError as error:
        said = " ".join(str(error).split())[-300:]
        fix = "see to it, and start the same command again, which goes on"
        raise TemporaryError("the Ray cluster failed", where="--engine ray", got=said, fix=fix) from error
    finally:
        if ours:
            ray.shutdown()


def run_on_ray(maker: ClipMaker, tasks: Iterator[Task], device: str) -> Generator[tuple[int, Outcome], None, None]:
    """The outcomes of every task, in order, as `run_tasks` gives them.

    Args:
        device: of the tokenizer; `cuda` takes all GPUs of the cluster.
    Raises:
        TemporaryError: the cluster failed, or the storage of a file does not answer.
    """
    with _cluster() as ray:
        cpus = int(ray.cluster_resources().get("CPU", 1))
        gpus = int(ray.cluster_resources().get("GPU", 0)) if device != "cpu" else 0
        encoders = gpus or max(1, cpus // 2)
        decoders = max(1, cpus - (0 if gpus else encoders))
        of_encoder = {"num_gpus": 1, "num_cpus": 0} if gpus else {"num_cpus": 1}
        together = SHAPES_IN_HAND * maker.batch_size
        groups = grouped(tasks)
        while some := list(islice(groups, GROUPS_AT_ONCE)):
            items = [{_COLUMN: pickle.dumps(group)} for group in some]
            found = ray.data.from_items(items, override_num_blocks=min(len(items), 4 * decoders)).map_batches(
                _Decode, batch_size=1, num_cpus=1, concurrency=decoders, fn_constructor_args=(maker,)
            )
            made = found.map_batches(
                _Encode, batch_size=together, concurrency=encoders, fn_constructor_args=(maker,), **of_encoder
            )
            for row in made.iter_rows():
                yield from checked([pickle.loads(row[_COLUMN])])
