"""Damage is named by its sample, and what is whole beside it can be saved."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_modules.shards.check import QUARANTINE_FILE, skip_bad, verify_shards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.manifest_file import WITHOUT_CHECKSUMS
from data_modules.shards.sample import ShardSample
from data_modules.shards.shards import read_shard
from experiments.cli import main
from lumos_pl.errors import DataError
from tests.data_modules.shards.shard_files import (
    FIELDS,
    assert_same,
    make_sample,
    open_writer,
    seal,
    write,
    write_again,
)
from tests.refusals import refused

ANY_FOLDER = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def read_all(folder: Path) -> list[ShardSample]:
    manifest = Manifest.load(folder)
    return [sample for index in range(len(manifest.shards)) for sample in read_shard(folder, manifest, index)]


def test_damage_is_named_by_sample_and_offset(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    file, entry = tmp_path / manifest.shards[0].file, manifest.shards[0]
    whole = file.read_bytes()
    for position, named in (
        (entry.ends[0] + 600, f"sample clip-1, number 2 of 2, from offset {entry.ends[0]} on"),
        (600, "sample clip-0, number 1 of 2, from offset 0 on"),
        (0, "sample glip-0, number 1 of 2, from offset 0 on"),  # it is the name that is damaged
        (entry.ends[1] + 5, f"offset {entry.ends[1]}, behind the samples"),
    ):
        file.write_bytes(whole)
        flip(file, position)
        with refused(DataError, file=file, where=named):
            read_shard(tmp_path, manifest, 0)


def test_what_is_whole_is_saved_and_the_rest_listed(tmp_path: Path) -> None:
    manifest = write(tmp_path / "s", n=9)
    first, second, third = (tmp_path / "s" / shard.file for shard in manifest.shards[:3])
    flip(first, manifest.shards[0].ends[0] + 600)
    second.unlink()
    third.write_bytes(third.read_bytes()[: manifest.shards[2].ends[0]])
    seal(tmp_path / "s", 3, lambda m: [(m[0][0], FIELDS["grid"][0]), *m[1:]])
    assert skip_bad(tmp_path / "s", tmp_path / "out", most_bad=0.7) == (3, 6)
    kept = read_all(tmp_path / "out")
    assert [sample.key for sample in kept] == ["clip-0", "clip-4", "clip-8"]
    for sample in kept:
        assert_same(sample, make_sample(int(sample.key[-1])))
    assert verify_shards(tmp_path / "out") == []
    listed = [json.loads(line) for line in (tmp_path / "out" / QUARANTINE_FILE).read_text().splitlines()]
    assert [(entry["file"], entry["sample"]) for entry in listed] == [
        (first.name, 1),
        (second.name, 0),
        (second.name, 1),
        (third.name, 1),
        (manifest.shards[3].file, 0),
        (manifest.shards[3].file, 1),
    ]
    assert "other content" in listed[0]["reason"] and "shard missing" in listed[1]["reason"]
    assert not (tmp_path / "s" / manifest.shards[4].file).samefile(tmp_path / "out" / manifest.shards[4].file)


def test_the_way_out_that_is_named_is_one(tmp_path: Path) -> None:
    manifest = write(tmp_path / "s")
    (tmp_path / "s" / manifest.shards[0].file).unlink()
    with pytest.raises(DataError) as caught:
        skip_bad(tmp_path / "s", tmp_path / "out")
    named = float(str(caught.value.parts["fix"]).partition("--max-bad ")[2])
    assert skip_bad(tmp_path / "s", tmp_path / "out", most_bad=named) == (3, 2)


def test_whole_shards_are_copies_wherever_their_names_lead(tmp_path: Path) -> None:
    """Caches and data versioning keep relative links in a folder of shards."""
    manifest = write(tmp_path / "s")
    (tmp_path / "cache").mkdir()
    for number, shard in enumerate(manifest.shards):
        (tmp_path / "s" / shard.file).rename(tmp_path / "cache" / f"{number}.blob")
        (tmp_path / "s" / shard.file).symlink_to(Path("..", "cache", f"{number}.blob"))
    out = tmp_path / "far" / "away"
    assert skip_bad(tmp_path / "s", out) == (5, 0)
    shutil.rmtree(tmp_path / "cache")
    assert [sample.key for sample in read_all(out)] == [f"clip-{number}" for number in range(5)]
    assert not any(path.is_symlink() or path.stat().st_nlink > 1 for path in out.iterdir())


@pytest.mark.parametrize("linked", [False, True])
def test_hard_links_are_shared_and_said_so(linked: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = tmp_path / "s" / write(tmp_path / "s").shards[0].file
    if linked:
        shard.rename(tmp_path / "blob")
        shard.symlink_to(Path("..", "blob"))
    command = ["shards", "verify", str(tmp_path / "s"), "--hard-links"]
    assert main(command) == 2
    assert main([*command, "--skip-bad", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "hard links" in printed and str(tmp_path / "s") in printed
    copy = tmp_path / "out" / shard.name
    assert copy.samefile(shard) and not copy.is_symlink()


@pytest.mark.parametrize("hard_links", [False, True])
def test_a_shard_that_changes_after_it_was_checked_is_not_taken(hard_links: bool, tmp_path: Path) -> None:
    manifest = write(tmp_path / "s")
    file = tmp_path / "s" / manifest.shards[0].file

    def change(done: int, total: int) -> None:
        if done == total:
            flip(file, 700)

    with refused(DataError, file=file):
        skip_bad(tmp_path / "s", tmp_path / "out", hard_links=hard_links, on_progress=change)
    assert not (tmp_path / "out" / MANIFEST_FILE).exists() and not (tmp_path / "out" / file.name).exists()


def test_too_many_bad_samples_stop_it_and_nothing_is_written(tmp_path: Path) -> None:
    manifest = write(tmp_path / "s")
    flip(tmp_path / "s" / manifest.shards[1].file, 700)
    with refused(DataError, file="s", got="1 of 5", expected="at most 0.1%"):
        skip_bad(tmp_path / "s", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("written", "kept", "left_out"),
    [
        ([0, 1, 2, 1, 4, 1], [0, 1, 2, 4], [("shard-000001.tar", 1), ("shard-000002.tar", 1)]),  # across shards
        ([0, 0, 2, 3], [0, 2, 3], [("shard-000000.tar", 1)]),  # in one
    ],
)
def test_of_samples_with_one_key_the_first_is_kept(
    written: list[int], kept: list[int], left_out: list[tuple[str, int]], tmp_path: Path
) -> None:
    write_again(tmp_path / "s", written)
    problems = verify_shards(tmp_path / "s")
    assert [Path(str(problem.file)).name for problem in problems] == [file for file, _ in left_out]
    assert skip_bad(tmp_path / "s", tmp_path / "out", most_bad=0.5) == (len(kept), len(left_out))
    assert [sample.key for sample in read_all(tmp_path / "out")] == [f"clip-{index}" for index in kept]
    assert verify_shards(tmp_path / "out") == []
    listed = [json.loads(line) for line in (tmp_path / "out" / QUARANTINE_FILE).read_text().splitlines()]
    assert [(entry["file"], entry["sample"]) for entry in listed] == left_out


def test_a_damaged_sample_does_not_claim_its_key(tmp_path: Path) -> None:
    manifest = write_again(tmp_path / "s", [0, 1, 1, 2])
    flip(tmp_path / "s" / "shard-000000.tar", manifest.shards[0].ends[0] + 600)
    assert skip_bad(tmp_path / "s", tmp_path / "out", most_bad=0.5) == (3, 1)
    assert [sample.key for sample in read_all(tmp_path / "out")] == ["clip-0", "clip-1", "clip-2"]


def test_the_command_says_where_all_samples_went(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "s")
    out = tmp_path / "out"
    assert main(["shards", "verify", str(tmp_path / "s"), "--skip-bad", "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == f"5 samples in {out}, 0 left out: {out}/quarantine.jsonl"
    assert main(["shards", "verify", str(tmp_path / "s"), "--skip-bad", "--out", str(out)]) == 3
    assert main(["shards", "verify", str(tmp_path / "s"), "--skip-bad"]) == 2


def test_a_damaged_sample_of_few_is_left_out_where_its_share_is_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = write(tmp_path / "s")
    flip(tmp_path / "s" / "shard-000000.tar", manifest.shards[0].ends[0] + 600)
    command = ["shards", "verify", str(tmp_path / "s")]
    assert main(command) == 3
    told = capsys.readouterr().err
    assert "--skip-bad" in told and "lumos shards verify" not in told  # which is what was just done
    command += ["--skip-bad", "--out", str(tmp_path / "out")]
    assert main(command) == 3
    assert "--max-bad" in capsys.readouterr().err
    assert main([*command, "--max-bad", "0.5"]) == 0
    assert len(read_all(tmp_path / "out")) == 4
    assert main([*command, "--max-bad", "2"]) == main([*command[:3], "--max-bad", "0.5"]) == 2


def test_every_folder_of_shards_is_verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those inside a folder, and those that a pattern names, as data.root takes them."""
    inside = [tmp_path / part / kind for part in ("part-0", "part-1") for kind in ("images", "videos")]
    for n, folder in enumerate(inside, start=1):
        write(folder, n=n)

    def verified(*roots: str) -> dict[str, int]:
        assert main(["shards", "verify", *roots]) == 0
        lines = map(json.loads, capsys.readouterr().out.strip().splitlines())
        return {line["folder"]: line["samples"] for line in lines}

    found = {str(folder): n for n, folder in enumerate(inside, start=1)}
    assert verified(str(tmp_path / "part-*")) == found == verified(*(str(tmp_path / f"part-{n}") for n in range(2)))
    assert verified(str(tmp_path / "part-1")) == {str(folder): found[str(folder)] for folder in inside[2:]}
    assert verified(str(inside[0])) == {str(inside[0]): 1}
    shutil.rmtree(inside[3])
    write(tmp_path / "whole", n=9)
    shutil.copytree(tmp_path / "whole", tmp_path / "part-1", dirs_exist_ok=True)
    assert verified(str(tmp_path / "part-1")) == {str(tmp_path / "part-1"): 9, str(inside[2]): 3}
    assert main(["shards", "verify", str(tmp_path / "none-*")]) == 3

    flip(inside[1] / "shard-000000.tar", 600)
    capsys.readouterr()
    assert main(["shards", "verify", str(tmp_path / "part-0")]) == 3
    printed = capsys.readouterr()
    assert str(inside[1]) in printed.err and printed.err.count("\n") == 1
    assert [json.loads(line)["folder"] for line in printed.out.strip().splitlines()] == [str(inside[0])]


@pytest.mark.seconds
def test_what_is_whole_of_several_folders_is_saved_apart(tmp_path: Path) -> None:
    for kind, n in ("images", 3), ("videos", 4):
        write(tmp_path / "s" / kind, n=n)
    assert main(["shards", "verify", str(tmp_path / "s"), "--skip-bad", "--out", str(tmp_path / "out")]) == 0
    for kind, n in ("images", 3), ("videos", 4):
        assert len(read_all(tmp_path / "out" / kind)) == n and (tmp_path / "out" / kind / QUARANTINE_FILE).is_file()
    assert main(["shards", "show", str(tmp_path / "s")]) == 0
    assert main(["shards", "show", str(tmp_path / "s"), "--out", str(tmp_path / "x.png")]) == 0
    assert {file.name for file in tmp_path.glob("*.png")} == {
        "s-images.png",
        "s-videos.png",
        "x-images.png",
        "x-videos.png",
    }


def test_a_manifest_without_checksums_is_read_and_keeps_its_identity(tmp_path: Path) -> None:
    manifest = write(tmp_path)
    entries = tuple(replace(entry, ends=(), checksums=()) for entry in manifest.shards)
    old = replace(manifest, shards=entries)
    old.save(tmp_path)
    assert json.loads((tmp_path / MANIFEST_FILE).read_text())["format"] == WITHOUT_CHECKSUMS
    assert Manifest.load(tmp_path) == old and Manifest.load(tmp_path).fingerprint == old.fingerprint
    assert len(read_all(tmp_path)) == 5
    flip(tmp_path / manifest.shards[0].file, 700)
    with refused(DataError, file="shard-000000.tar"):
        read_shard(tmp_path, old, 0)
    assert skip_bad(tmp_path, tmp_path / "out", most_bad=1.0) == (3, 2)


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40).filter(str.strip)
ids = st.lists(st.integers(0, 10**6) | st.sampled_from(["{frames}", "{fps}"]), min_size=1, max_size=9).map(tuple)


@ANY_FOLDER
@given(captions=st.lists(texts | ids, min_size=1, max_size=7), per_shard=st.integers(1, 4), data=st.data())
def test_any_samples_come_back_and_any_damage_is_found(
    tmp_path_factory: pytest.TempPathFactory,
    captions: list[str | tuple[int | str, ...]],
    per_shard: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("any")
    samples = [make_sample(index, text=text) for index, text in enumerate(captions)]
    with open_writer(folder / "s", samples_per_shard=per_shard) as writer:
        for sample in samples:
            writer.add(sample)
    for read, written in zip(read_all(folder / "s"), samples, strict=True):
        assert_same(read, written)
    entry = data.draw(st.sampled_from(writer.manifest.shards))
    flip(folder / "s" / entry.file, data.draw(st.integers(0, entry.n_bytes - 1)))
    (problem,) = verify_shards(folder / "s")
    assert problem.file == folder / "s" / entry.file
    if len(samples) > 1:  # a folder without any sample is none
        kept, left_out = skip_bad(folder / "s", folder / "out", most_bad=1.0)
        assert kept + left_out == len(samples) and left_out <= 1
        assert len(read_all(folder / "out")) == kept
