"""Wait for a lock of flock(2), for no longer than its holders take."""

import errno
import fcntl
import time

# Seconds; who holds such a lock writes a few lines, or has apparmor_parser load a profile.
TIMEOUT = 60.0
_AGAIN = 0.005


def exclusive(fd: int) -> None:
    """Lock the open file exclusively. Blocks. Raises OSError (ETIMEDOUT) after TIMEOUT seconds."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise OSError(errno.ETIMEDOUT, "another process keeps it locked") from None
        time.sleep(_AGAIN)
