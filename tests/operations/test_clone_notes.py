"""Notes of the clones that run."""

import os

import msgspec
from mapsave import errors
from mapsave.monitor import process
from mapsave.operations import clone_notes, process_files

from tests.kit import cli


def test_a_note_that_is_damaged_hides_no_other(site: cli.Site) -> None:
    good = clone_notes.Running(guest="web-1", pid=os.getppid(), monitor="guest:/run/web-1.qmp")
    for pid, raw in ((os.getpid(), b"damaged"), (good.pid, msgspec.json.encode(good))):
        identity = (pid, process.start_time(pid) or 0)
        process_files.path(site.state, "clones", identity).write_bytes(raw)
    found = list(clone_notes.everyone(site.state))
    assert good in found
    (bad,) = (each for each in found if isinstance(each, errors.Refused))
    assert f"in the process {os.getpid()}-" in bad.message
