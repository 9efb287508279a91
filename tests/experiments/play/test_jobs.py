"""The queue: several visitors, those who leave, and the end of it all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from experiments.play import jobs
from experiments.play.shelf import Shelf
from lumos_pl.errors import DataError
from lumos_pl.pipeline import LumosPipeline
from tests.experiments.play.served import QUICK, GatedPipeline, Page, asked, serve
from tests.refusals import refused


@pytest.fixture
def gated(lumos: LumosPipeline) -> GatedPipeline:
    own: dict[str, Any] = {field.name: getattr(lumos, field.name) for field in fields(LumosPipeline)}
    return GatedPipeline(**own)


@pytest.fixture
def busy(gated: GatedPipeline) -> Iterator[Page]:
    """A page of one's own, whose clips wait at the gate."""
    with serve(gated) as page:
        yield page
        gated.gate.set()


def test_a_second_visitor_waits_and_then_gets_his(busy: Page, gated: GatedPipeline) -> None:
    anna = busy.make("anna")
    assert gated.arrived.acquire(timeout=60)
    bert, carl = busy.make("bert"), busy.make("carl")
    assert bert.next() == {"kind": "waiting", "place": 1}
    assert carl.next() == {"kind": "waiting", "place": 2}
    gated.gate.set()
    assert anna.made()
    assert carl.next() == {"kind": "waiting", "place": 1}
    assert bert.made() and carl.made()


def test_a_visitor_has_one_at_a_time(busy: Page, gated: GatedPipeline) -> None:
    first = busy.make("anna")
    answer = busy.post("/api/clips", asked(), Lumos_Visitor="anna")
    assert answer.status == 429 and answer.line
    gated.gate.set()
    assert first.made()
    assert busy.make("anna").made()


def test_those_without_a_name_are_told_apart_by_their_address(busy: Page) -> None:
    stream = busy.make("")
    assert busy.post("/api/clips", asked()).status == 429
    stream.hang_up()


def test_the_queue_has_an_end(busy: Page, gated: GatedPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_WAITING", 2)
    streams = [busy.make("anna")]
    assert gated.arrived.acquire(timeout=60)  # that one is out of the queue
    streams += [busy.make(name) for name in ("bert", "carl")]
    answer = busy.post("/api/clips", asked(), Lumos_Visitor="dora")
    assert answer.status == 429 and answer.line
    gated.gate.set()
    assert all(stream.made() for stream in streams)


def test_who_leaves_the_queue_makes_room(busy: Page, gated: GatedPipeline) -> None:
    anna = busy.make("anna")
    assert gated.arrived.acquire(timeout=60)
    bert, carl = busy.make("bert"), busy.make("carl")
    assert carl.next() == {"kind": "waiting", "place": 2}
    bert.hang_up()
    assert carl.next() == {"kind": "waiting", "place": 1}
    gated.gate.set()
    assert anna.made() and carl.made()
    assert len(busy.studio.clips) == 2


def test_a_clip_whose_visitor_left_is_not_made_to_its_end(busy: Page, gated: GatedPipeline) -> None:
    long = busy.make("anna", frames=69, knobs=[QUICK | {"steps": 64}])
    gated.gate.set()
    assert long.until("codes")["frame"] == 0
    long.hang_up()
    assert busy.make("bert").made()
    assert len(busy.studio.clips) == 1  # bert's alone


def test_the_end_ends_every_stream(busy: Page, gated: GatedPipeline) -> None:
    long, waiting = busy.make("anna", frames=69, knobs=[QUICK | {"steps": 64}]), busy.make("bert")
    gated.gate.set()
    assert long.until("codes")
    busy.studio.stop()
    assert not [event for event in [*long.rest(), *waiting.rest()] if event["kind"] == "made"]
    busy.studio.join()
    assert busy.post("/api/clips", asked()).status == 429


def test_what_goes_wrong_is_a_line_on_the_page(
    busy: Page, gated: GatedPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a\nmistake")

    monkeypatch.setattr(GatedPipeline, "generate_codes", fail)
    (event,) = (event for event in busy.make().rest() if event["kind"] == "refused")
    assert "mistake" not in event["line"] and "\n" not in event["line"]
    monkeypatch.undo()
    gated.gate.set()
    assert busy.make().made()


def test_a_clip_has_an_end(busy: Page, gated: GatedPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    gated.gate.set()
    clip = busy.make(frames=5).made()["clip"]
    clip = busy.make(frames=5, clip=clip).made()["clip"]
    monkeypatch.setattr(jobs, "MOST_FRAMES", 12)
    for changes in ({"frames": 5}, {"frames": 1}):
        answer = busy.post("/api/clips", asked(clip=clip, **changes))
        assert answer.status == 400 and answer.line


def test_a_shelf_keeps_the_newest() -> None:
    shelf: Shelf[int] = Shelf("number", most=3, most_bytes=10)
    names = [shelf.put(number, 1) for number in range(5)]
    assert [shelf.get(name) for name in names[2:]] == [2, 3, 4]
    with refused(DataError):
        shelf.get(names[1])
    large = shelf.put(5, 9)
    assert len(shelf) == 2 and shelf.get(large) == 5 and shelf.get(names[4]) == 4
    assert shelf.get(shelf.put(6, 100)) == 6 and len(shelf) == 1  # alone, whatever its size
    assert len(set(names)) == 5 and min(map(len, names)) >= 20
