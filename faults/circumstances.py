"""What is around a command: where its output goes, its limits and environment, deaths and stops of its processes."""

from __future__ import annotations

import json
import math
import os
import pty
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments import cli
from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.processes import children_of, orphans_of
from lumos_pl.optimized_module import OptimizedModule

HELD = "right line and status"
MOST_S = 120.0  # of a command, on a busy machine
STEPS = 4
SETTINGS = (
    "data.synthetic.n_samples=10", "data.image.batch_size=2", "data.video.batch_size=1", "data.video.frames=9",
    "data.timeout_s=5", "data.val_root=null", "trainer.val_every_n_steps=0", "trainer.rank_timeout_s=40",
    "checkpoint.every_n_steps=1",
    "callbacks.log_every_n_steps=1", "callbacks.sample_grid_every_n_steps=0", "callbacks.heatmap_every_n_steps=0",
)  # fmt: skip
OUTPUTS = ("reader left", "reader leaves", "full disk", "closed", "terminal leaves", "file")
ENDLESS = "trainer.max_steps=100000"
LINES = {
    "died": "a data worker died |",
    "silent": "a data worker does not answer |",
    "workers": "more data workers than this machine can serve | data.num_workers",
    "files": "too many open files |",
    "variable": "wrong environment variable |",
    "loss": "loss is not finite |",
    "rank": "rank 1 ",
    "printed": "cannot be printed | standard output",
}


@dataclass(kw_only=True)
class Trial:
    """A command in its circumstances, and what is right then.

    Args:
        about: what is tried.
        expected: exit statuses, any of which is right.
        line: what the one line says; None: there is none.
        output, errors: of OUTPUTS: where the two lead.
        begin: what the child does before it becomes the command.
        amid: done once the training has begun.
        result: whether the run's weights have to be those of a run that nothing disturbed.
        starts_anew: as a program of its own, as the ranks do that it starts; else forked, which is far quicker.
    """

    about: str
    arguments: list[str]
    expected: tuple[int, ...] = (0,)
    line: str | None = None
    output: str = "file"
    errors: str = "file"
    begin: Callable[[], None] = lambda: None
    amid: Callable[[int], None] | None = None
    result: bool = False
    starts_anew: bool = False


def _train(folder: Path, *settings: str) -> list[str]:
    place = [f"run.dir={folder / 'runs'}", "run.name=one"]
    return ["train", "debug", *place, *SETTINGS, f"trainer.max_steps={STEPS}", "data.num_workers=0", *settings]


def outputs(draw: Draw, folder: Path) -> Trial:
    """A training whose output breaks."""
    bar = f"callbacks.progress_bar={draw.choice(['true', 'false'])}"
    output, errors = draw.choice(OUTPUTS), draw.choice(OUTPUTS)
    arguments = _train(folder, bar, f"data.num_workers={draw.choice([0, 1])}")
    return Trial(about=f"{output}, {errors}", arguments=arguments, output=output, errors=errors, result=True)


def printing(draw: Draw, folder: Path) -> Trial:
    """A command whose result is what it prints."""
    output = draw.choice([kind for kind in OUTPUTS if kind != "terminal leaves"])
    arguments = draw.choice([["experiments"], ["config", "debug"], ["plan", "debug"], ["config", "debug", "--keys"]])
    if output == "full disk":
        return Trial(about=output, arguments=arguments, output=output, expected=(3,), line=LINES["printed"])
    return Trial(about=output, arguments=arguments, output=output)


def environments(draw: Draw, folder: Path) -> Trial:
    """Variables of launchers, of homes, of caches."""
    name, value = draw.choice([
        ("RANK", draw.choice(["1", "x", "", "-1"])), ("LOCAL_RANK", "3"), ("WORLD_SIZE", "abc"), ("WORLD_SIZE", ""),
        ("NODE_RANK", "one"), ("SLURM_PROCID", "x"),
    ])  # fmt: skip
    if draw.random() < 0.4:
        begin = _with({name: value})
        return Trial(
            about=f"{name}={value}", arguments=_train(folder), expected=(2,), line=LINES["variable"], begin=begin
        )
    odd: list[dict[str, str | None]] = [
        {"SLURM_NTASKS": "2", "SLURM_JOB_ID": "7"}, {"SLURM_NTASKS": "2", "SLURM_STEP_ID": "4294967290"},
        {"HOME": None}, {"HOME": "/nowhere"}, {"TMPDIR": "/nowhere"}, {"TMPDIR": "/proc"}, {"MPLCONFIGDIR": "/proc/x"},
        {"CUDA_VISIBLE_DEVICES": "x"}, {"MASTER_PORT": "abc"}, {"OMP_NUM_THREADS": "abc"}, {"MASTER_ADDR": "nowhere"},
        {"PYTHONHASHSEED": "3"}, {"LUMOS_LAUNCHER": "x"}, {"XDG_CACHE_HOME": "/proc/x"}, {"TERM": "nothing"},
        {"LANG": "x"},
    ]  # fmt: skip
    changed = draw.choice(odd)
    return Trial(about=f"{changed}", arguments=_train(folder), begin=_with(changed), result=True)


def places(draw: Draw, folder: Path) -> Trial:
    """A working directory that is gone, and a terminal that shows ASCII alone."""
    if draw.random() < 0.5:
        gone = folder / "gone"

        def begin() -> None:
            gone.mkdir(exist_ok=True)
            os.chdir(gone)
            gone.rmdir()

        return Trial(about="no working directory", arguments=_train(folder), begin=begin, result=True)
    arguments = draw.choice(
        [["train", "d\u00e9bug"], ["plan", "\udcff"], ["train", "debug", "data.prompt=\u4e2d\udc80"]]
    )
    return Trial(about="ASCII", arguments=arguments, expected=(2,), line="", begin=_ascii)


def limits(draw: Draw, folder: Path) -> Trial:
    """Limits of the process."""
    if draw.random() < 0.5:
        workers, most = draw.choice([1, 2, 4]), draw.randint(0, 6)

        def few_files() -> None:
            opened = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # names alone
            resource.setrlimit(resource.RLIMIT_NOFILE, (opened + most, opened + most))

        return Trial(
            about=f"{most} files, {workers} workers",
            arguments=_train(folder, f"data.num_workers={workers}"),
            expected=(1, 2, 3),
            line="",
            begin=few_files,
        )
    n_bytes = draw.randint(100, 200_000)
    return Trial(
        about=f"files of {n_bytes} bytes",
        arguments=_train(folder),
        expected=(3, 4, 75),  # 75: it had begun, and goes on where there is room
        line="",
        begin=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes)),
    )


def sizes(draw: Draw, folder: Path) -> Trial:
    """More workers than can be."""
    n = draw.choice([1000, 10**5, 10**9, 10**4])
    arguments = _train(folder, f"data.num_workers={n}")
    return Trial(about=f"{n} workers", arguments=arguments, expected=(2,), line="data.num_workers")


def losses(draw: Draw, folder: Path) -> Trial:
    """An infinite loss whose gradients are finite."""
    step = draw.randrange(STEPS)

    def begin() -> None:
        minimized = OptimizedModule.loss_to_minimize

        def infinite(module: OptimizedModule, loss: Tensor, *rest: Any) -> Tensor:
            return minimized(module, loss + (math.inf if module.global_step == step else 0.0), *rest)

        OptimizedModule.loss_to_minimize = infinite  # type: ignore[method-assign, assignment]

    arguments = _train(folder)
    return Trial(about=f"infinite at {step}", arguments=arguments, expected=(5,), line=LINES["loss"], begin=begin)


def workers(draw: Draw, folder: Path) -> Trial:
    """A data worker that is killed, or stopped, at any moment: amid a save too."""
    number = draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
    n, delay, which = draw.choice([1, 2, 3]), draw.random() * 0.3, draw.random()

    def amid(pid: int) -> None:
        time.sleep(delay)
        if children := children_of(pid):
            os.kill(children[int(which * len(children))], number)

    return Trial(
        about=f"{number.name} to one of {n} workers",
        arguments=_train(folder, ENDLESS, f"data.num_workers={n}"),
        expected=(75,),
        line=LINES["silent" if number == signal.SIGSTOP else "died"],
        amid=amid,
    )


def ranks(draw: Draw, folder: Path) -> Trial:
    """A rank that is killed as it starts."""
    delay = draw.random() * 2

    def amid(pid: int) -> None:
        time.sleep(delay)
        for child in children_of(pid):
            os.kill(child, signal.SIGKILL)

    two = ["trainer.devices=2", "trainer.accelerator=cpu", "trainer.strategy=ddp", ENDLESS]
    arguments = _train(folder, *two)
    return Trial(
        about="rank 1 killed", arguments=arguments, expected=(1,), line=LINES["rank"], amid=amid, starts_anew=True
    )


KINDS = (
    *[outputs] * 6, *[printing] * 3, *[environments] * 4, *[places] * 2, *[limits] * 2, sizes, *[losses] * 2,
    *[workers] * 6, ranks,
)  # fmt: skip


def _with(changed: Mapping[str, str | None]) -> Callable[[], None]:
    def begin() -> None:
        for name, value in changed.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return begin


def _ascii() -> None:
    for stream in sys.stdout, sys.stderr:
        stream.reconfigure(encoding="ascii", errors="strict")  # type: ignore[union-attr]


def _run(trial: Trial, folder: Path) -> tuple[int | None, str, list[int]]:
    """Exit status (None: it hung), what it said, and the processes that it left behind, which are then ended."""
    said = folder / "said"
    said.unlink(missing_ok=True)
    ends = [_end(kind, said) for kind in (trial.output, trial.errors)]
    pid = os.fork()
    if pid == 0:
        _become(trial, [there for there, _ in ends])
    for there, _ in ends:
        os.close(there)
    readers = [here for _, here in ends if here is not None]
    if "reader left" in (trial.output, trial.errors):
        _leave(readers)
    deadline, status = time.monotonic() + MOST_S, None
    amid = trial.amid
    while status is None and time.monotonic() < deadline:
        if _has_begun(trial, pid, folder):
            _leave(readers)
            if amid is not None:
                amid(pid)
                amid = None
        ended, code = os.waitpid(pid, os.WNOHANG)
        status = os.waitstatus_to_exitcode(code) if ended else None
        time.sleep(0.005)
    _leave(readers)
    if status is None:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return status, said.read_text(errors="replace") if said.exists() else "", orphans_of(pid)


def _leave(readers: list[int]) -> None:
    while readers:
        os.close(readers.pop())


def _has_begun(trial: Trial, pid: int, folder: Path) -> bool:
    """Whether a training has saved, or, where it starts other ranks, whether they are started."""
    if trial.starts_anew:
        return bool(children_of(pid))
    return trial.arguments[0] != "train" or any((folder / "runs" / "debug" / "one" / "checkpoints").glob("*.ckpt"))


def _end(kind: str, said: Path) -> tuple[int, int | None]:
    """A descriptor for the command's output, and the reader's if there is one."""
    match kind:
        case "full disk":
            return os.open("/dev/full", os.O_WRONLY), None
        case "reader left" | "reader leaves":
            here, there = os.pipe()
            return there, here
        case "terminal leaves":
            here, there = pty.openpty()
            return there, here
        case "closed":
            return os.open(os.devnull, os.O_WRONLY), None
    return os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), None


def _become(trial: Trial, ends: list[int]) -> None:
    """Never returns."""
    status = 70
    try:
        os.setsid()
        for number, end in enumerate(ends, 1):
            os.dup2(end, number)
        os.closerange(3, 64)
        for number, kind in enumerate((trial.output, trial.errors), 1):
            if kind == "closed":
                os.close(number)
        sys.stdout, sys.stderr = (_stream(number) for number in (1, 2))
        trial.begin()
        if trial.starts_anew:
            os.execv(sys.executable, [sys.executable, "-m", "experiments.cli", *trial.arguments])
        sys.argv[1:] = trial.arguments
        status = cli.main()  # as the program
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException as error:
        with suppress(OSError):
            os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _stream(number: int) -> Any:
    with suppress(OSError):
        return os.fdopen(number, "w", buffering=1)
    return None


def _lines(said: str) -> list[str]:
    """What is said besides warnings of libraries."""
    return [line for line in said.splitlines() if line.startswith("lumos: ")]


def _judged(trial: Trial, folder: Path, whole: str) -> Verdict:
    status, said, orphans = _run(trial, folder)
    done = f"{trial.about}: {trial.arguments[:2]} -> {status}, expected {trial.expected}: {said[-1500:]}"
    if status is None:
        return Verdict("hang", done)
    if orphans:
        return Verdict("orphans", f"{orphans} {done}")
    if "Traceback" in said or "Exception ignored" in said or "Exception in thread" in said:
        return Verdict("traceback", done)
    if status not in trial.expected:
        return Verdict("wrong status", done)
    lines = _lines(said)
    if trial.line is not None and not lines:
        return Verdict("no line", done)
    if len(lines) > 1 or (trial.line or "") not in "".join(lines) or (trial.line is None and lines):
        return Verdict("wrong line", done)
    if trial.result and json.loads((folder / "runs/debug/one/result.json").read_text())["weights_sha256"] != whole:
        return Verdict("other weights", done)
    return Verdict(HELD, done)


@contextmanager
def _circumstances(folder: Path) -> Iterator[Judge]:
    runs = folder / "runs"
    undisturbed = Trial(about="undisturbed", arguments=_train(folder))
    status, said, _ = _run(undisturbed, folder)
    assert status == 0, said
    whole: str = json.loads((runs / "debug/one/result.json").read_text())["weights_sha256"]

    def judge(draw: Draw) -> Verdict:
        shutil.rmtree(runs, ignore_errors=True)
        trial = KINDS[draw.number % len(KINDS)](draw, folder)
        return _judged(trial, folder, whole)

    yield judge


CIRCUMSTANCES = Campaign(
    name="circumstances",
    title="circumstances",
    instances=200,
    held=(HELD,),
    broken=("no line", "wrong line", "wrong status", "traceback", "hang", "orphans", "other weights"),
    open=_circumstances,
)
