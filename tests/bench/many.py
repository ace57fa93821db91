"""Fill a directory with images: ``python -m tests.bench.many DIRECTORY COUNT [damaged]``.

They are small and sparse, but whole: header and metadata as a save writes them, a stream that QEMU
would load. With ``damaged`` the stream of each is not one: only who reads it whole notices.
"""

import datetime
import os
import sys
import uuid
from pathlib import Path

from mapsave.image import superblock
from mapsave.image.metadata import Metadata
from mapsave.image.superblock import State, Superblock

from tests.image import build

GUESTS = 200
JOB = "nightly"
_OFFSET = 64 << 10
_START = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
# As many arguments and features as those of a guest of libvirt's.
_ARGUMENTS = [
    f"-device=virtio-net-pci,netdev=net{number},id=device{number}" for number in range(40)
]
_FEATURES = {f"{leaf:x}.{register}": 0xFFFFFFFF for leaf in range(8) for register in "abcd"}


def _metadata(number: int) -> Metadata:
    """Return what a save would have recorded, of one of ``GUESTS`` guests, a minute each."""
    started = _START + datetime.timedelta(minutes=number)
    return {
        "mapsave": "0.1.0",
        "guest": {"name": f"guest{number % GUESTS:03d}", "qemu_name": None, "uuid": None},
        "qemu": {"version": "10.0.2", "package": "Debian"},
        "machine": "pc-q35-10.0",
        "cpu": "host-x86_64-cpu",
        "hardware": {
            "target": "x86_64",
            "model": "host-x86_64-cpu",
            "vcpus": [f"core-id=0,socket-id={socket},thread-id=0" for socket in range(4)],
            "topology": {"cores": 1, "sockets": 4, "threads": 1},
            "features": _FEATURES,
            "processor": {"kvm": True, "level": 13, "vendor": "GenuineIntel"},
            "machine": {"acpi": "auto", "smm": "off", "vmport": "off"},
        },
        "run_state": "running",
        "memory": {"base": 1 << 20, "plugged": 0},
        "command": {"argv": _ARGUMENTS, "cwd": "/", "executable": "/usr/bin/qemu-system-x86_64"},
        "strategy": {"direct_io": True, "channels": 2, "zero_pages": "multifd"},
        "live": False,
        "then": "resume",
        "job": JOB,
        "started": started.isoformat(),
        "ended": started.isoformat(),
        "ram_blocks": [{"name": "pc.ram", "bytes": 1 << 20, "used_pages": 5}],
        "data_bytes": 20480,
        "duration_s": 0.5,
    }


def fill(directory: Path, count: int, *, damaged: bool = False) -> None:
    """Make ``count`` images in ``directory``, the last one the newest; none is synced."""
    built = build.Image(offset=_OFFSET).built()
    stream = [(offset, data) for offset, data in built.pieces if offset >= _OFFSET]
    for number in range(count):
        path = directory / f"image{number:06d}.mapsave"
        with path.open("w+b") as file:
            path.chmod(0o600)
            for offset, data in stream:
                os.pwrite(file.fileno(), data, offset)
            file.truncate(built.size)
            if damaged:
                os.pwrite(file.fileno(), bytes(4), _OFFSET)
            block = Superblock(State.SAVED, 1, _OFFSET, uuid.uuid4(), file_length=built.size)
            block = superblock.write(file.fileno(), block, _metadata(number), durable=False)
            superblock.write(file.fileno(), block, durable=False)
        when = (_START + datetime.timedelta(minutes=number)).timestamp()
        os.utime(path, (when, when))


if __name__ == "__main__":
    fill(Path(sys.argv[1]), int(sys.argv[2]), damaged="damaged" in sys.argv[3:])
