"""Capabilities and parameters that somebody left on in QEMU, and a guest that was left paused."""

from pathlib import Path
from typing import Any

import pytest

from tests.faults.waiting import MIB, waiting
from tests.kit import cli, memory, patterns, qemu, qmp, ram, raw, state


def switch(guest: qemu.Qemu, *on: str) -> None:
    """Set capabilities as somebody may have left them."""
    states = [{"capability": name, "state": True} for name in on]
    guest.control.execute("migrate-set-capabilities", capabilities=states)


def save_and_restore(guest: qemu.Qemu, site: cli.Site, tmp_path: Path) -> None:
    """Save with mapsave; settings are as before, and a restore gives the same RAM."""
    before, contents = guest.state(), guest.snapshot_ram(tmp_path / "ram")
    site.run("save", guest.address, "--image", "kept", "--then", "leave", check=0)
    state.assert_left_as_found(before, guest.state(), run_state="postmigrate")
    with waiting() as destination:
        site.run("restore", "kept", "--into", destination.address, check=0)
        ram.assert_same(contents, destination.ram)


def test_raw_background_snapshot_saves_nothing(tmp_path: Path) -> None:
    with qemu.running(machine="none", ram=patterns.dense) as guest:
        guest.control.execute("cont")
        switch(guest, "mapped-ram", "background-snapshot")
        guest.control.execute("migrate", uri=f"file:{tmp_path}/image,offset={MIB}")
        guest.wait_migration("completed")
    with waiting() as destination:
        raw.restore(destination, tmp_path / "image", multifd=False)  # QEMU says completed
        assert not any(destination.ram.read(destination.ram.largest()))


def test_raw_return_path_fails_at_the_end(tmp_path: Path) -> None:
    with qemu.running(machine="none") as guest:
        switch(guest, "mapped-ram", "return-path")
        guest.control.execute("migrate", uri=f"file:{tmp_path}/image,offset={MIB}")
        assert "Bad file descriptor" in guest.wait_migration("failed")["error-desc"]


@pytest.mark.parametrize(
    "capabilities",
    [
        ("background-snapshot",),
        ("mapped-ram", "background-snapshot"),
        ("return-path", "switchover-ack"),
        ("postcopy-ram",),
        ("pause-before-switchover",),
    ],
    ids=",".join,
)
def test_capabilities_left_on_do_no_harm(
    site: cli.Site, tmp_path: Path, capabilities: tuple[str, ...]
) -> None:
    with qemu.running(machine="none", ram=patterns.sparse) as guest:
        switch(guest, *capabilities)
        save_and_restore(guest, site, tmp_path)


def test_shared_memory_with_ignore_shared_left_on(site: cli.Site, tmp_path: Path) -> None:
    content = patterns.write(tmp_path / "backend", 64 * MIB, patterns.sparse)
    shared = memory.from_file(content, "64M", shared=True)
    with qemu.running(*shared, machine="none") as guest:
        switch(guest, "mapped-ram", "x-ignore-shared")
        guest.control.execute("migrate", uri=f"file:{tmp_path}/image,offset={MIB}")
        assert "Bad address" in guest.wait_migration("failed")["error-desc"]
        before, contents = guest.state(), guest.snapshot_ram(tmp_path / "ram")
        site.run("save", guest.address, "--image", "kept", "--then", "leave", check=0)
        state.assert_left_as_found(before, guest.state(), run_state="postmigrate")
    with waiting(*memory.zeroed("64M")) as destination:
        site.run("restore", "kept", "--into", destination.address, check=0)
        ram.assert_same(contents, destination.ram)


@pytest.mark.parametrize(
    "parameters",
    [{"multifd_compression": "zlib"}, {"tls_creds": "tls0"}],
    ids=lambda value: next(iter(value)),
)
def test_parameters_that_lock_qemu(
    site: cli.Site, tmp_path: Path, parameters: dict[str, Any]
) -> None:
    with qemu.running(machine="none", ram=patterns.sparse) as guest:
        switch(guest, "mapped-ram", "multifd")
        guest.control.execute("migrate-set-parameters", **parameters)
        # From now on QEMU takes no parameter at all, and saves nothing.
        with pytest.raises(qmp.QmpError, match="Mapped-ram only available"):
            guest.control.execute("migrate-set-parameters", multifd_channels=2)
        save_and_restore(guest, site, tmp_path)


def test_capabilities_are_off_after_a_save(site: cli.Site) -> None:
    """With these on, the next ``savevm`` or ``snapshot-save`` kills a QEMU of before 10.2."""
    with qemu.running(machine="none", paused=False, ram=patterns.sparse) as guest:
        before = guest.state()
        site.run("save", guest.address, "--image", "one", "--then", "resume", check=0)
        state.assert_left_as_found(before, guest.state())
        assert not any(guest.state().capabilities.values())


def test_guest_that_was_saved_and_left(site: cli.Site) -> None:
    with qemu.running(machine="none", ram=patterns.sparse) as guest:
        site.run("save", guest.address, "--image", "one", "--then", "leave", check=0)
        with pytest.raises(qmp.QmpError, match="paused due to previous migration"):
            guest.control.execute("migrate", uri="file:/nonexistent/image")
        error = site.run("save", guest.address, "--image", "two", "--json", check=3).error(
            "check.run_state"
        )
        assert "cont" in error["hint"]
