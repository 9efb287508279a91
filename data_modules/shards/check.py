"""Checking a folder of shards, and saving what is whole of a damaged one: `lumos shards verify`."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
from numpy.typing import NDArray

from data_modules.shards.key_index import KeyIndex
from data_modules.shards.manifest import MANIFEST_FILE, Manifest, damage_fix
from data_modules.shards.manifest_file import SideFile
from data_modules.shards.metadata import COLUMNS_FILE, read_columns
from data_modules.shards.places import Place, RemotePath, is_there, names_in
from data_modules.shards.reading import is_damage, read_checked, reason
from data_modules.shards.sample_bytes import whole_samples
from data_modules.shards.shards import group_members, parse_sample, read_members
from data_modules.shards.table import ShardEntry
from lumos_pl.errors import DataError, FileError
from lumos_pl.machinery.atomic_file import make_folder, naming, write_atomically, write_new
from lumos_pl.machinery.regular_file import copy_regular

QUARANTINE_FILE = "quarantine.jsonl"
MOST_BAD = 0.001  # share of the samples that may be left out
END_OF_TAR = bytes(1024)

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What one shard is found to be.

    Args:
        problems: by the place of the sample; None: of the file as a whole.
        keys: of the samples that could be read.
    """

    entry: ShardEntry
    problems: list[tuple[int | None, DataError]]
    keys: list[str]


def _check(folder: Place, manifest: Manifest, entry: ShardEntry, files: Container[str] | None) -> _Checked:
    """Raises TemporaryError, or a DataError that is no damage, where the file could not be read."""
    path = folder / entry.file
    problems: list[tuple[int | None, DataError]] = []
    try:
        members = read_members(path, entry, was_there=files is None or entry.file in files)
    except DataError as error:
        if not is_damage(error):
            raise
        return _Checked(entry=entry, problems=[(None, error)], keys=[])
    for place, (key, codes, content) in enumerate(members):
        try:
            parse_sample(path, manifest, entry, place, key, codes, content)
        except DataError as error:
            problems.append((place, error))
    return _Checked(entry=entry, problems=problems, keys=[key for key, _, _ in members])


def _check_all(folder: Place, manifest: Manifest, on_progress: OnProgress | None) -> Iterator[_Checked]:
    """Every shard, several at a time, in the manifest's order."""
    files = names_in(folder)
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # reading and hashing leave the interpreter to others
        checks = pool.map(lambda i: _check(folder, manifest, manifest.shards[i], files), range(len(manifest.shards)))
        for done, checked in enumerate(checks, start=1):
            yield checked
            if on_progress is not None:
                on_progress(done, len(manifest.shards))


def verify_shards(folder: Place, *, on_progress: OnProgress | None = None) -> list[DataError]:
    """All that is wrong with a shard folder; every sample is read.

    Args:
        on_progress: called with (shards done, shards in all).
    """
    try:
        manifest = Manifest.read(folder)
    except DataError as error:
        return [error]
    problems = [*manifest.unlisted_shards(folder), *_wrong_identity(folder, manifest)]
    try:
        read_columns(folder, manifest)
    except DataError as error:
        problems.append(error)
    index = KeyIndex(TemporaryFile)
    for number, checked in enumerate(_check_all(folder, manifest, on_progress)):
        path = folder / checked.entry.file
        problems += [error for _, error in checked.problems]
        new = []
        for key, before in zip(checked.keys, index.find(checked.keys), strict=True):
            if before is None:
                new.append(key)
            else:
                problems.append(_repeated(key, path, folder / manifest.table.file(before)))
        index.add(new, number)
    return problems


def _wrong_identity(folder: Place, manifest: Manifest) -> list[DataError]:
    """Whether a manifest that was written in another form before is of the data set that it says it was."""
    if manifest.former is None or (found := manifest.identity_in_lists()) == manifest.former:
        return []
    what, file, fix = "not the data set that it says", folder / MANIFEST_FILE, damage_fix(folder)
    return [DataError(what, file=file, where="identity", got=found, expected=manifest.former, fix=fix)]


def _repeated(key: str, path: Place, first: Place) -> DataError:
    return DataError("two samples of one key", file=path, where=f"sample {key}", got=f"also in {first}")


def skip_bad(
    folder: Place,
    out: Path,
    *,
    most_bad: float = MOST_BAD,
    hard_links: bool = False,
    on_progress: OnProgress | None = None,
) -> tuple[int, int]:
    """Write a folder of the samples of `folder` that are whole, and a list of the others.

    Of whole samples with one key the first is written. Shards without damage are copied, also where they are links.
    `folder` stays as it is.

    Args:
        out: made if missing; must be empty.
        most_bad: the share of the samples that may be left out.
        hard_links: shards without damage are the files of `folder` themselves by a second name, which takes no space:
            who changes one changes both.
    Returns:
        the numbers of samples written and left out; their sum is the manifest's count.
    Raises:
        DataError: too many are bad, or a shard changed since it was checked; no folder of shards is written then.
    """
    manifest = Manifest.read(folder)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("shards need an empty folder", file=out, fix="remove it, or write elsewhere")
    index = KeyIndex(TemporaryFile)
    bad = {
        checked.entry.file: found
        for number, checked in enumerate(_check_all(folder, manifest, on_progress))
        if (found := _bad_samples(folder, manifest, checked, index, number)) is not None
    }
    n_bad = sum(map(len, bad.values()))
    if n_bad > most_bad * manifest.n_samples or n_bad == manifest.n_samples:
        enough = math.ceil(100 * n_bad / manifest.n_samples) / 100
        fix = "copy or make the shards anew" + (
            f", or allow more: --max-bad {enough}" if n_bad < manifest.n_samples else ""
        )
        raise DataError(
            "too many bad samples",
            file=folder,
            where=next(f"{file}: {why}" for file, samples in bad.items() for why in samples.values()),
            got=f"{n_bad} of {manifest.n_samples}",
            expected=f"at most {most_bad:.1%}",
            fix=fix,
        )
    make_folder(out)
    entries: list[ShardEntry] = []
    for entry in manifest.shards:
        if entry.file in bad:
            entries += filter(None, [_rewrite(folder / entry.file, out / entry.file, entry, bad[entry.file])])
        else:
            _take(folder / entry.file, out / entry.file, entry, hard_links)
            entries.append(entry)
    lines = [
        json.dumps({"file": file, "sample": place, "reason": why}) + "\n"
        for file, samples in bad.items()
        for place, why in samples.items()
    ]
    write_atomically(out / QUARANTINE_FILE, "".join(lines).encode())
    kept = [place not in bad.get(entry.file, ()) for entry in manifest.shards for place in range(entry.n_samples)]
    saved = replace(manifest, shards=tuple(entries), metadata=_take_columns(folder, manifest, out, np.array(kept)))
    saved.save(out)  # last: without it the folder is none
    return saved.n_samples, n_bad


def _take_columns(folder: Place, manifest: Manifest, out: Path, kept: NDArray[np.bool_]) -> SideFile | None:
    """Write what else is known of the samples that are kept, where anything is."""
    if manifest.metadata is None:
        return None
    content = read_columns(folder, manifest).take(kept).content
    write_atomically(out / COLUMNS_FILE, content)
    return SideFile(n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())


def _bad_samples(
    folder: Place, manifest: Manifest, checked: _Checked, index: KeyIndex, number: int
) -> dict[int, str] | None:
    """The places of a shard's samples that cannot be used, with the reason of each; None: it can stay as it is.

    Args:
        index: of every usable sample so far the shard's number; this one's are added.
    """
    entry, path = checked.entry, folder / checked.entry.file
    found = {place: reason(error) for place, error in checked.problems}
    for place, (key, before) in enumerate(zip(checked.keys, index.find(checked.keys), strict=True)):
        if before is not None:
            found.setdefault(place, reason(_repeated(key, path, folder / manifest.table.file(before))))
    if not found:
        index.add(checked.keys, number)
        return None
    first = next(iter(found.values()))
    bad = {place: found.get(place, first) for place in range(entry.n_samples)}
    if entry.checksums and is_there(path):
        for place, part in whole_samples(read_checked(path, entry)[0], entry).items():
            try:
                key = _usable_key(path, manifest, entry, place, part, index)
            except DataError as error:
                bad[place] = reason(error)
            else:
                index.add([key], number)
                del bad[place]
    return bad


def _usable_key(path: Place, manifest: Manifest, entry: ShardEntry, place: int, part: bytes, index: KeyIndex) -> str:
    """The key of a sample by itself; raises DataError unless it is as it should be and the first of that key."""
    ((key, codes, content),) = group_members(part, 1)
    parse_sample(path, manifest, entry, place, key, codes, content)
    (before,) = index.find([key])
    if before is not None:
        raise _repeated(key, path, path.with_name(manifest.table.file(before)))
    return key


def _rewrite(source: Place, target: Path, entry: ShardEntry, bad: Container[int]) -> ShardEntry | None:
    """Write a damaged shard's samples but the bad ones; what the manifest is to say of it, None if nothing is left."""
    kept = [place for place in range(entry.n_samples) if place not in bad]
    if not kept:
        return None
    whole = whole_samples(read_checked(source, entry)[0], entry)
    if not whole.keys() >= set(kept):
        raise _changed(source)
    data = b"".join(whole[place] for place in kept) + END_OF_TAR
    write_atomically(target, data)
    shapes, lengths, checksums = (
        tuple(values[place] for place in kept) for values in (entry.shapes, entry.text_lengths, entry.checksums)
    )
    return ShardEntry(
        file=entry.file,
        n_samples=len(kept),
        n_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        shapes=shapes,
        text_lengths=lengths,
        ends=tuple(accumulate(len(whole[place]) for place in kept)),
        checksums=checksums,
    )


def _take(source: Place, target: Path, entry: ShardEntry, hard_links: bool) -> None:
    """Copy a shard, or give it a second name; raises DataError unless its content is still the one that was checked."""
    if isinstance(source, RemotePath):
        data, damage = read_checked(source, entry)
        if damage is not None:
            raise _changed(source) from damage
        write_new(target, data)
        return
    if hard_links:
        try:
            os.link(source.resolve(strict=True), target)  # of a symbolic link the file, not the link
        except OSError as error:
            raise FileError.of(error, what="cannot be linked", file=target, fix="leave out --hard-links") from error
        with target.open("rb") as shared:
            digest = hashlib.file_digest(shared, "sha256").hexdigest()
    else:
        with naming(target):
            digest = copy_regular(source, target)
    if digest != entry.sha256:
        target.unlink()
        raise _changed(source)


def _changed(shard: Place) -> DataError:
    return DataError("the shard changed since it was checked", file=shard, fix="start again, when nobody writes there")
