"""QEMU in a profile of AppArmor, and what is asked of profiles, rules and the kernel there."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.kit import cli, qemu
from tests.kit.qemu import Qemu
from tests.mac.guest import apparmor_manager

PROFILES = apparmor_manager.PROFILES
POLICY = "apparmor-qemu"
MARK = "# mapsave"
FLAGS = "attach_disconnected"  # of profiles
_SOCKETS = Path("/run/guests")  # in @{mapsave_monitors} of mapsave's profile
_TEXT = """abi <abi/3.0>,
include <tunables/global>

profile {name} {flags} {{
  include <abstractions/mapsave-guest>
{include}
  {sockets}/** rw,
  /var/lib/mapsave/*/state/logs/* w,
{rules}
}}
"""


@dataclass(frozen=True)
class Profile:
    """A loaded profile: its name, the file that it is in, and where mapsave puts rules."""

    name: str
    file: Path
    rules_file: Path

    def rules(self) -> list[str]:
        """Return the lines that mapsave has added and not taken out."""
        if not self.rules_file.exists():
            return []
        lines = self.rules_file.read_text().splitlines()
        return [line.strip() for line in lines if line.endswith(MARK)]

    def write(self, rules: str = "", flags: str = FLAGS, **include: str) -> None:
        """Write the profile again and load it."""
        line = include.get("include", f"include if exists <local/{self.rules_file.name}>")
        text = _TEXT.format(
            name=self.name,
            flags=f"flags=({flags})" if flags else "",
            include=line,
            sockets=_SOCKETS,
            rules=rules,
        )
        self.file.write_text(text)
        apparmor_manager.load(self.file)


@contextmanager
def profile(
    rules: str = "", name: str = "qemu-web01", flags: str = FLAGS, **include: str
) -> Iterator[Profile]:
    """Load a profile for guests with ``rules`` on top; it is gone at the end.

    ``include``: the line instead of the one that mapsave's rules need.
    """
    made = Profile(name, PROFILES / name, PROFILES / "local" / f"mapsave-{name}")
    with _loaded(made):
        made.write(rules, flags, **include)
        yield made


@contextmanager
def libvirt_profile(name: str, disks: str) -> Iterator[Profile]:
    """Load a profile in two files as libvirt writes them (virt-aa-helper); gone at the end."""
    place = PROFILES / "libvirt"
    made = Profile(name, place / name, place / f"{name}.files")
    with _loaded(made):
        made.rules_file.write_text(disks)
        made.write(include=f"include if exists <libvirt/{name}.files>")
        yield made


@contextmanager
def _loaded(made: Profile) -> Iterator[None]:
    try:
        yield
    finally:
        if made.file.exists():
            apparmor_manager.unload(made.file)
            made.file.unlink()
        made.rules_file.unlink(missing_ok=True)
    left = [path.name for path in made.rules_file.parent.iterdir() if "mapsave" in path.name]
    assert left == [], "mapsave left these"


@contextmanager
def running(under: Profile, *arguments: str, **options: Any) -> Iterator[Qemu]:
    """Run a paused QEMU in the profile; ``options`` are those of ``qemu.running``."""
    place = Path(tempfile.mkdtemp(dir=_SOCKETS))
    chosen: dict[str, Any] = {"accel": "tcg", "memory": "32M", **options}
    words = ["aa-exec", "-p", under.name, "--"]
    try:
        with qemu.running(*arguments, directory=place, under=words, **chosen) as guest:
            assert context_of(guest.pid).startswith(f"{under.name} ("), context_of(guest.pid)
            yield guest
    finally:
        shutil.rmtree(place)


def context_of(pid: int) -> str:
    """Return what confines a process: ``PROFILE (MODE)`` or ``unconfined``."""
    return Path(f"/proc/{pid}/attr/apparmor/current").read_text().strip()


def allows(under: Profile, path: Path) -> bool:
    """Return whether the profile as it is loaded lets QEMU write ``path``."""
    return bool(_allowed(under.name, path) & 2)


def allows_reading(profile: str, path: Path) -> bool:
    """Return whether the profile of that name lets QEMU read ``path``."""
    return bool(_allowed(profile, path) & 4)


def _allowed(profile: str, path: Path) -> int:
    question = b"label\0" + profile.encode() + b"\0\x02" + os.fsencode(path)
    fd = os.open("/sys/kernel/security/apparmor/.access", os.O_RDWR)
    try:
        os.write(fd, question)
        answer = os.read(fd, 4096).decode().split()
    finally:
        os.close(fd)
    return int(answer[answer.index("allow") + 1], 16)


def save(guest: Qemu, image: Path, policy: str = POLICY, *more: str) -> tuple[str, ...]:
    """Return the words of the command that saves ``guest`` to ``image``."""
    return ("save", guest.address, "--image", str(image), "--policy", policy, "--json", *more)


def assert_refused(result: cli.Result, *words: str) -> dict[str, Any]:
    """Fail unless AppArmor is said to be the reason, with these words; return the error."""
    assert result.returncode != 0, "not refused"  # what the control looks for
    error: dict[str, Any] = result.error()
    assert result.returncode == error["exit_code"] == 7, (error, refusals()[-3:])
    assert error["id"] == "label.refused"
    assert "AppArmor" in error["message"].partition("(QEMU's message")[0]
    for word in words:
        assert word in error["message"], error
    return error


def refusals(*words: str) -> list[str]:
    """Return the lines with all ``words`` in which the kernel says what AppArmor has refused."""
    lines = subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout
    return [
        line
        for line in lines.splitlines()
        if 'apparmor="DENIED"' in line and all(word in line for word in words)
    ]


def both_names(image: Path) -> list[str]:
    """Return the rules for an image, by the name during the save and the final one."""
    return [f'"{image}.partial" rw,  {MARK}', f'"{image}" rw,  {MARK}']
