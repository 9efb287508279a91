"""Paths of files and folders, where a URL would silently be taken for one: `s3://b/runs` for `./s3:/b/runs`."""

from __future__ import annotations

import re

from lumos_pl.errors import ConfigError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # with one slash too: a Path keeps no second one
MOUNT = "copy it to a disk of this machine first, or mount the store"


def check_local(where: str, path: object, *, fix: str = MOUNT) -> None:
    """Raise ConfigError at a URL.

    Args:
        where: the setting or flag.
        path: what stands there; what is no text or path is none of this function's business.
        fix: the way that there is.
    """
    if path is not None and _URL.match(str(path)):
        raise ConfigError("a URL where a path belongs", where=where, got=repr(str(path)[:100]), fix=fix)
