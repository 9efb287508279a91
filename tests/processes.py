"""Processes that begin with torch, Lightning and the project imported, which takes far longer than what most tests do.

They are forked from a server that has done so once. All else is theirs: environment, signals, exit status, workers.
A test of how a command starts runs `python -m experiments.cli` instead.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lumos_pl.machinery.parent_process import end_with_parent

ROOT = Path(__file__).parents[1]
IMPORTED = ["experiments.cli", "experiments.train", "torch._dynamo", "torch.distributed.tensor"]


@cache
def _server() -> tuple[subprocess.Popen[bytes], Connection]:
    """The server of this session, which ends with it, and the way to it."""
    here, there = Pipe()
    command = [sys.executable, "-m", "tests.processes", str(there.fileno())]
    process = subprocess.Popen(command, cwd=ROOT, pass_fds=[there.fileno()])
    there.close()
    return process, here


def ask(*messages: bytes) -> int:
    """The server's answer. A test that gives up waiting for it ends the server, with all that it forked."""
    process, way = _server()
    try:
        for message in messages:
            way.send_bytes(message)
        answer: int = way.recv()
    except BaseException:
        process.kill()
        process.wait()
        _server.cache_clear()
        raise
    return answer


@dataclass(frozen=True)
class Forked:
    """A process of the server's, and the file of all that it prints."""

    pid: int
    printed: Path

    def wait(self) -> int:
        """Its exit status, or minus the signal that ended it."""
        return ask(pickle.dumps(self.pid))

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left of it but its exit status, which `wait` gives."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def fork(printed: Path, environment: Mapping[str, str], work: Callable[..., Any], *arguments: Any) -> Forked:
    """Call `work(*arguments)` in a process of its own, with these variables besides this process's."""
    printed.touch()
    begun = str(printed), {**os.environ, **environment}, str(Path.cwd())
    return Forked(ask(pickle.dumps(begun), pickle.dumps((work, arguments))), printed)


def free_port() -> int:
    """Of this machine, for ranks that a launcher would start."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def ranks(world: int, work: Callable[..., Any], *arguments: Any) -> None:
    """Call `work(*arguments)` in `world` processes, told who they are as a launcher tells them; all must end well."""
    with tempfile.TemporaryDirectory() as folder:
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "NODE_RANK": "0"}
        team = []
        for rank in range(world):
            own = {**together, "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)} if world > 1 else {}
            team.append(fork(Path(folder, str(rank)), own, work, *arguments))
        ended = [member.wait() for member in team]
        assert ended == [0] * world, "".join(member.printed.read_text() for member in team)


def lumos(*arguments: str, world: int = 1) -> None:
    """Run the command to its end, in as many processes as its ranks."""
    ranks(world, run_command, arguments)


def run_command(arguments: tuple[str, ...]) -> None:
    command = import_module("experiments.cli")
    sys.modules["__main__"], sys.argv = command, ["lumos", *arguments]  # what starts further ranks repeats these
    sys.exit(command.main(arguments))


def on_ranks(world: int, work: Callable[..., Any], folder: Path, *arguments: Any) -> Any:
    """What `work(rank, world, *arguments)` returns on rank 0 of a process group on the CPU."""
    out = folder / f"{world}_{os.urandom(4).hex()}.pt"
    ranks(world, join_group, work, arguments, out)
    return import_module("torch").load(out)


def join_group(work: Callable[..., Any], arguments: tuple[Any, ...], out: Path) -> None:
    import torch
    import torch.distributed as dist

    rank, world = (int(os.environ.get(name, default)) for name, default in (("LOCAL_RANK", "0"), ("WORLD_SIZE", "1")))
    store = f"file://{out.with_suffix('.store')}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    result = work(rank, world, *arguments)
    if rank == 0:
        torch.save(result, out)
    dist.destroy_process_group()


def begin(printed: str, environment: dict[str, str], folder: str, called: bytes) -> None:
    """The start of a forked process."""
    end_with_parent(os.getppid())
    output = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    import_module("torch").set_num_threads(1)
    work, arguments = pickle.loads(called)
    work(*arguments)


def serve(requests: Connection) -> None:
    """Fork as asked and tell how it ended, until the session is over."""
    end_with_parent(os.getppid())  # also while it waits for a process that will not end
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # so that what is forked neither looks through all this for garbage nor copies it
    forked: dict[int | None, Any] = {}
    while True:
        try:
            asked = pickle.loads(requests.recv_bytes())
        except EOFError:
            os._exit(0)
        if isinstance(asked, int):
            forked[asked].join()
            requests.send(forked.pop(asked).exitcode)
        else:
            process = get_context("fork").Process(target=begin, args=(*asked, requests.recv_bytes()))
            process.start()
            forked[process.pid] = process
            requests.send(process.pid)


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
