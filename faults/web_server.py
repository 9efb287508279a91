"""A plain web server of a folder, in this process: as far away and as narrow as is asked for, and faulty if told to be.

It has no listing, no ranges and no digests, as the least of those that shards are read from.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

Fault = Literal["503", "403", "reset", "cut", "short", "wrong", "long"]
FAULTS: tuple[Fault, ...] = ("503", "reset", "cut", "short", "wrong", "long")
_PIECE = 1 << 16


@dataclass
class WebServer:
    """
    Args:
        root: the folder.
        latency_s: from a request to the first byte of its answer.
        bytes_per_s: over all connections together; 0: as fast as can be.
        tells_size: before a body comes; else it ends where the connection does.
        fault: which one befalls a request of a name (from the root), if any.

    Attributes:
        requests: how often each name was asked for with GET.
        sent: how many bodies of each name went out whole and right.
    """

    root: Path
    latency_s: float = 0.0
    bytes_per_s: float = 0.0
    fault: Callable[[str], Fault | None] = lambda name: None
    tells_size: bool = True
    url: str = ""
    requests: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    _alone: threading.Lock = field(default_factory=threading.Lock)
    _free_at: float = 0.0

    def wait_for_room(self, size: int) -> None:
        """Until so many bytes have gone through the line, which all answers share."""
        if not self.bytes_per_s:
            return
        with self._alone:
            self._free_at = max(self._free_at, time.monotonic()) + size / self.bytes_per_s
            until = self._free_at
        time.sleep(max(0.0, until - time.monotonic()))


class QuietHandler(BaseHTTPRequestHandler):
    """Keeps connections open, and prints nothing of what it is asked."""

    protocol_version = "HTTP/1.1"
    timeout = 30

    def log_message(self, *args: object) -> None:
        pass


class _Handler(QuietHandler):
    server_of: WebServer

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        server, name = self.server_of, self.path.lstrip("/")
        time.sleep(server.latency_s)
        file = server.root / name
        with server._alone:
            server.requests[name] += with_body
            fault = server.fault(name) if with_body else None
            if fault is not None:
                server.injected[fault] += 1
        if fault in ("503", "403"):
            return self._refuse(int(fault))
        if not file.is_file():
            return self._refuse(404)
        data = file.read_bytes()
        said = len(data)
        match fault:
            case "short":
                data = data[: len(data) * 2 // 3]
                said = len(data)
            case "wrong":
                middle = len(data) // 2
                data = (
                    data[:middle] + bytes(byte ^ 0x55 for byte in data[middle : middle + 4096]) + data[middle + 4096 :]
                )
            case "long":
                data += b"\0" * (3 * _PIECE)
                said = len(data)
            case "reset" | "cut":
                data = data[: len(data) // 2]
        self.send_response(200)
        self.close_connection = not server.tells_size
        self.send_header(*(("Content-Length", str(said)) if server.tells_size else ("Connection", "close")))
        self.end_headers()
        if not with_body:
            return
        with suppress(ConnectionError, TimeoutError):
            for start in range(0, len(data), _PIECE):
                piece = data[start : start + _PIECE]
                server.wait_for_room(len(piece))
                self.wfile.write(piece)
            if fault in ("reset", "cut"):
                break_off(self, reset=fault == "reset")
            elif fault is None:
                with server._alone:
                    server.sent[name] += 1

    def _refuse(self, status: int) -> None:
        body = b"<html>not now</html>"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *args: object) -> None:
        """Nothing: a connection that was broken off on purpose is no news."""


def break_off(answer: BaseHTTPRequestHandler, *, reset: bool) -> None:
    """End a connection amid an answer: in good order, or as a process that is gone."""
    answer.close_connection = True
    with suppress(ConnectionError, TimeoutError):
        answer.wfile.flush()
    if reset:
        answer.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer.connection.close()


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL at which one answers on this machine, to the end of the context."""
    server = _Threads(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def web_server(root: Path, **shape: float) -> Iterator[WebServer]:
    """One on this machine, to the end of the context; see `WebServer`."""
    server = WebServer(root, **shape)  # type: ignore[arg-type]
    with listening(type("Handler", (_Handler,), {"server_of": server})) as server.url:
        yield server
