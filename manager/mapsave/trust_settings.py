"""Which resources of this host images may name: a key of manager.yaml."""

from typing import Annotated

from msgspec import Meta

from mapsave.key_types import Text
from mapsave.keys import Check, Keys, help


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in path.split("/"):
        raise ValueError("must be an absolute path without '..'")
    return path


Absolute = Annotated[
    Text, Check(_absolute), Meta(title="a path", extra_json_schema={"pattern": "^/"})
]


class Trust(Keys, frozen=True):
    """What an image's domain XML may name beyond what its domain is known to have."""

    programs: Annotated[tuple[Text, ...], help("Programs, such as emulators and scripts.")] = ()
    paths: Annotated[tuple[Absolute, ...], help("Paths, each including everything below it.")] = ()
    devices: Annotated[tuple[Text, ...], help("Devices, such as `/dev/sdb` or `bridge br0`.")] = ()
    others: Annotated[
        tuple[Text, ...], help("Arguments for QEMU, sockets of a network and settings.")
    ] = ()
