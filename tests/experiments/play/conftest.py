from __future__ import annotations

from collections.abc import Iterator

import pytest

from lumos_pl.pipeline import LumosPipeline
from tests.experiments.play.served import Page, serve


@pytest.fixture(scope="session")
def lumos() -> LumosPipeline:
    return LumosPipeline.load(device="cpu")


@pytest.fixture(scope="session")
def page(lumos: LumosPipeline) -> Iterator[Page]:
    """Shared: who needs the queue for himself serves his own."""
    with serve(lumos) as page:
        yield page
