"""The process that measures: one case after another in one CUDA context.

python -m bench.gpu.worker

Each line of stdin is {"measure": "module:function", "settings": {...}}, each line of stdout its {"figures": {...}} or
{"failed": "reason"}. When stdin ends, so does the worker with everything that it started: a driver that was killed
leaves nothing behind. It is a process group of its own (`bench.gpu.driver`).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import threading
import traceback
from pkgutil import resolve_name
from queue import SimpleQueue
from typing import IO, Any


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """What came of one case; the traceback of a failure goes to stderr."""
    try:
        return {"figures": resolve_name(request["measure"])(**request["settings"])}
    except Exception as error:
        traceback.print_exc()
        return {"failed": " ".join(f"{type(error).__name__}: {error}".split())[:300]}


def clear() -> bool:
    """Give the GPU's memory back and forget what was compiled; False if the device no longer answers."""
    if (torch := sys.modules.get("torch")) is None:
        return True
    gc.collect()
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
    except RuntimeError:  # an error of a kernel is every later call's error too
        return False
    return True


def serve(stream: IO[bytes]) -> None:
    """Answer until the device no longer does."""
    requests: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    fit = True
    while fit:
        answered = answer(json.loads(requests.get()))
        fit = clear()
        stream.write((json.dumps(answered | {"fit": fit}) + "\n").encode())
        stream.flush()


def _read(requests: SimpleQueue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed on the way is no answer
    serve(answers)
