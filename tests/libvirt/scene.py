"""A small guest whose save is interrupted, and what may be left of it."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tests.faults import struck
from tests.kit import cli, domain, inject, patterns, state, wait
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

NAME = "web01"
IMAGE = "one.mapsave"
RUNS = "running (unpaused)"
MIB = 1 << 20
_MEMORY = 24 * MIB
# Of each channel's requests, six or so: what is to happen while QEMU writes has seconds for it.
_SLOW = inject.Rule("pwritev", "delay", 600_000, path=".partial", count=-1)
# What a save is killed at before QEMU is done with its stream, and after that.
NOT_YET = ("label", "hand-over", "pause", "migrate")
WHOLE = ("complete", "commit", "committed")


def small(daemon: Daemon, **options: Any) -> AbstractContextManager[Domain]:
    """Run a small guest without empty pages, which halts while it runs.

    ``options`` are those of ``domain.running``.
    """
    boot = ways.halting(daemon.directory)
    options = {"boot": boot, "memory": _MEMORY, "ram": patterns.dense, **options}
    return domain.running(daemon, NAME, **options)


def slow(daemon: Daemon, **options: Any) -> AbstractContextManager[Domain]:
    """Run the same guest on storage that takes seconds for it."""
    return small(daemon, env=inject.environment(_SLOW), **options)


@contextmanager
def writing(site: cli.Site, *arguments: str | os.PathLike[str]) -> Iterator[subprocess.Popen[str]]:
    """Run ``mapsave save`` of a guest of ``slow`` until QEMU writes."""
    with site.start(*arguments) as process:
        await_writing(site)
        yield process


def await_writing(site: cli.Site) -> None:
    """Wait until pages are in the partial image."""
    wait.until(lambda: _written(site) > 2 * MIB, what="pages in the partial image")


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


def inside(daemon: Daemon) -> list[str]:
    """Return what a command is run under where the daemon's private /var/lib is: on its host."""
    return ["nsenter", f"--mount=/proc/{daemon.pid}/ns/mnt", f"--wdns={daemon.directory}", "--"]
