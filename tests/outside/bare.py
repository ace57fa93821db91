"""Try the documented ways to install mapsave, as printed, on a bare Debian.

``python -m tests.outside.bare [RELEASE [WAY]]``, as root: makes a chroot of Debian 12 or 13 with
nothing but apt, copies the sources there, and runs the commands in it: of the README to build the
package and install it (``package``), or those of docs/install.md for ``pipx`` or ``venv``. Takes
some minutes, and the network. The exit code is that of the commands.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests import backports
from tests.kit import pages, tree
from tests.outside import packages

# The page, how its block begins, and what is in the last line that belongs to the way.
_WAYS = {
    "package": ("README.md", "apt install mmdebstrap", "dist/mapsave_*.deb"),
    # Not what sets units up: this Debian has no systemd, and tests/test_setup.py tries it.
    "pipx": ("install.md", "apt install pipx", "pipx install '.[export]'"),
    "venv": ("install.md", "apt install python3-venv", "bin/pip install"),
}
CODENAMES = {"12": "bookworm", "13": "trixie"}
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "dist")
# How this host reaches packages of Debian and of Python.
_HOST = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
# As on a host, its root is a mount: else no other namespace of mounts can be made in it.
_ENTER = """\
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
exec chroot "$@"
"""
_INSIDE = """\
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
cd /root/mapsave
yes | sh -exc "$1"
PATH=$PATH:/usr/local/bin:/opt/mapsave/bin mapsave --version
"""


def commands(way: str) -> str:
    """Return the lines of the page's block from its first one to the one that ends a way."""
    page, first, last = _WAYS[way]
    (block,) = [
        each.text
        for each in pages.blocks()
        if each.page.name == page and each.text.startswith(first)
    ]
    return block[: block.index("\n", block.index(last)) + 1]


def main(release: str = "12", way: str = "package") -> int:
    """Make the chroot, run the commands, and return their exit code."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mapsave-bare-", dir="/var/tmp") as name:
        place = Path(name)
        place.chmod(0o755)  # apt downloads as its own user
        root = place / "root"
        _bootstrap(CODENAMES[release], place, root)
        shutil.copytree(tree.ROOT, root / "root/mapsave", symlinks=True, ignore=_LEFT_OUT)
        for path in filter(os.path.exists, _HOST):
            shutil.copy(path, root / path[1:])
        print(f"the chroot is there after {time.monotonic() - begun:.0f} s", flush=True)
        inside = ["sh", "-ec", _ENTER, "sh", str(root), "env", "-i", "HOME=/root"]
        if _CERTIFICATES.exists():
            shutil.copy(_CERTIFICATES, root / "root/certificates")
            inside.append("PIP_CERT=/root/certificates")
        inside += ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "bash", "-ec"]
        done = subprocess.run(
            [*packages.ALONE, *inside, _INSIDE, "bash", commands(way)],
            stdin=subprocess.DEVNULL,
            check=False,
        )
    print(f"exit code {done.returncode} after {time.monotonic() - begun:.0f} s")
    return done.returncode


def _bootstrap(codename: str, place: Path, root: Path) -> None:
    host = backports.read(Path("/etc/apt"))
    sources = place / "apt.sources"
    found = backports.derive(host, packages.of_host("VERSION_CODENAME"), codename)
    assert found is not None, f"no apt source of Debian's main archive to take {codename} from"
    sources.write_text(found)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=apt"]
    command += ["--dpkgopt=force-unsafe-io", codename, str(root), str(sources)]
    path = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "TMPDIR": str(place)}
    subprocess.run([*packages.ALONE, "--", *command], env={**os.environ, **path}, check=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
