"""Trouble that passes: what fails for a while, as networks and their file systems do, is tried again within limits.

What is damaged is not: a digest that does not fit, or a file that is not there, says the same the second time, unless
the caller knows that it was there (`passes`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from lumos_pl.errors import causes
from lumos_pl.settings.ranges import at_least, check_ranges

T = TypeVar("T")

PASSING = {
    errno.EIO,
    errno.ESTALE,
    errno.EAGAIN,
    errno.EBUSY,
    errno.EINTR,
    errno.ETIMEDOUT,
    errno.ENETDOWN,
    errno.ENETUNREACH,
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.EREMOTEIO,
    errno.ENOTCONN,
    errno.ENODEV,
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RetryConfig:
    """How long trouble of the storage may last.

    Args:
        attempts: how often a read or a write is tried before it has failed; 1 tries once.
        wait_s: seconds before the second attempt; each further wait is twice as long, give or take.
        longest_wait_s: the longest of these waits, in seconds.
    """

    attempts: int = 5
    wait_s: float = 0.5
    longest_wait_s: float = 30.0

    def __post_init__(self) -> None:
        check_ranges("retry", self, attempts=at_least(1), wait_s=at_least(0), longest_wait_s=at_least(0))

    @property
    def waits_s(self) -> float:
        """Seconds that the waits between all attempts take together, at the most."""
        doubled = (self.wait_s * 2.0**number for number in range(min(self.attempts - 1, 64)))  # far beyond the longest
        later = max(0, self.attempts - 65) * (self.longest_wait_s + self.wait_s / 2)
        return sum((min(wait, self.longest_wait_s) + self.wait_s / 2 for wait in doubled), start=later)

    def within(self, seconds: float) -> RetryConfig:
        """As many attempts, with waits that take no longer than some seconds, all of them together."""
        share = min(1.0, seconds / self.waits_s) if self.waits_s else 1.0
        return replace(self, wait_s=self.wait_s * share, longest_wait_s=self.longest_wait_s * share)


def passes(error: BaseException) -> bool:
    """Whether an error, or what caused it, is trouble of the storage or the network that may be over soon."""
    return any(
        isinstance(one, TimeoutError | ConnectionError) or (isinstance(one, OSError) and one.errno in PASSING)
        for one in causes(error)
    )


def retried(
    work: Callable[[], T], config: RetryConfig, what: str, *, passing: Callable[[BaseException], bool] = passes
) -> T:
    """What `work` returns, tried again while it fails in a way that passes; each further attempt is logged.

    Args:
        what: the work and its file, for the log, "read shards/video-000001.tar" for one.
        passing: which errors are worth another attempt.
    Raises:
        Exception: what the last attempt raised, or the first that does not pass.
    """

    def note(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0
        log.warning("%s: %s; attempt %d of %d in %.1f s", what, error, state.attempt_number + 1, config.attempts, wait)

    return Retrying(
        stop=stop_after_attempt(config.attempts),
        wait=wait_exponential(config.wait_s, config.longest_wait_s) + wait_random(0, config.wait_s / 2),
        retry=retry_if_exception(passing),
        before_sleep=note,
        reraise=True,
    )(work)
