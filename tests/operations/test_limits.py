"""How many threads a save may take where mapsave's own count against the same limit."""

import multiprocessing
import os
import threading

import pytest
from mapsave.monitor import headroom
from mapsave.monitor.control_groups import Limit
from mapsave.monitor.headroom import Headroom
from mapsave.operations import limits

from tests.kit import wait


def count() -> int:
    return len(os.listdir("/proc/self/task"))


@pytest.mark.parametrize("lingering", [2, 9])
def test_own_threads_that_end_meanwhile_are_counted_once(lingering: int) -> None:
    """On a busy host a thread that has done its work is there for a while."""
    # In a process of its own: others' threads, which begin and end here, would be counted.
    process = multiprocessing.get_context("spawn").Process(target=check, args=(lingering,))
    process.start()
    process.join(wait.LONG)
    assert process.exitcode == 0


def check(lingering: int) -> None:
    ending = threading.Event()
    limits._OWN_THREADS = count() + 5
    most = count() + 5 + 2  # our own, and those of QEMU with one channel
    threads = [threading.Thread(target=ending.wait) for _ in range(lingering)]
    before = count()
    for thread in threads:
        thread.start()

    def measured(_: int | None) -> Headroom:
        found = Headroom(threads=(Limit("pids.max", most, count()),))
        ending.set()
        wait.until(lambda: count() == before, what="the end of the threads")
        return found

    headroom.measure = measured
    footprint = limits.Footprint(pid=1, workers=0, image_bytes=0)
    assert limits.for_save(footprint, 1, is_demanded=False).most is None
