"""``python -m tests.bench.reading WAY IMAGE``: read an image's data on one processor, and print for
how many seconds, and how many of the processor.

``one`` and ``four`` are bare loops of direct reads of 1 MiB, one or four at a time; ``digests`` is
what takes digests.
"""

import mmap
import os
import sys
import threading
import time

from mapsave.image import data_digests, image

MIB = 1 << 20


def bare(path: str, threads: int) -> None:
    """Read every MiB of a file that has data; nothing is done with it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    size, at, offsets = os.fstat(fd).st_size, 0, []
    while at < size:
        at = os.lseek(fd, at, os.SEEK_DATA) // MIB * MIB
        offsets.append(at)
        at += MIB
    left, lock = iter(offsets), threading.Lock()

    def work() -> None:
        with mmap.mmap(-1, MIB) as buffer:
            while True:
                with lock:
                    offset = next(left, None)
                if offset is None:
                    return
                os.preadv(fd, [buffer], offset)

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    os.close(fd)


def main(way: str, path: str) -> None:
    """Read, and print what it took."""
    os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    started, busy = time.perf_counter(), time.process_time()
    if way == "digests":
        with image.opened(path) as opened:
            block = opened.block
            data_digests.take(opened.fd, block.stream_offset, block.file_length)
    else:
        bare(path, {"one": 1, "four": 4}[way])
    print(time.perf_counter() - started, time.process_time() - busy)


if __name__ == "__main__":
    main(*sys.argv[1:])
