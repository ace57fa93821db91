"""A live Linux guest that counts and checksums its own memory (see ``linux/init``).

Kernel and busybox come from the distribution's packages. It runs under TCG, since ordinary kernels
do not boot under KVM on some nested hosts.
"""

import contextlib
import fcntl
import functools
import lzma
import os
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tests.kit import need, qemu, wait
from tests.kit.qemu import Qemu

_INIT = Path(__file__).parent / "linux" / "init"
_KERNEL = "linux-image-cloud-amd64"
# By it the kernel gives QEMU's device vmcoreinfo what a debugger of cores needs.
_MODULE = "lib/modules/*/kernel/drivers/firmware/qemu_fw_cfg.ko*"
_TICK = re.compile(rb"tick (\d+) ([0-9a-f]{32}) (kept|lost)\r?\n")
MEMORY = "192M"
MEMORY_BYTES = 192 << 20
# On a busy host too few interrupts of a timer come while the kernel counts them, and it panics.
UNCOUNTED = "no_timer_check"
COMMAND_LINE = f"console=ttyS0 quiet {UNCOUNTED}"


class Tick(NamedTuple):
    """One round of the guest: its number, the checksum of its memory, and no write was lost."""

    number: int
    checksum: str
    kept: bool


@dataclass(frozen=True)
class Serial:
    """The serial line of a guest, which QEMU writes to the file ``log``."""

    log: Path

    def ticks(self) -> list[Tick]:
        """Return the ticks so far; lines that are torn by a save do not count."""
        text = self.log.read_bytes() if self.log.exists() else b""
        return [
            Tick(int(number), checksum.decode(), kept == b"kept")
            for number, checksum, kept in _TICK.findall(text)
        ]

    def last_tick(self) -> Tick:
        """Return the newest tick; fail if there is none."""
        ticks = self.ticks()
        assert ticks, "the guest has not ticked yet"
        return ticks[-1]

    def wait_ticks(self, count: int = 1, *, timeout: float = wait.LONG) -> list[Tick]:
        """Wait for ``count`` ticks more than there are now; return these."""
        seen = len(self.ticks())
        wait.until(
            lambda: len(self.ticks()) >= seen + count, timeout=timeout, what=f"ticks in {self.log}"
        )
        return self.ticks()[seen:]


@dataclass(frozen=True)
class LinuxGuest:
    """A live Linux guest: its QEMU and its serial line."""

    qemu: Qemu
    serial: Serial

    @contextmanager
    def successor(self) -> Iterator["LinuxGuest"]:
        """Take over the guest that ``mapsave restore`` started; see ``Qemu.successor``.

        Its QEMU begins the log again, so read the ticks of this one before.
        """
        with self.qemu.successor() as successor:
            yield LinuxGuest(successor, self.serial)


def assert_same_memory(before: list[Tick], after: list[Tick]) -> None:
    """Fail unless ``after`` goes on where ``before`` ended, with memory unchanged."""
    assert before and after, "no ticks to compare"
    assert {tick.checksum for tick in (*before, *after)} == {before[0].checksum}
    assert all(tick.kept for tick in (*before, *after)), "the guest lost a write"
    numbers = [tick.number for tick in after]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), numbers
    # One line may be torn: half of it in each log. And the guest may tick until it is stopped.
    assert numbers[0] > before[-1].number, f"the counter went back: {before[-1]} → {after[0]}"


def arguments(log: Path) -> list[str]:
    """Return the QEMU arguments of the guest, for ``qemu.command()``: serial line to ``log``."""
    kernel, initrd = files()
    boot = ["-kernel", str(kernel), "-initrd", str(initrd), "-append", COMMAND_LINE]
    return [*boot, "-cpu", "qemu64", "-serial", f"file:{log}"]


@contextmanager
def running(
    *more: str, log: Path, machine: str = "pc", incoming: bool = False, name: str = "linux"
) -> Iterator[LinuxGuest]:
    """Run the guest with its serial line in ``log``; it boots in about five seconds.

    With ``incoming`` it waits for ``migrate-incoming`` and then runs if it ran when it was saved.
    """
    need.skip_if(unavailable())
    log.unlink(missing_ok=True)
    with qemu.running(
        *arguments(log),
        *more,
        machine=machine,
        memory=MEMORY,
        accel="tcg",
        paused=False,
        incoming=incoming,
        name=name,
    ) as guest:
        yield LinuxGuest(guest, Serial(log))


@functools.cache
def unavailable() -> str | None:
    """Say why the guest cannot be had on this machine, or return None."""
    try:
        files()
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or ""
        return f"no kernel for the Linux guest: {error} {output}".strip()
    return None


@functools.cache
def files() -> tuple[Path, Path]:
    """Return kernel and initial RAM file system, downloaded and built on first use.

    They are kept in ``$MAPSAVE_TEST_CACHE`` or ``~/.cache/mapsave-tests``.

    Raises OSError or CalledProcessError when the packages cannot be had.
    """
    cache = Path(os.environ.get("MAPSAVE_TEST_CACHE") or Path.home() / ".cache" / "mapsave-tests")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        kernel, busybox, initrd = cache / "vmlinuz", cache / "busybox", cache / "initrd"
        module = cache / "qemu_fw_cfg.ko"
        if not (kernel.exists() and module.exists()):
            _take_from_package(_kernel_package(), {"boot/vmlinuz-*": kernel, _MODULE: module})
        if not busybox.exists():
            _take_from_package("busybox-static", {"*bin/busybox": busybox})
        _replace(initrd, _initrd(busybox.read_bytes(), module.read_bytes()))
    return kernel, initrd


def modules(*names: str) -> list[Path]:
    """Return modules of that kernel by their paths below ``kernel/``, taken on first use."""
    cache = files()[0].parent
    found = {f"lib/modules/*/kernel/{name}.ko*": cache / f"{Path(name).name}.ko" for name in names}
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all(path.exists() for path in found.values()):
            _take_from_package(_kernel_package(), found)
    return list(found.values())


def _kernel_package() -> str:
    """Return the package that the meta package of the newest cloud kernel depends on."""
    listing = _run("apt-cache", "depends", "--important", _KERNEL)
    found = re.findall(r"Depends: (linux-image-\S+)", listing)
    if not found:
        raise FileNotFoundError(f"apt knows no package {_KERNEL}; is apt-get update due?")
    return str(found[0])


def _take_from_package(package: str, wanted: Mapping[str, Path]) -> None:
    """Download a Debian package and keep the one file of it that matches each pattern."""
    with tempfile.TemporaryDirectory(dir=next(iter(wanted.values())).parent) as scratch:
        # apt downloads as its own user, unless it cannot write here: then as us, with a warning.
        _run("apt-get", "download", "-qq", package, cwd=scratch)
        (archive,) = Path(scratch).glob("*.deb")
        _run("dpkg-deb", "-x", str(archive), f"{scratch}/content")
        for pattern, target in wanted.items():
            found = list(Path(scratch, "content").glob(pattern)) + list(
                Path(scratch, "content").glob(f"usr/{pattern}")
            )
            if not found:
                raise FileNotFoundError(f"package {package} has no {pattern}")
            data = found[0].read_bytes()
            _replace(target, lzma.decompress(data) if found[0].suffix == ".xz" else data)


def _initrd(busybox: bytes, module: bytes) -> bytes:
    """Return the initial RAM file system as a cpio archive."""
    members = [(name, 0o40755, b"") for name in ("bin", "dev", "proc", "memory")]
    members += [
        ("bin/busybox", 0o100755, busybox),
        ("seed", 0o100644, random.Random(1).randbytes(1 << 20)),
        ("init", 0o100755, _INIT.read_bytes()),
        ("module", 0o100644, module),
    ]
    entries = [_cpio_entry(*member, number) for number, member in enumerate(members, 1)]
    # The kernel opens /dev/console for init before devtmpfs is there.
    console = _cpio_entry("dev/console", 0o20600, b"", len(members) + 1, device=(5, 1))
    return b"".join([*entries, console, _cpio_entry("TRAILER!!!", 0, b"", 0)])


def _cpio_entry(
    name: str, mode: int, data: bytes, number: int, *, device: tuple[int, int] = (0, 0)
) -> bytes:
    """Return one member in the "newc" format (Linux, driver-api/early-userspace/buffer-format)."""
    path = name.encode() + b"\0"
    fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(path), 0)
    head = b"070701" + b"".join(b"%08x" % value for value in fields) + path
    return _padded(head) + _padded(data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _replace(path: Path, content: bytes) -> None:
    """Write ``path`` in one step, and leave it alone if nothing changed: guests may use it."""
    with contextlib.suppress(FileNotFoundError):
        if path.read_bytes() == content:
            return
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def _run(*arguments: str, cwd: str | None = None) -> str:
    result = subprocess.run(arguments, cwd=cwd, check=True, capture_output=True, text=True)
    return result.stdout
