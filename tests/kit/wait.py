"""Wait for something to become true, with a limit."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Seconds, for what takes a moment on an idle machine. On a busy one a guest boots for two minutes.
# To wait costs nothing where it comes.
LONG = 240.0


def until(
    condition: Callable[[], T | None], *, timeout: float = LONG, what: str = "condition"
) -> T:
    """Call ``condition`` every 5 ms until it returns something true; return that.

    Raises AssertionError naming ``what``, and what came last, after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s, last: {value!r}"
        time.sleep(0.005)
    return value
