"""QEMU in a domain of SELinux, and what is asked of files and processes there."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.kit import cli, qemu
from tests.kit.qemu import Qemu

GUEST = "system_u:system_r:svirt_t:s0:c1,c2"
IMAGE = "system_u:object_r:svirt_image_t:s0:c1,c2"
OTHERS_IMAGE = "system_u:object_r:svirt_image_t:s0:c3,c4"
UNBORN_IMAGE = "system_u:object_r:mapsave_tests_unborn_t:s0:c1,c2"  # no one may create it
OTHER_DOMAIN = "system_u:system_r:svirt_prot_exec_t:s0:c1,c2"  # where IMAGE will not do
AT_REST = "system_u:object_r:virt_image_t:s0"  # what a new file in /var/lib/mapsave gets
SOCKETS = Path("/run/guests")  # a directory where guests may make sockets
_ATTRIBUTE = "security.selinux"
_FS = Path("/sys/fs/selinux")
_IMAGE_CONTEXT = Path("/etc/selinux/default/contexts/virtual_image_context")


@contextmanager
def running(*arguments: str, context: str = GUEST, **options: Any) -> Iterator[Qemu]:
    """Run a paused QEMU in ``context``; ``options`` are those of ``qemu.running``."""
    place = Path(tempfile.mkdtemp(dir=SOCKETS))
    chosen: dict[str, Any] = {"accel": "tcg", "memory": "32M", **options}
    with qemu.running(*arguments, directory=place, under=["runcon", context], **chosen) as guest:
        assert context_of(guest.pid) == context
        yield guest


def context_of(pid: int) -> str:
    return Path(f"/proc/{pid}/attr/current").read_text().rstrip("\0\n")


def label_of(file: Path | int) -> str:
    return os.getxattr(file, _ATTRIBUTE).rstrip(b"\0").decode()


def relabel(file: Path | int, label: str) -> None:
    """Give a file another label, after mapsave's back."""
    os.setxattr(file, _ATTRIBUTE, label.encode() + b"\0")


def refusals(name: str) -> list[str]:
    """Return the lines in which the kernel says what it kept from QEMU of a file of this name."""
    return [line for line in kernel_log() if 'comm="qemu' in line and name in line]


def refused_descriptors() -> list[str]:
    """Return the lines in which the kernel says that guests of OTHER_DOMAIN may not use one."""
    wanted = ("{ use }", f"scontext={OTHER_DOMAIN}", "tclass=fd")
    return [line for line in kernel_log() if all(word in line for word in wanted)]


@contextmanager
def without_image_context() -> Iterator[None]:
    """Let the system not say which label the images of guests have."""
    kept = _IMAGE_CONTEXT.rename(_IMAGE_CONTEXT.with_suffix(".kept"))
    try:
        yield
    finally:
        kept.rename(_IMAGE_CONTEXT)


@contextmanager
def without_fd_use() -> Iterator[None]:
    """Take the rule out that lets guests of OTHER_DOMAIN use mapsave's descriptors."""
    _switch_fd_use("0")
    try:
        yield
    finally:
        _switch_fd_use("1")


def _switch_fd_use(value: str) -> None:
    (_FS / "booleans" / "mapsave_tests_fd_use").write_text(value)
    (_FS / "commit_pending_bools").write_text("1")


def policy(site: cli.Site, **selinux: str) -> str:
    """Write a label policy for SELinux with these settings; return its path."""
    path = site.directory / "own.yaml"
    lines = [f'  {name}: "{value}"\n' for name, value in selinux.items()]
    path.write_text("module: selinux\nselinux:\n" + "".join(lines))
    return str(path)


def save(guest: Qemu, image: Path, policy: str, *more: str) -> tuple[str, ...]:
    """Return the words of the command that saves ``guest`` to ``image``."""
    return ("save", guest.address, "--image", str(image), "--policy", policy, "--json", *more)


def assert_refused(result: cli.Result, *words: str) -> dict[str, Any]:
    """Fail unless SELinux is said to be the reason, with these words; return the error."""
    assert result.returncode != 0, "not refused"  # what the control looks for
    error: dict[str, Any] = result.error()
    assert result.returncode == error["exit_code"] == 7, error
    assert error["id"] == "label.refused"
    assert "SELinux" in error["message"].partition("(QEMU's message")[0]
    for word in words:
        assert word in error["message"], error
    return error


@contextmanager
def mounted(place: Path, label: str) -> Iterator[Path]:
    """Mount a tmpfs whose files all have ``label``, as on file systems that keep none."""
    place.mkdir()
    options = f'size=256M,mode=700,context="{label}"'
    _run("mount", "-t", "tmpfs", "-o", options, "tmpfs", place)
    try:
        yield place
    finally:
        _run("umount", place)
        place.rmdir()


def kernel_log() -> list[str]:
    """Return the lines in which the kernel says what it has refused."""
    return [line for line in _run("dmesg").splitlines() if "denied" in line]


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr} {kernel_log()[-3:]}"
    return done.stdout
