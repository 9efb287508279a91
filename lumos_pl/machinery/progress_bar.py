"""A progress bar, on a terminal or in a notebook, that is gone when the work is done."""

from __future__ import annotations

from typing import Any

from rich.progress import Progress, ProgressColumn


class ProgressBar(Progress):
    """Rich's, which into a file would print an empty line where it ends.

    Args:
        columns, given: Rich's.
    """

    def __init__(self, *columns: str | ProgressColumn, **given: Any) -> None:
        super().__init__(*columns, transient=True, **given)
        self.disable = self.disable or not (self.console.is_interactive or self.console.is_jupyter)
