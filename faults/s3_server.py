"""The least of an S3 that s3fs needs, in this process: its objects are a dictionary, each request may be told to fail.

What moto serves (`object_store`) is the more faithful; this one starts at once, counts what it is asked, says what it
was asked in words, and can break off amid a body or fall silent.

    GET /b?list-type=2&prefix=..    list   in pages
    GET, HEAD, PUT, DELETE /b/key   get head put delete
    POST /b/key?uploads             begin  PUT ?partNumber  part   POST ?uploadId  end   DELETE ?uploadId  abort
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import count
from typing import Literal, NamedTuple
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from faults.web_server import QuietHandler, break_off, listening

Refusal = tuple[int, str]  # a status, and S3's code for what is wrong
Fault = Refusal | Literal["reset", "cut", "stall"]

DENIED: Refusal = (403, "AccessDenied")
EXPIRED: Refusal = (400, "ExpiredToken")
SLOW_DOWN: Refusal = (503, "SlowDown")
TOO_MANY: Refusal = (429, "TooManyRequests")
INTERNAL: Refusal = (500, "InternalError")


class Asked(NamedTuple):
    """What a request is for.

    Args:
        what: see the module's text.
        key: of the object, or the prefix of a listing.
    """

    what: str
    bucket: str
    key: str


@dataclass
class S3Server:
    """
    Args:
        page: the most objects and folders that a listing says at once.
        fault: what befalls a request, if anything.

    Attributes:
        buckets: their objects by key.
        asked: every request, in the order of their coming.
        uploads: parts of what has not come whole, by the number of the upload.
        goes_on: what stalls waits for.
    """

    page: int = 1000
    fault: Callable[[Asked], Fault | None] = lambda asked: None
    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"bucket": {}})
    asked: list[Asked] = field(default_factory=list)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    goes_on: threading.Event = field(default_factory=threading.Event)
    _numbers: Iterator[int] = field(default_factory=count)
    _alone: threading.Lock = field(default_factory=threading.Lock)

    @property
    def environment(self) -> dict[str, str]:
        keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return {**keys, "AWS_ENDPOINT_URL": self.url}

    @property
    def objects(self) -> dict[str, bytes]:
        return self.buckets["bucket"]

    def clear(self) -> None:
        """As at the beginning."""
        self.fault = lambda asked: None
        self.buckets, self.uploads = {"bucket": {}}, {}
        self.asked.clear()

    def counted(self) -> Counter[str]:
        """How many requests of each kind there were."""
        return Counter(asked.what for asked in self.asked)


class _Handler(QuietHandler):
    server_of: S3Server

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        query = {name: values[0] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = Asked(_what(self.command, key, query), bucket, key or query.get("prefix", ""))
        server = self.server_of
        with server._alone:
            server.asked.append(asked)
            fault = server.fault(asked)
        if isinstance(fault, tuple):
            return self._refuse(*fault)
        if (objects := server.buckets.get(bucket)) is None:
            return self._refuse(404, "NoSuchBucket")
        match asked.what:
            case "list":
                self._answer(200, self._listing(objects, query), fault)
            case "get" | "head":
                self._give(objects, key, fault)
            case "begin":
                upload = str(next(server._numbers))
                server.uploads[upload] = {}
                self._answer(200, _xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>"), fault)
            case _:
                if fault is not None:  # of what would have been written nothing is
                    return self._answer(200, b"<nothing/>", fault)
                self._change(asked.what, objects, key, query, body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve

    def _give(self, objects: dict[str, bytes], key: str, fault: Fault | None) -> None:
        if (data := objects.get(key)) is None:
            return self._refuse(404, "NoSuchKey")
        ranges, status, said = self.headers.get("Range"), 200, {"ETag": _etag(data)}
        if ranges:
            first, _, last = ranges.removeprefix("bytes=").partition("-")
            whole, data, status = len(data), data[int(first) : int(last) + 1 if last else None], 206
            said["Content-Range"] = f"bytes {first}-{int(first) + len(data) - 1}/{whole}"
        self._answer(status, data, fault, **said)

    def _change(self, what: str, objects: dict[str, bytes], key: str, query: dict[str, str], body: bytes) -> None:
        uploads = self.server_of.uploads
        parts = uploads.get(query.get("uploadId", ""))
        if parts is None and what in ("part", "end", "abort"):
            return self._refuse(404, "NoSuchUpload")
        match what:
            case "put":
                objects[key] = body
                self._answer(200, b"", None, ETag=_etag(body))
            case "part":
                assert parts is not None
                parts[int(query["partNumber"])] = body
                self._answer(200, b"", None, ETag=_etag(body))
            case "end":
                assert parts is not None
                named = [int(number.text or 0) for number in ElementTree.fromstring(body).findall(".//{*}PartNumber")]
                objects[key] = b"".join(parts[number] for number in named)
                del uploads[query["uploadId"]]
                self._answer(200, _xml("CompleteMultipartUploadResult", f"<ETag>{_etag(objects[key])}</ETag>"), None)
            case "abort":
                del uploads[query["uploadId"]]
                self._answer(204, b"", None)
            case "delete":
                objects.pop(key, None)
                self._answer(204, b"", None)

    def _listing(self, objects: dict[str, bytes], query: dict[str, str]) -> bytes:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        found: dict[str, bytes | None] = {}  # None: a folder
        for key in sorted(objects):
            if key.startswith(prefix):
                head, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
                found[prefix + head + cut if cut else key] = None if cut else objects[key]
        after = query.get("continuation-token", "")
        names = [name for name in found if name > after]
        page = min(self.server_of.page, int(query.get("max-keys", "1000")))
        names, rest = names[:page], names[page:]
        text = f"<Name/><KeyCount>{len(names)}</KeyCount><IsTruncated>{'true' if rest else 'false'}</IsTruncated>"
        if query.get("encoding-type") == "url":
            text += "<EncodingType>url</EncodingType>"
        if rest:
            text += f"<NextContinuationToken>{escape(names[-1])}</NextContinuationToken>"
        for name in names:
            said, data = quote(name) if "encoding-type" in query else escape(name), found[name]
            if data is None:
                text += f"<CommonPrefixes><Prefix>{said}</Prefix></CommonPrefixes>"
                continue
            text += f"<Contents><Key>{said}</Key><Size>{len(data)}</Size><ETag>{_etag(data)}</ETag>"
            text += "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
        return _xml("ListBucketResult", text)

    def _refuse(self, status: int, code: str) -> None:
        said = f"<Error><Code>{code}</Code><Message>{code} it is</Message></Error>"
        self._answer(status, said.encode(), None)

    def _answer(self, status: int, body: bytes, fault: Fault | None, **headers: str) -> None:
        self.send_response(status)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        for name, value in {"Last-Modified": formatdate(0, usegmt=True), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body if fault is None else body[: len(body) // 2])
        if fault == "stall":
            self.server_of.goes_on.wait(self.timeout)
        if fault is not None:
            break_off(self, reset=fault == "reset")


def _what(method: str, key: str, query: dict[str, str]) -> str:
    match method:
        case "GET" if not key:
            return "list"
        case "POST":
            return "begin" if "uploads" in query else "end"
        case "PUT" if "partNumber" in query:
            return "part"
        case "DELETE" if "uploadId" in query:
            return "abort"
    return method.lower()


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(name: str, text: str) -> bytes:
    return f'<?xml version="1.0"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{text}</{name}>'.encode()


@contextmanager
def s3_server(*, page: int = 1000) -> Iterator[S3Server]:
    """One on this machine, to the end of the context; see `S3Server`."""
    server = S3Server(page=page)
    with listening(type("Handler", (_Handler,), {"server_of": server})) as server.url:
        try:
            yield server
        finally:
            server.goes_on.set()
