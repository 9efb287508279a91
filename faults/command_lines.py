"""Command lines that ask for what cannot be."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields, is_dataclass
from pathlib import Path
from unittest.mock import patch

import experiments.train
from experiments import cli
from experiments.config import ExperimentConfig
from faults.campaign import Campaign, Judge, Verdict
from faults.shards import write_shards

USAGE, DATA, CHECKPOINT = 2, 3, 4
NOT_NUMBERS = ("many", "nan", "inf", "-inf", "1e999", "[1]", "{a: 1}", "${nothing}", "0x", "1,5")
COMMANDS = ("train", "resume", "plan", "sample", "tokenize", "shards", "import-tokens", "import-hf", "export-hf")
ANYWHERE = {"seed"}  # numbers that may be negative


class _Accepted(Exception):
    """The command line was taken and the training would begin."""


def numbers(kind: type = ExperimentConfig, prefix: str = "") -> Iterator[str]:
    """The keys of an experiment that are numbers."""
    values = kind()
    for item in fields(kind):
        value = getattr(values, item.name)
        if is_dataclass(value) and not isinstance(value, type):
            yield from numbers(type(value), f"{prefix}{item.name}.")
        elif type(value) in (int, float):
            yield prefix + item.name


def bad_override(draw: random.Random) -> str:
    """A key=value that no experiment can mean."""
    keys = [key for key in numbers() if key not in ANYWHERE]
    key = draw.choice(keys)
    match draw.choice(["word", "negative", "unknown key", "misspelt key", "no value", "broken", "other kind"]):
        case "word":
            return f"{key}={draw.choice(NOT_NUMBERS)}"
        case "negative":
            return f"{key}={draw.choice(['-1', '-1000000', '-0.5'])}"
        case "unknown key":
            return f"{draw.choice(['model', 'data', 'nothing', ''])}.{draw.choice('abc')}=1"
        case "misspelt key":
            return f"{key[:-1]}={draw.randint(1, 9)}" if key[:-1] not in keys else "modle.size=1"
        case "no value":
            return draw.choice([key, "=", f"={key}", "trainer.max_steps 3"])
        case "broken":
            return key + "=" + draw.choice(["[", "{", "{a", "!!python/object:os.system x", "@", '"'])
        case _:
            odd = ["base=demo", "seed=???", "seed=!!int x", "1=2", "optimizer.lr=1e39", "data.num_workers=100000"]
            return draw.choice(
                [*odd, "trainer=3", "data.kind=audio", "trainer.precision=8", "model.size=[1]", "mask={}x"]
            )


def bad_command_line(folder: Path, draw: random.Random) -> tuple[list[str], int]:
    """Arguments and the exit status they deserve."""
    absent, shards = str(folder / "absent"), str(folder / "shards")
    place = [f"run.dir={folder / 'runs'}", f"world.folder={folder / 'clips'}"]
    out = ["--out", str(folder / "out")]
    sample = ["sample", "--ckpt", absent, *out]
    bad_number = draw.choice(["many", "nan", "-1", "0", "1.5"])
    wrong_name = draw.choice(["debgu", "../debug", "", "/etc/hosts", "nul\0", "x" * 5000])
    number_flag = draw.choice(["--fps", "--frames", "--samples-per-shard"])
    choices: list[tuple[list[str], int]] = [
        (["train", "debug", *place, bad_override(draw)], USAGE),
        (["train", "debug", *place, bad_override(draw)], USAGE),
        (["plan", draw.choice(["debug", "t2v_1b"]), bad_override(draw)], USAGE),
        ([draw.choice(["train", "plan"]), wrong_name], USAGE),
        ([draw.choice(COMMANDS), f"--{draw.choice(['fast', 'no', 'outt', '='])}"], USAGE),
        ([draw.choice(["fly", "", "-", "--", "tokenise", "Train"])], USAGE),
        ([draw.choice(COMMANDS)], USAGE),
        (["resume", draw.choice([absent, shards, "", "nul\0", "/dev/null"])], USAGE),
        (["train", "debug", *place, f"data.root={absent}"], DATA),
        (["train", "debug", *place, f"init_from={absent}"], CHECKPOINT),
        (["train", "real_tokens", *place, f"data.root={draw.choice([absent, shards])}"], DATA),
        (["shards", "verify", shards, "--skip-bad"], USAGE),
        (["shards", draw.choice(["verify", "show"]), draw.choice([absent, str(folder), "/dev/null"])], DATA),
        ([*sample, "--prompt", "a cat"], CHECKPOINT),
        ([*sample, "--prompt", draw.choice(["", " ", "a\0b", "\ud800"])], USAGE),
        ([*sample, "--prompts", absent + draw.choice([".txt", ".csv", ".json"])], DATA),
        ([*sample, "--prompt", "a cat", "--shard", draw.choice(["1/1", "a", "-1/2", "1/0"])], USAGE),
        ([*sample, "--prompt", "a", draw.choice(["--frames", "--steps", "--fps", "--seed"]), "many"], USAGE),
        (["sample", "--run", absent, "--hf", absent, "--prompt", "a", *out], USAGE),
        (["tokenize", absent, *out], DATA),
        (["tokenize", shards, *out, number_flag, bad_number], USAGE),
        (["tokenize", shards, *out, "--size", draw.choice(["big", "0x0", "-1x4", "7x7", "1e9x2", "256"])], USAGE),
        (["tokenize", shards, *out, "--start", draw.choice(["nan", "inf", "-1", "soon"])], USAGE),
        (["tokenize", shards, *out, "--device", draw.choice(["gpu", "cuda:99", "", "cpu:x"])], USAGE),
        (["import-tokens", absent, *out], DATA),
        (["import-hf", absent, *out], CHECKPOINT),
        (["export-hf", absent, *out], CHECKPOINT),
        (["export-hf", absent, *out, "--max-shard-size", draw.choice(["big", "-1GB", "0", "nan"])], USAGE),
        (["verify-golden", absent], DATA),
    ]
    return draw.choice(choices)


@contextmanager
def _bad(folder: Path) -> Iterator[Judge]:
    write_shards(folder / "shards")

    def accepted(*_: object, **__: object) -> None:
        raise _Accepted

    def judge(draw: random.Random) -> Verdict:
        arguments, expected = bad_command_line(folder, draw)
        said, printed = io.StringIO(), io.StringIO()
        shown = [argument[:60] for argument in arguments]
        try:
            with redirect_stderr(said), redirect_stdout(printed):
                status = cli.main(arguments)
        except _Accepted:
            return Verdict("accepted", f"{shown}")
        except BaseException as error:
            return Verdict("traceback", f"{shown}: {type(error).__name__}: {error}")
        done = f"{shown} -> {status}, expected {expected}: {said.getvalue()}"
        if "Traceback" in said.getvalue():
            return Verdict("traceback", done)
        if status != expected:
            return Verdict("accepted" if status == 0 else "wrong exit", done)
        one_line = said.getvalue().startswith("lumos: ") and said.getvalue().count("\n") == 1
        return Verdict("one line" if one_line else "not one line", done)

    with patch.object(experiments.train, "_fit", accepted):
        yield judge


BAD = Campaign(
    name="command-lines",
    title="bad command lines",
    instances=300,
    held=("one line",),
    broken=("traceback", "wrong exit", "accepted", "not one line"),
    open=_bad,
)
