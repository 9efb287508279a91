"""Prompts that try to leave the folder, to be run by a shell, or to take each other's names."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from experiments.sample.arrangement import ARRANGEMENTS, Job, plan_jobs
from experiments.sample.folder import SampleFolder
from experiments.sample.prompts import Prompt, given_prompts, read_prompts
from faults.campaign import Campaign, Judge, Verdict, attempt
from lumos_pl.errors import LumosError
from lumos_pl.machinery.own_files import RECORD

PIECES = [
    *("../", "../../", "/etc/", "..\\", "./", "~/", "%2e%2e/", "\0", "\n", "\r\n", "\t", "\u202e", "\u2028", "\ud800"),
    *("$(touch MARK)", "`touch MARK`", "; touch MARK;", "| touch MARK", "&& touch MARK", "\n\ttouch MARK\n"),
    *("$(shell touch MARK)", "$$(touch MARK)", "${HOME}", "'; touch MARK; '", '"; touch MARK; "', "\\", "#", "%s{0}"),
    *("-rf", "--out=/tmp", ".hidden", "CON", "a cat", "A CAT", "a cat", "e\u0301", "é", "ﬁ", "ß", "🦊" * 90, "x" * 400),
]
MADE_FOR_MAKE = ("pyproject.toml", "constraints.txt")
IN_ITS_PLACE = re.compile(r"((records|videos|\d{5}/samples)/)?[^/]+")  # no folder of the prompt's making
TWINS: list[Callable[[str], str]] = [
    str,
    str.upper,
    lambda text: text + " ",
    lambda text: text.replace("/", "\\"),
    lambda text: text + ".",
]


def _outside(folder: Path, out: Path) -> list[str]:
    """What lies in `folder` besides `out` and what the judge put there."""
    known = {out, *(folder / name for name in (*MADE_FOR_MAKE, "list.json", "said", "bin"))}
    return [str(path) for path in folder.iterdir() if path not in known]


def _write_all(folder: Path, out: Path, prompts: list[Prompt], draw: random.Random) -> list[Job]:
    """Files and records under the names that `lumos sample` would give them."""
    arrangement = draw.choice(ARRANGEMENTS)
    jobs = plan_jobs(prompts, arrangement, samples=2, suffix=draw.choice([".png", ".mp4"]))
    target = SampleFolder(out, (0, 1))
    with target.lock():
        for number, job in enumerate(jobs):
            for file in job.file, job.codes, job.record:
                target.write(file, f"{number} {file}".encode())
    return jobs


def _as_given(folder: Path, texts: list[str], draw: random.Random) -> list[Prompt]:
    """The prompts by way of the command line, or of a list that also names the files."""
    if draw.random() < 0.5:
        return given_prompts(texts)
    listed = folder / "list.json"
    listed.write_text(json.dumps({f"{text}.mp4": text for text in texts}))
    return read_prompts(listed)


def _through_make(folder: Path, prompt: str, makefile: Path) -> str | None:
    """What a tool named `lumos` is told of a prompt by `make sample`; None: make cannot take it, or it is blank."""
    if "\0" in prompt or "\ud800" in prompt or not prompt.strip():
        return None
    tool, said = folder / "bin" / "lumos", folder / "said"
    tool.parent.mkdir(exist_ok=True)
    for name in MADE_FOR_MAKE:
        (folder / name).touch()
    tool.write_text(f'#!/bin/sh\nprintf %s "$4" > {said}\n')
    tool.chmod(0o755)
    said.unlink(missing_ok=True)
    command = [
        "make",
        "-s",
        "-f",
        str(makefile),
        "sample",
        f"BIN={tool.parent}",
        f"READY={tool}",
        "RUN=run",
        f"PROMPT={prompt}",
    ]
    subprocess.run(command, cwd=folder, capture_output=True, timeout=60, check=False)
    return said.read_bytes().decode().removeprefix("--prompt=") if said.exists() else None


@contextmanager
def _hostile(folder: Path) -> Iterator[Judge]:
    makefile = Path(__file__).parents[1] / "Makefile"
    assert _through_make(folder, "a cat", makefile) == "a cat"

    def judge(draw: random.Random) -> Verdict:
        here = folder / "here"
        shutil.rmtree(here, ignore_errors=True)
        here.mkdir()
        out = here / "out"
        prompt = "".join(draw.choice(PIECES) for _ in range(draw.randint(1, 4)))
        texts = [prompt, draw.choice(TWINS)(prompt)]
        if draw.random() < 0.2:
            told = _through_make(here, prompt, makefile)
            if found := _outside(here, out):
                return Verdict("executed", f"make: {prompt!r} left {found}")
            if told is not None and told.strip() != prompt.strip():  # make leaves out blanks at the beginning
                return Verdict("changed", f"make: {prompt!r} became {told!r}")
        jobs = attempt(lambda: _write_all(here, out, _as_given(here, texts, draw), draw))
        if found := _outside(here, out) + [str(path) for path in out.rglob("MARK")]:
            return Verdict("executed" if "MARK" in str(found) else "escaped", f"{texts!r} left {found}")
        if isinstance(jobs, LumosError):
            return Verdict("refused" if "\n" not in str(jobs) else "crash", f"{texts!r} -> {jobs}")
        names = [file for job in jobs for file in (job.file, job.codes, job.record)]
        if not all(IN_ITS_PLACE.fullmatch(name) for name in names):
            return Verdict("escaped", f"{texts!r}: {names}")
        written = [path for path in out.rglob("*") if path.is_file() and not path.name.endswith((".lock", RECORD))]
        distinct = len({name.casefold() for name in names}) == len(names) == len(written)
        return Verdict("inside" if distinct else "collided", f"{texts!r}: {names}")

    yield judge


HOSTILE = Campaign(
    name="prompts",
    title="hostile prompts",
    instances=500,
    held=("inside", "refused"),
    broken=("escaped", "executed", "collided", "changed", "crash"),
    open=_hostile,
)
