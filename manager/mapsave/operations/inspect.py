"""Look into an image: summary, RAM blocks, runs; and verify its structure."""

from mapsave import errors
from mapsave.config import Config
from mapsave.image import bitmaps, holes, image
from mapsave.image.superblock import State
from mapsave.image.validation import Contents
from mapsave.operations import disks, origin, restored_notes


def inspect(path: str, config: Config | None = None) -> dict[str, object]:
    """Return what the image at ``path`` holds; a partial one as far as it can be read.

    By ``config`` others may write the guest's images, and it is noted which were restored.
    Raises ImageNotFound, NotPermitted, InvalidImage or one of its kin.
    """
    with image.opened(path) as opened:
        found = {**_summary(opened, config), **origin.describe(opened, config)}
        if opened.block.state is State.PARTIAL:
            return found
        contents = opened.validate()
        histogram = bitmaps.run_histogram(opened.fd, contents.stream)
        return {
            **found,
            "machine": contents.stream.machine,
            "ram_bytes": contents.stream.ram_bytes,
            "data_bytes": contents.data_bytes,
            "ram_blocks": [
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
            ],
            "runs": {
                "total": histogram.total,
                "by_length": [
                    {"pages_from": 1 << power, "pages_to": (2 << power) - 1, "runs": count}
                    for power, count in enumerate(histogram.runs)
                    if count
                ],
            },
            "devices": [device.name for device in contents.stream.devices],
            "stream": {
                "offset": contents.stream.offset,
                "end": contents.stream.end,
                "capabilities": list(contents.stream.capabilities),
                "iterations": contents.stream.iterations,
            },
        }


# Keys of the metadata that are shown as they are; None where an image lacks one.
_SHOWN = (
    *(
        "run_state",
        "qemu",
        "cpu",
        "memory",
        "strategy",
        "plan",
        "written",
        "label",
        "command",
        "host",
    ),
    *("started", "ended", "duration_s", "mapsave"),
)


def _summary(opened: image.Image, config: Config | None) -> dict[str, object]:
    """Return what superblock and metadata say; the domain XML is left to ``--xml``."""
    known, header = opened.metadata, opened.libvirt
    guest, domain = known.get("guest", {}), known.get("domain")
    hidden = ("xml", "cookie")
    return {
        "image": opened.path,
        "state": _state(opened, config),
        "format": opened.format,
        "uuid": str(opened.block.uuid),
        "file_bytes": opened.size,
        "allocated_bytes": opened.allocated,
        "guest": guest.get("name"),
        "guest_uuid": guest.get("uuid"),
        **{key: known.get(key) for key in _SHOWN},
        "libvirt": header
        and {
            "version": header.version,
            "was_running": header.was_running,
            "data_length": header.data_length,
            "cookie": header.cookie is not None,
        },
        "domain": domain and {key: value for key, value in domain.items() if key not in hidden},
        "has_domain_xml": origin.domain_xml(opened) is not None,
    }


def domain_xml(path: str) -> str:
    """Return the domain XML in the image, passwords included. Raises UsageError without one."""
    with image.opened(path) as opened:
        xml = origin.domain_xml(opened)
        if xml is None:
            raise errors.UsageError(
                f"{path!r} contains no domain XML",
                hint="only images of libvirt guests do; 'mapsave inspect' shows its contents",
            )
        return xml


def verify(path: str, config: Config | None = None) -> dict[str, object]:
    """Read the structure of the image at ``path`` whole; ``config`` as for ``inspect``.

    Raises PartialImage, TruncatedImage, InvalidImage; ImageNotFound, NotPermitted.
    """
    with image.opened(path) as opened:
        areas = ["libvirt header"] if opened.libvirt else []
        areas += ["superblock"] if opened.has_superblock else []  # which libvirt's own lack
        areas += ["metadata"] if opened.block.metadata_length else []
        areas += ["digests"] if opened.libvirt and opened.undigested is None else []
        areas += ["stream digest"] if opened.has_structure_digest else []
        contents = opened.validate()
        warnings = origin.describe(opened, config)["warnings"]
        return {
            "image": opened.path,
            "state": _state(opened, config),
            "format": opened.format,
            "valid": True,
            "verified": [*areas, "structure", "bitmaps", "description"],
            "ram_blocks": len(contents.stream.blocks),
            "ram_bytes": contents.stream.ram_bytes,
            "data_bytes": contents.data_bytes,
            "written": opened.metadata.get("written"),
            "warnings": [*warnings, *warnings_of_holes(opened, contents), *disks.changes(opened)],
        }


def _state(opened: image.Image, config: Config | None) -> str:
    return restored_notes.block_as_used(config.state if config else None, opened).state.word


def warnings_of_holes(opened: image.Image, contents: Contents) -> list[str]:
    """Return what speaks against the image: set pages that are in holes now. Raises TruncatedImage.

    No error: a sparse copy makes holes of zeros, and a save may not have looked.
    """
    try:
        if not holes.are_known(opened.fd, opened.size):
            return []
        found = holes.find(opened.fd, contents.stream)
    except OSError:
        return []
    if found is None:
        return []
    record = opened.metadata.get("written")
    if record is not None and record.get("holes") == "checked":
        why = "they were data when it was saved; a sparse copy turns zeros into holes"
    else:
        why = "its save did not check that they were written"
    return [
        f"{opened.path!r}: {found.pages} used pages are in holes of the file and read as zeros, "
        f"the first of them page {found.page} of RAM block {found.block!r}: {why}"
    ]
