"""`lumos play` as it is typed: where it listens, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from experiments.cli import main
from tests.experiments.play.served import QUICK, asked
from tests.processes import Forked, fork, run_command
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


def test_where_the_page_is_stands_there_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["play", str(tmp_path / "absent"), "--port", "0"]) == 4
    printed = capsys.readouterr()
    place = urlsplit(printed.out.split()[0])
    assert place.hostname == "127.0.0.1" and place.port and str(tmp_path / "absent") in told(printed.err)


def printed_lines(process: Forked, count: int) -> list[str]:
    """The first lines that it prints, once they are there."""
    while len(lines := process.printed.read_text().splitlines(keepends=True)) < count or lines[-1][-1] != "\n":
        assert not process.has_ended, lines
        time.sleep(0.01)
    return lines


@pytest.mark.parametrize(
    ("number", "status", "host"),
    [(signal.SIGINT, 130, "127.0.0.1"), (signal.SIGTERM, -signal.SIGTERM, "0.0.0.0")],
)
def test_it_ends_at_once_amid_a_clip(number: signal.Signals, status: int, host: str, tmp_path: Path) -> None:
    """And whoever listens to the network is told what that means."""
    arguments = ("play", "--port", "0", "--device", "cpu", "--host", host)
    process = fork(tmp_path / "printed", {}, run_command, arguments)
    try:
        place = urlsplit(printed_lines(process, 1)[0].split()[0])
        assert place.hostname and place.port
        if host == "0.0.0.0":
            assert "password" in printed_lines(process, 2)[1]
        else:
            assert place.hostname == host
        connection = http.client.HTTPConnection("127.0.0.1", place.port, timeout=60)
        body = json.dumps(asked(frames=69, knobs=[QUICK | {"steps": 64}]))
        connection.request("POST", "/api/clips", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        while json.loads(response.readline())["kind"] != "codes":
            pass
        os.kill(process.pid, number)
        assert process.wait() == status
        assert "Traceback" not in process.printed.read_text()
        assert b'"made"' not in response.read()
    finally:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
