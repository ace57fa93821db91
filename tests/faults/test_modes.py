"""Modes in which QEMU aborts, hangs or fails in a save or a load: found out beforehand."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, qemu, qmp, raw, wait


def recording(directory: Path, mode: str = "record") -> list[str]:
    """Return the arguments of a QEMU that records its execution, or plays it again."""
    return ["-icount", f"shift=auto,rr={mode},rrfile={directory}/record"]


def test_raw_recording_makes_qemu_abort(tmp_path: Path) -> None:
    with qemu.running(*recording(tmp_path), paused=False) as guest:
        with pytest.raises(qmp.QmpClosed):
            raw.save(guest, tmp_path / "image")
        assert guest.wait() == -signal.SIGABRT
        assert "replay_mutex_locked" in guest.stderr()


@pytest.mark.parametrize("paused", [True, False])
def test_recording_is_refused(site: cli.Site, tmp_path: Path, paused: bool) -> None:
    with qemu.running(*recording(tmp_path), paused=paused) as guest:
        before = guest.state()
        site.run("check", guest.address, check=3)
        result = site.run("save", guest.address, "--image", "x", "--json", check=3)
        assert result.error_id() == "check.mode"
        assert guest.state() == before
        assert os.listdir(site.images) == []


@pytest.mark.parametrize(
    ("saved", "destination"),
    [
        ("shift=auto", None),
        ("shift=auto", "shift=7"),
        ("7", "7,sleep=off"),
        ("shift=7,sleep=on", "sleep=off,shift=7"),
        ("shift=7", None),
    ],
)
def test_clocks_that_the_destination_lacks(
    site: cli.Site, saved: str, destination: str | None
) -> None:
    """QEMU aborts over a timer that is not there."""
    icount = save_counting(site, saved)
    other = [] if destination is None else ["-icount", destination]
    with qemu.running(*other, incoming=True) as guest:
        restoring = ("restore", "x", "--into", guest.address, "--json")
        error = site.run(*restoring, check=3).error("check.destination")
        assert "-icount" in error["hint"]
        with pytest.raises((qmp.QmpClosed, AssertionError)):
            raw.restore(guest, site.images / "x")
        assert guest.wait() == -signal.SIGABRT
    with qemu.running(*icount, incoming=True) as guest:
        site.run("restore", "x", "--into", guest.address, check=0)
        assert guest.alive()


@pytest.mark.parametrize(
    ("saved", "destination"), [("shift=7", "shift=auto"), ("shift=7,sleep=off", None)]
)
def test_clocks_that_fit(site: cli.Site, saved: str, destination: str | None) -> None:
    save_counting(site, saved)
    other = [] if destination is None else ["-icount", destination]
    with qemu.running(*other, incoming=True) as guest:
        site.run("restore", "x", "--into", guest.address, check=0)


def save_counting(site: cli.Site, icount: str) -> list[str]:
    """Save a guest that counts its instructions; return its arguments."""
    arguments = ["-icount", icount]
    with qemu.running(*arguments, paused=False) as guest:
        site.run("save", guest.address, "--image", "x", check=0)
    return arguments


BACKUP = ("blockdev-backup", {"job_id": "j", "device": "disk", "target": "target", "sync": "none"})
SNAPSHOT = ("blockdev-snapshot", {"node": "disk", "overlay": "target"})
COMMIT = ("block-commit", {"job_id": "j", "device": "target", "speed": 1})
MIRROR = ("blockdev-mirror", {**BACKUP[1], "sync": "full"})


def with_disks(directory: Path, *, overlay: bool = False) -> list[str]:
    """Return the arguments for a disk ``disk`` of 8 MiB, and a node ``target`` for jobs."""
    create = ["qemu-img", "create", "-q", "-f"]
    raw_disk, target = directory / "disk", directory / "target"
    raw_disk.write_bytes(os.urandom(8 << 20))
    backing = ["-b", str(raw_disk), "-F", "raw"] if overlay else []
    subprocess.run([*create, "qcow2", *backing, str(target), "8M"], check=True)
    more = ",backing=" if overlay else ""  # no backing node yet: the snapshot sets it
    return [
        "-blockdev",
        f"driver=raw,node-name=disk,file.driver=file,file.filename={raw_disk}",
        *("-device", "virtio-blk-pci,drive=disk,share-rw=on"),
        "-blockdev",
        f"driver=qcow2,node-name=target,file.driver=file,file.filename={target}{more}",
    ]


def test_raw_a_backup_job_fails_the_save_at_its_end(tmp_path: Path) -> None:
    with qemu.running(*with_disks(tmp_path), paused=False) as guest:
        guest.control.execute(BACKUP[0], **BACKUP[1])
        raw.configure(guest)
        guest.control.execute("migrate", uri=f"file:{tmp_path}/image")
        assert "Error in migration completion" in guest.wait_migration("failed")["error-desc"]


@pytest.mark.parametrize(
    ("overlay", "commands"),
    [(False, [BACKUP]), (True, [SNAPSHOT, COMMIT])],
    ids=["backup", "commit"],
)
def test_jobs_that_write_to_disks(
    site: cli.Site, tmp_path: Path, overlay: bool, commands: list[tuple[str, dict[str, Any]]]
) -> None:
    with qemu.running(*with_disks(tmp_path, overlay=overlay), paused=False) as guest:
        for command, arguments in commands:
            guest.control.execute(command, **arguments)
        before = guest.state()
        error = site.run("save", guest.address, "--image", "x", "--json", check=3).error(
            "check.not_migratable"
        )
        assert "'j'" in error["message"]
        assert guest.state() == before
        assert os.listdir(site.images) == []
        guest.control.execute("block-job-cancel", device="j")
        wait.until(lambda: not guest.control.execute("query-block-jobs"), what="end of the job")
        site.run("save", guest.address, "--image", "x", check=0)


def test_disk_that_others_may_write_through_qemu(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(*with_disks(tmp_path), paused=False) as guest:
        addr = {"type": "unix", "path": str(guest.directory / "export")}
        export = {"type": "vhost-user-blk", "id": "e", "node_name": "target", "addr": addr}
        guest.control.execute("block-export-add", **export, writable=True)
        error = site.run("save", guest.address, "--image", "x", "--json", check=3).error()
        assert "vhost-user-blk export 'e'" in error["message"]


@pytest.mark.parametrize("then", ["quit", "leave", "resume"])
def test_a_mirror_is_not_cut_off(site: cli.Site, tmp_path: Path, then: str) -> None:
    with qemu.running(*with_disks(tmp_path), paused=False) as guest:
        guest.control.execute(MIRROR[0], **MIRROR[1])
        saving = ("save", guest.address, "--image", "x", "--then", then, "--json")
        if then == "resume":
            site.run(*saving, check=0)
            assert [job["id"] for job in guest.control.execute("query-jobs")] == ["j"]
            return
        error = site.run(*saving, check=3).json()["error"]
        assert error["id"] == "check.not_migratable"
        assert "mirror job 'j'" in error["message"]
        guest.control.execute("job-cancel", id="j")
        wait.until(lambda: not guest.control.execute("query-jobs"), what="end of the job")
        site.run(*saving, check=0)


def test_a_job_that_is_over_does_not_matter(site: cli.Site, tmp_path: Path) -> None:
    with qemu.running(*with_disks(tmp_path), paused=False) as guest:
        options = {"driver": "file", "filename": str(tmp_path / "new"), "size": 1 << 20}
        (tmp_path / "new").touch()
        guest.control.execute("blockdev-create", job_id="c", options=options)

        def is_over() -> bool:
            return [job["status"] for job in guest.control.execute("query-jobs")] == ["concluded"]

        wait.until(is_over, what="end of the job")
        site.run("save", guest.address, "--image", "x", check=0)


def test_qemu_that_has_made_no_machine_yet(site: cli.Site) -> None:
    with qemu.running("-preconfig", paused=False) as guest:
        for command in (("check", guest.address), ("save", guest.address)):
            error = site.run(*command, "--json", check=3).error("check.run_state")
            assert "x-exit-preconfig" in error["hint"]
