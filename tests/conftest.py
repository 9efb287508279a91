"""What many tests share: small layouts, sequences and decoders, all from explicit seeds."""

from __future__ import annotations

import gc
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

from experiments.environment import restored_environment
from lumos_pl.layout import TokenLayout, TokenSequence, compact_layout
from lumos_pl.machinery.stop_request import SIGNALS
from lumos_pl.models.config import PLAIN, ComputeConfig, ModelConfig
from lumos_pl.models.transformer import LumosTransformer

pytest.register_assert_rewrite("tests.refusals")

# The same examples each time, and no limit to the time of one, which on a busy machine is chance.
settings.register_profile("the same everywhere", derandomize=True, deadline=None)
settings.load_profile("the same everywhere")

# One thread a process: the tests run side by side, and two threads that wait for a busy core spin for milliseconds.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared"


def pytest_collection_finish() -> None:
    """What is imported stays: looking through all of it for garbage took a twelfth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A Chromium without a window, as playwright drives it; tests that want it skip without."""
    wanted = "needs playwright: pip install 'lumos_pl[browser]'"
    playwright = pytest.importorskip("playwright.sync_api", reason=wanted)
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        if found is None and not Path(driver.chromium.executable_path).is_file():
            pytest.skip("needs a Chromium: `playwright install chromium`, or the system's")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and real data beside the project; tests that want it skip without it."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared (golden numbers and real data), which is not part of the project")
    return SHARED


@pytest.fixture(scope="session")
def layout() -> TokenLayout:
    return compact_layout(codebook_size=60)


@pytest.fixture(scope="session")
def make_sequence(layout: TokenLayout) -> Callable[..., TokenSequence]:
    def make(
        latent_frames: int = 3, rows: int = 2, cols: int = 3, text: int | None = 5, seed: int = 0
    ) -> TokenSequence:
        generator = torch.Generator().manual_seed(seed)
        codes = torch.randint(layout.codebook_size, (latent_frames, rows, cols), generator=generator)
        words = None if text is None else tuple(torch.randint(256, (text,), generator=generator).tolist())
        return TokenSequence(text_ids=words, codes=codes, duration=1, fps=12)

    return make


@pytest.fixture
def make_decoder(layout: TokenLayout) -> Callable[..., LumosTransformer]:
    """A two-layer decoder with weights large enough that every mistake shows in the output."""

    def make(seed: int = 0, compute: ComputeConfig = PLAIN, **changes: object) -> LumosTransformer:
        config = ModelConfig(size="debug", **changes).build(layout)  # type: ignore[arg-type]
        net = LumosTransformer(config, compute)
        net.init_weights(seed)
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                if "norm" not in name:
                    parameter.mul_(5)
        return net

    return make


@pytest.fixture(autouse=True)
def no_process_group() -> Iterator[None]:
    """No test leaves its process in a group of ranks: metrics of the next tests would reduce over it."""
    yield
    left = torch.distributed.is_initialized()
    if left:
        torch.distributed.destroy_process_group()
    assert not left, "this test left a process group behind"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Puts the variables back: Lightning leaves its ranks' in them, by which a later test's program takes itself for
    one of several that were started, and waits for the others."""
    with restored_environment():
        yield


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts the signal handlers back: after a signal a run leaves them ignored, which later tests' programs inherit."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
