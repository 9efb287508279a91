"""From video and image files with captions to shards: `lumos tokenize`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_modules.media.reader import MediaReader
from data_modules.shards.manifest import Manifest
from data_modules.shards.writer import KIND_FOLDERS, default_shard_size
from data_modules.tokenizing.clips_of_video import Task
from data_modules.tokenizing.growing import GrowingShards
from data_modules.tokenizing.journal import Journal, Outcome
from data_modules.tokenizing.ledger import LEDGER_FILE, Ledger
from data_modules.tokenizing.media_item import MediaItem
from data_modules.tokenizing.media_list import MediaList, open_media_list
from data_modules.tokenizing.parts import WHOLE
from data_modules.tokenizing.ray_engine import run_on_ray
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.state import (
    ONE_NAME,
    Begun,
    Counts,
    TokenizeFolder,
    begin_parts,
    knows_as_spelled,
    recorded_shard_size,
)
from data_modules.tokenizing.work import OnProgress, Work
from data_modules.tokenizing.workers import ClipMaker, run_tasks
from lumos_pl.checkpoints.named import resolve_latest
from lumos_pl.errors import ConfigError, DataError, LumosError
from lumos_pl.settings.plain import check_instance, read_value
from lumos_pl.tokenizers.load import VISUAL_TOKENIZER_FILE, load_visual_tokenizer, open_text_tokenizer
from lumos_pl.tokenizers.text import HuggingFaceTokenizer
from lumos_pl.tokenizers.visual import VisualTokenizer

Claim = Callable[[Path, dict[str, Any], str | None], None]
"""Called before the work with a folder, its settings and the digest of the list, None for the folder of all parts;
raises DataError where the shards are to lie in the end and others lie already."""


def tokenize_media(
    source: str | Path,
    out: str | Path,
    tokenizer_source: str | Path,
    settings: TokenizeSettings,
    *,
    on_progress: OnProgress | None = None,
    on_list: Callable[[MediaList], None] = lambda items: None,
    claim: Claim | None = None,
) -> dict[str, Manifest]:
    """Write the clips of `source` as shards: images to `out/images`, videos to `out/videos`.

    The result is the same to the byte whatever the number of workers, and after any number of
    interruptions, kills included: the same call goes on where the last one was. Shards are written as they are filled,
    and are final. A file that cannot be used is named with its reason in `out/quarantine.jsonl`. Where all is done
    already, nothing is done. Later the list may have more rows, and another order: what is new is done then.

    One of several parts (`settings.part`) has all this in `out/part-00000-of-00004`, and `out` is one data set when all
    parts are there: of the same samples, in another order.

    Args:
        source: see `open_media_list`.
        tokenizer_source: see `load_visual_tokenizer`.
        on_progress: called at the start and after each item.
        on_list: called once the list is read.
        claim: see `Claim`.
    Returns:
        the manifest of each folder of shards, by its name; of a part perhaps none.
    Raises:
        ConfigError: a setting is wrong, or other than when `out` was begun, or the list lacks what was done of it.
        DataError: a row of the list is wrong, `out` holds something else, a worker died, or nothing
            could be used, or too little.
        TemporaryError: media cannot be read for now, and nothing is quarantined for that; or another process is at it.
    """
    source, out = (Path(read_value(one, str | Path, name)) for name, one in (("source", source), ("out", out)))
    read_value(tokenizer_source, str | Path, "tokenizer_source")
    check_instance(settings, TokenizeSettings, "settings")
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise ConfigError("the shards would lie among the media", where="--out", got=out, fix="write elsewhere")
    if settings.text_tokenizer is not None:
        open_text_tokenizer(settings.text_tokenizer)  # what is wrong with it is said before anything is read
    items = open_media(source, settings, as_spelled=knows_as_spelled(out))
    on_list(items)
    source_now = str(resolve_latest(Path(tokenizer_source), holding=VISUAL_TOKENIZER_FILE))  # the same in every worker
    return tokenize_items(
        items,
        out,
        settings,
        make_tokenizer=partial(load_visual_tokenizer, source_now, device=settings.device),
        make_reader=MediaReader,
        on_progress=on_progress,
        make_here=partial(load_visual_tokenizer, source_now) if settings.engine == "ray" else None,
        claim=claim,
    )


def open_media(source: Path, settings: TokenizeSettings, *, as_spelled: bool = False) -> MediaList:
    """The items to tokenize, see `open_media_list`."""
    return open_media_list(
        source,
        fields=settings.fields,
        follow_links=settings.follow_links,
        where=settings.condition,
        folder_captions=settings.folder_captions,
        as_spelled=as_spelled,
    )


def tokenize_items(
    items: MediaList | Sequence[MediaItem],
    out: Path,
    settings: TokenizeSettings,
    *,
    make_tokenizer: Callable[[], VisualTokenizer],
    make_reader: Callable[[], Any],
    on_progress: OnProgress | None = None,
    make_here: Callable[[], VisualTokenizer] | None = None,
    claim: Claim | None = None,
) -> dict[str, Manifest]:
    """`tokenize_media` with given tools, which every worker makes for itself.

    Args:
        make_here: makes the tokenizer that this process asks for its name and sizes, where it needs another device.
        claim: see `Claim`.
    """
    listed = items if isinstance(items, MediaList) else MediaList.of(items)
    make_here = make_tokenizer if make_here is None else make_here
    tokenizer = make_here()
    maker = ClipMaker(
        make_tokenizer=make_tokenizer,
        make_reader=make_reader,
        request=settings.clip_request(tokenizer),
        several=settings.several,
        retry=settings.retry,
        batch_size=settings.clips_at_once,
    )
    counter = None if settings.text_tokenizer is None else open_text_tokenizer(settings.text_tokenizer)
    if settings.samples_per_shard is None:
        size = recorded_shard_size(out) or default_shard_size(len(listed))
        settings = replace(settings, samples_per_shard=size)
    record, folder = settings.record(tokenizer, counter), TokenizeFolder(out)
    record |= {} if knows_as_spelled(out) else ONE_NAME
    if settings.part is not None:
        if claim is not None:
            claim(out, record, None)  # of all parts, whose lists may grow one after another
        begin_parts(out, record)
        folder = TokenizeFolder(out / settings.part.folder)
    with folder.lock():
        if claim is not None:
            claim(folder.path, record, hashlib.sha256(listed.numbers.tobytes()).hexdigest())
        return _Attempt(listed, folder, record, tokenizer, counter, maker, settings, on_progress).made()


@dataclass(frozen=True)
class _Attempt:
    """One call's work in a folder that it has locked."""

    items: MediaList
    folder: TokenizeFolder
    record: dict[str, Any]
    tokenizer: VisualTokenizer
    counter: HuggingFaceTokenizer | None
    maker: ClipMaker
    settings: TokenizeSettings
    on_progress: OnProgress | None

    def made(self) -> dict[str, Manifest]:
        folder, part = self.folder, self.settings.part or WHOLE
        begun = folder.begin(self.record)
        again = self.settings.retry_quarantined
        if begun.media is not None and self._is_done_of_before(begun, again):
            return self._manifests(begun.counts)
        if begun.media is None and any((begun.counts or {}).values()) and not (folder.path / LEDGER_FILE).is_file():
            fix = "copy the folder with all that is in it, or write elsewhere"  # else all would be encoded again
            raise DataError("the record of what was done is missing", file=folder.path / LEDGER_FILE, fix=fix)
        ledger = Ledger(folder.path) if begun.media is None or begun.counts is None else Ledger.of_shards(folder.path)
        journal = Journal(folder.journal, None if begun.media is None else self.items.numbers)
        if again:
            journal.forget_quarantined()
            ledger.forget_quarantined()
        work = Work(
            self.items,
            part.holds,
            folder,
            journal,
            ledger,
            max_bad=self.settings.max_bad,
            retry=self.settings.retry,
            on_progress=self.on_progress,
        )
        if begun.counts is not None and work.done == work.total:
            folder.remove_journal()
            return self._manifests(begun.counts)
        record = self.record | {"n_media": work.total}
        folder.write(record, complete=None)
        return self._filled(work, journal, ledger, record)

    def _is_done_of_before(self, begun: Begun, again: bool) -> bool:
        """Whether nothing is left to do in a folder whose items are known by their places in a list.

        Raises:
            ConfigError: it is not done, and the list is another.
        """
        same = _digest_of_before(self.items) == begun.media
        if begun.counts is None and not same:
            fix = "use the list as it was until this is done (it may grow afterwards), or another --out"
            raise ConfigError("this folder was begun with another list", file=self.folder.path, where="media", fix=fix)
        return begun.counts is not None and same and not (again and begun.counts.get("quarantined"))

    def _manifests(self, counts: Counts | None) -> dict[str, Manifest]:
        return {kind: Manifest.load(self.folder.path / kind) for kind in KIND_FOLDERS if counts and kind in counts}

    def _run(self, tasks: Iterator[Task]) -> Generator[tuple[int, Outcome], None, None]:
        if self.settings.engine == "ray":
            return run_on_ray(self.maker, tasks, self.settings.device)
        return run_tasks(self.maker, tasks, self.settings.workers)

    def _filled(self, work: Work, journal: Journal, ledger: Ledger, record: dict[str, Any]) -> dict[str, Manifest]:
        folder = self.folder
        shards = GrowingShards(
            folder.path,
            ledger,
            self.tokenizer,
            samples_per_shard=self.record["samples_per_shard"],
            text_tokenizer=self.counter,
            taken_over=journal.drop,
        )
        shards.remove_manifests()
        try:
            work.do(self._run, shards)
            manifests = shards.finish()
        except LumosError:
            work.write_quarantine()
            work.tell()
            raise
        finally:
            shards.abandon()
        n_quarantined = work.write_quarantine()
        if not manifests and self.settings.part is None:
            first = json.loads(folder.quarantine.read_text().partition("\n")[0])
            folder.abandon()
            raise DataError(
                "nothing could be tokenized",
                file=folder.quarantine,
                where=f"{first['path']}: {first['reason']}",
                got=f"{n_quarantined} of {work.total} quarantined",
                fix="each line there says why",
            )
        counts = {kind: manifest.n_samples for kind, manifest in manifests.items()}
        rests = {"rests": ledger.n_rests} if ledger.n_rests else {}
        folder.complete(record, {**counts, "quarantined": n_quarantined, **rests})
        return manifests


def _digest_of_before(items: MediaList) -> str:
    """What tokenize.json had of a list whose items were known by their places."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.name, item.line, item.start, item.caption, item.problem]).encode())
    return digest.hexdigest()
