"""The C library gives back what the service has freed."""

import subprocess
import sys

from tests.kit import tree, wait

# A large piece that was freed raises, unless that is set, how much is kept (mallopt(3)).
_PROGRAM = """
import threading
from mapsave.service import memory
memory.be_sparing()
large = bytearray(16 << 20)
del large
def work():
    pieces = [bytearray(100_000) for _ in range(200)]
before = memory._resident()
thread = threading.Thread(target=work)
thread.start()
thread.join()
memory._libc.malloc_trim(0)
print(memory._resident() - before)
"""


def test_what_a_thread_has_freed_goes_back() -> None:
    command = [sys.executable, "-c", _PROGRAM]
    found = subprocess.run(
        command, cwd=tree.ROOT, capture_output=True, check=True, timeout=wait.LONG
    )
    assert int(found.stdout) < 5 << 20
