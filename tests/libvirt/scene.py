"""A small guest whose save is interrupted, and what may be left of it."""

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.faults import struck
from tests.kit import cli, domain, patterns, state, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

NAME = "web01"
IMAGE = "one.mapsave"
RUNS = "running (unpaused)"
MIB = 1 << 20
# Of a guest, and what QEMU may write in a second; it takes that for a hint only.
_MEMORY, _SLOW = 24 * MIB, MIB
# What a save is killed at before QEMU is done with its stream, and after that.
NOT_YET = ("label", "hand-over", "pause", "migrate")
WHOLE = ("complete", "commit", "committed")


def small(daemon: Daemon, **options: Any) -> AbstractContextManager[Domain]:
    """Run a small guest without empty pages, which halts while it runs.

    ``options`` are those of ``domain.running``.
    """
    options = {"boot": ways.halting(daemon.directory), "memory": _MEMORY, **options}
    return domain.running(daemon, NAME, ram=patterns.dense, **options)


@contextmanager
def writing(
    site: cli.Site, guest: Domain, *arguments: str | os.PathLike[str]
) -> Iterator[subprocess.Popen[str]]:
    """Run ``mapsave save`` until QEMU writes, slowly, from then on."""
    with struck.stopped(site, "migrate", *arguments) as process:
        guest.execute("migrate-set-parameters", max_bandwidth=_SLOW)
        process.send_signal(signal.SIGCONT)
        wait.until(lambda: _written(site) > 2 * MIB, what="pages in the partial image")
        yield process


def _written(site: cli.Site) -> int:
    return sum(path.stat().st_blocks * 512 for path in struck.partials(site))


def nothing_left(site: cli.Site, *images: str) -> None:
    """Fail unless the journals are gone and just ``images`` are in the image directory."""
    assert not struck.journals(site)
    assert [path.name for path in site.images.iterdir()] == list(images)


def as_before(guest: Domain, before: state.State, reason: str = RUNS) -> None:
    """Fail unless the guest is as it was, for QEMU and for libvirt, which could save it now."""
    state.assert_left_as_found(before, guest.status())
    assert guest.state() == reason
    assert "None" in guest.virsh("domjobinfo").stdout
    assert not [path for path in guest.open_files() if IMAGE in path]
