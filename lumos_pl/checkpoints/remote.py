"""A run's complete checkpoints in an object store, and back: what a new machine goes on from.

    URL/EXP/NAME/checkpoints/step-00000100.ckpt          or, of several ranks, the files of a folder of this name
                 checkpoints/step-00000100.ckpt.sha256   its digest, the last to come and the first to go: whatever has
                                                         one is whole
                 .uploaded                               a line `sha256  name` of each digest that this run uploaded
                 config.yaml, metrics.jsonl, ...         the run's small files, no older than the newest checkpoint

Which store a URL means, and with which rights, is fsspec's business: nothing of it is ever in a URL, a file or a line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from lumos_pl.machinery.retrying import RetryConfig

SMALL_FILES = ("config.yaml", "metrics.jsonl", "changes.jsonl", "attempts.jsonl", "left_out.jsonl", "result.json")


def check_url(url: str, where: str = "checkpoint.upload") -> None:
    """Raise ConfigError unless a URL can be that of an object store's folder, by its looks and the installed packages.

    Args:
        where: the setting that it stands in.
    """


def restore(upload: str, run: Path, *, retry: RetryConfig | None = None) -> Path | None:
    """Bring a run's newest whole checkpoint, and the run's small files, into its folder; rank 0's work, under its lock.

    Only where that checkpoint is of a later step than all that have a digest in the folder. Each is compared with its
    digest on arrival, and one that is damaged or not whole is passed over, with a line. What lies in the folder already
    and is not ours, or no beginning of what comes, is kept aside.

    Args:
        upload: the setting `checkpoint.upload`.
        run: the run's folder, RUNS/EXP/NAME; made if need be.
    Returns:
        the checkpoint that came; None: the store has none, or none that is newer.
    Raises:
        TemporaryError: the store does not answer, or answers with errors, for longer than `retry` allows.
        ConfigError: `upload` is no URL of a store that is known here, or one that may not be read.
    """
    return None


class Upload:
    """Copies the complete checkpoints of a run to an object store, in the background; rank 0's work.

    One after the other, and of those that wait only the newest. What fails is tried again, then told in a line; the
    next checkpoint is tried all the same. The store keeps as many as the run does, by the same rule, and only what this
    run uploaded is replaced or removed there.

    Args:
        upload: the setting `checkpoint.upload`.
        run: the run's folder, RUNS/EXP/NAME.
        keep: how many of the newest stay there; 0: all do.
        stays: whether a checkpoint stays however old it is.
    """

    def __init__(
        self, upload: str, run: Path, *, keep: int, stays: Callable[[Path], bool], retry: RetryConfig | None = None
    ) -> None:
        self.upload, self.run, self.keep, self.stays = upload, run, keep, stays
        self.retry = retry or RetryConfig()

    def begin(self, checkpoint: Path) -> None:
        """Have a checkpoint of the run's copied, which is complete and stays until that is done, see `holds`."""

    def holds(self, checkpoint: Path) -> bool:
        """Whether a checkpoint is being copied, or waits for it: it must not be removed."""
        return False

    def finish(self, within_s: float) -> None:
        """Wait for what was begun, so many seconds at most; what is not done by then is told in a line."""
