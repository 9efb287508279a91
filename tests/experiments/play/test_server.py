"""The page without a browser: what it serves, and what it makes."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules.media.decode import ClipRequest, decode_media
from experiments.cli import main
from experiments.play.about import describe
from experiments.play.server import PAGE
from experiments.sample.folder import Record
from lumos_pl.machinery.json_file import parse_json
from lumos_pl.pipeline import LumosPipeline
from lumos_pl.sampling.config import ClipFormat, SamplingConfig
from lumos_pl.sampling.generated_clip import clip_seed
from tests.data_modules.shards.shard_files import write
from tests.experiments.play.served import QUICK, Page, asked


def png(color: tuple[int, int, int] = (200, 30, 40), size: tuple[int, int] = (90, 70)) -> bytes:
    encoded = io.BytesIO()
    Image.new("RGB", size, color).save(encoded, "PNG")
    return encoded.getvalue()


def codes_of(page: Page, clip: str) -> torch.Tensor:
    return torch.from_numpy(np.load(io.BytesIO(page.get(f"/api/clips/{clip}.npy").body)).astype(np.int64))


def record_of(page: Page, clip: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(page.get(f"/api/clips/{clip}.json").body)
    return record


def make_again(lumos: LumosPipeline, request: dict[str, Any], given: torch.Tensor | None = None) -> torch.Tensor:
    made = lumos.generate(
        [request["prompt"]],
        seed=[request["seed"]],
        clip=ClipFormat(**request["clip"]),
        sampling=SamplingConfig(**request["sampling"]),
        given=[given],
    )
    return made[0].codes


def test_the_page_and_what_it_needs_come_from_here_alone(page: Page) -> None:
    html = page.get("/")
    assert html.status == 200 and html.headers["content-type"].startswith("text/html")
    for name in re.findall(r'(?:src|href)="([^"]+)"', html.body.decode()):
        assert name.startswith("data:") or page.get(f"/{name}").status == 200
    for file in PAGE.iterdir():
        content = page.get(f"/{file.name}").body.decode()
        assert content == file.read_text()
        assert all((PAGE / name).is_file() for name in re.findall(r'from "\./([^"]+)"', content))
        assert not set(re.findall(r"https?://[^'\" )]+", content)) - {"http://www.w3.org/2000/svg"}
        assert "innerHTML" not in content
    assert "default-src 'none'" in html.headers["content-security-policy"]
    assert html.headers["x-content-type-options"] == "nosniff"


def test_it_says_what_the_model_knows(page: Page, lumos: LumosPipeline) -> None:
    about = json.loads(page.get("/api/about").body)
    assert about["frames"] == 17 and about["knobs"]["guidance"] == lumos.sampling.guidance
    known = set(" ".join(word for group in about["words"].values() for word in group).split())
    assert {"red", "circle", "moves", "stripes"} <= known and "dog" not in known
    assert about["examples"]
    assert set(re.findall(r"\w+", " ".join(about["examples"]))) <= known
    assert len(page.get("/api/palette").body) == 3 * lumos.layout.codebook_size


@pytest.mark.parametrize(
    ("kept", "examples"),
    [("shards", ["a blue circle rises, № 0"]), ("absent", []), ("s3://bucket/shards", []), ("damaged", [])],
)
def test_a_model_of_ones_own_clips_shows_captions_of_theirs(
    kept: str, examples: list[str], lumos: LumosPipeline, tmp_path: Path
) -> None:
    write(tmp_path / "shards")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "manifest.json").write_text("{")
    root = kept if "://" in kept else str(tmp_path / kept)
    assert lumos.saved is not None
    of_ones_own = replace(lumos.saved, config={"data": {"val_root": root}})
    assert describe(replace(lumos, saved=of_ones_own), "mine")["examples"] == examples


@pytest.mark.parametrize(
    ("world", "knows"),
    [({"train": 9, "colors": ["red", "blue"]}, True), ({"train": 0}, False), ({"train": 9, "kind": "my.world"}, False)],
    ids=["made", "clips of ones own", "a world of ones own"],
)
def test_the_words_are_those_of_the_world_that_a_run_made(
    world: dict[str, Any], knows: bool, lumos: LumosPipeline
) -> None:
    assert lumos.saved is not None
    config = {key: value for key, value in lumos.saved.config.items() if key != "clips"}  # as runs are written today
    saved = replace(lumos.saved, config={**config, "world": world})
    words = describe(replace(lumos, saved=saved), "a run")["words"]
    assert (words is not None) == knows and (not knows or words["colour"] == ["red", "blue"])


def test_frames_fill_up_step_by_step_and_are_those_of_the_clip(page: Page, lumos: LumosPipeline) -> None:
    events = page.make(frames=9).rest()
    made = events[-1]
    codes = codes_of(page, made["clip"])
    kinds = [event["kind"] for event in events if event["kind"] != "waiting"]
    assert [kind for kind, _ in groupby(kinds)] == ["begun", *["codes", "pictures"] * 3, "made"]
    steps = [(event["frame"], event["step"]) for event in events if event["kind"] == "codes"]
    assert steps == [(frame, step) for frame in range(3) for step in (1, 2)]
    for event in events:
        if event["kind"] == "codes":
            assert (min(event["codes"]) < 0) == (event["step"] == 1)
            if event["step"] == 2:
                assert event["codes"] == codes[event["frame"]].flatten().tolist()
    shown = b"".join(base64.b64decode(event["rgb"]) for event in events if event["kind"] == "pictures")
    assert shown == lumos.decode(codes).numpy().tobytes()


def test_a_clip_and_its_record_can_be_downloaded(page: Page, lumos: LumosPipeline, tmp_path: Path) -> None:
    made = page.make(frames=5).made()
    video = page.get(f"/api/clips/{made['clip']}.mp4")
    assert video.headers["content-disposition"] == 'attachment; filename="a-big-red-circle-moves-left-fast.mp4"'
    (tmp_path / "clip.mp4").write_bytes(video.body)
    request = ClipRequest(sizes=((64, 64),), fps=8, max_frames=9, start=0.0)
    assert len(decode_media(tmp_path / "clip.mp4", request).frames) == 5
    record = parse_json(page.get(f"/api/clips/{made['clip']}.json").body, Record)  # all fields and no others
    assert torch.equal(make_again(lumos, record["request"]), codes_of(page, made["clip"]))


def test_the_record_is_that_of_lumos_sample(page: Page, tmp_path: Path) -> None:
    made = page.make(frames=1, seed=7).made()
    assert made["suffix"] == ".png" and page.get(f"/api/clips/{made['clip']}.png").body.startswith(b"\x89PNG")
    flags = [word for name, value in QUICK.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    caption = "a big red circle moves left fast"
    where = ["--out", str(tmp_path), "--device", "cpu"]
    assert main(["sample", "--prompt", caption, "--frames", "1", "--seed", "7", *flags, *where]) == 0
    (file,) = tmp_path.glob("records/*.json")
    record = json.loads(file.read_text())
    assert record_of(page, made["clip"])["request"] == record["request"]
    assert record["request"]["seed"] == clip_seed(7, 0)


def test_two_settings_begin_with_the_same_seed(page: Page) -> None:
    other = QUICK | {"temperature": 2.0}
    events = page.make(knobs=[QUICK, other]).rest()
    left, right = (event for event in events if event["kind"] == "made")
    assert (left["side"], right["side"]) == (0, 1)
    requests = [record_of(page, made["clip"])["request"] for made in (left, right)]
    assert requests[0]["seed"] == requests[1]["seed"]
    assert [request["sampling"]["temperature"] for request in requests] == [0.5, 2.0]
    alone = page.make(knobs=[other]).made()
    assert torch.equal(codes_of(page, alone["clip"]), codes_of(page, right["clip"]))


def test_a_clip_begins_with_an_uploaded_picture(page: Page, lumos: LumosPipeline) -> None:
    uploaded = json.loads(page.post("/api/pictures?name=..%2Fred%0A.png", png()).body)
    assert uploaded["name"] == "_._red_.png"
    events = page.make(picture=uploaded["picture"]).rest()
    begun = next(event for event in events if event["kind"] == "begun")
    assert begun["kept"] == 1
    first = next(event for event in events if event["kind"] == "pictures")
    mean = np.frombuffer(base64.b64decode(first["rgb"]), np.uint8).reshape(-1, 3).mean(0)
    assert np.abs(mean - [200, 30, 40]).max() < 40
    record = record_of(page, events[-1]["clip"])
    given = record["request"]["given"]
    assert given["file"] == "_._red_.png" and given["frames"] == 1 and len(given["sha256"]) == 64
    frames = torch.tensor([200, 30, 40], dtype=torch.uint8).expand(1, 64, 64, 3)
    assert torch.equal(make_again(lumos, record["request"], frames), codes_of(page, events[-1]["clip"]))


def test_a_clip_goes_on_where_it_ended(page: Page, lumos: LumosPipeline) -> None:
    first = page.make(frames=9).made()
    before, whole = codes_of(page, first["clip"]), lumos.decode(codes_of(page, first["clip"]))
    events = page.make(frames=17, clip=first["clip"]).rest()
    begun = next(event for event in events if event["kind"] == "begun")
    assert (begun["kept"], begun["latent_frames"]) == (3, 6)  # of five latent frames two are of the first clip
    codes = codes_of(page, events[-1]["clip"])
    assert torch.equal(codes[:3], before)
    request = record_of(page, events[-1]["clip"])["request"]
    given = request["given"]
    assert given == {"continues": record_of(page, first["clip"])["request"], "frames": 5}
    again = make_again(lumos, request, whole[-5:])
    assert torch.equal(again[2:], codes[3:])
    shown = [event for event in events if event["kind"] == "pictures"]
    assert [event["count"] for event in shown] == [1, 4, 4, 4, 4, 4]
    assert b"".join(base64.b64decode(event["rgb"]) for event in shown[:3]) == whole.numpy().tobytes()


@pytest.mark.parametrize("beginning", ["picture", "clip"])
def test_what_is_no_longer_kept_is_said(page: Page, beginning: str) -> None:
    answer = page.post("/api/clips", asked(**{beginning: "A" * 24}))
    assert answer.status == 400 and "kept" in answer.line
