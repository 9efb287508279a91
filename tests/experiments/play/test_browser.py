"""The page in a browser: what a visitor does with it, by hand."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from experiments.play.asked import CAPTION_CHARS, UPLOAD_BYTES
from lumos_pl.pipeline import LumosPipeline
from tests.experiments.play.served import serve

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install 'lumos_pl[browser]'")
expect = playwright.expect
SECONDS = 120_000  # in ms: for whatever is waited for, on a machine with other work
expect.set_options(timeout=SECONDS)


WIDE, NARROW = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


@pytest.fixture
def screen() -> dict[str, int]:
    return WIDE


@pytest.fixture
def tab(screen: dict[str, int], browser: Any, lumos: LumosPipeline) -> Iterator[Any]:
    """The page, quick to make clips, on a screen; nothing goes wrong in it, and in the end it fits both screens."""
    with serve(lumos) as page:
        tab = browser.new_page(viewport=screen)
        tab.set_default_timeout(SECONDS)
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("dialog", lambda dialog: wrong.append(dialog.message))
        tab.goto(f"http://localhost:{page.port}/")
        expect(tab.locator("#examples button").first).to_be_visible()
        tab.locator("#frames").fill("5")
        tab.locator("#steps-0").fill("2")
        yield tab
        for size in WIDE, NARROW:
            tab.set_viewport_size(size)
            assert tab.locator("html").evaluate("page => page.scrollWidth - page.clientWidth") == 0
        assert not wrong
        tab.close()


def made(tab: Any, number: int = 1) -> None:
    expect(tab.locator(".actions:visible")).to_have_count(number)
    expect(tab.locator("#make")).to_have_text("Make it move")
    expect(tab.locator("#refusal")).to_be_hidden()


def test_type_watch_and_keep(tab: Any) -> None:
    """By keyboard alone."""
    tab.locator("#caption").focus()
    tab.keyboard.press("Control+A")
    tab.keyboard.type("a big blue square moves right fast")
    tab.keyboard.press("Enter")
    expect(tab.locator("#status")).to_contain_text(re.compile("step|Made"))
    made(tab)
    expect(tab.locator(".strip button")).to_have_count(2)
    expect(tab.locator(".picture")).to_be_visible()
    tab.locator(".play").focus()
    tab.keyboard.press("Enter")
    expect(tab.locator(".play")).to_have_text("Play")
    tab.locator(".strip button").first.focus()
    tab.keyboard.press("Enter")
    expect(tab.locator('.strip [aria-current="true"]')).to_have_text("1")
    for link, suffix in (".mp4", ".mp4"), (".record", ".json"):
        with tab.expect_download() as download:
            tab.locator(link).press("Enter")
        assert download.value.suggested_filename == f"a-big-blue-square-moves-right-fast{suffix}"


@pytest.mark.parametrize("screen", [NARROW])
def test_slide_and_compare(tab: Any) -> None:
    tab.locator("#temperature-0").focus()
    before = tab.locator("output[for=temperature-0]").inner_text()
    tab.keyboard.press("ArrowRight")
    expect(tab.locator("output[for=temperature-0]")).not_to_have_text(before)
    expect(tab.locator("#guidance-1")).to_be_hidden()
    tab.locator("#compare").check()
    tab.locator("#steps-1").fill("2")
    tab.locator("#guidance-1").fill("4")
    tab.locator("#make").click()
    made(tab, 2)
    expect(tab.locator("article h3").last).to_contain_text("guidance 4")
    expect(tab.locator("article h3").last).not_to_contain_text("steps")


@pytest.mark.parametrize("screen", [NARROW])
def test_begin_with_a_picture_and_continue(tab: Any) -> None:
    encoded = io.BytesIO()
    Image.new("RGB", (80, 60), (20, 120, 200)).save(encoded, "PNG")
    picture = {"name": "<b>blue</b>.png", "mimeType": "image/png", "buffer": encoded.getvalue()}
    tab.locator("#upload").set_input_files(picture)
    expect(tab.locator("#uploaded span")).to_have_text("<b>blue<_b>.png")
    tab.locator("#make").click()
    made(tab)
    expect(tab.locator(".strip button")).to_have_count(2)
    tab.locator(".continue").click()
    expect(tab.locator(".strip button")).to_have_count(3)
    made(tab)
    tab.locator("#uploaded button").click()
    expect(tab.locator("#uploaded")).to_be_hidden()


@pytest.mark.parametrize("screen", [NARROW])
def test_stop(tab: Any) -> None:
    tab.locator("#frames").fill("33")
    tab.locator("#steps-0").fill("16")
    tab.locator("#make").click()
    expect(tab.locator("#status")).to_contain_text("step")
    tab.keyboard.press("Escape")
    expect(tab.locator("#status")).to_have_text("Stopped.")
    expect(tab.locator("#make")).to_have_text("Make it move")


def test_what_is_refused_gets_its_line(tab: Any) -> None:
    large = {"name": "large.png", "mimeType": "image/png", "buffer": bytes(UPLOAD_BYTES + 1)}
    tab.locator("#upload").set_input_files(large)
    expect(tab.locator("#refusal")).to_contain_text(str(UPLOAD_BYTES))
    tab.locator("#upload").set_input_files({"name": "no.png", "mimeType": "image/png", "buffer": b"no"})
    expect(tab.locator("#refusal")).to_contain_text("no.png")
    tab.locator("#caption").fill("  ")
    tab.locator("#make").click()
    expect(tab.locator("#refusal")).to_contain_text("caption")
    hostile = "a red dog <img src=x onerror=alert(1)><script>alert(2)</script>"
    tab.locator("#caption").fill(hostile)
    expect(tab.locator("#unknown")).to_contain_text("dog")
    tab.locator("#make").click()
    made(tab)
    expect(tab.locator("img, main script")).to_have_count(0)
    tab.locator("#caption").evaluate(
        "(caption, n) => { caption.removeAttribute('maxlength'); caption.value = 'x'.repeat(n); }", CAPTION_CHARS + 1
    )
    tab.locator("#make").click()
    expect(tab.locator("#refusal")).to_contain_text(f"{CAPTION_CHARS + 1} characters")
