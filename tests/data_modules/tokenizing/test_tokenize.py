"""`lumos tokenize`: the shards that were asked for, whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from data_modules.shards import manifest as manifest_module
from data_modules.shards.check import verify_shards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.sample_rows import ROWS_FILE
from data_modules.tokenizing.journal import JOURNAL_FILE
from data_modules.tokenizing.ledger import LEDGER_FILE
from data_modules.tokenizing.media_list import read_media_list
from data_modules.tokenizing.media_rows import Fields
from data_modules.tokenizing.parts import STATE_FILE
from data_modules.tokenizing.settings import TokenizeSettings
from data_modules.tokenizing.state import LOCK_FILE, TokenizeFolder
from data_modules.tokenizing.tokenize import tokenize_items, tokenize_media
from data_modules.tokenizing.work import OnProgress, Storage, TokenizeProgress
from lumos_pl.errors import ConfigError, DataError, TemporaryError
from lumos_pl.machinery.atomic_file import write_atomically
from lumos_pl.machinery.encoding import encode_png
from lumos_pl.machinery.file_lock import file_lock
from lumos_pl.machinery.own_files import partial_of
from lumos_pl.machinery.retrying import RetryConfig
from tests.data_modules.shards.shard_files import all_samples, content
from tests.data_modules.tokenizing.media_fakes import (
    KILLER,
    MeanTokenizer,
    OtherTokenizer,
    Unopened,
    WrittenReader,
    write_clip,
)
from tests.refusals import refused

AT_ONCE = RetryConfig(attempts=3, wait_s=0)
FRAMES = [9, 1, 30, 2, 1, 24, 5, 9]  # of the media; 1: an image


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A list of videos, images and two files that are neither."""
    folder = tmp_path / "media"
    folder.mkdir()
    rows: list[dict[str, object]] = []
    for number, frames in enumerate(FRAMES):
        write_clip(folder / f"{number}.clip", number, frames)
        rows.append({"path": f"{number}.clip", "caption": f"clip {number}"})
    (folder / "broken.clip").write_text("nonsense")
    rows.insert(3, {"path": "broken.clip", "caption": "nothing"})
    rows.insert(6, {"path": "absent.clip", "caption": "nothing"})
    rows.append({"path": "0.clip", "caption": "clip 0, later", "start": 2})
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "list.jsonl"


def settings(**changes: Any) -> TokenizeSettings:
    small = {"size": "16x8", "fps": 8, "workers": 0, "samples_per_shard": 2, "retry": AT_ONCE}
    return TokenizeSettings(**{**small, **changes})


def tokenize(source: Path, out: Path, *, make_tokenizer: Any = MeanTokenizer, **options: Any) -> dict[str, Manifest]:
    on_progress = options.pop("on_progress", None)
    return tokenize_items(
        read_media_list(source),
        out,
        settings(**options),
        make_tokenizer=make_tokenizer,
        make_reader=WrittenReader,
        on_progress=on_progress,
    )


def codes_by_key(folder: Path) -> dict[str, bytes]:
    """Of all samples of both kinds."""
    return {
        sample.key: sample.codes.tobytes()
        for kind in ("images", "videos")
        if (folder / kind).is_dir()
        for sample in all_samples(folder / kind)
    }


# -- what is made --------------------------------------------------------------------------------


def test_videos_and_images_become_shards_in_the_order_of_the_list(media: Path, tmp_path: Path) -> None:
    reports: list[TokenizeProgress] = []
    manifests = tokenize(media, tmp_path / "out", on_progress=reports.append)
    assert {kind: manifest.n_samples for kind, manifest in manifests.items()} == {"images": 2, "videos": 7}
    images, videos = list(all_samples(tmp_path / "out" / "images")), list(all_samples(tmp_path / "out" / "videos"))
    assert [sample.source for sample in images] == ["1.clip", "4.clip"]
    assert [sample.source for sample in videos] == [f"{n}.clip" for n in (0, 2, 3, 5, 6, 7, 0)]
    assert [(sample.frames, sample.fps, sample.duration) for sample in images] == [(1, 1, 1)] * 2
    expected = [(9, 8, 1), (24, 8, 3), (2, 8, 1), (24, 8, 3), (5, 8, 1), (9, 8, 1), (9, 8, 1)]
    assert [(sample.frames, sample.fps, sample.duration) for sample in videos] == expected
    assert [len(sample.codes) for sample in videos] == [3, 7, 2, 7, 2, 3, 3]
    assert {(sample.width, sample.height) for sample in videos} == {(16, 8)}
    assert videos[-1].text == "clip 0, later" and not np.array_equal(videos[0].codes, videos[-1].codes)
    assert all(not verify_shards(tmp_path / "out" / kind) for kind in manifests)
    assert (reports[0].done, reports[-1].done, reports[-1].total) == (0, 11, 11)
    assert (reports[-1].quarantined, reports[-1].frames) == (2, 84)


def test_what_cannot_be_used_is_listed_with_its_reason(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert [(line["path"], line["line"]) for line in lines] == [("broken.clip", 4), ("absent.clip", 7)]
    assert lines[0]["reason"].startswith("not a video or image | got") and lines[1]["reason"] == "no such file"


def test_a_folder_of_images_alone_has_no_videos(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    for name in "ab":
        write_clip(tmp_path / "media" / f"{name}.clip", 0, 1)
    (tmp_path / "media" / "a.txt").write_text("a caption")
    assert set(tokenize(tmp_path / "media", tmp_path / "out")) == {"images"}
    assert not (tmp_path / "out" / "videos").exists()
    (line,) = (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line) == {"path": "b.clip", "line": None, "reason": "no caption | expected b.txt"}


def test_workers_change_nothing(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "alone", workers=0)
    tokenize(media, tmp_path / "team", workers=3)
    assert content(tmp_path / "alone") == content(tmp_path / "team")


@pytest.mark.seconds
def test_a_script_without_a_main_guard_runs_once(tmp_path: Path) -> None:
    """Workers need nothing of it, and what stands before the call may be hours of training."""
    media, script = tmp_path / "media", tmp_path / "script.py"
    media.mkdir()
    (media / "a.png").write_bytes(encode_png(Image.new("RGB", (32, 32))))
    (media / "a.txt").write_text("a black square")
    script.write_text(
        "print('runs')\n"
        "from data_modules import TokenizeSettings, tokenize_media\n"
        f"out = {str(tmp_path / 'out')!r}\n"
        f"tokenize_media({str(media)!r}, out, 'embedded', TokenizeSettings(size='32x32', workers=1))\n"
    )
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600)
    assert (ran.returncode, ran.stdout) == (0, "runs\n"), ran.stderr
    assert Manifest.load(tmp_path / "out" / "images").n_samples == 1


def nothing_usable(folder: Path) -> Path:
    media = folder / "media"
    media.mkdir()
    (media / "a.clip").write_text("nonsense")
    (media / "a.txt").write_text("a caption")
    return media


def test_nothing_usable_is_an_error_and_the_next_attempt_starts_anew(tmp_path: Path) -> None:
    media = nothing_usable(tmp_path)
    for _ in range(2):
        with refused(DataError, file="quarantine.jsonl", got="1 of 1 quarantined"):
            tokenize(media, tmp_path / "out")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"quarantine.jsonl", "tokenize.lock", ".written"}
    assert "not a video" in (tmp_path / "out" / "quarantine.jsonl").read_text()
    write_clip(media / "a.clip", 0, 5)
    assert set(tokenize(media, tmp_path / "out", fps=7)) == {"videos"}
    assert (tmp_path / "out" / "quarantine.jsonl").read_text() == ""


# -- interruptions -------------------------------------------------------------------------------


class Interrupted(Exception):
    pass


def test_a_kill_while_nothing_usable_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media = nothing_usable(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(TokenizeFolder, "remove_journal", Mock(side_effect=Interrupted))
        with pytest.raises(Interrupted):
            tokenize(media, tmp_path / "out")
    write_clip(media / "a.clip", 0, 5)
    assert set(tokenize(media, tmp_path / "out", retry_quarantined=True)) == {"videos"}
    assert not list((tmp_path / "out").glob("*kept*"))


def interrupt_at(done: int) -> OnProgress:
    def interrupt(report: TokenizeProgress) -> None:
        if report.done == done:
            raise Interrupted

    return interrupt


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupted_call_goes_on_where_it_was(workers: int, media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "whole")
    stops = [3, 4, 9] if workers == 0 else [5]
    for stop in stops:
        with pytest.raises(Interrupted):
            tokenize(media, tmp_path / "out", workers=workers, on_progress=interrupt_at(stop))
        assert not (tmp_path / "out" / "videos" / "manifest.json").exists()
    reports: list[TokenizeProgress] = []
    tokenize(media, tmp_path / "out", on_progress=reports.append)
    assert reports[0].done >= stops[-1] and reports[-1].done == 11
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_journal_cut_anywhere_or_spoilt_is_made_good(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "whole")
    expected = content(tmp_path / "whole")

    with pytest.raises(Interrupted):
        tokenize(media, tmp_path / "begun", on_progress=interrupt_at(6))
    journal = (tmp_path / "begun" / JOURNAL_FILE).read_bytes()
    second = journal.index(b"\n") + 1
    spoilt = [journal[:second] + b"\0" * 200 + journal[second:], journal + b"\0" * 200, journal[:-1]]
    for number, damaged in enumerate([journal[:length] for length in range(0, len(journal), 211)] + spoilt):
        out = tmp_path / f"out{number}"
        shutil.copytree(tmp_path / "begun", out)
        (out / JOURNAL_FILE).write_bytes(damaged)
        tokenize(media, out)
        kept = [path.read_bytes() for path in out.glob(f"{JOURNAL_FILE}.odd-*")]
        assert kept in ([], [damaged])  # of what no kill leaves
        for path in out.glob(f"{JOURNAL_FILE}.odd-*"):
            path.unlink()
        assert content(out) == expected


@pytest.mark.parametrize("left", ["shard", "shards", "images", "videos", "list", "journal"])
def test_a_kill_while_the_last_shards_are_written(left: str, media: Path, tmp_path: Path) -> None:
    """What a kill leaves at each step of the end, put together from a full journal and the finished folder."""
    kept: dict[str, bytes] = {}
    out = tmp_path / "out"

    def keep(report: TokenizeProgress) -> None:
        if report.done == report.total:
            kept.update({name: (out / name).read_bytes() for name in (JOURNAL_FILE, STATE_FILE, LEDGER_FILE)})

    tokenize(media, out, on_progress=keep)
    expected = content(out)
    (out / JOURNAL_FILE).write_bytes(kept[JOURNAL_FILE])
    if left != "journal":
        (out / STATE_FILE).write_bytes(kept[STATE_FILE])
    if left in ("shard", "shards", "images", "videos"):
        (out / "quarantine.jsonl").unlink()
    if left in ("shard", "shards", "images"):
        (out / "videos" / "manifest.json").unlink()
    if left in ("shard", "shards"):
        (out / "images" / "manifest.json").unlink()
    if left == "shard":  # which the ledger says already
        partial_of(out / "videos" / "shard-000003.tar").write_bytes(b"half")
        (out / "videos" / "shard-000003.tar").unlink()
    tokenize(media, out)
    assert content(out) == expected


def test_files_of_the_users_survive_an_interruption(media: Path, tmp_path: Path) -> None:
    def interrupt(report: TokenizeProgress) -> None:
        if report.done == 6:
            raise Interrupted

    tokenize(media, tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tokenize(media, out, on_progress=interrupt)
    (out / "images").mkdir(exist_ok=True)
    (out / "images" / "notes.txt").write_text("mine")
    backup = tmp_path / "backup"
    backup.hardlink_to(out / JOURNAL_FILE)
    begun = backup.read_bytes()
    tokenize(media, out)
    assert (out / "images" / "notes.txt").read_text() == "mine"
    assert backup.read_bytes() == begun
    whole = content(tmp_path / "whole")
    assert {name: data for name, data in content(out).items() if name in whole} == whole


@pytest.mark.parametrize("name", ["images/shard-000000.tar", "videos/manifest.json", "videos/another.tar"])
def test_what_stands_in_the_shards_place_is_refused(name: str, media: Path, tmp_path: Path) -> None:
    def interrupt(report: TokenizeProgress) -> None:
        raise Interrupted

    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tokenize(media, out, on_progress=interrupt)
    (out / name).parent.mkdir()
    (out / name).write_text("mine")
    with refused(DataError, file=out / name):
        tokenize(media, out)
    assert (out / name).read_text() == "mine"
    (out / name).unlink()
    tokenize(media, out)


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("cut", [True, False])
def test_a_shard_that_is_not_the_one_of_the_ledger_is_not_taken_for_it(
    place: int, cut: bool, media: Path, tmp_path: Path
) -> None:
    """As of a folder that was copied in part, or where another's file came between the ledger's line and the shard."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    rows = media.read_text().splitlines()
    media.write_text("\n".join(rows[:7]))
    tokenize(media, out)
    line = json.loads((out / LEDGER_FILE).read_text().splitlines()[place])
    shard = out / line["folder"] / line["shard"]["file"]
    data = shard.read_bytes()
    shard.write_bytes(data[:-100] if cut else bytes(len(data)))
    media.write_text("\n".join(rows))
    before = content(out)
    if cut or place == -1:  # of the others, all of which are not read for that, the manifest says what they must be
        with refused(DataError, file=shard):
            tokenize(media, out)
        assert content(out) == before
    shard.write_bytes(data)
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    tokenize(media, out)
    tokenize(media, whole)
    assert codes_by_key(out) == codes_by_key(whole)


def test_a_journal_that_is_a_link_is_moved(media: Path, tmp_path: Path) -> None:
    def interrupt(report: TokenizeProgress) -> None:
        raise Interrupted

    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        tokenize(media, out, on_progress=interrupt)
    (tmp_path / "theirs").write_text("theirs")
    (out / JOURNAL_FILE).unlink(missing_ok=True)
    (out / JOURNAL_FILE).symlink_to(tmp_path / "theirs")
    tokenize(media, out)
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert not (out / JOURNAL_FILE).exists()


def test_a_finished_folder_is_left_as_it_is(media: Path, tmp_path: Path) -> None:
    first = tokenize(media, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "videos").iterdir()}
    reports: list[TokenizeProgress] = []
    assert tokenize(media, tmp_path / "out", workers=2, on_progress=reports.append) == first
    assert reports == []
    assert times == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "videos").iterdir()}
    (tmp_path / "out" / "videos").rename(tmp_path / "moved")
    with refused(DataError, file="shard-000000.tar"):
        tokenize(media, tmp_path / "out")


@pytest.mark.parametrize("finished", [True, False])
def test_other_settings_are_refused_by_name(finished: bool, media: Path, tmp_path: Path) -> None:
    def interrupt(report: TokenizeProgress) -> None:
        if report.done == 2 and not finished:
            raise Interrupted

    if finished:
        tokenize(media, tmp_path / "out")
    else:
        with pytest.raises(Interrupted):
            tokenize(media, tmp_path / "out", on_progress=interrupt)
    before = content(tmp_path / "out")
    for changes, where, got in (
        ({"fps": 12}, "fps", 12),
        ({"frames": 9}, "frames", 9),
        ({"start": 1.0}, "start", 1.0),
        ({"samples_per_shard": 3}, "samples_per_shard", 3),
        ({"make_tokenizer": OtherTokenizer}, "tokenizer", "'other'"),
    ):
        with refused(ConfigError, file="out", where=where, got=got):
            tokenize(media, tmp_path / "out", **changes)
    assert content(tmp_path / "out") == before


def test_other_columns_of_captions_are_other_settings(media: Path, tmp_path: Path) -> None:
    rows = [json.loads(row) for row in media.read_text().splitlines()]
    media.write_text("\n".join(json.dumps(row | {"more": "more of it"}) for row in rows))
    out, both = tmp_path / "out", Fields(caption=("caption", "more"))
    tokenize(media, out)
    with refused(ConfigError, file="out", where="captions", got="['caption', 'more']"):
        tokenize(media, out, fields=both)
    state = json.loads((out / "tokenize.json").read_text())
    del state["settings"]["captions"]  # as of a folder that was begun before it said so
    (out / "tokenize.json").write_text(json.dumps(state))
    tokenize(media, out, fields=both)


def test_a_list_may_grow_and_change_its_order_and_lacks_nothing_that_was_done(media: Path, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    rows = media.read_text().splitlines()
    tokenize(media, whole)
    media.write_text("\n".join(rows[4:]))
    tokenize(media, out)
    media.write_text("\n".join(reversed(rows)))
    for _ in range(2):
        assert {kind: manifest.n_samples for kind, manifest in tokenize(media, out).items()} == {
            "images": 2,
            "videos": 7,
        }
    assert codes_by_key(out) == codes_by_key(whole)
    assert [json.loads(line)["line"] for line in (out / "quarantine.jsonl").read_text().splitlines()] == [5, 8]
    before = content(out)
    media.write_text("\n".join(rows).replace("clip 5", "clip five"))
    with refused(ConfigError, file="out", where="media", got="1 of 9 that were taken"):
        tokenize(media, out)
    assert content(out) == before


def test_a_folder_that_was_copied_without_its_ledger_is_not_encoded_again(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out", ignore=shutil.ignore_patterns(LEDGER_FILE))
    before = content(tmp_path / "out")
    media.write_text(media.read_text() + json.dumps({"path": "3.clip", "caption": "clip 3, again"}) + "\n")
    with refused(DataError, file=LEDGER_FILE):
        tokenize(media, tmp_path / "out")
    assert content(tmp_path / "out") == before


@pytest.mark.parametrize("killed", [False, True])
def test_a_list_of_many_samples_may_grow(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Their rows lie in a file beside the manifest, which is another one then."""
    monkeypatch.setattr(manifest_module, "MOST_IN_JSON", 1)
    whole, out = tmp_path / "whole", tmp_path / "out"
    rows = media.read_text().splitlines()
    media.write_text("\n".join(rows[:7]))
    tokenize(media, out)
    assert (out / "videos" / ROWS_FILE).is_file()
    if killed:  # between the two files
        state = json.loads((out / STATE_FILE).read_text())
        write_atomically(out / STATE_FILE, json.dumps({**state, "complete": None}))
        (out / "videos" / MANIFEST_FILE).unlink()
    media.write_text("\n".join(rows))
    tokenize(media, out)
    tokenize(media, whole)
    assert codes_by_key(out) == codes_by_key(whole)
    assert [verify_shards(out / kind) for kind in ("images", "videos")] == [[], []]
    assert not list(out.rglob("*.kept-*"))


def test_a_worker_that_dies_is_named_and_nothing_is_lost(media: Path, tmp_path: Path) -> None:
    killer = media.parent / f"{KILLER}.clip"
    rows = media.read_text().splitlines()
    killer.write_text("")
    rows.insert(6, json.dumps({"path": killer.name, "caption": "it kills"}))
    media.write_text("\n".join(rows))
    with refused(DataError, file=killer, got="SIGKILL"):
        tokenize(media, tmp_path / "out", workers=1)
    assert len((tmp_path / "out" / JOURNAL_FILE).read_bytes().splitlines()) == 7  # the absent one, too


def test_a_worker_that_dies_before_it_has_begun_blames_no_file(media: Path, tmp_path: Path) -> None:
    with refused(DataError, got="SIGKILL") as found:
        tokenize(media, tmp_path / "out", make_tokenizer=Unopened, workers=1)
    assert found.value.file is None


def test_what_a_worker_cannot_open_is_told_as_it_is(media: Path, tmp_path: Path) -> None:
    with refused(ConfigError, got="no memory"):
        make_tokenizer = partial(Unopened, ConfigError("not to be had", got="no memory"))
        tokenize(media, tmp_path / "out", make_tokenizer=make_tokenizer, workers=1)


def as_before(out: Path, source: Path, *, complete: bool) -> None:
    """Change a folder into what was left when items were known by their places in the list, and shards came last."""
    items = read_media_list(source)
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.name, item.line, item.start, item.caption, item.problem]).encode())
    state = json.loads((out / STATE_FILE).read_text())
    state["settings"] |= {"media": digest.hexdigest(), "n_media": len(items)}
    write_atomically(out / STATE_FILE, json.dumps(state))
    (out / LEDGER_FILE).unlink(missing_ok=True)
    if not complete:
        lines = (out / JOURNAL_FILE).read_text()
        for place, item in enumerate(items):
            lines = lines.replace(f'{{"row": "{item.number:016x}"', f'{{"item": {place}')
        (out / JOURNAL_FILE).write_text(lines)
        for kind in "images", "videos":
            shutil.rmtree(out / kind, ignore_errors=True)


def test_unfinished_folders_of_before_go_on(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "whole")
    with pytest.raises(Interrupted):
        tokenize(media, tmp_path / "out", on_progress=interrupt_at(7))
    as_before(tmp_path / "out", media, complete=False)
    listed = media.read_text()
    media.write_text(listed.replace("clip 5", "clip five"))
    before = content(tmp_path / "out")
    with refused(ConfigError, file="out", where="media"):
        tokenize(media, tmp_path / "out")
    assert content(tmp_path / "out") == before
    media.write_text(listed)
    reports: list[TokenizeProgress] = []
    tokenize(media, tmp_path / "out", on_progress=reports.append)
    assert reports[0].done == 7 and content(tmp_path / "out") == content(tmp_path / "whole")


def test_finished_folders_of_before_are_done_and_may_grow(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "out")
    as_before(tmp_path / "out", media, complete=True)
    before = content(tmp_path / "out")
    tokenize(media, tmp_path / "out")
    assert content(tmp_path / "out") == before
    media.write_text(media.read_text() + json.dumps({"path": "3.clip", "caption": "clip 3, again"}) + "\n")
    tokenize(media, tmp_path / "out")
    assert len(codes_by_key(tmp_path / "out")) == 10
    assert {name: data for name, data in content(tmp_path / "out").items() if name.endswith(".tar")}.items() >= {
        (name, data) for name, data in before.items() if name.endswith(".tar")
    }


# -- accounts ------------------------------------------------------------------------------------


def test_storage_that_fails_for_a_while_leaves_no_trace(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "out")
    for number in (0, 4):
        (media.parent / f"{number}.outage").write_text("2")
    tokenize(media, tmp_path / "again")
    assert content(tmp_path / "out") == content(tmp_path / "again")


@pytest.mark.parametrize("workers", [0, 2])
def test_storage_that_is_gone_stops_the_work_and_quarantines_nothing(media: Path, tmp_path: Path, workers: int) -> None:
    tokenize(media, tmp_path / "whole")
    (media.parent / "5.outage").write_text("99" if workers == 0 else "6")
    with refused(TemporaryError, file="5.clip"):
        tokenize(media, tmp_path / "out")
    reasons = [json.loads(line)["path"] for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert "5.clip" not in reasons
    (media.parent / "5.outage").write_text("0")
    tokenize(media, tmp_path / "out", workers=workers)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_media_that_vanish_amid_the_work_are_out_of_reach(media: Path, tmp_path: Path) -> None:
    tokenize(media, tmp_path / "whole")
    away = media.parent / "7.clip"

    def vanish(report: TokenizeProgress) -> None:
        if report.done == 5:
            away.rename(tmp_path / "elsewhere")

    with refused(TemporaryError, file="7.clip"):
        tokenize(media, tmp_path / "out", on_progress=vanish)
    (tmp_path / "elsewhere").rename(away)
    tokenize(media, tmp_path / "out")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_link_without_a_target_is_an_outage_only_where_all_of_that_disk_is_gone(tmp_path: Path) -> None:
    many(tmp_path / "store", 3, 0)
    links = tmp_path / "links"
    links.mkdir()
    for number in range(3):
        (links / f"{number}.clip").symlink_to(tmp_path / "store" / f"{number}.clip")
    (tmp_path / "store" / "2.clip").unlink()
    storage = Storage(AT_ONCE)
    assert storage.is_there(links / "0.clip") and not storage.is_there(links / "2.clip")
    (tmp_path / "store").rename(tmp_path / "away")
    with pytest.raises(TemporaryError):
        storage.is_there(links / "1.clip")


def many(folder: Path, n: int, n_broken: int) -> Path:
    folder.mkdir()
    rows = []
    for number in range(n):
        write_clip(folder / f"{number}.clip", number, 2)
        rows.append(json.dumps({"path": f"{number}.clip", "caption": f"clip {number}"}))
    for number in range(n_broken):
        (folder / f"{7 * number}.clip").write_text("nonsense")
    (folder / "list.jsonl").write_text("\n".join(rows))
    return folder / "list.jsonl"


def test_too_many_items_without_a_sample_stop_the_work(tmp_path: Path) -> None:
    media, out = many(tmp_path / "media", 150, 11), tmp_path / "out"
    for _ in range(2):  # nor does the next call go on
        with refused(DataError, where="--max-bad", got="11 of 71 so far"):
            tokenize(media, out)
        assert len((out / "quarantine.jsonl").read_text().splitlines()) == 11
    assert tokenize(media, out, max_bad=0.1)["videos"].n_samples == 139


def test_ten_items_without_a_sample_never_stop_it(tmp_path: Path) -> None:
    assert tokenize(many(tmp_path / "media", 80, 10), tmp_path / "out")["videos"].n_samples == 70


@pytest.mark.parametrize("is_complete", [True, False])
def test_what_was_quarantined_is_done_again_when_asked(tmp_path: Path, is_complete: bool) -> None:
    media, out = many(tmp_path / "media", 20, 2), tmp_path / "out"
    if is_complete:
        tokenize(media, out)
    else:
        with pytest.raises(Interrupted):
            tokenize(media, out, on_progress=interrupt_at(12))
    for number in (0, 7):
        write_clip(media.parent / f"{number}.clip", number, 2)
    assert tokenize(media, tmp_path / "whole")["videos"].n_samples == 20
    assert tokenize(media, out, retry_quarantined=True)["videos"].n_samples == 20
    assert codes_by_key(out) == codes_by_key(tmp_path / "whole")
    assert (out / "quarantine.jsonl").read_bytes() == b""


# -- the folder ----------------------------------------------------------------------------------


def test_shards_of_something_else_are_never_touched(media: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "videos").mkdir(parents=True)
    (tmp_path / "out" / "videos" / "mine").write_text("precious")
    with refused(DataError, file="videos"):
        tokenize(media, tmp_path / "out")
    for state in "[]", '{"settings": {}}', '{"settings": 3, "complete": null}', '{"settings": {}, "complete": 1}':
        (tmp_path / "out" / STATE_FILE).write_text(state)
        with refused(DataError, file=STATE_FILE):
            tokenize(media, tmp_path / "out")
    assert (tmp_path / "out" / "videos" / "mine").read_text() == "precious"


def test_two_processes_in_one_folder(media: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with file_lock(tmp_path / "out" / LOCK_FILE), refused(TemporaryError, file="out", got=f"pid {os.getpid()}"):
        tokenize(media, tmp_path / "out")
    assert tokenize(media, tmp_path / "out")
    assert (tmp_path / "out" / LOCK_FILE).read_bytes() == b""  # no pid, which would differ


def test_a_folder_that_cannot_be_made(media: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with refused(DataError, file="out"):
        tokenize(media, tmp_path / "file" / "out")


def test_the_shards_may_not_lie_among_the_media(tmp_path: Path) -> None:
    with refused(ConfigError, where="--out"):
        tokenize_media(tmp_path, tmp_path / "out", "embedded", settings())


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"fps": 0}, {"where": "--fps", "got": "0"}),
        ({"frames": 0}, {"where": "--frames"}),
        ({"min_frames": 25}, {"where": "--min-frames", "got": "25", "expected": "1 to 24"}),
        ({"workers": -1}, {"where": "--workers"}),
        ({"samples_per_shard": 0}, {"where": "--samples-per-shard"}),
        ({"start": -1.0}, {"where": "--start"}),
        ({"start": float("nan")}, {"where": "--start"}),
        ({"device": "gpu"}, {"where": "--device", "got": "gpu"}),
        ({"device": "cuda:99"}, {"where": "--device", "got": "cuda:99"}),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], fields: dict[str, str]) -> None:
    with refused(ConfigError, **fields):
        settings(**changes)


def test_a_size_that_the_tokenizer_cannot_have(media: Path, tmp_path: Path) -> None:
    with refused(ConfigError, where="--size"):
        tokenize(media, tmp_path / "out", size="20x8")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [0, 2])
def test_media_whose_folder_is_gone_are_not_quarantined(media: Path, tmp_path: Path, workers: int) -> None:
    """A mount that goes away while the work goes on: nothing of it is written down, and the next attempt has it all."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    tokenize(media, whole)
    aside = tmp_path / "aside"

    def unmount(progress: TokenizeProgress) -> None:
        if not aside.exists():
            media.parent.rename(aside)

    with refused(TemporaryError):
        tokenize(media, out, workers=workers, on_progress=unmount)
    aside.rename(media.parent)
    tokenize(media, out, workers=workers)
    assert content(out) == content(whole)
