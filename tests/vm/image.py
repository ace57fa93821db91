"""The virtual machine's disk: built from the distribution's packages, and kept for the next run.

Debian or its kin, as root: the packages come from where apt has this machine's from, the Python
packages that setup.cfg asks for from where pip has its. The kernel needs no modules: NVMe and ext4
are built in.
"""

import configparser
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests import backports
from tests.kit import linux_guest, tree

_FILES = Path(__file__).parent / "disk"
_RULES = [*sorted((tree.ROOT / "policies" / "selinux").glob("*.cil")), _FILES / "tests.cil"]

PACKAGES = (
    *("python3", "qemu-system-x86", "iproute2", "kmod", "mount"),
    "systemd-sysv",
    *("apparmor", "policycoreutils", "selinux-policy-default", "selinux-utils"),
    # What the service's TLS library reads where it is there, as it is on most hosts.
    *("openssl", "ca-certificates"),
    # The last two for administrative access.
    *("cockpit-ws", "cockpit-bridge", "cockpit-system", "sudo"),
)
_SIZE = 1 << 30
# QEMU of the same age as the host's; its firmware comes along, or apt finds no solution.
_PIN = "Package: qemu* seabios ipxe-qemu\nPin: release n={suite}\nPin-Priority: 900\n"
# Units that would do something by time, or wait for a terminal.
_MASKED = (
    *("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer"),
    *("e2scrub_reap.service", "fstrim.timer", "getty.target"),
)
_WITHOUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
_CONTEXTS = "etc/selinux/default/contexts/files"
# pip wants each older name of the platform that a package may have been built for.
_PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux2014_x86_64")
_TEST_PACKAGES = ("pytest >= 8", "pytest-timeout >= 2.3")
_KEPT = 2
_BUILD_TIMEOUT = 1800.0
# Processes and mounts of its own: who ends it ends all of them, and nothing is mounted in the tree
# that is removed then.
_ALONE = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")


def unavailable() -> str | None:
    """Say why the disk cannot be built or booted here, or return None."""
    if os.geteuid() != 0:
        return "not root"
    if shutil.which("qemu-system-x86_64") is None:
        return "there is no qemu-system-x86_64"
    for tool in ("mmdebstrap", "apt-get", "mkfs.ext4", "mkfs.xfs", "unshare"):
        if shutil.which(tool, path=_path()) is None:
            return f"{tool} is not installed"
    if importlib.util.find_spec("pip") is None:
        return f"{sys.executable} has no pip"
    if _sources() is None:
        return "no apt source of the main archive"
    return linux_guest.unavailable()


def files() -> tuple[Path, Path]:
    """Return the kernel and the disk, which is built on first use (about a minute).

    They are kept in ``$MAPSAVE_TEST_CACHE`` or ``~/.cache/mapsave-tests``, by a digest of what they
    are made from. Raises AssertionError with what the tool that failed said.
    """
    kernel, _ = linux_guest.files()
    cache = Path(os.environ.get("MAPSAVE_TEST_CACHE") or Path.home() / ".cache" / "mapsave-tests")
    disk = cache / f"vm-{_digest()}.img"
    with (cache / "vm.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not disk.exists():
            with _scratch(cache) as scratch:
                _build(scratch)
                (scratch / "root.img").rename(disk)
        os.utime(disk)
        _remove_old(cache)
    return kernel, disk


def _remove_old(cache: Path) -> None:
    found = sorted(cache.glob("vm-*.img"), key=lambda disk: disk.stat().st_mtime)
    for disk in found[:-_KEPT]:
        disk.unlink()


@contextmanager
def _scratch(cache: Path) -> Iterator[Path]:
    # Not /tmp: that may be RAM, or mounted so that no device files can be made.
    scratch = Path(tempfile.mkdtemp(prefix="vm-building-", dir=cache))
    scratch.chmod(0o755)  # apt downloads as its own user
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch)


def _digest() -> str:
    """Return what the disk depends on: the recipe, the versions of packages, what pip installs."""
    recipe = hashlib.sha256()
    for path in (Path(__file__), *_RULES, *sorted(_FILES.iterdir())):
        recipe.update(path.read_bytes())
    recipe.update("\n".join(_requirements()).encode())
    listing = _run("apt-cache", "madison", *PACKAGES)
    versions = sorted({tuple(line.split("|")[:2]) for line in listing.splitlines()})
    recipe.update(repr(versions).encode())
    return recipe.hexdigest()[:16]


def _codename() -> str:
    found = re.search(r"^VERSION_CODENAME=(\S+)", Path("/etc/os-release").read_text(), re.M)
    return found[1] if found else ""


def _sources() -> str | None:
    """Return a deb822 source of the release and its backports, from this machine's own sources."""
    codename = _codename()
    derived = backports.derive(backports.read(Path("/etc/apt")), codename)
    if derived is None:
        return None
    suite = f"{codename}-backports"
    return derived.replace(f"Suites: {suite}", f"Suites: {codename} {suite}")


def _requirements() -> list[str]:
    """Return what mapsave needs, from setup.cfg, and what the tests need inside."""
    config = configparser.ConfigParser()
    config.read(tree.ROOT / "setup.cfg")
    lines = config["options"]["install_requires"].splitlines()
    needed = [line for line in lines if line and not line.startswith("#")]
    return [*needed, *_TEST_PACKAGES]


def _build(scratch: Path) -> None:
    root = scratch / "root"
    _bootstrap(scratch, root)
    _install_python(root)
    for name in ("mac-init", "mac-rc", "run-carried"):
        shutil.copy(_FILES / name, root / "usr/sbin")
    _install_units(root / "etc/systemd/system")
    (root / "var/lib/mapsave").mkdir()
    _install_policy(root)
    image = scratch / "root.img"
    with image.open("xb") as file:
        file.truncate(_SIZE)
    _run("mkfs.ext4", "-q", "-F", "-d", root, image)


def _bootstrap(scratch: Path, root: Path) -> None:
    sources = scratch / "apt.sources"
    sources.write_text(str(_sources()))
    pin = scratch / "pin"
    pin.write_text(_PIN.format(suite=f"{_codename()}-backports"))
    preferences = '"$1/etc/apt/preferences.d"'
    _run(
        # It leaves a directory of keys there when it is ended.
        "env",
        f"TMPDIR={scratch}",
        "mmdebstrap",
        "--quiet",
        "--variant=minbase",
        "--mode=root",
        "--include=" + ",".join(PACKAGES),
        '--aptopt=Apt::Install-Recommends "false"',
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in _WITHOUT),
        f"--setup-hook=mkdir -p {preferences} && cp '{pin}' {preferences}/qemu",
        _codename(),
        root,
        sources,
    )


def _install_python(root: Path) -> None:
    """Install for the Python inside, wherever this one is of another version."""
    (python,) = (root / "usr/lib").glob("python3.[0-9]*")
    target = root / "usr/local/lib" / python.name / "dist-packages"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    _run(
        *pip,
        "--no-compile",
        "--only-binary=:all:",
        "--implementation=cp",
        f"--target={target}",
        f"--python-version={python.name.removeprefix('python')}",
        *(f"--platform={platform}" for platform in _PLATFORMS),
        *_requirements(),
    )
    # Compiling takes ten times as long where every instruction is emulated.
    _run("chroot", root, python.name, "-m", "compileall", "-q", "-j2", Path("/") / "usr/local/lib")


def _install_units(units: Path) -> None:
    for name in ("tests.target", "run-carried.service"):
        shutil.copy(_FILES / name, units)
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to(os.devnull)
    # Else each boot were the first, at which systemd enables units.
    (units.parents[1] / "machine-id").write_text(f"{1:032x}\n")


def _install_policy(root: Path) -> None:
    """Load the rules, and label the whole tree from outside: mkfs takes the labels over."""
    rules: list[str] = []
    for path in _RULES:
        shutil.copy(path, root / "root")
        rules += ["-i", f"/root/{path.name}"]
    _run("chroot", root, "semodule", "-n", *rules)
    shutil.copy(_FILES / "file_contexts.local", root / _CONTEXTS)
    _run(root / "sbin/setfiles", "-F", "-r", root, root / _CONTEXTS / "file_contexts", root)


def _path() -> str:
    # Root's PATH may lack the directories of these tools, for instance after su.
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _run(*command: str | Path) -> str:
    env = {**os.environ, "PATH": _path(), "LC_ALL": "C"}
    with subprocess.Popen(
        (*_ALONE, *command), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            stdout, stderr = process.communicate(timeout=_BUILD_TIMEOUT)
        except BaseException:
            process.kill()
            process.communicate()  # it ends when the last of them has let go of it
            raise
    assert process.returncode == 0, f"{command}: {stdout[-4000:]}{stderr[-4000:]}"
    return stdout
