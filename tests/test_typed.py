"""Plain data is read into types by several threads."""

import subprocess
import sys

import pytest

from tests.kit import tree

# Of its own process: it dies where it is wrong. Types are prepared only once, so each round has
# others; their annotations are texts, which take Python to read.
READ = """
import sys, threading
import msgspec
from mapsave import typed

sys.setswitchinterval(1e-6)
for _ in range(60):
    class Entry(msgspec.Struct):
        guest: "str"
        image: "str | None" = None
        time: "float | None" = None

    class File(msgspec.Struct):
        guests: tuple[Entry, ...]

    start = threading.Barrier(4)
    found = []

    def read():
        start.wait()
        found.append(CALL)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert found == [File((Entry("web01", None, 1.0),))] * 4, found
"""


@pytest.mark.parametrize(
    "call",
    [
        "typed.convert({'guests': [{'guest': 'web01', 'time': 1}]}, File)",
        """typed.decode('{"guests": [{"guest": "web01", "time": 1}]}', File)""",
    ],
)
def test_threads_may_read_into_a_type_at_once(call: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READ.replace("CALL", call)],
        env={"PYTHONPATH": str(tree.SOURCES)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
