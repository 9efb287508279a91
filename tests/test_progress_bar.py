from __future__ import annotations

import io

import pytest
from rich.console import Console

from lumos_pl.machinery.progress_bar import ProgressBar


@pytest.mark.parametrize("on_terminal", [False, True])
def test_a_bar_is_for_a_terminal_alone(on_terminal: bool) -> None:
    printed = io.StringIO()
    console = Console(file=printed, force_terminal=on_terminal, force_interactive=on_terminal)
    with ProgressBar(console=console, auto_refresh=False) as bar:
        task = bar.add_task("drawing", total=2)
        bar.update(task, completed=1)
        bar.refresh()
        print("a line", file=printed)
    assert (printed.getvalue() == "a line\n") is not on_terminal
    assert ("drawing" in printed.getvalue()) is on_terminal
