"""Plans of real guests: what is learned of memory and directory, and what comes of it."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, inject, memory, patterns, qemu, ram, storage
from tests.kit.libvirtd import NOBODY
from tests.kit.nobody import as_nobody


def fragmented(path: Path) -> list[str]:
    """Return the arguments of a guest of 64 MiB, each second page of which is full of data."""
    with path.open("wb") as file:
        for _ in range(8192):
            file.write(os.urandom(4096) + bytes(4096))
    return memory.from_file(path, "64M")


def plan(site: cli.Site, guest: qemu.Qemu) -> dict[str, object]:
    found: dict[str, object] = site.run("plan", guest.address, "--json", check=0).json()
    return found


def test_what_is_in_memory_is_seen_wherever_it_lies(site: cli.Site, tmp_path: Path) -> None:
    """In memory that was never touched, in touched memory, and in a file that QEMU maps."""
    with qemu.running(memory="64M") as guest:
        assert float(str(plan(site, guest)["filled"])) < 0.1
    with qemu.running(memory="64M", ram=patterns.dense) as guest:
        assert float(str(plan(site, guest)["filled"])) > 0.9
    with qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest:
        assert 0.4 < float(str(plan(site, guest)["filled"])) < 0.6


def test_the_directory_is_measured_once(site: cli.Site) -> None:
    with qemu.running(memory="64M") as guest:
        first = plan(site, guest)["measured"]
        assert plan(site, guest)["measured"] == first
        site.run("probe", check=0)
        assert plan(site, guest)["measured"] != first
        guest.control.execute("cont")
        result = site.run("check", guest.address, "--json", check=0).json()
        assert "the disk's figures are measured" in result["reasons"]["plan"]


def test_a_save_is_done_as_planned_and_restores_equal(site: cli.Site, tmp_path: Path) -> None:
    content = fragmented(tmp_path / "ram")
    # Where nothing was measured, small writes into holes count as slow.
    with qemu.running(*content, memory="64M") as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        done = site.run("save", guest.address, "-o", "x", "--json", check=0).json()
        assert done["strategy"]["zero_pages"] == "none"
    with qemu.running(*memory.zeroed("64M"), memory="64M", incoming=True) as waiting:
        site.run("restore", "x", "--into", waiting.address, check=0)
        ram.assert_same(before, waiting.ram)


def test_what_is_asked_for_is_done(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest:
        options = ("--zero-pages", "multifd", "--preallocate", "off")
        done = site.run("save", guest.address, "-o", "x", *options, "--json", check=0).json()
        assert done["strategy"]["zero_pages"] == "multifd"
        assert done["strategy"]["preallocate"] is False


def test_a_restore_is_done_as_planned_and_what_is_asked_for_wins(
    site: cli.Site, tmp_path: Path
) -> None:
    with qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest:
        before = guest.snapshot_ram(tmp_path / "before")
        site.run("save", guest.address, "-o", "x", check=0)
    planned = site.run("plan", "x", "--json", check=0).json()
    assert planned["measured"] is None  # and it was not measured for that
    chosen = {name: planned["chosen"][name] for name in ("direct_io", "channels")}
    asked = ("--direct-io", "off", "--channels", "3")
    # What QEMU itself was told and did, as it traces it (docs/devel/tracing.rst).
    traced = ("-trace", "handle_qmp_command", "-trace", "multifd_recv_thread_start")
    waits = (*traced, *memory.zeroed("64M"))
    for options, expected in (((), chosen), (asked, {"direct_io": False, "channels": 3})):
        with qemu.running(*waits, memory="64M", incoming=True) as waiting:
            into = ("restore", "x", "--again", "--into", waiting.address)
            done = site.run(*into, *options, "--json", check=0).json()
            told = waiting.stderr()
            ram.assert_same(before, waiting.ram)
        assert done["strategy"] == expected
        assert ('"direct-io": true' in told) is expected["direct_io"]
        assert told.count("multifd_recv_thread_start") == expected["channels"]
        assert done["plan"]["predicted_s"] > 0
        assert done["plan"]["took_s"] == pytest.approx(done["phases_s"]["read"], abs=1e-5)


def test_no_room_for_zeros(site: cli.Site, tmp_path: Path) -> None:
    """What is predicted to be fastest would fill the disk."""
    with (
        storage.loop_filesystem("ext4", 192 << 20, tmp_path) as place,
        qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest,
        storage.filled(place, leave=80 << 20),
    ):
        done = site.run("save", guest.address, "-o", place / "x", "--json", check=0).json()
        assert done["strategy"]["zero_pages"] != "none"
        assert "free space" in done["reasons"]["plan"]


def test_a_tmpfs_is_not_filled_with_zeros(site: cli.Site, tmp_path: Path) -> None:
    with (
        storage.tmpfs(1 << 30, tmp_path) as place,
        qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest,
    ):
        done = site.run("save", guest.address, "-o", place / "x", "--json", check=0).json()
        assert done["allocated_bytes"] < 48 << 20


@pytest.mark.root
def test_memory_that_may_not_be_read_is_no_reason_to_fail(tmp_path: Path) -> None:
    with qemu.directory_for() as place:
        place.chmod(0o755)
        site = cli.Site(place / "site")
        site.directory.chmod(0o755)
        for path in (site.images, site.state):
            os.chown(path, NOBODY, NOBODY)
            path.chmod(0o755)
        with qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest:
            guest.qmp.parent.chmod(0o755)
            guest.qmp.chmod(0o777)
            done = as_nobody(site, "save", guest.address, "--image", "x", check=0).json()
            assert done["strategy"]["zero_pages"] == "multifd"
            assert "the usual choice: the memory of QEMU" in done["reasons"]["plan"]


@pytest.mark.root
def test_a_directory_that_cannot_be_measured_is_planned_for_by_typical_figures(
    site: cli.Site, tmp_path: Path
) -> None:
    with (
        storage.tmpfs(512 << 20, tmp_path) as small,
        qemu.running(*fragmented(tmp_path / "ram"), memory="64M") as guest,
    ):
        planned = site.run("plan", guest.address, "--into", small, "--json", check=0).json()
        assert planned["measured"] is None
        assert not list(small.iterdir())
        error = site.run("probe", small, "--json", check=3).error("check.directory")
        assert "less than 1.0 GiB is free" in error["message"]


def test_an_outcome_is_recorded_and_corrects_the_next_prediction(
    site: cli.Site, tmp_path: Path
) -> None:
    slow = inject.Rule("pwritev", "delay", 100_000, path=".partial", count=-1)
    predicted = []
    for number in range(2):
        with qemu.running(
            *fragmented(tmp_path / "ram"), memory="64M", env=inject.environment(slow)
        ) as guest:
            done = site.run("save", guest.address, "-o", f"x{number}", "--json", check=0).json()
        assert done["plan"]["took_s"] > 1
        assert site.run("inspect", f"x{number}", "--json", check=0).json()["plan"] == done["plan"]
        predicted.append(done["plan"]["predicted_s"])
    assert predicted[1] > 1.3 * predicted[0]
    assert predicted[1] < 2 * predicted[0]


def test_what_is_learned_may_be_damaged(site: cli.Site) -> None:
    probes = site.state / "probes"
    with qemu.running(memory="64M") as guest:
        plan(site, guest)
        for path in probes.iterdir():
            path.write_text('{"holes": {"0": {"0": -1}}, "measured": 1e99}')
        done = site.run("save", guest.address, "-o", "x", "--json", check=0).json()
    assert "figures are typical" in done["reasons"]["plan"]
