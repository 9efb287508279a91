"""Shards that are damaged, missing, extra or exchanged."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules.shards import shards
from data_modules.shards.check import MOST_BAD, QUARANTINE_FILE, skip_bad
from data_modules.shards.manifest import Manifest
from data_modules.shards.sample import ShardSample
from data_modules.shards.writer import ShardWriter
from faults.campaign import Campaign, Judge, Verdict, attempt
from faults.mutate import mutate
from lumos_pl.errors import LumosError
from lumos_pl.seeding import generator

N_SHARDS, SAMPLES_PER_SHARD = 5, 4  # two exchanges among the shards leave one whole
RECONCILED = "read + quarantined = manifest"


def write_shards(folder: Path, *, variant: int = 0) -> list[ShardSample]:
    """A folder of small shards; another variant has the same keys and other codes."""
    samples = []
    for number in range(N_SHARDS * SAMPLES_PER_SHARD):
        t, h, w = [(3, 4, 8), (1, 8, 4)][number % 2]
        codes = torch.randint(240, (t, h, w), generator=generator(variant, "faults", number))
        samples.append(
            ShardSample(
                key=f"clip-{number:03d}",
                codes=codes.numpy().astype(np.uint16),
                text=f"caption № {number}" if number % 3 else (17, "{frames}", number),
                frames=1 + 4 * (t - 1),
                fps=8,
                duration=2,
                width=8 * w,
                height=8 * h,
                source=f"made/{number}.mp4",
            )
        )
    writer = ShardWriter(
        folder, tokenizer="toy", codebook_size=240, strides=(4, 8, 8), samples_per_shard=SAMPLES_PER_SHARD
    )
    with writer:
        for sample in samples:
            writer.add(sample)
    return samples


def fields_of(sample: ShardSample) -> dict[str, Any]:
    """A sample in values that compare."""
    return {**vars(sample), "codes": sample.codes.tolist()}


def damage(folder: Path, other: Path, draw: random.Random) -> tuple[Path, str]:
    """Do something to one shard of `folder`; which, and what."""
    files = [path for path in sorted(folder.glob("*.tar")) if path.is_file() and path.stat().st_size > 1]
    victim, second = draw.sample(files, 2)
    kind = draw.choice(["bytes"] * 12 + ["missing", "empty", "extra", "exchanged", "of another data set", "a folder"])
    match kind:
        case "bytes":
            changed, kind = mutate(victim.read_bytes(), draw)
            victim.write_bytes(changed)
        case "missing":
            victim.unlink()
        case "empty":
            victim.write_bytes(b"")
        case "extra":
            victim = Path(shutil.copy(victim, folder / "shard-000099.tar"))
        case "exchanged":
            contents = second.read_bytes(), victim.read_bytes()
            victim.write_bytes(contents[0])
            second.write_bytes(contents[1])
        case "of another data set":
            shutil.copy(other / victim.name, victim)
        case _:
            victim.unlink()
            victim.mkdir()
    return victim, f"{victim.name}: {kind}"


def _read_all(folder: Path) -> list[ShardSample]:
    manifest = Manifest.load(folder)
    return [sample for index in range(len(manifest.shards)) for sample in shards.read_shard(folder, manifest, index)]


@contextmanager
def _strict(folder: Path) -> Iterator[Judge]:
    expected = [fields_of(sample) for sample in write_shards(folder / "whole")]
    write_shards(folder / "other", variant=1)

    def judge(draw: random.Random) -> Verdict:
        broken = folder / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(folder / "whole", broken)
        victim, done = damage(broken, folder / "other", draw)
        read = attempt(lambda: _read_all(broken))
        if isinstance(read, LumosError):
            # Of two exchanged shards the first is met first.
            named = str(victim) in str(read) or ("exchanged" in done and str(broken / "shard-") in str(read))
            return Verdict("named" if named and "\n" not in str(read) else "unnamed", f"{done} -> {read}")
        found = [fields_of(sample) for sample in read]
        if found == expected:
            return Verdict("harmless", done)
        return Verdict("silent loss" if len(found) < len(expected) else "silently wrong", done)

    yield judge


@contextmanager
def _skipping(folder: Path) -> Iterator[Judge]:
    expected = {sample.key: fields_of(sample) for sample in write_shards(folder / "whole")}
    write_shards(folder / "other", variant=1)

    def judge(draw: random.Random) -> Verdict:
        broken, saved = folder / "broken", folder / "saved"
        for path in broken, saved:
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(folder / "whole", broken)
        victims = {damage(broken, folder / "other", draw) for _ in range(draw.choice([1, 1, 2]))}
        done = ", ".join(what for _, what in sorted(victims))
        most_bad = draw.choice([MOST_BAD, 0.3, 1.0])
        counts = attempt(lambda: skip_bad(broken, saved, most_bad=most_bad))
        stopped = isinstance(counts, LumosError)
        if isinstance(counts, LumosError):
            named = any(path.name in str(counts) for path, _ in victims) or "exchanged" in done
            if "too many" not in str(counts) or saved.exists() or not named:
                return Verdict("unnamed", f"{done} -> {counts}")
            counts = skip_bad(broken, saved, most_bad=1.0)
        read = {sample.key: fields_of(sample) for sample in _read_all(saved)}
        listed = (saved / QUARANTINE_FILE).read_text().splitlines()
        too_many = counts[1] > most_bad * len(expected)
        if (len(read), len(listed)) != counts or sum(counts) != len(expected) or too_many != stopped:
            return Verdict("counts differ", f"{done}: {counts}, {len(read)} read, {len(listed)} listed")
        same = all(fields == expected[key] for key, fields in read.items())
        return Verdict(RECONCILED if same else "silently wrong", done)

    yield judge


SKIPPING = Campaign(
    name="skip-bad",
    title="mutated shards with --skip-bad",
    instances=1000,
    held=(RECONCILED,),
    broken=("crash", "counts differ", "silently wrong", "unnamed"),
    open=_skipping,
)

STRICT = Campaign(
    name="shards",
    title="mutated shards",
    instances=1000,
    held=("named", "harmless"),
    broken=("crash", "silent loss", "silently wrong", "unnamed"),
    open=_strict,
)
