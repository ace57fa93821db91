"""The pair of libvirt and QEMU that is here: what libvirt itself cannot do, `check` says."""

import shutil
from pathlib import Path

from tests.kit import cli, domain, patterns, qemu
from tests.kit.libvirtd import Daemon


def test_check_says_whether_libvirt_can_save(
    site: cli.Site, daemon: Daemon, tmp_path: Path
) -> None:
    emulator = f"<emulator>{shutil.which(qemu.BINARY)}</emulator>"
    with domain.running(
        daemon, "pair", transient=False, ram=patterns.dense, devices=emulator
    ) as guest:
        lines = site.run("check", guest.address, "--json", check=0).json()["checks"]
        (said,) = (line["detail"] for line in lines if line["check"] == "domain")
        site.run("save", guest.address, "--image", "ours", "--then", "quit", check=0)
        site.run("restore", "ours", check=0)
        saved = guest.virsh("save", tmp_path / "theirs", check=False)
        assert (saved.returncode != 0) == ("detach" in said), (said, saved.stderr)
        assert ("'detach'" in saved.stderr) == ("detach" in said)
