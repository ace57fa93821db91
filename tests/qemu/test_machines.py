"""Guests of many shapes: each is saved and restored through the command, all RAM compared."""

from typing import Any

import pytest

from tests.kit import cli, memory, patterns, qemu, qmp, ram, state
from tests.qemu import helpers

NOBODY = 65534


def _round_trip(
    site: cli.Site, *arguments: str, pattern: patterns.Pattern = patterns.sparse, **options: Any
) -> dict[str, int]:
    """Save a guest and restore it into a second one; return its RAM blocks and their lengths.

    Fails unless all RAM is the same and both QEMUs are left as they were.
    """
    with (
        qemu.running(*arguments, name="source", ram=pattern, **options) as source,
        qemu.running(*arguments, name="destination", incoming=True, **options) as destination,
    ):
        left, right = source.state(), destination.state()
        before = source.snapshot_ram(site.directory / "before")
        image = helpers.save(site, source, "--then", "leave")
        state.assert_left_as_found(left, source.state(), run_state="postmigrate")
        helpers.restore(site, image, destination)
        state.assert_left_as_found(right, destination.state(), run_state="prelaunch")
        ram.assert_same(before, destination.ram)
        return before.lengths()


@pytest.mark.parametrize("machine", ["pc", "q35", "microvm", "none"])
def test_each_machine_type(site: cli.Site, machine: str) -> None:
    blocks = _round_trip(site, machine=machine)
    assert max(blocks.values()) == 64 << 20
    assert len(blocks) > 1 or machine == "none"


@pytest.mark.parametrize("size", patterns.ODD_SIZES)
def test_odd_sizes(site: cli.Site, size: str) -> None:
    blocks = _round_trip(site, machine="none", memory=size, pattern=patterns.single_bytes)
    assert list(blocks.values()) == [int(size[:-1]) << 10]


@pytest.mark.parametrize("pattern", [patterns.empty, patterns.dense, patterns.fragmented()])
def test_contents(site: cli.Site, pattern: patterns.Pattern) -> None:
    _round_trip(site, machine="none", memory="33M", pattern=pattern)


@pytest.mark.parametrize("machine", ["pc", "q35"])
def test_nodes_dimm_and_roms(site: cli.Site, machine: str) -> None:
    arguments = [*memory.nodes("32M", "16M"), *memory.dimm("16M")]
    devices = ["-device", "VGA", "-device", "e1000"]
    blocks = _round_trip(site, *arguments, *devices, machine=machine, memory="48M")
    main = {name: blocks[name] >> 20 for name in ("n0", "n1", "d0")}
    assert main == {"n0": 32, "n1": 16, "d0": 16}
    assert any("vga.vram" in name for name in blocks)
    assert any("e1000.rom" in name for name in blocks)


def test_destination_without_the_dimm_is_refused(site: cli.Site) -> None:
    with qemu.running(*memory.dimm("16M"), name="source", ram=patterns.sparse) as source:
        image = helpers.save(site, source, "--then", "leave")
        with qemu.running(name="destination", incoming=True) as destination:
            before = destination.state()
            into = ["--into", destination.address]
            refused = site.run("restore", str(image), *into, "--json", check=3).json()
            assert refused["error"]["id"] == "check.destination"
            state.assert_left_as_found(before, destination.state())
    helpers.assert_header_intact(image)


@pytest.mark.root
def test_huge_pages(site: cli.Site) -> None:
    # Two guests of 8 pages each.
    with memory.huge_pages(16):
        arguments = memory.huge("16M")
        blocks = _round_trip(
            site, *arguments, machine="none", memory="16M", pattern=patterns.fragmented()
        )
    assert blocks == {"m": 16 << 20}


def test_sandbox(site: cli.Site) -> None:
    _round_trip(site, sandbox=True, pattern=patterns.dense)


@pytest.mark.root
@pytest.mark.parametrize("sandbox", [False, True], ids=["free", "sandbox"])
def test_qemu_that_cannot_open_the_image(site: cli.Site, sandbox: bool) -> None:
    options: dict[str, Any] = {"user": NOBODY, "sandbox": sandbox, "machine": "none"}
    with qemu.running(**options) as guest, pytest.raises(qmp.QmpError, match="Permission denied"):
        guest.control.execute("migrate", uri=f"file:{site.images}/by-path")
    _round_trip(site, memory="33M", **options)
