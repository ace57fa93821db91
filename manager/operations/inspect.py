"""Look into an image: summary, RAM blocks, runs; and verify its structure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from manager.image import bitmaps, image
from manager.image.superblock import State

if TYPE_CHECKING:
    from manager.image.image import Contents, Image


def inspect(path: str) -> dict[str, Any]:
    """Return what the image at ``path`` holds; a partial one as far as it can be read.

    Raises ImageNotFound, NotPermitted, InvalidImage or one of its kin.
    """
    with image.opened(path) as opened:
        found = summary(opened)
        if opened.block.state is State.PARTIAL:
            return found
        contents = opened.validate()
        histogram = bitmaps.run_histogram(opened.fd, contents.stream)
        return {
            **found,
            "machine": contents.stream.machine,
            "ram_bytes": contents.stream.ram_bytes,
            "data_bytes": contents.data_bytes,
            "ram_blocks": _blocks(contents),
            "runs": {"total": histogram.total, "by_length": _by_length(histogram)},
            "devices": [device.name for device in contents.stream.devices],
            "stream": {
                "offset": contents.stream.offset,
                "end": contents.stream.end,
                "capabilities": list(contents.stream.capabilities),
                "iterations": contents.stream.iterations,
            },
        }


def summary(opened: Image) -> dict[str, Any]:
    """Return what superblock and metadata say."""
    known = opened.metadata
    return {
        "image": opened.path,
        "state": opened.block.state.word,
        "format": "native",
        "uuid": str(opened.block.uuid),
        "file_bytes": opened.size,
        "allocated_bytes": opened.allocated,
        "guest": known.get("guest", {}).get("name"),
        "guest_uuid": known.get("guest", {}).get("uuid"),
        "run_state": known.get("run_state"),
        "qemu": known.get("qemu"),
        "cpu": known.get("cpu"),
        "memory": known.get("memory"),
        "strategy": known.get("strategy"),
        "label": known.get("label"),
        "command": known.get("command"),
        "host": known.get("host"),
        "started": known.get("started"),
        "ended": known.get("ended"),
        "duration_s": known.get("duration_s"),
        "mapsave": known.get("mapsave"),
    }


def _blocks(contents: Contents) -> list[dict[str, Any]]:
    return [
        {
            "name": block.name,
            "bytes": block.used_length,
            "page_size": block.page_size,
            "used_pages": used,
            "zero_pages": block.pages - used,
            "bitmap_offset": block.bitmap_offset,
            "pages_offset": block.pages_offset,
        }
        for block, used in zip(contents.stream.blocks, contents.used_pages, strict=True)
    ]


def _by_length(histogram: bitmaps.RunHistogram) -> list[dict[str, int]]:
    return [
        {"pages_from": 1 << power, "pages_to": (2 << power) - 1, "runs": count}
        for power, count in enumerate(histogram.runs)
        if count
    ]


@dataclasses.dataclass(frozen=True)
class Verified:
    """What ``verify`` has proven of an image; digests of the pages are not kept yet."""

    path: str
    state: str
    contents: Contents

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``mapsave verify --json`` prints it."""
        return {
            "image": self.path,
            "state": self.state,
            "valid": True,
            "verified": ["superblock", "metadata", "structure", "bitmaps", "description"],
            "ram_blocks": len(self.contents.stream.blocks),
            "ram_bytes": self.contents.stream.ram_bytes,
            "data_bytes": self.contents.data_bytes,
        }


def verify(path: str) -> Verified:
    """Read the structure of the image at ``path`` whole.

    Raises PartialImage, TruncatedImage, InvalidImage; ImageNotFound, NotPermitted.
    """
    with image.opened(path) as opened:
        return Verified(opened.path, opened.block.state.word, opened.validate())
