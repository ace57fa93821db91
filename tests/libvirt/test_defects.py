"""Defects of libvirt 11.3 with descriptors in a guest that are not its own: we never raise them.

A descriptor without ``opaque`` ends libvirtd at its next save. A set that QEMU numbers itself may
get the number that libvirt takes next: libvirt's save then goes into the file of that set, and is
lost. And libvirt removes a set whose ``opaque`` its own one begins with.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import libvirt
import libvirt_qemu
import pytest

from tests.faults import struck
from tests.kit import cli, domain, patterns, ram, state
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon
from tests.libvirt import ways

FIRST = 1_000_000  # the first number that mapsave gives
LIBVIRTS = "libvirt-outgoing-migrate"


@pytest.fixture
def guest(daemon: Daemon, tmp_path: Path) -> Iterator[Domain]:
    boot = ways.halting(tmp_path)
    with domain.running(
        daemon, ram=patterns.sparse, boot=boot, transient=False, paused=False
    ) as running:
        yield running


def pass_foreign(guest: Domain, path: Path, fdset: int) -> None:
    """Give QEMU the new file ``path`` in the set ``fdset``, as somebody else."""
    connection = libvirt.open(guest.daemon.uri)
    arguments = {"fdset-id": fdset, "opaque": "somebody else"}
    command = json.dumps({"execute": "add-fd", "arguments": arguments})
    with path.open("xb") as file:
        handle = connection.lookupByUUIDString(guest.uuid)
        reply, _ = libvirt_qemu.qemuMonitorCommandWithFiles(handle, command, [file.fileno()], 0)
    connection.close()
    assert json.loads(reply)["return"]["fdset-id"] == fdset


def test_our_set_has_a_number_of_its_own_and_says_whose_it_is(
    site: cli.Site, guest: Domain
) -> None:
    with struck.stopped(site, "migrate", "save", guest.address):
        (ours,) = guest.execute("query-fdsets")
        assert ours["fdset-id"] >= FIRST
        names = [each["opaque"] for each in ours["fds"]]
        assert len(names) == 2
        assert all(name and not LIBVIRTS.startswith(name) for name in names)
    guest.wait_state("shut off (shutdown)")


@pytest.mark.parametrize("number", [0, 1, FIRST], ids=["libvirt's first", "1", "our first"])
def test_set_of_somebody_else(
    daemon: Daemon, site: cli.Site, tmp_path: Path, guest: Domain, number: int
) -> None:
    before, foreign = ram.snapshot(guest.ram, tmp_path / "before"), tmp_path / "foreign"
    pass_foreign(guest, foreign, number)
    found = guest.status()
    site.run("save", guest.address, "-o", "first", "--then", "resume", check=0)
    site.run("save", guest.address, "-o", "second", "--then", "resume", "--live", check=0)
    state.assert_left_as_found(found, guest.status())
    assert foreign.stat().st_size == 0
    if number != 0:
        # libvirt's save takes its own set, as if we had not been there.
        guest.virsh("save", tmp_path / "saved", "--image-format", "sparse")
        assert foreign.stat().st_size == 0
        daemon.virsh("restore", tmp_path / "saved")
        ram.assert_same(before, guest.ram)
    guest.virsh("destroy")
    ways.restore("virsh", guest, site, site.images / "first")
    ram.assert_same(before, guest.ram)


def test_set_that_libvirt_has_left(daemon: Daemon, site: cli.Site, guest: Domain) -> None:
    """libvirt's restores leave their set in the guest: it is not ours to take away."""
    path = ways.save("virsh", guest, site)
    daemon.virsh("restore", path)
    found = guest.status()
    assert [each["fdset-id"] for each in found.fdsets] == [0]
    site.run("save", guest.address, "-o", "second", "--then", "resume", check=0)
    after = guest.status()
    assert (after.fdsets, after.parameters) == (found.fdsets, found.parameters)
    # With these on, the next internal snapshot would end QEMU: they are not restored.
    left_on = {name for name, on in found.capabilities.items() if on}
    assert left_on - {name for name, on in after.capabilities.items() if on} == {
        "mapped-ram",
        "multifd",
    }
    guest.virsh("save", site.images / "third", "--image-format", "sparse")
    site.run("verify", site.images / "third", check=0)


def test_what_an_uncached_restore_of_libvirt_leaves_on(
    daemon: Daemon, site: cli.Site, guest: Domain
) -> None:
    """direct-io: the next sparse save of libvirt without --bypass-cache would end QEMU."""
    path = ways.save("virsh", guest, site)
    daemon.virsh("restore", path, "--bypass-cache")
    assert guest.execute("query-migrate-parameters")["direct-io"]
    site.run("save", guest.address, "-o", "second", "--then", "resume", check=0)
    assert not guest.execute("query-migrate-parameters")["direct-io"]
    guest.virsh("save", site.images / "third", "--image-format", "sparse")
    site.run("verify", site.images / "third", check=0)
