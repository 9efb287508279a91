"""Shards to test with: whole ones, and ones that say what is not so."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules.shards.manifest import Manifest
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import read_shard
from data_modules.shards.writer import ShardWriter
from lumos_pl.machinery.own_files import RECORD
from lumos_pl.seeding import generator

CODEBOOK = 240
SHAPES = [(3, 4, 8), (1, 8, 4)]
IDS = (17, 3, "{frames}", 5, "{fps}", 9)


def make_sample(index: int, **changes: Any) -> ShardSample:
    t, h, w = SHAPES[index % 2]
    codes = torch.randint(CODEBOOK, (t, h, w), generator=generator(0, "codes", index)).numpy().astype(np.uint16)
    sample = ShardSample(
        key=f"clip-{index}",
        codes=codes,
        text=IDS if index % 2 else f"a blue circle rises, № {index}",
        frames=1 + 4 * (t - 1),
        fps=8,
        duration=2,
        width=8 * w,
        height=8 * h,
        source=f"made up/{index}.npy",
    )
    return replace(sample, **changes)


def open_writer(folder: Path, **options: Any) -> ShardWriter:
    return ShardWriter(folder, tokenizer="toy", codebook_size=CODEBOOK, strides=(4, 8, 8), **options)


def write(folder: Path, n: int = 5, **options: Any) -> Manifest:
    with open_writer(folder, **{"samples_per_shard": 2, **options}) as writer:
        for index in range(n):
            writer.add(make_sample(index))
    return writer.manifest


class Unlike(str):
    """A key that a writer takes for a new one, whatever it has."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def write_again(folder: Path, written: Sequence[int]) -> Manifest:
    """Shards of two samples, of which some have one key."""
    with open_writer(folder, samples_per_shard=2) as writer:
        for index in written:
            writer.add(make_sample(index, key=Unlike(f"clip-{index}")))
    return writer.manifest


def assert_same(sample: ShardSample, expected: ShardSample) -> None:
    assert sample.codes.dtype == np.uint16
    assert np.array_equal(sample.codes, expected.codes)
    assert {**vars(sample), "codes": None} == {**vars(expected), "codes": None}


Member = tuple[str, bytes]


def rename(member: Member, name: str) -> Member:
    return name, member[1]


def seal(folder: Path, index: int, change: Callable[[list[Member]], list[Member] | bytes]) -> Manifest:
    """Rewrite a shard and make the manifest's digest agree: what a hostile author could do."""
    manifest = Manifest.read(folder)
    path = folder / manifest.shards[index].file
    with tarfile.open(path) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]
    changed = change(members)
    data = changed if isinstance(changed, bytes) else make_tar(changed)
    path.write_bytes(data)
    entry = replace(manifest.shards[index], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    shards = (*manifest.shards[:index], entry, *manifest.shards[index + 1 :])
    manifest = replace(manifest, shards=shards)
    manifest.save(folder)
    return manifest


def make_tar(members: list[Member], special: tarfile.TarInfo | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if special is not None:
            archive.addfile(special)
    return buffer.getvalue()


def special_member(kind: bytes, name: str = "clip-9.json", target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


ARCHIVES: dict[str, tuple[Callable[[list[Member]], list[Member] | bytes], dict[str, str]]] = {
    "symbolic link": (lambda m: make_tar(m[:3], special_member(tarfile.SYMTYPE)), {"where": "offset 3072"}),
    "hard link": (lambda m: make_tar(m[:3], special_member(tarfile.LNKTYPE)), {"where": "offset 3072"}),
    "hidden link": (lambda m: make_tar(m, special_member(tarfile.SYMTYPE)), {"where": "offset 4096"}),
    "device": (lambda m: make_tar(m, special_member(tarfile.CHRTYPE)), {"where": "offset 4096"}),
    "sparse": (lambda m: make_tar(m, special_member(tarfile.GNUTYPE_SPARSE)), {"where": "offset 4096"}),
    "gzip": (lambda m: gzip.compress(make_tar(m)), {}),
    "bzip2": (lambda m: bz2.compress(make_tar(m)), {}),
    "a sample short": (lambda m: m[:2], {"got": "2"}),
    "a sample more": (lambda m: [*m, ("x.codes.npy", m[0][1]), ("x.json", m[1][1])], {"got": "6"}),
    "after the end": (lambda m: make_tar(m) + make_tar(m), {"where": "offset 3740"}),
    "cut": (lambda m: make_tar(m)[:3000], {}),
    "no tar": (lambda m: b"x" * 5000, {}),
    "order": (lambda m: [m[1], m[0], *m[2:]], {"got": "'clip-0.json', 'clip-0.codes.npy'"}),
    "mixed keys": (lambda m: [m[0], m[3], m[2], m[1]], {"got": "'clip-0.codes.npy', 'clip-1.json'"}),
    "path": (
        lambda m: [rename(m[0], "../a.codes.npy"), rename(m[1], "../a.json"), *m[2:]],
        {"got": "'../a.codes.npy', '../a.json'"},
    ),
    "one key twice": (lambda m: m[:2] * 2, {"where": "sample clip-0"}),
}


def npy(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, **options)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


GOOD = make_sample(0).codes
OUTSIDE = GOOD.copy()
OUTSIDE[1, 2, 3] = OUTSIDE[2, 0, 0] = 240

FIELDS: dict[str, tuple[bytes, dict[str, str]]] = {
    "outside": (npy(OUTSIDE), {"where": "sample clip-0: codes[1, 2, 3]", "got": "240"}),
    "signed": (npy(GOOD.astype(np.int16)), {"got": "int16 [3, 4, 8]"}),
    "big-endian": (npy(GOOD.astype(">u2")), {"got": ">u2 [3, 4, 8]"}),
    "grid": (npy(GOOD[:, :, :4]), {"got": "uint16 [3, 4, 4]"}),
    "fortran": (npy(np.asfortranarray(GOOD)), {"got": "uint16 [3, 4, 8] in Fortran order"}),
    "short": (npy(GOOD)[:-2], {"got": "190 bytes"}),
    "long": (npy(GOOD) + b"\0\0", {"got": "194 bytes"}),
    "objects": (npy(np.array([[[Bomb()]]], dtype=object), allow_pickle=True), {"got": "object [1, 1, 1]"}),
    "pickle": (pickle.dumps(Bomb()), {}),
    "newer version": (npy(GOOD, version=(2, 0)), {}),
    "nothing": (b"", {}),
}


def seal_bytes(folder: Path, data: bytes) -> Manifest:
    manifest = Manifest.read(folder)
    (folder / manifest.shards[0].file).write_bytes(data)
    entry = replace(manifest.shards[0], n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    return replace(manifest, shards=(entry, *manifest.shards[1:]))


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the record of whose they are, by its path in it."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != RECORD]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def all_samples(folder: Path) -> Iterator[ShardSample]:
    """Those of a shard folder, in its order."""
    manifest = Manifest.load(folder)
    for index in range(len(manifest.shards)):
        yield from read_shard(folder, manifest, index)
