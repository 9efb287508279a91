import errno
from collections.abc import Callable

import pytest

from lumos_pl.errors import DataError, FileError
from lumos_pl.machinery.retrying import RetryConfig, passes, retried

AT_ONCE = RetryConfig(attempts=3, wait_s=0)


def failing(errors: list[Exception]) -> Callable[[], int]:
    """Raises one after the other, then returns how many there were."""
    left = list(errors)

    def work() -> int:
        if left:
            raise left.pop(0)
        return len(errors)

    return work


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O"), OSError(errno.ESTALE, "stale"), TimeoutError()])
def test_trouble_that_passes_is_tried_again(error: Exception) -> None:
    assert retried(failing([error, error]), AT_ONCE, "read a") == 2


def test_the_last_attempts_error_is_raised() -> None:
    last = ConnectionResetError("third")
    errors = [TimeoutError("first"), TimeoutError("second"), last]
    with pytest.raises(ConnectionResetError) as raised:
        retried(failing(errors), AT_ONCE, "read a")
    assert raised.value is last


@pytest.mark.parametrize("error", [DataError("damaged"), FileNotFoundError(errno.ENOENT, "gone"), ValueError()])
def test_what_will_not_pass_is_tried_once(error: Exception) -> None:
    with pytest.raises(type(error)):
        retried(failing([error]), AT_ONCE, "read a")


def test_a_line_of_ours_passes_if_its_cause_does() -> None:
    try:
        try:
            raise OSError(errno.EIO, "I/O")
        except OSError as cause:
            raise FileError.of(cause) from cause
    except FileError as error:
        assert passes(error)
