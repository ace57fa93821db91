"""Look into an image: summary, RAM blocks, runs; and verify its structure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from mapsave import errors
from mapsave.image import bitmaps, image
from mapsave.image.superblock import State
from mapsave.operations import origin, restored_notes, written_record

if TYPE_CHECKING:
    import uuid as uuids
    from collections.abc import Container

    from mapsave.config import Config
    from mapsave.image.image import Image
    from mapsave.image.libvirt_header import LibvirtHeader
    from mapsave.image.metadata import DomainPart, WrittenPart
    from mapsave.image.validation import Contents


def inspect(path: str, config: Config | None = None) -> dict[str, Any]:
    """Return what the image at ``path`` holds; a partial one as far as it can be read.

    ``config`` says who may write the guest's images beside root and the caller, and where those
    are noted that were restored.

    Raises ImageNotFound, NotPermitted, InvalidImage or one of its kin.
    """
    with image.opened(path) as opened:
        found = {**summary(opened, _noted(config)), **origin.describe(opened, config)}
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


def summary(opened: Image, restored: Container[uuids.UUID]) -> dict[str, Any]:
    """Return what superblock and metadata say."""
    known = opened.metadata
    return {
        "image": opened.path,
        "state": opened.block_as_used(restored).state.word,
        "format": opened.format,
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
        "written": opened.metadata.get("written"),
        "label": known.get("label"),
        "command": known.get("command"),
        "host": known.get("host"),
        "started": known.get("started"),
        "ended": known.get("ended"),
        "duration_s": known.get("duration_s"),
        "mapsave": known.get("mapsave"),
        "libvirt": _libvirt(opened.libvirt),
        "domain": _domain(known.get("domain")),
        "has_domain_xml": origin.domain_xml(opened) is not None,
    }


def _domain(known: DomainPart | None) -> dict[str, Any] | None:
    """Return what the metadata say of a domain, but for the XML that ``--xml`` prints."""
    if known is None:
        return None
    return {key: value for key, value in known.items() if key not in ("xml", "cookie")}


def _libvirt(header: LibvirtHeader | None) -> dict[str, Any] | None:
    """Return what libvirt's header says beside the domain XML; None in a native image."""
    if header is None:
        return None
    return {
        "version": header.version,
        "was_running": header.was_running,
        "data_length": header.data_length,
        "cookie": header.cookie is not None,
    }


def domain_xml(path: str) -> str:
    """Return the domain XML that the image at ``path`` holds, passwords included.

    Raises UsageError where it is of no libvirt guest; ImageNotFound, NotPermitted, InvalidImage.
    """
    with image.opened(path) as opened:
        xml = origin.domain_xml(opened)
        if xml is None:
            raise errors.UsageError(
                f"{path!r} contains no domain XML",
                hint="only images of libvirt guests do; 'mapsave inspect' shows its contents",
            )
        return xml


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
    """What ``verify`` has proven of an image; digests of the pages are not kept yet.

    ``written`` is what the save recorded of the pages it wrote, ``warnings`` what the file shows.

    ``areas`` are those before the stream: an image that libvirt saved has no superblock.
    """

    path: str
    state: str
    format: str
    areas: tuple[str, ...]
    contents: Contents
    written: WrittenPart | None
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``mapsave verify --json`` prints it."""
        return {
            "image": self.path,
            "state": self.state,
            "format": self.format,
            "valid": True,
            "verified": [*self.areas, "structure", "bitmaps", "description"],
            "ram_blocks": len(self.contents.stream.blocks),
            "ram_bytes": self.contents.stream.ram_bytes,
            "data_bytes": self.contents.data_bytes,
            "written": self.written,
            "warnings": list(self.warnings),
        }


def verify(path: str, config: Config | None = None) -> Verified:
    """Read the structure of the image at ``path`` whole; ``config`` as for ``inspect``.

    Raises PartialImage, TruncatedImage, InvalidImage; ImageNotFound, NotPermitted.
    """
    with image.opened(path) as opened:
        areas = ["libvirt header"] if opened.libvirt else []
        areas += ["superblock"] if opened.has_superblock else []
        areas += ["metadata"] if opened.block.metadata_length else []
        areas += ["digests"] if opened.libvirt and opened.undigested is None else []
        areas += ["stream digest"] if opened.has_structure_digest else []
        contents = opened.validate()
        warnings = origin.describe(opened, config)["warnings"]
        return Verified(
            path=opened.path,
            state=opened.block_as_used(_noted(config)).state.word,
            format=opened.format,
            areas=tuple(areas),
            contents=contents,
            written=opened.metadata.get("written"),
            warnings=(*warnings, *written_record.warnings(opened, contents)),
        )


def _noted(config: Config | None) -> Container[uuids.UUID]:
    return restored_notes.noted(config.state) if config is not None else frozenset()
