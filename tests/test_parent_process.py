"""What processes leave behind as they end."""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing.synchronize import Event
from types import FrameType
from typing import Any

from lumos_pl.machinery.parent_process import renew


def end_amid_a_look(event: Event) -> None:
    """End where the lock is held: as the flag is tried, which is the first that the look itself calls of C."""

    def end(frame: FrameType, what: str, _: Any) -> None:
        if what == "c_call" and frame.f_code.co_name == Event.is_set.__name__:
            os._exit(7)

    sys.setprofile(end)
    event.is_set()


def test_an_event_is_set_after_the_end_of_one_that_looked_at_it() -> None:
    context = multiprocessing.get_context("fork")
    event = context.Event()
    process = context.Process(target=end_amid_a_look, args=(event,))
    process.start()
    process.join()
    assert process.exitcode == 7
    renew(event)
    event.set()
    assert event.is_set()
