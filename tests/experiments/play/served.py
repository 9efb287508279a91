"""A page of `lumos play` on a free port, and what a visitor does there without a browser."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from torch import Tensor

from experiments.play.jobs import Studio
from experiments.play.server import build_app
from lumos_pl.pipeline import LumosPipeline

QUICK = {"guidance": 1.0, "steps": 2, "partial_context": 0.4, "temperature": 0.5}


@dataclass(frozen=True, kw_only=True, eq=False)
class GatedPipeline(LumosPipeline):
    """Begins to make a clip only where the gate is open, and says that it would."""

    gate: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def generate_codes(self, *arguments: Any, **options: Any) -> list[Tensor]:
        self.arrived.release()
        assert self.gate.wait(60)
        return super().generate_codes(*arguments, **options)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def line(self) -> str:
        """What a refusal says, which is one line."""
        line: str = json.loads(self.body)["line"]
        assert line and "\n" not in line and "Traceback" not in line
        return line


class Stream:
    """A clip in the making, as its visitor hears of it."""

    def __init__(self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> None:
        self._connection, self._response = connection, response

    def next(self) -> dict[str, Any] | None:
        """The next event; None: there are no more."""
        line = self._response.readline()
        return json.loads(line) if line else None

    def until(self, kind: str) -> dict[str, Any]:
        while (event := self.next()) is not None:
            if event["kind"] == kind:
                return event
        raise AssertionError(f"no {kind}")

    def made(self) -> dict[str, Any]:
        """The last of all events, which says where the clip is."""
        last = self.rest()[-1]
        assert last["kind"] == "made", last
        return last

    def rest(self) -> list[dict[str, Any]]:
        return list(iter(self.next, None))

    def hang_up(self) -> None:
        self._response.close()
        self._connection.close()


@dataclass(frozen=True)
class Page:
    """Where it is served."""

    port: int
    studio: Studio

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, b"", headers)

    def post(self, path: str, body: object, **headers: str) -> Answer:
        """An object goes as JSON, bytes as they are."""
        if isinstance(body, bytes):
            return self.ask("POST", path, body, headers)
        return self.ask("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})

    def ask(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {key.replace("_", "-"): value for key, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def make(self, visitor: str = "anna", **changes: object) -> Stream:
        """Ask for a clip that is quick to make; it must not be refused at once."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json", "Lumos-Visitor": visitor}
        connection.request("POST", "/api/clips", json.dumps(asked(**changes)), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        return Stream(connection, response)


def asked(**changes: object) -> dict[str, Any]:
    return {"caption": "a big red circle moves left fast", "seed": 3, "frames": 5, "knobs": [QUICK], **changes}


@contextmanager
def serve(pipeline: LumosPipeline) -> Iterator[Page]:
    studio = Studio(pipeline)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        app = build_app(studio, host="127.0.0.1", name="")
        config = uvicorn.Config(app, log_level="warning", http="h11", ws="none", timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield Page(listening.getsockname()[1], studio)
        finally:
            studio.stop()
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
