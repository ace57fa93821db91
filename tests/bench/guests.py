"""Guests to be measured: firmware-level QEMUs, paused, with RAM of a given content."""

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.bare import MIB, Monitor

GIB = 1 << 30
QEMU = os.environ.get("MAPSAVE_TEST_QEMU", "qemu-system-x86_64")
NAME = "bench"


@dataclass
class Site:
    """The directory that everything is in. ``socket`` is short, as unix(7) wants paths to be."""

    directory: Path
    socket: Path

    @property
    def images(self) -> Path:
        return self.directory / "images"

    @property
    def config(self) -> Path:
        """The configuration of mapsave."""
        return self.directory / "manager.yaml"

    def configure(self, launch: list[str]) -> None:
        """Write the configuration for a guest whose destination is started by ``launch``."""
        self.describe({"qmp": str(self.socket), "launch": launch})

    def describe(self, guest: dict[str, Any]) -> None:
        """Write the configuration, of which ``guest`` is the guest's part."""
        self.images.mkdir(mode=0o700, exist_ok=True)
        content = {
            "images": str(self.images),
            "state": str(self.directory / "state"),
            "guests": {NAME: guest},
        }
        self.config.write_text(json.dumps(content))

    def image(self, name: str) -> Path:
        """Return the path of an image, having removed what was there."""
        path = self.images / name
        path.unlink(missing_ok=True)
        return path


def command(
    site: Site, size: int, source: Path | None = None, *, accelerated: bool = True
) -> list[str]:
    """Return QEMU's command line for ``size`` bytes of RAM: ``source``'s content, or zero.

    ``accelerated``: by KVM, where there is one.
    """
    backend = f"memory-backend-ram,id=ram,size={size}"
    if source:
        # prealloc gives the guest its own copy of every page before the clock runs.
        private = f"share=off,prealloc=on,mem-path={source}"
        backend = f"memory-backend-file,id=ram,size={size},{private}"
    has_kvm = accelerated and os.access("/dev/kvm", os.R_OK | os.W_OK)
    accelerators = ["-accel", "kvm"] if has_kvm else []
    return [
        *(QEMU, "-name", NAME, "-display", "none", "-nodefaults", "-no-user-config", "-S"),
        *(*accelerators, "-accel", "tcg", "-machine", "pc,memory-backend=ram"),
        *("-object", backend, "-m", f"{size // MIB}M"),
        *("-qmp", f"unix:{site.socket},server=on,wait=off"),
    ]


def fill(path: Path, size: int) -> Path:
    """Write ``size`` random bytes, of which no page is zero."""
    with path.open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    return path


def start(site: Site, argv: list[str]) -> subprocess.Popen[bytes]:
    """Start QEMU; return when its monitor answers."""
    with (site.directory / "qemu.log").open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        Monitor(str(site.socket)).close()
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process


def end_listener(site: Site) -> None:
    """Kill the QEMU that listens at the socket, if one does, and wait until it is gone."""
    try:
        monitor = Monitor(str(site.socket), timeout=0)
    except OSError:
        return
    handle = os.pidfd_open(monitor.pid)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        select.select([handle], [], [], 30)
    finally:
        os.close(handle)
        monitor.close()


def affordable(directory: Path, wanted: int) -> int:
    """Return ``wanted``, halved until memory and disk have room for it three times over."""
    with open("/proc/meminfo") as file:
        known = dict(line.split(":") for line in file)
    memory = int(known["MemAvailable"].split()[0]) * 1024
    room = min(memory, shutil.disk_usage(directory).free)
    while wanted > GIB // 4 and 3 * wanted > room:
        wanted //= 2
    return wanted
