"""The service takes the digests of images: once they are committed, and of those it finds."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from mapsave.image import image

from tests.kit import cli, files, service, tree, wait

MIB = 1 << 20
_READER = """
import ctypes, os, sys, threading
from mapsave.image import syscalls
get = {"x86_64": 252, "aarch64": 31}[os.uname().machine]
call = ctypes.CDLL(None).syscall
before = call(get, 1, 0)
found = []
def work():
    syscalls.lower_io_priority(is_idle=True)
    child = threading.Thread(target=lambda: found.append(call(get, 1, 0) >> 13))
    child.start(); child.join()
worker = threading.Thread(target=work)
worker.start(); worker.join()
print(found, before == call(get, 1, 0))
"""


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with a guest, and an image that a command has saved before."""
    site = cli.Site(tmp_path_factory.mktemp("digests") / "site")
    site.add_guest("db", emulator={"memory": "8M"})
    with service.emulated_ended(site):
        site.run("save", "db", "-o", "before", "--then", "resume", check=0)
        with image.opened(site.images / "before") as opened:
            assert opened.block.digests == "pending"
        with service.running(site, digests=True) as running:
            yield running


def taken(mapsaved: service.Service, name: str) -> None:
    """Wait until an image has digests, and verify it."""
    path = mapsaved.site.images / name

    def has_digests() -> bool:
        with image.opened(path) as opened:
            return opened.block.digests == "taken"

    wait.until(has_digests, what=f"digests of {name}")
    done = mapsaved.done(kind="verify", image=name, data=True)
    assert done["data"]["verified_bytes"] > MIB
    assert done["verified"][-1] == "data"
    assert not any("digests" in each for each in done["warnings"])


def save(mapsaved: service.Service, name: str, **how: str) -> Any:
    options = {"image": name, "then": "resume", **how}
    return mapsaved.done(kind="save", guest="db", save=options)


def test_after_a_save(mapsaved: service.Service) -> None:
    assert save(mapsaved, "after")["digests"] == "pending"
    taken(mapsaved, "after")
    mapsaved.await_log("took digests of the data of")
    metrics = mapsaved.request("GET", "/metrics").body.decode()
    assert 'mapsave_image_digests_total{outcome="done"}' in metrics


def test_of_an_image_that_was_there_before(mapsaved: service.Service) -> None:
    taken(mapsaved, "before")


def test_before_the_commit(mapsaved: service.Service) -> None:
    done = save(mapsaved, "prompt", digests="before")
    assert done["digests"] == "taken"
    assert done["phases_s"]["digest"] > 0
    taken(mapsaved, "prompt")


def test_off(mapsaved: service.Service) -> None:
    assert save(mapsaved, "without", digests="off")["digests"] == "none"
    done = mapsaved.done(kind="verify", image="without", data=True, add_digests=True)
    assert done["data"] == {"digests": "none", "taken": None, "verified_bytes": None}
    assert any("was not verified, there are no digests" in each for each in done["warnings"])


def test_damaged_data_fails_the_operation(mapsaved: service.Service) -> None:
    save(mapsaved, "damaged", digests="before")
    path = mapsaved.site.images / "damaged"
    with image.opened(path) as opened:
        at = opened.validate().stream.blocks[0].pages_offset + 5000
    with files.opened(path, os.O_RDWR) as fd:
        (was,) = os.pread(fd, 1, at)
        os.pwrite(fd, bytes([was ^ 1]), at)
    failed = mapsaved.ended(mapsaved.begin(kind="verify", image="damaged", data=True)["id"])
    assert failed["error"]["id"] == "image.data_damaged"
    text = mapsaved.site.run("verify", "--data", "damaged", "before", check=6).stdout
    assert "DAMAGED" in text
    for way in (("--verify-data",), ("--verify-data", "--local")):
        again = ("restore", "damaged", "--again", "--instant", "off", "--json", *way)
        error = mapsaved.site.run(*again, check=6)
        assert error.error("image.data_damaged")["data"]["damaged"][0]["offset"] <= at


def test_an_image_that_goes_meanwhile_is_no_failure(mapsaved: service.Service) -> None:
    """It is discarded while other digests are taken, or between."""
    for number in range(3):
        name = f"gone{number}"
        save(mapsaved, name)
        mapsaved.site.run("discard", name, "--yes", check=0)
    save(mapsaved, "last")
    taken(mapsaved, "last")
    assert "no digests of the data" not in mapsaved.logged()


def test_reads_are_for_idle_disks() -> None:
    """Of that thread and those it begins, and of no other."""
    run = subprocess.run(
        [sys.executable, "-c", _READER],
        env={"PYTHONPATH": tree.PYTHONPATH},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "[3] True\n"
