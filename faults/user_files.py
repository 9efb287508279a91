"""Files of a user's around ours, while a command writes: under our names and odd ones, as links, and in a race."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from faults.campaign import Campaign, Draw, Judge, Verdict
from faults.processes import ended, forked
from faults.written_by import COMMANDS, IMPORTED, INPUTS, Command
from lumos_pl.checkpoints.complete import newest_complete
from lumos_pl.machinery.own_files import RECORD

KEPT, LOST, CHANGED, FOREIGN = "all kept", "lost", "changed", "foreign touched"
TRACEBACK, HANG, WRONG = "traceback", "hang", "wrong result"
MAX_SECONDS = 90  # for a command of seconds, on a busy machine
ASIDE = re.compile(r"\.kept-[0-9]+")
VARIED = (  # names near one of ours
    "{0}~", "{0}.partial", ".{0}.partial", "{0}.tmp", "{0}.bak", "{1}-good{2}", "{1} (copy){2}", "{1}.kept-1{2}",
    "{0}\n", "{0}.sha256", "x{0}", "{1}{2}{2}", "é{0}", "{0}\udcff", ".{0}.0123456789abcdef.partial",
)  # fmt: skip
GENERIC = (
    RECORD,
    "notes.txt",
    "README",
    ".git",
    "-rf",
    "*",
    "$HOME",
    "a\nb",
    "\u202etxt",
    "shard-000099.tmp",
    "x.kept-1",
)
KINDS = (
    ["file"] * 6 + 2 * ["link to file", "link to folder", "dangling link", "hard link", "fifo", "folder"]
    + ["empty folder", "read-only file", "locked file", "read-only folder", "empty file"]
    + ["link inside", "link to device"]
)  # fmt: skip


@dataclass(frozen=True)
class Users:
    """A file of the user's, as it was put there."""

    path: Path
    kind: str
    looks: object


def looks(path: Path) -> Any:
    """All of a file or folder that must stay as it is; None: there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    if stat.S_ISLNK(found.st_mode):
        return "link", str(path.readlink())
    if stat.S_ISDIR(found.st_mode):
        return "folder", found.st_mode, {child.name: looks(child) for child in path.iterdir()}
    if stat.S_ISREG(found.st_mode):
        return "file", found.st_mode, path.read_bytes()
    return "other", found.st_mode


def still(before: Any, now: Any) -> bool:
    """Whether something looks as before; a folder may have got more."""
    if before is None or now is None or before[0] != "folder" or now[0] != "folder":
        return bool(before == now)
    return before[1] == now[1] and all(still(look, now[2].get(name)) for name, look in before[2].items())


def place(draw: random.Random, here: Path, names: Sequence[str]) -> Path:
    """Where to put a file: at a name of ours, near one, or anywhere beside."""
    name = Path(draw.choice(names))
    how = draw.random()
    if how < 0.5:
        return here / name
    if how < 0.85:
        return here / name.with_name(draw.choice(VARIED).format(name.name, name.stem, name.suffix)[:120])
    if how < 0.9:
        return here / name.with_name(name.name.swapcase())
    return here / name.with_name(draw.choice(GENERIC))


def put(draw: random.Random, path: Path, here: Path, outside: Path) -> Users | None:
    """Put a file of the user's somewhere, over a file that is there; None: that cannot be."""
    kind = draw.choice(KINDS)
    own = sorted(file for file in here.rglob("*") if file.is_file() and INPUTS not in file.relative_to(here).parts)
    content = f"{draw.random()} of the user's\n" * draw.choice([1, 1, 1000])
    aside = path.with_name(f"{path.name[:100]}.aside")
    if os.path.lexists(path):
        if path.is_dir() and not path.is_symlink():
            return None
        path.rename(aside)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "link to file":
                path.symlink_to(draw.choice([str(outside / "file"), os.path.relpath(outside / "file", path.parent)]))
            case "link to folder":
                path.symlink_to(outside / "folder")
            case "dangling link":
                path.symlink_to(outside / "absent")
            case "link to device":
                path.symlink_to(draw.choice(["/dev/null", "/dev/zero"]))
            case "link inside":
                path.symlink_to(draw.choice(own) if own else outside / "absent")
            case "hard link":
                path.hardlink_to(outside / "file")
            case "fifo":
                os.mkfifo(path)
            case "folder" | "empty folder" | "read-only folder":
                path.mkdir()
                if kind != "empty folder":
                    (path / "inner").write_text(content)
                if kind == "read-only folder":
                    path.chmod(0o555)
            case _ if own and draw.random() < 0.2:
                shutil.copy2(draw.choice(own), path)
                with path.open("ab") as stream:  # of the same content there is nothing to tell apart
                    stream.write(b"\n# the user's")
            case _:
                path.write_text("" if kind == "empty file" else content)
                if kind in ("read-only file", "locked file"):
                    path.chmod(0o444 if kind == "read-only file" else 0)
    except OSError:  # beneath a file
        if os.path.lexists(aside):
            aside.rename(path)
        return None
    aside.unlink(missing_ok=True)
    return Users(path, kind, looks(path))


def racing(draw: random.Random, path: Path, seconds: float) -> int:
    """A process that puts a file there in a while, once its folder is there, unless something has the name by then."""
    delay, content = draw.choice([0, draw.random()]) * seconds, f"{draw.random()} raced\n"
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        time.sleep(delay)
        end = time.monotonic() + seconds
        while not path.parent.is_dir() and time.monotonic() < end:
            time.sleep(0.0005)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640)
        os.write(descriptor, content.encode())
        status = 0
    finally:
        os._exit(status)


@dataclass(frozen=True)
class Template:
    """What a command begins with, and what it then writes."""

    before: Path
    after: Path
    seconds: float

    def names(self) -> list[str]:
        written = (path.relative_to(self.after) for path in self.after.rglob("*"))
        return sorted(str(path) for path in written if path.parts[0] != INPUTS)


def make_template(command: Command, folder: Path, here: Path) -> Template:
    """Run the command once without anybody's files."""
    before, after, said = folder / f"{command.name}.before", folder / f"{command.name}.after", folder / "said"
    renew(here)
    (here / INPUTS).mkdir()
    command.prepare(here)
    copy(here, before)
    begun = time.monotonic()
    status = ended(forked(lambda: command.work(here), said), MAX_SECONDS)
    assert status == 0, f"{command.name}: {status}: {said.read_text()[-2000:]}"
    copy(here, after)
    return Template(before, after, time.monotonic() - begun)


def renew(folder: Path) -> None:
    """An empty folder in its place."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)


@contextmanager
def _open(folder: Path) -> Iterator[Judge]:
    for module in IMPORTED:
        import_module(module)
    here, outside = folder / "here", folder / "outside"
    templates: dict[str, Template] = {}
    draws = [command for command in COMMANDS for _ in range(command.weight)]

    def judge(draw: Draw) -> Verdict:
        command = draw.choice(draws)
        if command.name not in templates:
            templates[command.name] = make_template(command, folder, here)
        template, said = templates[command.name], folder / "said"
        renew(here)
        renew(outside)
        said.unlink(missing_ok=True)
        copy(template.before, here)
        (outside / "file").write_text("outside\n" * 30)
        (outside / "file").chmod(0o640)
        (outside / "folder").mkdir()
        (outside / "folder" / "file").write_text("outside too")
        untouched = {path: looks(path) for path in (outside, here / INPUTS)}
        names = template.names()
        raced = place(draw, here, names) if draw.random() < command.races else None
        users: list[Users] = []
        for _ in range(draw.choice([1, 1, 2, 3, 4]) if raced is None else draw.choice([0, 0, 1])):
            while (found := put(draw, place(draw, here, names), here, outside)) is None:
                pass
            users.append(found)
        users = [one for one in users if still(one.looks, looks(one.path))]  # a later one may have replaced it
        if raced is not None and any(raced.is_relative_to(one.path) for one in users if "link" in one.kind):
            raced = None  # the racer itself would follow it
        foreign = {path: (look, looks(path)) for path, look in untouched.items()}
        racer = None if raced is None else racing(draw, raced, template.seconds)
        term_after = draw.random() * template.seconds if command.stopped else None
        status = ended(forked(lambda: command.work(here), said), MAX_SECONDS, term_after=term_after)
        if racer is not None and raced is not None and os.waitpid(racer, 0)[1] == 0:
            users.append(Users(raced, "raced", None))
        outcome, why = _outcome(command, template, here, users, foreign, status, said)
        put_there = ", ".join(f"{one.kind} {str(one.path.relative_to(here))!r}" for one in users)
        return Verdict(outcome, f"{command.name} with {put_there}: {why}")

    yield judge


def _outcome(
    command: Command,
    template: Template,
    here: Path,
    users: Sequence[Users],
    foreign: dict[Path, tuple[Any, Any]],
    status: int | None,
    said: Path,
) -> tuple[str, str]:
    printed = said.read_text(errors="replace") if said.exists() else ""  # it was stopped before it began
    if status is None:
        return HANG, printed[-300:]
    is_led_there = any(
        one.kind == "link to folder" and (one.path.parent == here or one.path.name == "checkpoints") for one in users
    )
    for path, (untouched, before) in foreign.items():  # where the user's link is the very folder to write into, ..
        if not (still(untouched, looks(path)) if is_led_there else looks(path) == before):  # .. it may get more
            return FOREIGN, f"{path.name}: {printed[-300:]}"
    by_name: dict[str, list[Path]] = {}
    for path in here.rglob("*"):
        by_name.setdefault(ASIDE.sub("", str(path.relative_to(here))), []).append(path)
    for one in users:
        found = by_name.get(ASIDE.sub("", str(one.path.relative_to(here))), [])
        beside = one.path.parent.iterdir() if one.path.parent.is_dir() else ()  # also where a link leads there
        found += [path for path in beside if ASIDE.sub("", path.name) == ASIDE.sub("", one.path.name)]
        if one.kind == "raced":
            if not any(looks(path)[0] == "file" and path.read_bytes().endswith(b" raced\n") for path in found):
                return LOST, f"{one.path.name} (raced): {printed[-300:]}"
        elif not any(still(one.looks, looks(path)) for path in found):
            return (CHANGED if looks(one.path) else LOST), f"{one.path.name} ({one.kind}): {printed[-300:]}"
    lines = printed.splitlines()
    is_told = any(line.startswith("lumos: ") for line in lines) and status in (2, 3, 4)
    is_told |= command.stopped and status in (143, -signal.SIGTERM)
    if "Traceback" in printed or (status and not is_told):
        return TRACEBACK, f"{status}: {printed[-1500:]}"
    if status == 0 and (wrong := _wrong(command, template, here, {one.path for one in users})):
        return WRONG, f"{wrong}: {printed[-300:]}"
    return KEPT, f"{status}"


def _wrong(command: Command, template: Template, here: Path, users: set[Path]) -> str | None:
    """The first file that is not as without anybody's files."""
    replaced = any((template.before / path.relative_to(here)).exists() for path in users)
    for name in template.names():
        if replaced and Path(name).name == "sheet.png":
            continue  # which shows the clips that are whole
        expected, path = template.after / name, here / name
        if not expected.is_file() or command.varies(name) or (path in users and (template.before / name).exists()):
            continue
        others = [path] if not command.takes_free_name else list(path.parent.glob(f"{path.stem}*{path.suffix}"))
        if not any(looks(one) == looks(expected) for one in others):
            return name
    if command.final_step is not None:
        folder = next(here.rglob("checkpoints"), None)  # none where the user's link leads out of here
        if folder is None:
            return None
        newest, _ = newest_complete(folder)
        if newest.name != f"step-{command.final_step:08d}.ckpt":
            return newest.name
    return None


USER_FILES = Campaign(
    name="user-files",
    title="folders with files of a user's",
    instances=300,
    held=(KEPT,),
    broken=(LOST, CHANGED, FOREIGN, TRACEBACK, HANG, WRONG),
    open=_open,
)
