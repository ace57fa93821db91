"""The packages, built once in a run of the tests, and the chroots that they are installed in."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests import backports
from tests.kit import need, tree

PYTHONS = {"12": "3.11", "13": "3.13"}  # of each release of Debian
BUILD = tree.ROOT / "packaging/build.sh"
_TIMEOUT = 1800.0  # seconds: the archive may be slow, and the machine busy
# Processes and mounts of its own: who ends it ends all of them.
ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


@dataclass(frozen=True)
class Package:
    """What was built for a release, and the chroot in which it was."""

    release: str
    deb: Path
    rpm: Path
    chroot: Path

    def run(self, script: str, code: int = 0, **environ: str) -> str:
        """Run a script of sh as root in the chroot; return what it printed."""
        command = [
            *ALONE,
            *(f"--root={self.chroot}", "--wd=/root", "--", "env", "-i"),
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            *("HOME=/root", "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"),
            *(f"{name}={value}" for name, value in environ.items()),
            *("sh", "-ec", script),
        ]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode} of {script}:\n{done.stdout}"
        return done.stdout


def unavailable() -> str | None:
    """Say why no package can be built here, or return None."""
    if (reason := need.root()) is not None:
        return reason
    for tool in ("mmdebstrap", "strip", "unshare"):
        if shutil.which(tool, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None:
            return f"{tool} is not installed"
    sources = backports.read(Path("/etc/apt"))
    if backports.derive(sources, of_host("VERSION_CODENAME")) is None:
        return "no apt source of Debian's main archive"
    return None


def for_host(place: Path) -> Package:
    """Return the package for the release of this host; see ``built``."""
    return built(of_host("VERSION_ID").strip('"'), place)


def of_host(name: str) -> str:
    """Return a value of this host's os-release(5)."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.partition("=")[::2] for line in lines).get(name, "")


def built(release: str, place: Path) -> Package:
    """Return the package for ``release``, which is built in ``place`` if it is not there yet.

    ``$MAPSAVE_PACKAGES`` names a place for all of a run, instead, and for chroots that are kept.
    """
    place = Path(os.environ.get("MAPSAVE_PACKAGES") or place / "packages")
    place.mkdir(exist_ok=True)
    dist = place / f"dist-{release}"
    failure = place / f"failure-{release}"
    with _locked(place / f"{release}.lock"):
        if not dist.exists() and not failure.exists():
            _build(release, place, dist, failure)
    assert not failure.exists(), failure.read_text()
    (deb,) = dist.glob("*.deb")
    (rpm,) = dist.glob("*.rpm")
    return Package(release, deb, rpm, place / "chroots" / release)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(release: str, place: Path, dist: Path, failure: Path) -> None:
    partial = dist.with_suffix(".partial")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MAPSAVE_")},
        "MAPSAVE_CHROOTS": str(place / "chroots"),
        "MAPSAVE_DIST": str(partial),
        "PYTHON": sys.executable,
    }
    with _scratch() as scratch:
        code, printed = _run([*ALONE, "--", "bash", str(BUILD), release], environment, scratch)
    if code == 0:
        partial.rename(dist)
    else:
        failure.write_text(printed)  # it is not tried again for each test


def _run(command: list[str], environment: dict[str, str], scratch: str) -> tuple[int, str]:
    """Return the exit code of a build, other than 0 after the time limit, and what it printed."""
    with subprocess.Popen(
        command,
        env={**environment, "TMPDIR": scratch},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=_TIMEOUT)
        except BaseException as error:
            process.kill()
            printed, _ = process.communicate()  # it ends when the last of them has let go of it
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            printed += f"\nit did not end in {_TIMEOUT:.0f} s"
    return process.returncode, printed


@contextmanager
def _scratch() -> Iterator[str]:
    """Make the directory of a build, which goes even where that was ended."""
    # Not /tmp: that may be RAM, or mounted so that no device files can be made.
    parent = os.environ.get("TMPDIR", "/var/tmp")
    with tempfile.TemporaryDirectory(prefix="mapsave-packages-", dir=parent) as scratch:
        Path(scratch).chmod(0o755)  # apt downloads as its own user
        yield scratch
