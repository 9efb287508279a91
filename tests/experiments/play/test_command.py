"""`lumos play` as it is typed: where it listens, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from experiments.cli import main
from tests.experiments.play.served import QUICK, asked
from tests.processes import ROOT
from tests.refusals import told


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["play", "no/such/run", "--port", str(port)]) == 2
    assert {"--port", f"got {port}"} <= set(told(capsys.readouterr().err))


@pytest.mark.parametrize(
    ("arguments", "where"), [(["--port", "70000"], "--port"), (["--host", "no-such-host.invalid"], "--host")]
)
def test_where_it_cannot_listen(arguments: list[str], where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["play", *arguments]) == 2
    assert where in told(capsys.readouterr().err)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn"])
def test_a_missing_server_is_said_with_what_to_type(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["play", "--port", "0"]) == 2
    assert "pip install 'lumos_pl[play]'" in told(capsys.readouterr().err)


@contextmanager
def running(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command, and the address that it says."""
    command = [sys.executable, "-m", "experiments.cli", "play", "--port", "0", "--device", "cpu", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().split()[0]
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status", "host"),
    [(signal.SIGINT, 130, "127.0.0.1"), (signal.SIGTERM, -signal.SIGTERM, "0.0.0.0")],
)
def test_it_ends_at_once_amid_a_clip(number: signal.Signals, status: int, host: str) -> None:
    """And whoever listens to the network is told what that means."""
    with running("--host", host) as (process, address):
        place = urlsplit(address)
        assert place.hostname and place.port
        if host == "0.0.0.0":
            assert process.stdout is not None
            assert "password" in process.stdout.readline()
        else:
            assert place.hostname == host
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
        body = json.dumps(asked(frames=69, knobs=[QUICK | {"steps": 64}]))
        connection.request("POST", "/api/clips", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        while json.loads(response.readline())["kind"] != "codes":
            pass
        os.kill(process.pid, number)
        _, errors = process.communicate(timeout=20)
        assert process.returncode == status
        assert "Traceback" not in errors
        assert b'"made"' not in response.read()
