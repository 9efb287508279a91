"""Import of the release's files: the tokens come back from the shards, and no pickle runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data_modules.shards.check import verify_shards
from data_modules.shards.manifest import MANIFEST_FILE, Manifest
from data_modules.shards.release_tokens import COSMOS_TOKENIZER, import_release_tokens, read_plain_pickle
from data_modules.shards.sample import ShardSample, resolve_text
from data_modules.shards.shards import read_shard
from lumos_pl.errors import DataError
from lumos_pl.layout import TokenSequence, lumos1_layout
from lumos_pl.seeding import generator
from tests.refusals import refused

LAYOUT = lumos1_layout()
REAL = Path(__file__).parents[4] / "shared" / "real" / "lumos_tokens"
FRAMES_ID, FPS_ID = 65_539, 65_540
TEXT = [22807, 16758, FRAMES_ID, 32559, FPS_ID, 16972]

Content = dict[str, Any]


def content(index: int, *, frames: int, duration: int, fps: int, text: list[int] = TEXT) -> Content:
    """What a file of the release holds: 4 x 8 codes (64 x 32 px) a latent frame."""
    codes = torch.randint(LAYOUT.codebook_size, (frames, 4, 8), generator=generator(0, "codes", index))
    sequence = TokenSequence(text_ids=(16399,) * len(text), codes=codes, duration=duration, fps=fps)
    tokens = LAYOUT.build(sequence).tolist()
    tokens[1 : 1 + len(text)] = text
    start = tokens.index(LAYOUT.video_start)
    return {"token": tokens, "label": [-100] * start + tokens[start:], "id": index}


def image(index: int) -> Content:
    return content(index, frames=1, duration=1, fps=1)


def video(index: int) -> Content:
    return content(index, frames=7, duration=2, fps=12)


def put(path: Path, value: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value))
    return path


def resolved(tokens: list[int]) -> list[int]:
    """The release's tokens with its placeholders written out, the plain way."""
    start = tokens.index(LAYOUT.video_start)
    duration, fps = tokens[start + 1] - LAYOUT.number_offset, tokens[start + 2] - LAYOUT.number_offset
    written = []
    for token in tokens[:start]:
        number = {FRAMES_ID: duration * fps, FPS_ID: fps}.get(token)
        written += [token] if number is None else [16399 + int(digit) for digit in str(number)]
    return written + tokens[start:]


def rebuilt(sample: ShardSample) -> list[int]:
    assert isinstance(sample.text, tuple)
    ids = resolve_text(sample.text, frames=sample.frames, fps=sample.fps, digit_offset=LAYOUT.digit_offset or 0)
    codes = torch.from_numpy(sample.codes)
    sequence = TokenSequence(text_ids=ids, codes=codes, duration=sample.duration, fps=sample.fps)
    return LAYOUT.build(sequence).tolist()


def samples_of(folder: Path) -> list[ShardSample]:
    manifest = Manifest.load(folder)
    assert verify_shards(folder) == []
    return [sample for index in range(len(manifest.shards)) for sample in read_shard(folder, manifest, index)]


def assert_round_trip(source: Path, out: Path) -> dict[str, Manifest]:
    manifests = import_release_tokens(source, out, samples_per_shard=2)
    for kind in manifests:
        for sample in samples_of(out / kind):
            original = read_plain_pickle(source / sample.source)
            assert isinstance(original, dict)
            assert rebuilt(sample) == resolved(original["token"])
            assert (len(sample.codes) == 1) == (kind == "images")
    return manifests


# -- what comes back -----------------------------------------------------------------------------


def test_shards_give_back_the_tokens(tmp_path: Path) -> None:
    for index in range(3):
        put(tmp_path / "src" / "images" / f"{index}.pkl", image(index))
        put(tmp_path / "src" / "videos" / f"{index}.pkl", video(index + 3))
    done = []
    manifests = assert_round_trip(tmp_path / "src", tmp_path / "out")
    assert {kind: manifest.n_samples for kind, manifest in manifests.items()} == {"images": 3, "videos": 3}
    assert {manifest.tokenizer for manifest in manifests.values()} == {COSMOS_TOKENIZER}
    sample = samples_of(tmp_path / "out" / "videos")[0]
    assert (sample.frames, sample.fps, sample.duration, sample.width, sample.height) == (24, 12, 2, 64, 32)
    assert sample.text == (22807, 16758, "{frames}", 32559, "{fps}", 16972)
    assert manifests["videos"].shards[0].text_lengths.tolist() == [8, 8]  # 24 and 12 take two digits each

    again = import_release_tokens(
        tmp_path / "src", tmp_path / "again", samples_per_shard=2, on_progress=lambda *at: done.append(at)
    )
    assert again == manifests
    assert done == [(n, 6) for n in range(1, 7)]


def test_a_visual_id_of_the_placeholders_value_stays_a_code(tmp_path: Path) -> None:
    value = video(0)
    first = value["token"].index(LAYOUT.frame_start) + 3
    for name in "token", "label":
        value[name][first : first + 2] = [FRAMES_ID, FPS_ID]
    put(tmp_path / "src" / "0.pkl", value)
    assert_round_trip(tmp_path / "src", tmp_path / "out")
    assert samples_of(tmp_path / "out" / "videos")[0].codes[0, 0, :2].tolist() == [3, 4]


def test_the_real_files(tmp_path: Path) -> None:
    if not REAL.is_dir():
        pytest.skip(f"the release's files are not at {REAL}")
    manifests = assert_round_trip(REAL, tmp_path)
    assert {kind: manifest.shapes for kind, manifest in manifests.items()} == {
        "images": ((1, 52, 72),),
        "videos": ((22, 48, 84),),
    }


def test_paths_that_read_alike_get_keys_of_their_own(tmp_path: Path) -> None:
    for name in "a/b.pkl", "a-b.pkl", "a b.v2.pkl", "...pkl", f"{'x' * 90}.pkl", f"{'x' * 91}.pkl", "帧.pkl":
        put(tmp_path / "src" / name, image(0))
    import_release_tokens(tmp_path / "src", tmp_path / "out")
    keys = {sample.key for sample in samples_of(tmp_path / "out" / "images")}
    assert len(keys) == 7
    assert any(key.startswith("a-b-v2-") for key in keys)


RECORDS: dict[str, Callable[[list[str]], Any]] = {
    "objects": lambda paths: [{"file": path, "len": 50, "id": i} for i, path in enumerate(paths)],
    "other name": lambda paths: [{"path": path} for path in paths],
    "paths": lambda paths: paths,
    "inside an object": lambda paths: {"version": 1, "samples": [{"file": path} for path in paths]},
}


@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("absolute", [False, True])
def test_a_merge_record_names_the_files(tmp_path: Path, name: str, absolute: bool) -> None:
    paths = [put(tmp_path / "src" / f"{index}.pkl", image(index)) for index in range(3)]
    listed = [str(path) if absolute else f"src/{path.name}" for path in paths[:2]]
    record = tmp_path / "merge-record.json"
    record.write_text(json.dumps(RECORDS[name](listed)))
    assert import_release_tokens(record, tmp_path / "out")["images"].n_samples == 2
    assert [sample.source for sample in samples_of(tmp_path / "out" / "images")] == listed


def test_one_file(tmp_path: Path) -> None:
    path = put(tmp_path / "7.pkl", video(7))
    assert import_release_tokens(path, tmp_path / "out")["videos"].n_samples == 1


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ("[", {"file": "merge-record.json"}),
        ('"a.pkl"', {"file": "merge-record.json", "got": "'a.pkl'"}),
        ('{"a": [], "b": []}', {"file": "merge-record.json", "got": "{'a': [], 'b': []}"}),
        ("[]", {"file": "merge-record.json"}),
        ('[{"name": "a.pkl"}]', {"file": "merge-record.json", "where": "item 0"}),
        ('["0.pkl", {"file": 5}]', {"file": "merge-record.json", "where": "item 1"}),
        ('[{"file": "0.pkl", "path": "1.pkl"}]', {"file": "merge-record.json", "where": "item 0"}),
        ('["missing.pkl"]', {"file": "missing.pkl"}),
        ('["a\\u0000b.pkl"]', {"file": "a\0b.pkl"}),
        ('["0.pkl", "0.pkl"]', {"file": "merge-record.json", "got": "0.pkl"}),
        ('["0.pkl", "./0.pkl"]', {"file": "merge-record.json", "got": "0.pkl"}),
    ],
)
def test_a_wrong_merge_record_is_one_line(tmp_path: Path, record: str, fields: dict[str, str]) -> None:
    put(tmp_path / "0.pkl", image(0))
    (tmp_path / "merge-record.json").write_text(record)
    with refused(DataError, **fields):
        import_release_tokens(tmp_path / "merge-record.json", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.*"))


def test_missing_and_empty_sources(tmp_path: Path) -> None:
    with refused(DataError, file="nowhere"):
        import_release_tokens(tmp_path / "nowhere", tmp_path / "out")
    with refused(DataError):
        import_release_tokens(tmp_path, tmp_path / "out")


class Touch:
    """Pickles as a call that makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("executed"),)


def with_class(value: Content) -> bytes:
    return pickle.dumps({**value, "id": Touch()})


HOSTILE: dict[str, tuple[Callable[[Content], bytes], str]] = {
    "class": (with_class, "it tries to load 'pathlib'"),
    "in place of the dict": (lambda v: pickle.dumps(Touch()), "it tries to load 'pathlib'"),
    "system call": (lambda v: b"cos\nsystem\n(S'touch executed'\ntR.", "it tries to load 'os'.'system'"),
    "instance": (lambda v: b"(S'touch executed'\nios\nsystem\n.", "it tries to load 'os'.'system'"),
    "persistent id": (lambda v: b"Pexecuted\n.", "not a whole pickle"),
    "extension code": (lambda v: b"\x80\x02\x82\xf0.", "not a whole pickle"),
    "build": (lambda v: b"\x80\x02}}b.", "not a whole pickle"),
    "cut": (lambda v: pickle.dumps(v)[:-100], "not a whole pickle"),
    "empty": (lambda v: b"", "not a whole pickle"),
    "huge claim": (lambda v: b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "not a whole pickle"),
    "set": (lambda v: pickle.dumps({1, 2}), "not a token file | got set"),
    "float": (lambda v: pickle.dumps({**v, "token": [0.5]}), "token | got items of type float"),
    "booleans": (lambda v: pickle.dumps({**v, "token": [True]}), "token | got items of type bool"),
    "nested": (lambda v: pickle.dumps({**v, "label": [v["label"]]}), "label | got items of type list"),
    "tuple": (lambda v: pickle.dumps({**v, "label": tuple(v["label"])}), "label | got tuple"),
    "id": (lambda v: pickle.dumps({**v, "id": "1"}), "not a token file"),
    "keys": (lambda v: pickle.dumps({**v, 5: 1}), "not a token file"),
    "long number": (lambda v: pickle.dumps({**v, "token": [10**5000]}), "token | got "),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_or_damaged_pickle_is_refused_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    make, expected = HOSTILE[name]
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "src" / "0.pkl", image(0))
    path = tmp_path / "src" / "1.pkl"
    path.write_bytes(make(image(1)))
    with pytest.raises(DataError) as caught:
        import_release_tokens(tmp_path / "src", tmp_path / "out", samples_per_shard=1)
    message = str(caught.value)
    assert expected in message.replace(f"{path} | ", "") and str(path) in message
    assert not (tmp_path / "executed").exists()
    assert list((tmp_path / "out" / "images").iterdir()) == []


def test_a_file_too_large_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path / "0.pkl", image(0))
    monkeypatch.setattr("data_modules.shards.release_tokens.MAX_PICKLE_BYTES", path.stat().st_size - 1)
    with refused(DataError, file="0.pkl"):
        import_release_tokens(path, tmp_path / "out")


def set_token(position: int, token: int) -> Callable[[Content], None]:
    def change(value: Content) -> None:
        value["token"][position] = token

    return change


def set_number(position: int, number: int) -> Callable[[Content], None]:
    def change(value: Content) -> None:
        value["token"][position] = value["label"][position] = LAYOUT.number_offset + number

    return change


def set_label(position: int, label: int) -> Callable[[Content], None]:
    def change(value: Content) -> None:
        value["label"][position] = label

    return change


def drop_text(value: Content) -> None:
    for name in "token", "label":
        del value[name][:START]


START = 1 + len(TEXT) + 1  # of VIDEO_START
SEQUENCES: dict[str, tuple[Callable[[Content], object], dict[str, str]]] = {
    "another text id that is visual": (set_token(2, 65_541), {"where": "position 2"}),
    "a marker in the text": (set_token(2, LAYOUT.newline), {"where": "position 2"}),
    "no video": (set_token(START, 5), {"where": "position 3"}),  # the placeholder, now in a text without an end
    "a placeholder for the size": (set_token(START + 4, FRAMES_ID), {"where": f"position {START + 4}"}),
    "a broken row": (set_token(START + 20, 5), {"where": f"position {START + 20}: frame 0, token 17 of 40"}),
    "another duration": (set_number(START + 1, 3), {"got": "7 latent frames, 3 s at 12 fps"}),
    "another rate": (set_number(START + 2, 24), {"got": "7 latent frames, 2 s at 24 fps"}),
    "no time at all": (set_number(START + 1, 0), {"where": f"position {START + 1}"}),
    "a label in the text": (set_label(3, 5), {"where": "label[3]", "got": "5", "expected": "-100"}),
    "no label for the video": (set_label(START, -100), {"where": f"label[{START}]", "got": "-100", "expected": "9004"}),
    "a label too few": (lambda v: v["label"].pop(), {"where": "label"}),
    "no text": (drop_text, {}),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_that_is_not_the_releases_is_named(tmp_path: Path, name: str) -> None:
    change, fields = SEQUENCES[name]
    value = video(0)
    change(value)
    path = put(tmp_path / "0.pkl", value)
    with refused(DataError, file=path, **fields):
        import_release_tokens(path, tmp_path / "out")


def test_an_interrupted_import_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    for index in range(3):
        put(tmp_path / "src" / "images" / f"{index}.pkl", image(index))
        put(tmp_path / "src" / "videos" / f"{index}.pkl", video(index))

    def interrupt(done: int, _total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_release_tokens(tmp_path / "src", tmp_path / "out", samples_per_shard=1, on_progress=interrupt)
    assert not list((tmp_path / "out").rglob(MANIFEST_FILE))
    assert import_release_tokens(tmp_path / "src", tmp_path / "out", samples_per_shard=1)["videos"].n_samples == 3
