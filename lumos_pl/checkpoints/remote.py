"""A run's complete checkpoints in an object store, and back: what a new machine goes on from.

URL/EXP/NAME/checkpoints/step-00000100.ckpt          or, of several ranks, the files of a folder of this name
             checkpoints/step-00000100.ckpt.sha256   its digest, the last to come and the first to go: whatever has
                                                     one is whole
             uploads.json                            which run this is of, and what it has put here; also in the
                                                     run's folder, and the same there
             config.yaml, metrics.jsonl, ...         the run's small files, no older than the newest checkpoint
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from typing_extensions import TypedDict

from lumos_pl.checkpoints.complete import complete, kept_checkpoints, step_of
from lumos_pl.checkpoints.digests import DIGEST, digest_file, digested_files, lines_of
from lumos_pl.checkpoints.trouble import check_space, in_words, write_again
from lumos_pl.errors import CheckpointError, ConfigError, LumosError
from lumos_pl.machinery.atomic_file import make_folder, write_atomically
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.machinery.own_files import note, partial_of
from lumos_pl.machinery.regular_file import read_regular
from lumos_pl.machinery.retrying import RetryConfig
from lumos_pl.machinery.store import Store, masked

SMALL_FILES = ("config.yaml", "changes.jsonl", "attempts.jsonl", "left_out.jsonl", "metrics.jsonl")
UPLOADS = "uploads.json"
SETTING = "checkpoint.upload"
CHECKPOINTS = "checkpoints"

log = logging.getLogger(__name__)


class _Uploaded(TypedDict):
    """A checkpoint in the store: the sha256 of its digest, and the names of its files."""

    digest: str
    files: list[str]


class _Uploads(TypedDict):
    """What a run has put into a store.

    Args:
        run: drawn when the run began to, so that another of the same name is known for another.
        checkpoints: by name; noted before anything of one is there.
    """

    run: str
    checkpoints: dict[str, _Uploaded]


def _store(upload: str, run: Path, retry: RetryConfig) -> Store:
    run = run.absolute()
    return Store(f"{upload.rstrip('/')}/{run.parent.name}/{run.name}", retry, where=SETTING)


def _step(name: str) -> int:
    """Of a checkpoint by its name; -1: it is none."""
    with suppress(ValueError):
        return step_of(Path(name))
    return -1


# -- there -----------------------------------------------------------------------------------------


class Upload:
    """Copies the complete checkpoints of a run to an object store, in the background; rank 0's work.

    One after the other, and of those that wait only the newest and those that stay. What fails is tried again, then
    told in a line; the next checkpoint is tried all the same. The store keeps as many as the run does, by the same
    rule, and only what this run uploaded is replaced or removed there.

    Args:
        upload: the setting `checkpoint.upload`.
        run: the run's folder, RUNS/EXP/NAME.
        keep: how many of the newest stay there; 0: all do.
        stays: whether a checkpoint stays however old it is.
    """

    def __init__(self, upload: str, run: Path, *, keep: int, stays: Callable[[Path], bool], retry: RetryConfig) -> None:
        self.upload, self.run, self.keep, self.stays = upload, run, keep, stays
        self._open = functools.cache(lambda: _store(upload, run, retry))
        self._changed = threading.Condition()
        self._waiting: list[Path] = []
        self._copied: Path | None = None  # just now
        self._thread: threading.Thread | None = None

    def check(self) -> None:
        """See before the first step that the store takes the run's checkpoints; one that does not answer may later.

        Raises:
            ConfigError: it is not known, does not allow it, or has another run of this name.
        """
        try:
            self._uploads()
        except ConfigError:
            raise
        except (ImportError, FileNotFoundError, PermissionError) as error:
            raise self._open().failure(error, "no checkpoint can be uploaded") from error
        except Exception as error:
            log.warning(
                "the store does not answer: %s | %s | tried again with a checkpoint", self.upload, masked(error)
            )

    def begin(self, checkpoint: Path) -> None:
        """Have a checkpoint of the run's copied, which is complete and stays until that is done, see `holds`."""
        with self._changed:
            self._waiting = [*filter(self.stays, self._waiting), checkpoint]
            if self._thread is None:
                self._thread = threading.Thread(target=self._copy_all, daemon=True, name="upload")
                self._thread.start()

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is being copied, or waits for it: it must not be removed."""
        with self._changed:
            return checkpoint == self._copied or checkpoint in self._waiting

    def finish(self, within_s: float) -> None:
        """Wait for what was begun, so many seconds at most; what is not done by then is told in a line."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._thread is None, within_s):
                left = ", ".join(file.name for file in (self._copied, *self._waiting) if file is not None)
                log.warning("not uploaded within %.0f s: %s | %s", within_s, left, self.upload)

    def _copy_all(self) -> None:
        while True:
            with self._changed:
                self._copied = self._waiting.pop(0) if self._waiting else None
                if self._copied is None:
                    self._thread = None
                    self._changed.notify_all()
                    return
                checkpoint = self._copied
            try:
                self._copy(checkpoint)
            except Exception as error:  # whatever it is, it must not end the run
                log.warning("not uploaded: %s | %s | the next one is tried", checkpoint, masked(error))

    def _copy(self, checkpoint: Path) -> None:
        store, uploads, start = self._open(), self._uploads(), time.monotonic()
        name, digest = checkpoint.name, read_regular(digest_file(checkpoint))
        again = name in uploads["checkpoints"]
        if not again and store.size(_digest(name)) is not None:
            raise ConfigError("another's checkpoint has this name", file=f"{store.url}/{_digest(name)}")
        files = digested_files(digest, name)
        uploads["checkpoints"][name] = {"digest": hashlib.sha256(digest).hexdigest(), "files": files}
        self._note(uploads)
        if again:
            store.remove(_digest(name))  # of one that was damaged here
        for file in files:
            store.send(checkpoint.parent / file, f"{CHECKPOINTS}/{file}")
        for small in SMALL_FILES:
            if (data := _small(self.run / small)) is not None:
                store.write(small, data)
        store.write(_digest(name), digest)
        log.info("uploaded: %s | %s | %.1f s", checkpoint, store.url, time.monotonic() - start)
        try:
            self._remove_old(uploads, step_of(checkpoint))
        except Exception as error:
            log.warning("older ones are not removed: %s | %s | it is tried with the next", store.url, masked(error))

    def _remove_old(self, uploads: _Uploads, step: int) -> None:
        """As `Rotation.remove_old`: digest first, so that nothing is left that seems whole."""
        store, checkpoints = self._open(), uploads["checkpoints"]
        own = sorted((name for name in checkpoints if 0 <= _step(name) <= step), key=_step)
        old = [name for name in own[: -self.keep] if not self.stays(Path(name))]  # none if `keep` is 0
        for name in old:
            there = store.read(_digest(name))
            if there is None or hashlib.sha256(there).hexdigest() == checkpoints[name]["digest"]:
                store.remove(_digest(name))
                for file in checkpoints[name]["files"]:
                    store.remove(f"{CHECKPOINTS}/{file}")
            else:
                log.warning("not removed: %s/%s | it is not what was uploaded", store.url, _digest(name))
            del checkpoints[name]
        if old:
            self._note(uploads)

    def _uploads(self) -> _Uploads:
        """What this run has put there.

        Raises:
            ConfigError: another run has put something there.
        """
        store = self._open()
        there, here = store.read(UPLOADS), _small(self.run / UPLOADS)
        own: _Uploads = parse_json(here, _Uploads) if here else {"run": secrets.token_hex(8), "checkpoints": {}}
        if there is None:
            if store.names(CHECKPOINTS):
                raise _anothers(store.url)
            own["checkpoints"] = {}
            self._note(own)
            return own
        found = parse_json(there, _Uploads)
        if found["run"] != own["run"]:
            raise _anothers(store.url)
        return found

    def _note(self, uploads: _Uploads) -> None:
        text = json.dumps(uploads)
        write_atomically(self.run / UPLOADS, text)
        self._open().write(UPLOADS, text.encode())


def _anothers(url: str) -> ConfigError:
    fix = "give another run.name, or go on with that one: --resume-or-start in a folder without it"
    return ConfigError("another run has put its checkpoints there", file=url, where=SETTING, fix=fix)


def _digest(name: str) -> str:
    return f"{CHECKPOINTS}/{name}{DIGEST}"


def _small(file: Path) -> bytes | None:
    """A file's lines, without one that is just being written; None: there is no such file."""
    if not os.path.lexists(file):
        return None
    data = read_regular(file, follow=False)
    return data[: data.rfind(b"\n") + 1] if file.suffix == ".jsonl" else data


# -- and back --------------------------------------------------------------------------------------


def restore(upload: str, run: Path, *, retry: RetryConfig) -> Path | None:
    """Bring a run's newest whole checkpoint, and the run's small files, into its folder; rank 0's work, under its lock.

    Only where that checkpoint is of a later step than all that have a digest in the folder. Each is compared with its
    digest on arrival, and one that is damaged or not whole is passed over, with a line. What lies in the folder already
    and is not ours, or no beginning of what comes, is kept aside. The small files come first: who is killed between
    would not bring them once there is a checkpoint. They come, too, where neither side has one: whose run it is stays.

    Args:
        upload: the setting `checkpoint.upload`.
        run: the run's folder, RUNS/EXP/NAME; made if need be.
    Returns:
        the checkpoint that came; None: the store has none, or none that is newer.
    Raises:
        TemporaryError: the store does not answer, or answers with errors, for longer than `retry` allows; or there is
            too little space.
        ConfigError: `upload` is no URL of a store that is known here, or one that may not be read.
    """
    store = _store(upload, run, retry)
    try:
        here = max(
            (step_of(file) for file in kept_checkpoints(run / CHECKPOINTS) if digest_file(file).is_file()), default=-1
        )
        names = [name.removesuffix(DIGEST) for name in store.names(CHECKPOINTS) if name.endswith(DIGEST)]
        newer = sorted((name for name in names if _step(name) > here), key=_step, reverse=True)
        if newer or here < 0:
            make_folder(run / CHECKPOINTS, error=ConfigError, where="run.dir")
            _bring_small_files(store, run)
        for name in newer:
            try:
                checkpoint = _arrived(store, name, run, retry)
            except CheckpointError as error:
                log.warning("passed over: %s", error)
                continue
            return checkpoint
    except (LumosError, ImportError):
        raise
    except Exception as error:
        raise store.failure(error, "no checkpoint can be fetched") from error
    return None


def _arrived(store: Store, name: str, run: Path, retry: RetryConfig) -> Path:
    """A checkpoint of the store's, complete in the run's folder.

    Raises:
        CheckpointError: it is not what its digest says.
    """
    url = f"{store.url}/{_digest(name)}"
    digest = store.read(_digest(name))
    if digest is None:
        raise CheckpointError("no such checkpoint", file=url)
    files = digested_files(digest, name, url)
    sizes = {file: store.size(f"{CHECKPOINTS}/{file}") for file in files}
    if (missing := next((file for file, size in sizes.items() if size is None), None)) is not None:
        raise CheckpointError("a part of the checkpoint is missing", file=url, where=missing)
    folder = run / CHECKPOINTS
    check_space(folder, sum(size or 0 for size in sizes.values()))
    final = folder / name
    partial = partial_of(final)
    try:
        if files != [name]:
            partial.mkdir()
        for file in files:
            store.fetch(f"{CHECKPOINTS}/{file}", partial / Path(file).name if files != [name] else partial)
        lines = write_again(lambda: lines_of(partial, name), retry, f"digest {partial}")
        if sorted(lines.splitlines()) != sorted(digest.decode().splitlines()):
            raise CheckpointError("checkpoint is damaged", file=url, got="another sha256 than was uploaded")
        complete(partial, final, digest.decode(), retry=retry)
    except OSError as error:
        if isinstance(error, FileNotFoundError):  # the store's: it has just gone
            raise CheckpointError("a part of the checkpoint is missing", file=url, got=in_words(error)) from error
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True) if partial.is_dir() else partial.unlink(missing_ok=True)
    return final


def _bring_small_files(store: Store, run: Path) -> None:
    for name in (*SMALL_FILES, UPLOADS):
        data, file = store.read(name), run / name
        if data is None:
            continue
        here = read_regular(file, follow=False) if file.is_file() and not file.is_symlink() else None
        if here is not None and here.startswith(data):
            continue
        if here is not None and data.startswith(here):
            note(file, hashlib.sha256(here).hexdigest())  # what comes begins with it: nothing is lost
        write_atomically(file, data)
        note(file, hashlib.sha256(data).hexdigest())
