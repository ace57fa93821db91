"""Whatever capabilities and parameters were set before a save: it works, and they are back after.

Each case is one that QEMU accepts beforehand and that would spoil a mapped-ram save in some way if
it were left as it is: an error at once, one at the end, or an image without RAM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, patterns, qemu, ram, state, storage
from tests.qemu import helpers


def _set(guest: qemu.Qemu, capabilities: Sequence[str], parameters: dict[str, Any]) -> None:
    """Set them one by one, as QEMU checks each only against what is in force."""
    for name in capabilities:
        wanted = [{"capability": name, "state": True}]
        guest.control.execute("migrate-set-capabilities", capabilities=wanted)
    if parameters:
        guest.control.execute("migrate-set-parameters", **parameters)


def _case(name: str, *capabilities: str, **parameters: Any) -> Any:
    return pytest.param(capabilities, parameters, id=name)


CASES = [
    _case("slow", max_bandwidth=1 << 20, multifd_channels=1, downtime_limit=1),
    _case("many", max_bandwidth=1 << 40, multifd_channels=200, zero_page_detection="legacy"),
    _case("direct-io", direct_io=True),
    _case("xbzrle", "xbzrle", xbzrle_cache_size=1 << 20),
    _case("postcopy-ram", "postcopy-ram"),
    _case("return-path", "return-path"),
    _case("switchover-ack", "return-path", "switchover-ack"),
    _case("pause-before-switchover", "pause-before-switchover"),
    _case("background-snapshot", "background-snapshot"),
    _case("x-ignore-shared", "x-ignore-shared"),
    _case("harmless", "auto-converge", "release-ram", "validate-uuid"),
    _case("zlib", multifd_compression="zlib", multifd_zlib_level=9),
    _case("mapped-ram", "mapped-ram"),
    _case("mapped-ram-and-multifd", "mapped-ram", "multifd", "events"),
    _case("mapped-ram-and-zlib", "mapped-ram", "multifd", multifd_compression="zlib"),
    _case("mapped-ram-and-background-snapshot", "mapped-ram", "background-snapshot"),
    _case("tls", tls_creds="none-such", tls_hostname="host"),
]


@pytest.mark.parametrize(("capabilities", "parameters"), CASES)
def test_settings_of_others_do_no_harm_and_are_put_back(
    site: cli.Site, capabilities: Sequence[str], parameters: dict[str, Any]
) -> None:
    with qemu.running(
        name="source", machine="none", memory="9M", paused=False, ram=patterns.dense
    ) as source:
        untouched = source.state()
        _set(source, capabilities, parameters)
        before = source.state()
        assert before != untouched
        image = helpers.save(site, source, "--then", "resume")
        state.assert_left_as_found(before, source.state())
        helpers.assert_header_intact(image)
        # Nothing changes RAM: machine none has no processor.
        source.control.execute("stop")
        saved = source.snapshot_ram(site.directory / "before")
    with qemu.running(
        name="destination", machine="none", memory="9M", incoming=True
    ) as destination:
        _set(destination, capabilities, parameters)
        waiting = destination.state()
        helpers.restore(site, image, destination)
        state.assert_left_as_found(waiting, destination.state(), run_state="paused")
        ram.assert_same(saved, destination.ram)


@pytest.mark.root
@pytest.mark.parametrize(
    ("capabilities", "parameters"),
    [
        _case("plain"),
        _case("xbzrle", "xbzrle", max_bandwidth=1 << 20),
        _case("mapped-ram-and-zlib", "mapped-ram", "multifd", multifd_compression="zlib"),
    ],
)
def test_settings_are_put_back_after_a_failed_save(
    site: cli.Site, capabilities: Sequence[str], parameters: dict[str, Any], tmp_path: Path
) -> None:
    with (
        storage.tmpfs(20 << 20, tmp_path) as place,
        qemu.running(machine="none", paused=False, ram=patterns.dense) as guest,
    ):
        _set(guest, capabilities, parameters)
        before, digests = guest.state(), guest.ram_digests()
        # Of one channel that fails beside others QEMU dies now and then (hazards.md).
        save = ("save", guest.address, "-o", place / "it.mapsave", "--channels", "1", "--json")
        failed = site.run(*save, check=4)
        assert "No space left on device" in failed.json()["error"]["message"]
        state.assert_left_as_found(before, guest.state())
        assert guest.ram_digests() == digests
        assert list(place.iterdir()) == []


def test_guest_left_paused_by_a_save_is_not_saved_again(site: cli.Site) -> None:
    with qemu.running(machine="none", memory="9M", paused=False, ram=patterns.dense) as guest:
        image = helpers.save(site, guest, "--then", "leave")
        before = guest.state()
        assert before.run_state == "postmigrate"
        refused = site.run("save", guest.address, "-o", "again.mapsave", "--json", check=3).json()
        assert refused["error"]["id"] == "check.run_state"
        assert "was saved before" in refused["error"]["message"]
        state.assert_left_as_found(before, guest.state())
        assert list(site.images.iterdir()) == [image]
        # The hint is true: continued, it can be saved again.
        guest.control.execute("cont")
        site.run("save", guest.address, "-o", "again.mapsave", "--then", "resume", check=0)
        assert guest.status() == "running"


_IVSHMEM = "ivshmem-plain,memdev=shared,master=off"
BLOCKERS = [
    pytest.param(
        ["-object", "memory-backend-ram,id=shared,size=1M,share=on", "-device", _IVSHMEM],
        "Migration is disabled when using feature 'peer mode' in device 'ivshmem'",
        id="ivshmem-peer",
    ),
    pytest.param(["-device", "nvme,serial=x"], "non-migratable device", id="nvme"),
]


@pytest.mark.parametrize(("arguments", "reason"), BLOCKERS)
def test_guest_that_qemu_cannot_save_is_refused_untouched(
    site: cli.Site, arguments: list[str], reason: str
) -> None:
    with qemu.running(*arguments, paused=False, ram=patterns.sparse) as guest:
        before = guest.state()
        guest.control.events.clear()
        refused = site.run("save", guest.address, "--json", check=3).json()
        assert refused["error"]["id"] == "check.not_migratable"
        assert reason in refused["error"]["message"]
        checked = site.run("check", guest.address, "--json", check=3)
        assert reason in checked.stdout
        state.assert_left_as_found(before, guest.state())
        assert guest.control.event_names() == []  # not even paused for a moment
    assert list(site.images.iterdir()) == []
