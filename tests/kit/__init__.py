"""The test kit: real QEMU, real file systems, a live Linux guest, the ``mapsave`` command.

Nothing in here uses ``manager``: tests look at mapsave from outside. A test reads like this::

    def test_restored_ram_is_the_saved_one(site: cli.Site, tmp_path: Path) -> None:
        with qemu.guest(site, "web01", ram=patterns.dense) as guest:
            before = guest.snapshot_ram(tmp_path / "before")
            site.run("save", "web01", check=0)
            guest.wait()
            site.run("restore", image, check=0)
            with guest.successor() as restored:
                ram.assert_same(before, restored.ram)

With libvirt (``libvirtd.py``: a private daemon, in tests of ``tests/libvirt`` the fixtures
``daemon``, ``own_daemon``, ``session_daemon`` and ``embedded_uri``; ``domain.py``: its guests)::

    def test_domain_comes_back(daemon: Daemon, site: cli.Site, tmp_path: Path) -> None:
        with domain.running(daemon, "web01", ram=patterns.dense, transient=False) as guest:
            before = guest.snapshot_ram(tmp_path / "before")
            site.run("save", guest.address, check=0)
            assert guest.state() == "shut off (destroyed)"
            daemon.virsh("restore", image, "--paused")
            ram.assert_same(before, guest.ram)
"""

import pkgutil

import pytest

# Their assertions explain themselves as those of tests do.
pytest.register_assert_rewrite(
    *(f"{__name__}.{each.name}" for each in pkgutil.iter_modules(__path__))
)
