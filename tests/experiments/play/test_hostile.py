"""The page and those who do not mean well: each gets one line, and nothing else."""

from __future__ import annotations

import io
import json
import socket
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from experiments.play import server as server_module
from experiments.play.asked import CAPTION_CHARS, REQUEST_BYTES, UPLOAD_BYTES
from tests.experiments.play.served import QUICK, Page, asked


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb() -> bytes:
    """A picture of 16,000 x 6,000 of one color in few bytes, or so it says."""
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 10**6))


def video_bomb() -> bytes:
    """Some kilobytes that say they last for months, of one large picture again and again."""
    encoded = io.BytesIO()
    with av.open(encoded, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 4096, 2160, "yuv420p"
        stream.time_base = Fraction(1, 1)
        frame = av.VideoFrame.from_ndarray(np.zeros((2160, 4096, 3), np.uint8), format="rgb24")
        for time in (0, 1, 10_000_000):
            frame.pts = time
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = encoded.getvalue()
    assert len(content) < 1 << 20
    return content


@pytest.mark.parametrize(
    "path",
    [
        *("/server.py", "/page", "/page/", "/page/index.html", "/../server.py", "/%2e%2e/server.py", "/..%2fserver.py"),
        *("//etc/passwd", "/page.css/", "/page.css%00", "/./page.css", "/api", "/api/", "/api/clips", "/api/jobs"),
        *("/api/clips/../about", "/api/clips/..%2f..%2fserver.py", "/api/clips/.json", "/api/clips/x.mp4"),
    ],
)
def test_nothing_else_is_served(page: Page, path: str) -> None:
    answer = page.get(path)
    assert 400 <= answer.status < 500 and b"import" not in answer.body
    assert answer.line


def test_a_clip_has_three_files_and_no_fourth(page: Page) -> None:
    clip = page.make(frames=1).made()["clip"]
    assert page.get(f"/api/clips/{clip}.json").status == 200
    for name in f"{clip}.py", f"{clip}.", clip, f"{clip}.json.json", f"{clip[:-1]}.json", f"{clip.swapcase()}.json":
        assert 400 <= page.get(f"/api/clips/{name}").status < 500
    assert page.get(f"/api/clips/{clip}.mp4").status in (200, 400)


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:80", "localhost.evil.example", "", "[", "a@b"]
)
@pytest.mark.parametrize("path", ["/", "/api/about", "/page.js"])
def test_another_name_of_this_machine_is_refused(page: Page, host: str, path: str) -> None:
    answer = page.get(path, Host=host)
    assert answer.status == 403 and answer.line
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8765", "[::1]:80", "192.0.2.7"])
def test_its_own_names_and_addresses_are_not(page: Page, host: str) -> None:
    assert page.get("/", Host=host).status == 200


def test_two_names_at_once_are_refused(page: Page) -> None:
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall(b"GET /api/about HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"403")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "https://localhost"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_another_site_can_ask_for_nothing(page: Page, headers: dict[str, str]) -> None:
    for answer in (
        page.post("/api/clips", asked(), Host="localhost", **headers),
        page.post("/api/pictures", b"x", Host="localhost", **headers),
        page.get("/api/about", Host="localhost", **headers),
    ):
        assert answer.status == 403 and answer.line


def test_its_own_page_can(page: Page) -> None:
    own = {"Origin": f"http://localhost:{page.port}", "Sec_Fetch_Site": "same-origin", "Host": f"localhost:{page.port}"}
    assert page.get("/api/about", **own).status == 200
    assert page.post("/api/clips", asked(frames=1), **own).status == 200


def test_a_form_of_another_site_is_no_request(page: Page) -> None:
    answer = page.post("/api/clips", json.dumps(asked()).encode(), Content_Type="text/plain")
    assert answer.status == 400 and answer.line


@pytest.mark.parametrize(
    "changes",
    [
        {"caption": ""},
        {"caption": " \n"},
        {"caption": "x" * (CAPTION_CHARS + 1)},
        {"caption": 5},
        {"caption": "\ud800"},
        {"seed": -1},
        {"seed": 1 << 60},
        {"seed": True},
        {"seed": 1.5},
        {"frames": 0},
        {"frames": 10**9},
        {"frames": "5"},
        {"knobs": []},
        {"knobs": [QUICK] * 3},
        {"knobs": [QUICK | {"steps": 0}]},
        {"knobs": [QUICK | {"steps": 10**6}]},
        {"knobs": [QUICK | {"guidance": 1e300}]},
        {"knobs": [QUICK | {"temperature": 0}]},
        {"knobs": [QUICK | {"partial_context": -0.1}]},
        {"knobs": [QUICK | {"top_k": 5}]},
        {"knobs": [{}]},
        {"picture": "../x"},
        {"picture": "A" * 24, "clip": "A" * 24},
        {"device": "cuda"},
    ],
    ids=str,
)
def test_what_cannot_be_made_is_one_line(page: Page, changes: dict[str, object]) -> None:
    answer = page.post("/api/clips", asked(**changes))
    assert answer.status == 400 and len(answer.line) < 500


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"5", b'"x"', b"[" * 16_000, b'{"seed": NaN}', b"\xff", b'{"a":1,"a":2}']
)
def test_what_is_no_request_is_one_line(page: Page, body: bytes) -> None:
    answer = page.post("/api/clips", body, Content_Type="application/json")
    assert answer.status == 400 and len(answer.line) < 500


def test_a_caption_of_ten_megabytes_is_read_to_its_end_and_refused(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "OVERSIZE", 11 << 20)
    answer = page.post("/api/clips", asked(caption="x" * (10 << 20)))
    assert answer.status == 413 and str(REQUEST_BYTES) in answer.line


def test_a_caption_is_text_wherever_it_goes(page: Page) -> None:
    caption = '"><img src=x onerror=alert(1)>\r\nSet-Cookie: a=b'
    made = page.make(caption=caption, frames=1).made()
    record = page.get(f"/api/clips/{made['clip']}.json")
    assert record.headers["content-type"] == "application/json"
    assert "set-cookie" not in record.headers and record.headers["content-disposition"].endswith('-a-b.json"')
    assert json.loads(record.body)["request"]["prompt"] == caption


def test_an_upload_that_is_too_large_is_refused(page: Page) -> None:
    answer = page.post("/api/pictures", bytes(UPLOAD_BYTES + 1))
    assert answer.status == 413 and str(UPLOAD_BYTES) in answer.line


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"<svg onload=alert(1)>", b"GIF89a" + bytes(99), png_bomb()],
    ids=["empty", "text", "cut off", "svg", "gif", "bomb"],
)
def test_an_upload_that_is_no_picture_is_refused(page: Page, content: bytes) -> None:
    answer = page.post("/api/pictures?name=%3Cb%3E.png", content)
    assert answer.status == 400 and "<b>.png" in answer.line and "/tmp" not in answer.line


def test_of_a_video_that_would_last_for_months_one_frame_is_read(page: Page) -> None:
    answer = page.post("/api/pictures", video_bomb())
    assert answer.status in (200, 400)  # within the reader's limits either way
    assert answer.status == 200 or answer.line


def test_an_upload_that_takes_too_long_is_refused(page: Page, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(server_module, "BODY_SECONDS", 0.05)
    with socket.create_connection(("127.0.0.1", page.port), timeout=30) as connection:
        connection.sendall(b"POST /api/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nx")
        assert connection.recv(100).split()[1] == b"400"
