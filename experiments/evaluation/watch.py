"""`lumos eval RUN --watch`: measures each checkpoint of a run once, beside the training, by any number of watchers.

RUN/eval/step-00000100.json       what was measured, as in eval.json; written once, by whoever was first
         step-00000100.lease-0    who measures it now, see `lumos_pl.machinery.lease`
         .step-00000100.*         the checkpoint by hard links, for as long as it is measured, see `hold`
         events.out.*.curves      all steps so far, for TensorBoard

The newest checkpoint is measured first: what one wants to know is how the run does now, and where the evaluation is
slower than the training, those between are rotated away whichever comes first. Older ones are next, as there is time.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import ExperimentConfig
from experiments.evaluation.curves import write_curves
from experiments.evaluation.evaluate import measure
from experiments.evaluation.hold import hold
from experiments.evaluation.report import Result, headlines
from experiments.evaluation.settings import EvalSettings
from experiments.evaluation.subject import OF_TRAINING, Subject
from experiments.read_config import saved_config
from experiments.run_folder import RunFolder
from experiments.yaml_text import read_yaml_file
from lumos_pl.checkpoints.complete import is_checkpoint_name, kept_checkpoints, step_of
from lumos_pl.checkpoints.digests import digest_file
from lumos_pl.checkpoints.verdicts import Signature, signature
from lumos_pl.errors import CheckpointError, ConfigError, LumosError, NumericError, TemporaryError
from lumos_pl.machinery.atomic_file import TakenError, make_folder, write_new
from lumos_pl.machinery.json_file import read_json
from lumos_pl.machinery.lease import Lease, LeaseLostError, Leases
from lumos_pl.machinery.own_files import name_of, partial_of
from lumos_pl.machinery.retrying import RetryConfig, passes, retried
from lumos_pl.settings.differences import differences

LEASE_S = 60.0
POLL_S = 10.0
MAY_DIFFER = ("device",)  # from one watcher to another


class Watcher:
    """One watcher of a run.

    Args:
        run: its folder; it may begin later.
        settings: of every evaluation; where there are results already, those that they were made with.
        lease_s: how long another watcher may be silent before its checkpoint is taken over, in seconds.
        poll_s: between two looks for new checkpoints, in seconds.
        say: what to do with a line; default: print it.
    Raises:
        ConfigError: not a run that can be measured, or measured before with other settings.
    """

    def __init__(
        self,
        run: Path,
        settings: EvalSettings,
        *,
        lease_s: float = LEASE_S,
        poll_s: float = POLL_S,
        retry: RetryConfig | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.run, self.settings, self.poll_s = RunFolder(run), settings, poll_s
        self.say = say or partial(print, flush=True)
        self.folder = (settings.out or run) / "eval"
        self._lease_s, self._retry = lease_s, retry or RetryConfig()
        self._passed_over: dict[Path, Signature | None] = {}
        self._troubled = False
        self._waited_for: set[str] = set()

    def work(self, *, once: bool = False) -> int:
        """Measure until the run is at its end and all its checkpoints are done; returns how many were measured here.

        Args:
            once: end as soon as those are done that are there now.
        Raises:
            TemporaryError: checkpoints were left out, since the storage failed for longer than it was tried.
            ConfigError, DataError: what no checkpoint could be measured with.
        """
        try:
            measured = self._work(once)
        except (LumosError, OSError) as error:
            if not passes(error):
                raise
            fix = "the same command, started again, goes on"
            raise TemporaryError("the storage fails", file=self.run.path, got=error, fix=fix) from error
        if self._troubled:
            fix = "the same command, started again, measures them"
            raise TemporaryError("checkpoints that could not be read", file=self.run.checkpoints, fix=fix)
        return measured

    def _work(self, once: bool) -> int:
        self._await_run(once)
        self._leases = Leases(self.folder, lease_s=self._lease_s, forget=self._forget)
        self._write_curves()
        wanted = {path.name for path in kept_checkpoints(self.run.checkpoints)} if once else None
        measured = 0
        while True:
            # Before it is looked what is left.
            is_over = once or self._tried(self._has_ended, f"read {self.run.result}")
            left = self._tried(self._left, f"list {self.run.checkpoints}")
            left = [path for path in left if wanted is None or path.name in wanted]
            if not left and is_over:
                return measured
            taken = (self._tried(partial(self._take, path), f"take {path}") for path in left)
            done = next((one for one in taken if one is not None), None)
            measured += bool(done)
            if done is None:
                self._wait(left if is_over else [])

    # -- what there is to do -------------------------------------------------------------------

    def _await_run(self, once: bool) -> None:
        while not self.run.config.is_file():
            if once:
                raise ConfigError("not a run's folder", file=self.run.path, got="no config.yaml")
            self._say_once(f"waiting for the run to begin: {self.run.path}")
            time.sleep(self.poll_s)
        config = self._config(self.settings.overrides)
        if not isinstance(config, ExperimentConfig):
            raise ConfigError("not a Lumos-1 run", file=self.run.config, where="task", got=config.task)
        make_folder(self.folder, within=self.settings.out or self.run.path, error=ConfigError, where="--out")
        for file in self._results():
            self._check_settings(file, read_json(file, Result)["settings"])

    def _config(self, overrides: tuple[str, ...] = ()) -> Any:
        return saved_config(read_yaml_file(self.run.config), self.run.config, overrides, without=OF_TRAINING)

    def _check_settings(self, file: Path, measured_with: Mapping[str, Any]) -> None:
        now, then = (
            {k: v for k, v in s.items() if k not in MAY_DIFFER} for s in (self.settings.recorded(), measured_with)
        )
        for where, made, asked in differences(then, now):
            fix = "the same settings, or another --out"
            raise ConfigError("measured with other settings", file=file, where=where, got=asked, expected=made, fix=fix)

    def _has_ended(self) -> bool:
        return self.run.has_ended(self._config().trainer.max_steps)

    def _results(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*.json") if is_checkpoint_name(f"{path.stem}.ckpt"))

    def _left(self) -> list[Path]:
        """Checkpoints without a result, newest first; those that were passed over only once they have changed."""
        return [
            path
            for path in reversed(kept_checkpoints(self.run.checkpoints))
            if not os.path.lexists(self._result(path))
            and not (path in self._passed_over and self._passed_over[path] == signature(path))
        ]

    def _result(self, checkpoint: Path) -> Path:
        return self.folder / f"{checkpoint.stem}.json"

    # -- one checkpoint ------------------------------------------------------------------------

    def _take(self, checkpoint: Path) -> bool | None:
        """Measure a checkpoint unless another watcher does (None); whether a result came of it."""
        aside = partial_of(self.folder / checkpoint.name)
        with self._leases.taken(checkpoint.stem, note=aside.name) as lease:
            if lease is None:
                return None
            done = os.path.lexists(self._result(checkpoint))
            mine = not done and self._measure(checkpoint, aside, lease)
        if mine or done or signature(checkpoint) is None:
            self._leases.clear(checkpoint.stem)
        return mine

    def _measure(self, checkpoint: Path, aside: Path, lease: Lease) -> bool:
        step, before, started = step_of(checkpoint), signature(checkpoint), time.monotonic()
        try:
            result = self._tried(partial(self._found, checkpoint, aside, lease), f"read {checkpoint}")
            lease.check()
            text = json.dumps(result) + "\n"
            self._tried(partial(write_new, self._result(checkpoint), text), f"write {self._result(checkpoint)}")
        except (LeaseLostError, TakenError):
            self._say(f"step {step}: another watcher has taken it over")
            return False
        except (LumosError, OSError) as error:
            if before is None or signature(checkpoint) != before:
                self._say(f"step {step}: it was removed while it was read")
                return False
            if not (isinstance(error, CheckpointError | NumericError) or passes(error)):
                raise
            self._passed_over[checkpoint] = before
            self._troubled |= passes(error)
            said = type(error)(**error.parts | {"file": checkpoint}) if isinstance(error, LumosError) else error
            self._say(f"step {step}: passed over | {said}")
            return False
        self._write_curves()
        self._say(f"step {step}: {headlines(result)} | {time.monotonic() - started:.0f} s")
        return True

    def _found(self, checkpoint: Path, aside: Path, lease: Lease) -> dict[str, Any]:
        with hold(checkpoint, aside) as source:
            if not digest_file(source).is_file():
                raise CheckpointError("no digest beside the checkpoint", file=checkpoint)
            subject = Subject.open(source, self.settings)
            result, _ = measure(subject, checkpoint, lambda part, done, in_all: lease.check())
        return result

    def _forget(self, note: str) -> None:
        """Remove the links that a watcher which is no more has left."""
        of = name_of(Path(note))
        if of is not None and Path(note).name == note and is_checkpoint_name(of):
            shutil.rmtree(self.folder / note, ignore_errors=True)

    def _write_curves(self) -> None:
        """All results as curves, again where meanwhile another watcher has written one."""
        drawn: list[Path] = []
        while (files := self._results()) != drawn:
            results = [read_json(file, Result) for file in files]
            self._tried(partial(write_curves, self.folder, results), f"write the curves in {self.folder}")
            drawn = files

    # -- waiting, and what is said -------------------------------------------------------------

    def _tried(self, work: Callable[[], Any], what: str) -> Any:
        return retried(work, self._retry, what)

    def _wait(self, left: list[Path]) -> None:
        """Wait for other watchers, which work on what is left, or for the training."""
        if left:
            holders = (f"step {step_of(path)} ({self._leases.holder(path.stem)})" for path in left)
            self._say_once(f"waiting for other watchers: {', '.join(holders)}")
        else:
            self._say_once(f"waiting for checkpoints of {self.run.path}")
        time.sleep(self.poll_s)

    def _say_once(self, line: str) -> None:
        if line not in self._waited_for:
            self._waited_for.add(line)
            self._say(line)

    def _say(self, line: str) -> None:
        with suppress(OSError):
            self.say(" ".join(line.split()))
