"""A file system that writes less than it is given: QEMU 10.0 goes on, and pages are missing."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave.image import image as images
from mapsave.image import superblock, syscalls

from tests.faults import struck
from tests.kit import cli, inject, patterns, qemu, ram, storage

IMAGE = "one.mapsave"
MIB = 1 << 20
_PAGE = 4096
_JOB = 128 * _PAGE  # what a channel of QEMU writes by one call at most
# Main memory is the first RAM block: its pages begin at the second MiB of the stream.
_FIRST_PAGES = 2 * MIB


# Jobs begin and end in these runs, and where there is none.
islands = patterns.islands(300, 200)


def _save(site: cli.Site, guest: qemu.Qemu, *options: str) -> cli.Result:
    return site.run("save", guest.address, "--image", IMAGE, "--json", *options)


def _is_refused(site: cli.Site, guest: qemu.Qemu, result: cli.Result) -> dict[str, Any]:
    """See that the save failed for missing pages, and that the guest is as it was."""
    assert result.returncode == 4, result
    error = result.error("save.commit")
    assert error["data"]["found"]["id"] == "image.pages_missing"
    assert "save to another file system" in error["hint"]
    assert not list(site.images.iterdir())
    assert not struck.journals(site)
    assert guest.alive()
    return dict(error["data"]["found"]["data"])


def short(length: int, **more: Any) -> dict[str, str]:
    """Return the environment for a QEMU one of whose writes is cut to ``length`` bytes.

    It is one of those 8 to 40 MiB from the beginning of main memory.
    """
    first = _FIRST_PAGES + 8 * MIB
    more = {"first": first, "last": first + 32 * MIB, **more}
    return inject.environment(inject.Rule("pwritev", "short", length, **more))


# Whole pages are missing: holes show it.


@pytest.mark.parametrize("then", ["quit", "leave", "resume"])
@pytest.mark.parametrize("direct_io", ["on", "off"])
def test_pages_that_were_not_written(site: cli.Site, direct_io: str, then: str) -> None:
    env = short(5 * _PAGE)
    with qemu.running(env=env, ram=patterns.dense, paused=False) as guest:
        result = _save(site, guest, "--direct-io", direct_io, "--then", then)
        found = _is_refused(site, guest, result)
        assert found["pages"] == 128 - 5
        assert found["block"] == "pc.ram"
        assert guest.status() == "running"


def test_a_guest_is_saved_when_its_storage_writes_again(site: cli.Site, tmp_path: Path) -> None:
    """The save that failed leaves nothing that would stand against the next one."""
    # Else KVM counts in a page of the guest how often it has updated the clock there.
    steady = ("-cpu", "qemu64,-kvmclock")
    rules = short(5 * _PAGE)
    with qemu.running(*steady, env=rules, ram=patterns.dense, paused=False) as guest:
        _is_refused(site, guest, _save(site, guest))
        guest.control.execute("stop")
        before = guest.snapshot_ram(tmp_path / "before")
        done = _save(site, guest)
        assert done.returncode == 0, done
        written = done.json()["written"]
        assert written == {**written, "holes": "checked", "not_compared": 0, "reason": None}
        assert written["compared"] > 30  # as many runs are in the pattern
    with qemu.running(*steady, incoming=True) as restored:
        site.run("restore", IMAGE, "--into", restored.address, "--paused", check=0)
        ram.assert_same(before, restored.ram)


@pytest.mark.parametrize("zero_pages", ["multifd", "legacy", "none"])
def test_by_every_detection_of_zero_pages(site: cli.Site, zero_pages: str) -> None:
    with qemu.running(env=short(5 * _PAGE), ram=patterns.dense) as guest:
        result = _save(site, guest, "--zero-pages", zero_pages)
        assert _is_refused(site, guest, result)["pages"] == 128 - 5


def test_preallocated_room_is_no_data(site: cli.Site) -> None:
    with qemu.running(env=short(5 * _PAGE), ram=patterns.dense) as guest:
        result = _save(site, guest, "--preallocate", "on")
        assert _is_refused(site, guest, result)["pages"] == 128 - 5


def test_a_live_save(site: cli.Site) -> None:
    with qemu.running(env=short(5 * _PAGE), ram=patterns.dense, paused=False) as guest:
        _is_refused(site, guest, _save(site, guest, "--live"))
        assert guest.status() == "running"


# A page is written in part: only its contents show it.


@pytest.mark.parametrize("pattern", [islands, patterns.zero_tails])
@pytest.mark.parametrize(
    ("direct_io", "cut"),
    [("on", 512), ("on", 3 * _PAGE + 512), ("off", 100), ("off", 3 * _PAGE - 64)],
)
@pytest.mark.parametrize("skip", [0, 5])
def test_a_page_that_was_written_in_part(
    site: cli.Site, direct_io: str, cut: int, skip: int, pattern: patterns.Pattern
) -> None:
    env = short(cut, skip=skip, count=-1)
    with qemu.running(env=env, ram=pattern) as guest:
        _is_refused(site, guest, _save(site, guest, "--direct-io", direct_io))


@pytest.mark.parametrize("zero_pages", ["multifd", "legacy", "none"])
@pytest.mark.parametrize(("direct_io", "left"), [("on", 512), ("off", 100)])
def test_the_last_page_of_a_job_amid_a_run(
    site: cli.Site, direct_io: str, left: int, zero_pages: str
) -> None:
    """The next job follows without a hole."""
    env = short(_JOB - left)
    with qemu.running(env=env, ram=patterns.dense) as guest:
        result = _save(site, guest, "--direct-io", direct_io, "--zero-pages", zero_pages)
        assert (_is_refused(site, guest, result)["page"] + 1) % 128 == 0


@pytest.mark.parametrize("skip", [3, 5, 9])
def test_pages_that_a_channel_writes_one_by_one(site: cli.Site, skip: int) -> None:
    """QEMU puts zero pages last, and so turns the order of those that follow the first one."""
    env = short(2048, skip=skip, first=_FIRST_PAGES)
    with qemu.running(env=env, ram=patterns.fragmented(3)) as guest:
        _is_refused(site, guest, _save(site, guest, "--channels", "1"))


def test_before_the_guest_is_resumed(site: cli.Site) -> None:
    """It is compared while it still is what was saved."""
    env = short(_JOB - 64)
    with qemu.running(env=env, ram=patterns.zero_tails, paused=False) as guest:
        _is_refused(site, guest, _save(site, guest, "--then", "resume", "--direct-io", "off"))
        assert guest.status() == "running"
        done = _save(site, guest, "--then", "resume")
        assert done.returncode == 0, done
        written = done.json()["written"]
        assert (written["holes"], written["not_compared"]) == ("checked", 0)
    (recorded,) = [site.run("inspect", IMAGE, "--json", check=0).json()["written"]]
    assert recorded == written


def test_short_writes_of_the_main_channel(site: cli.Site) -> None:
    """QEMU itself sees that a bitmap was cut short; it goes on with the rest of what it streams."""
    bitmap = inject.Rule("pwritev", "short", 8, first=MIB, last=_FIRST_PAGES - 1, count=-1)
    with qemu.running(env=inject.environment(bitmap), ram=islands, paused=False) as guest:
        result = _save(site, guest)
        assert result.returncode == 4, result
        assert "Partial write" in result.error()["message"]
        assert guest.status() == "running"
    stream = inject.Rule("writev", "short", 7, count=-1)
    with qemu.running(env=inject.environment(stream), ram=islands, paused=False) as guest:
        assert _save(site, guest).returncode == 0
    site.run("verify", IMAGE, check=0)


# What cannot be asked is said.


def test_memory_that_may_not_be_read(site: cli.Site) -> None:
    """Holes show what they show; pages that end in zeros are counted."""
    with qemu.running(
        env=short(5 * _PAGE), ram=patterns.zero_tails, user=65534, paused=False
    ) as guest:
        os.chmod(guest.qmp, 0o777)
        bounded = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]
        save = ("save", guest.address, "--image", IMAGE, "--json")
        _is_refused(site, guest, site.run(*save, under=bounded))
        result = site.run(*save, under=bounded, check=0).json()
    assert result["written"]["holes"] == "checked"
    assert result["written"]["not_compared"] > 30
    assert "cannot be read: Operation not permitted" in result["written"]["reason"]
    assert "Operation not permitted" in site.run("inspect", IMAGE, check=0).stdout


@pytest.mark.parametrize("direct_io", ["on", "off"])
@pytest.mark.parametrize(("kind", "block"), [("ext4", 1024), ("xfs", 1024), ("xfs", 4096)])
def test_blocks_smaller_than_a_page(
    site: cli.Site, tmp_path: Path, kind: storage.Kind, block: int, direct_io: str
) -> None:
    """A page whose end is in a hole is missing as well."""
    with storage.loop_filesystem(kind, 400 * MIB, tmp_path, block=block) as place:
        site.settings["images"] = str(place)
        site.write()
        env = short(_JOB - 1024)
        with qemu.running(env=env, ram=patterns.zero_tails, paused=False) as guest:
            result = _save(site, guest, "--direct-io", direct_io)
            assert result.error()["data"]["found"]["id"] == "image.pages_missing"
            done = _save(site, guest, "--direct-io", direct_io)
            assert done.returncode == 0, done
            assert done.json()["written"]["holes"] == "checked"
            assert done.json()["written"]["not_compared"] == 0


@pytest.mark.parametrize("options", [(), ("-o", "huge=always")])
def test_tmpfs(site: cli.Site, tmp_path: Path, options: tuple[str, ...]) -> None:
    """With huge pages its blocks are larger than the guest's."""
    with storage.tmpfs(400 * MIB, tmp_path, *options) as place:
        site.settings["images"] = str(place)
        site.write()
        with qemu.running(env=short(5 * _PAGE), ram=patterns.dense, paused=False) as guest:
            result = _save(site, guest)
            assert result.error()["data"]["found"]["id"] == "image.pages_missing"
            assert _save(site, guest).returncode == 0


@pytest.mark.parametrize("zero_pages", ["multifd", "none"])
def test_a_file_system_that_does_not_report_holes(
    site: cli.Site, tmp_path: Path, zero_pages: str
) -> None:
    """Every page is compared with the guest's RAM."""
    with storage.without_direct_io(tmp_path) as place:  # ramfs: everything is data to it
        site.settings["images"] = str(place)
        site.write()
        options = ("--zero-pages", zero_pages)
        with qemu.running(env=short(5 * _PAGE), ram=patterns.dense, paused=False) as guest:
            result = _save(site, guest, *options)
            assert result.error()["data"]["found"]["id"] == "image.pages_missing"
            done = _save(site, guest, *options).json()
            assert (done["written"]["holes"], done["written"]["not_compared"]) == ("unknown", 0)
            assert done["written"]["compared"] * _PAGE == done["data_bytes"]
            assert done["warnings"] == []
        with qemu.running(ram=islands, paused=False) as guest:
            done = _save(site, guest, *options, "--then", "resume", "--replace").json()
            assert done["written"]["not_compared"] > 1000
            assert "does not report holes" in done["warnings"][0]


# Later, pages in holes are a warning: a sparse copy has them too.


@pytest.fixture
def saved(site: cli.Site) -> Iterator[Path]:
    """An image with zero pages that were written, and a copy of it without their blocks."""
    with qemu.running(ram=islands) as guest:
        _save(site, guest, "--zero-pages", "none", "--direct-io", "off")
    copy = site.images / "copy.mapsave"
    command = ["cp", "--sparse=always", site.images / IMAGE, copy]
    subprocess.run(command, check=True)
    yield copy


def test_a_sparse_copy_is_good(site: cli.Site, saved: Path) -> None:
    for command in ("verify", "check"):
        assert site.run(command, IMAGE, "--json", check=0).json()["warnings"] == []
        (warning,) = site.run(command, saved, "--json", check=0).json()["warnings"]
        assert "are in holes of the file" in warning
        assert "a sparse copy turns zeros into holes" in warning
        assert warning in site.run(command, saved, check=0).stdout
    with qemu.running(incoming=True) as restored:
        done = site.run("restore", saved, "--into", restored.address, "--json", check=0).json()
        assert done["warnings"] == [warning]


def test_an_image_whose_save_did_not_look(site: cli.Site) -> None:
    """That pages may be missing is seen, and that the save did not look is said."""
    with qemu.running(ram=patterns.dense) as guest:
        assert _save(site, guest).returncode == 0
    with (site.images / IMAGE).open("r+b") as file, images.opened(file.name) as opened:
        known = {key: opened.metadata[key] for key in opened.metadata if key != "written"}
        superblock.write(file.fileno(), opened.block, known)
        syscalls.punch_hole(file.fileno(), _FIRST_PAGES + 32 * MIB, 5 * _PAGE)
    found = site.run("verify", IMAGE, "--json", check=0).json()
    assert found["written"] is None
    (warning,) = found["warnings"]
    assert "5 used pages" in warning
    assert "its save did not check" in warning
    assert "not recorded" in site.run("inspect", IMAGE, check=0).stdout


# Whoever commits looks: recovery, and for the other kinds of guests as well.


def _killed_before_the_commit(site: cli.Site, guest: qemu.Qemu) -> None:
    site.add_guest("web01", guest.qmp, launch=guest.argv)
    options = ("--image", IMAGE, "--direct-io", "off")
    struck.run(site, "after", "complete", "KILL", "save", "web01", *options)
    assert guest.status() == "postmigrate"


@pytest.mark.parametrize("cut", [5 * _PAGE, _JOB - 64])
def test_recovery_puts_the_guest_back(site: cli.Site, cut: int) -> None:
    with qemu.running(env=short(cut), ram=patterns.zero_tails, paused=False) as guest:
        _killed_before_the_commit(site, guest)
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
        assert line["outcome"].startswith(
            "save rolled back: QEMU had finished, but the image is invalid"
        )
        assert guest.status() == "running"
    assert not list(site.images.iterdir())
    assert not struck.journals(site)


def test_recovery_records_what_it_compared(site: cli.Site) -> None:
    with qemu.running(ram=patterns.zero_tails, paused=False) as guest:
        _killed_before_the_commit(site, guest)
        site.run("recover", check=0)
        guest.wait()
    written = site.run("verify", IMAGE, "--json", check=0).json()["written"]
    assert (written["holes"], written["not_compared"]) == ("checked", 0)


def test_recovery_commits_no_such_image_of_a_guest_that_is_gone(site: cli.Site) -> None:
    with qemu.running(env=short(5 * _PAGE), ram=patterns.zero_tails, paused=False) as guest:
        _killed_before_the_commit(site, guest)
        guest.kill()
        guest.wait()
        (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert line["outcome"].startswith("QEMU had exited, and 123 pages were not written")
    assert not list(site.images.iterdir())
    assert not struck.journals(site)
