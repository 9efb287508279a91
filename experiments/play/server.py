"""The server of the page: its own few files, the clips in memory, and a stream for each clip in the making.

It trusts nobody who is not on this very page: a name that an attacker lets point here (DNS rebinding) is
refused by the Host header, another site's script by Origin and Sec-Fetch-Site.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import json
import socket
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_modules.media.decode import ClipRequest
from data_modules.media.reader import MediaReader
from experiments.play.about import describe
from experiments.play.address import is_loopback
from experiments.play.asked import REQUEST_BYTES, UPLOAD_BYTES, Asked
from experiments.play.jobs import Busy, Event, Job, Picture, Studio
from experiments.sample.arrangement import safe_name
from lumos_pl.errors import ConfigError, DataError, LumosError
from lumos_pl.tokenizers.code_colors import code_colors

PAGE = Path(__file__).parent / "page"
STYLES = ("look", "page")
SCRIPTS = ("page", "page_parts", "model", "making", "side", "drawing", "settings", "words", "uploading")
KINDS = {
    "index.html": "text/html",
    **{f"{name}.css": "text/css" for name in STYLES},
    **{f"{name}.js": "text/javascript" for name in SCRIPTS},
}
MEDIA_TYPES = {  # of the files of a clip
    "mp4": "video/mp4",
    "png": "image/png",
    "json": "application/json",
    "npy": "application/octet-stream",
}
BODY_SECONDS = 30
DECODE_SECONDS, DECODE_BYTES = 10, 2 << 30
OVERSIZE = 8  # so many times too large a body is still read to its end, so that its sender hears what is wrong
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
}


class TooLarge(DataError):
    """More bytes than are taken."""


def build_app(studio: Studio, *, host: str, name: str) -> Starlette:
    """The application; it ends the studio when it ends.

    Args:
        host: what it listens on: the one name, besides localhost and plain addresses, that it answers to.
        name: of the model, for the page.
    """
    handlers = _Handlers(studio, name)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            studio.stop()
            await run_in_threadpool(studio.join)

    app = Starlette(
        routes=[
            Route("/", handlers.page),
            Route("/{name:str}", handlers.page),
            Route("/api/about", handlers.about),
            Route("/api/palette", handlers.palette),
            Route("/api/pictures", handlers.upload, methods=["POST"]),
            Route("/api/clips", handlers.make, methods=["POST"]),
            Route("/api/clips/{name:str}", handlers.clip),
        ],
        middleware=[Middleware(OwnPageOnly, host=host)],
        exception_handlers={LumosError: _refused, HTTPException: _refused, ClientDisconnect: _gone, Exception: _failed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return app


class OwnPageOnly:
    """Answers requests of its own page alone, and says to browsers what the page may do.

    Args:
        host: see `build_app`.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._names = {"localhost", host.lower()}
        if not is_loopback(host):
            self._names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [(key.encode(), value.encode()) for key, value in HEADERS.items()]
            await send(message)

        foreign = self._foreign(scope)
        app = self._app if foreign is None else JSONResponse({"line": str(foreign)}, status_code=403)
        await app(scope, receive, send_with_headers)

    def _foreign(self, scope: Scope) -> ConfigError | None:
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if len(headers.getlist("host")) != 1 or not self._is_ours(host):
            return ConfigError("not the name of this page", where="Host", got=host[:80], expected="localhost")
        if origin is not None and origin.lower() != f"http://{host}".lower():
            return ConfigError("asked for by another site", where="Origin", got=origin[:80])
        site = headers.get("sec-fetch-site", "none")
        if site not in ("none", "same-origin") and (scope["method"], scope["path"]) != ("GET", "/"):
            return ConfigError("asked for by another site", where="Sec-Fetch-Site", got=site[:80])
        return None

    def _is_ours(self, host: str) -> bool:
        """An address cannot be made to point elsewhere; a name can, unless it is known."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            with suppress(ValueError):
                return bool(ipaddress.ip_address(name))
        except ValueError:
            return False
        return name in self._names


class _Handlers:
    """One for each path.

    Args:
        name: of the model.
    """

    def __init__(self, studio: Studio, name: str) -> None:
        self._studio = studio
        self._files = {file: (PAGE / file).read_bytes() for file in KINDS}
        self._about = describe(studio.pipeline, name)
        size = studio.pipeline.layout.codebook_size
        self._palette = code_colors(np.arange(size), size).tobytes()
        self._decoding = asyncio.Lock()

    async def page(self, request: Request) -> Response:
        file = request.path_params.get("name", "index.html")
        if file not in self._files:
            raise HTTPException(404)
        return Response(self._files[file], media_type=KINDS[file])

    async def about(self, request: Request) -> Response:
        return JSONResponse(self._about)

    async def palette(self, request: Request) -> Response:
        """The colour of every code, RGB."""
        return Response(self._palette, media_type="application/octet-stream")

    async def upload(self, request: Request) -> Response:
        """Keep the picture that the body is; of a video its first frame."""
        name = safe_name(request.query_params.get("name", "")[:200])[:80]
        data = await _body(request, "the picture", UPLOAD_BYTES)
        async with self._decoding:  # one at a time: each may take the memory of a large picture
            picture = await run_in_threadpool(self._decode, data, name)
        kept = self._studio.pictures.put(picture, picture.frames.numel())
        return JSONResponse({"picture": kept, "name": name})

    def _decode(self, data: bytes, name: str) -> Picture:
        clip = self._studio.pipeline.clip
        request = ClipRequest(sizes=((clip.width, clip.height),), fps=clip.fps, start=0.0, max_frames=1)
        with tempfile.NamedTemporaryFile(prefix="lumos-play-") as file:
            file.write(data)
            file.flush()
            try:
                with MediaReader(time_limit_s=DECODE_SECONDS, memory_limit_bytes=DECODE_BYTES) as reader:
                    frames = torch.from_numpy(reader.read(Path(file.name), request).frames)
            except DataError as error:
                raise DataError(**error.parts | {"file": name}) from None
        return Picture(frames=frames, name=name, sha256=hashlib.sha256(data).hexdigest())

    async def make(self, request: Request) -> Response:
        """Make a clip, and tell as it comes along: a line of JSON for each event. Who hangs up has left."""
        if request.headers.get("content-type") != "application/json":
            raise ConfigError("not JSON", where="Content-Type", expected="application/json")
        asked = Asked.read(await _body(request, "the request", REQUEST_BYTES))
        events: asyncio.Queue[Event | None] = asyncio.Queue()
        job = Job(asked=asked, visitor=_visitor(request), tell=_into(events))
        self._studio.submit(job)
        return StreamingResponse(self._tell(job, events), media_type="application/x-ndjson")

    async def _tell(self, job: Job, events: asyncio.Queue[Event | None]) -> AsyncIterator[bytes]:
        try:
            while (event := await events.get()) is not None:
                yield json.dumps(event, separators=(",", ":")).encode() + b"\n"
        finally:
            self._studio.leave(job)

    async def clip(self, request: Request) -> Response:
        """A file of a clip that is kept: the clip itself, its record, or its codes."""
        name, _, kind = request.path_params["name"].partition(".")
        kept = self._studio.clips.get(name)
        media_type = MEDIA_TYPES.get(kind)
        if media_type is None:
            raise HTTPException(404)
        if kind == "json":
            data = json.dumps(kept.record, indent=1).encode() + b"\n"
        else:
            data = await run_in_threadpool(kept.clip.encode, f".{kind}")
        file = kept.file.removesuffix(kept.suffix) + f".{kind}"
        disposition = {"content-disposition": f'attachment; filename="{file}"'}
        return Response(data, media_type=media_type, headers=disposition)


def _visitor(request: Request) -> str:
    """Who asks: a page says its own random name; others are told apart by their address."""
    named = request.headers.get("lumos-visitor", "")[:64]
    return named or (request.client.host if request.client else "")


def _into(events: asyncio.Queue[Event | None]) -> Callable[[Event | None], None]:
    """Puts events of any thread into a queue of this loop."""
    loop = asyncio.get_running_loop()

    def tell(event: Event | None) -> None:
        with suppress(RuntimeError):  # the loop has ended, and with it who listened
            loop.call_soon_threadsafe(events.put_nowait, event)

    return tell


async def _body(request: Request, what: str, at_most: int) -> bytes:
    """
    Raises:
        TooLarge: it has more bytes than `at_most`.
    """
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > OVERSIZE * at_most:
                    break
                if size <= at_most:
                    parts.append(part)
    except TimeoutError:
        raise DataError(f"{what} does not arrive", expected=f"within {BODY_SECONDS} s") from None
    if size > at_most:
        raise TooLarge(f"{what} is too large", got=f"{size} bytes or more", expected=f"at most {at_most} bytes")
    return b"".join(parts)


def _line(line: str, status: int) -> JSONResponse:
    return JSONResponse({"line": line}, status_code=status)


async def _refused(request: Request, error: Exception) -> Response:
    match error:
        case TooLarge():
            return _line(str(error), 413)
        case Busy():
            return _line(str(error), 429)
        case HTTPException():
            return _line(f"nothing is here | {error.detail}", error.status_code)
    return _line(str(error), 400)


async def _gone(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # which nobody reads


async def _failed(request: Request, error: Exception) -> Response:
    return _line("the request failed | see the terminal of `lumos play`", 500)
