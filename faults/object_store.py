"""An object store of this machine (moto's S3) in a process of its own, which can be told to answer 503 for a while.

Bodies of shards can be garbled on their way, too: bytes flipped, an end cut off with or without a word, more behind it.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.sharedctypes import Synchronized
from typing import Any

BUCKET = "checkpoints"
SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class ObjectStore:
    """Where it listens; how many requests it refuses and bodies it garbles from now on, and has refused or garbled."""

    endpoint: str
    to_refuse: Synchronized[int]
    refused: Synchronized[int]
    to_garble: Synchronized[int]

    @property
    def environment(self) -> dict[str, str]:
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def refuse(self, requests: int) -> None:
        self.to_refuse.value = requests

    def garble(self, bodies: int) -> None:
        self.to_garble.value = bodies


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """One with an empty bucket, to the end of the context."""
    context = multiprocessing.get_context("fork")
    to_refuse, refused, to_garble = (context.Value("i", 0) for _ in range(3))
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(there, to_refuse, refused, to_garble), daemon=True)
    process.start()
    try:
        yield ObjectStore(here.recv(), to_refuse, refused, to_garble)
    finally:
        process.kill()
        process.join()


def _garbled(number: int, body: bytes) -> tuple[bytes, int]:
    """A body that is not what it was, and the length that is said of it."""
    match number % 4:
        case 0:
            return bytes([body[0] ^ 1]) + body[1:], len(body)
        case 1:
            return body[: len(body) // 2], len(body)
        case 2:
            return body[: len(body) // 3], len(body) // 3
        case _:
            return body + b"more", len(body) + 4


def _serve(
    told: Connection, to_refuse: Synchronized[int], refused: Synchronized[int], to_garble: Synchronized[int]
) -> None:
    os.environ.update(KEYS)
    import logging

    import boto3  # type: ignore[import-untyped]
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    application = DomainDispatcherApplication(create_backend_app)

    def refusing(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        with to_refuse.get_lock():
            refuses = to_refuse.value > 0
            to_refuse.value -= refuses
            refused.value += refuses
        if refuses:
            start("503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(SLOW_DOWN)))])
            environment["wsgi.input"].read(int(environment.get("CONTENT_LENGTH") or 0))
            return [] if environment["REQUEST_METHOD"] == "HEAD" else [SLOW_DOWN]
        is_shard = environment["REQUEST_METHOD"] == "GET" and environment["PATH_INFO"].endswith(".tar")
        with to_garble.get_lock():
            number = to_garble.value if is_shard else 0
            to_garble.value -= number > 0
            with refused.get_lock():
                refused.value += number > 0
        if not number:
            return application(environment, start)  # type: ignore[no-any-return]
        answered: list[Any] = []
        body = b"".join(application(environment, lambda *said: answered.append(said)))
        (status, headers, *_), (body, length) = answered[0], _garbled(number, body)
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start(status, [*kept, ("Content-Length", str(length))])
        return [body]

    server = make_server("127.0.0.1", 0, refusing, threaded=True)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    import threading

    threading.Thread(target=server.serve_forever, daemon=True).start()
    boto3.client("s3", endpoint_url=endpoint).create_bucket(Bucket=BUCKET)
    told.send(endpoint)
    threading.Event().wait()
