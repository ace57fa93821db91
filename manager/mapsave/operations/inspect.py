"""Look into an image: summary, RAM blocks, runs; and verify its structure."""

import datetime
import functools

from mapsave import errors, units
from mapsave.config import Config
from mapsave.image import bitmaps, descriptors, holes, image
from mapsave.image.superblock import State
from mapsave.image.validation import Contents
from mapsave.migration.progress import Phases, Report, silent
from mapsave.operations import (
    digesting,
    disks,
    exclusive,
    in_use,
    instant_preview,
    origin,
    pins,
    reading_first,
    restored_notes,
    verified_notes,
    working_sets,
)
from mapsave.strict_json import Facts

_LOOK = 30.0  # seconds, to see what an image shares with other files


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
            "filled_bytes": contents.filled_bytes,
            "ram_blocks": [
                {
                    "name": block.name,
                    "bytes": block.used_length,
                    "page_bytes": block.page_size,
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
        "then",
        "qemu",
        "cpu",
        "strategy",
        "plan",
        "written",
        "proof",
        "checkpoint",
        "live",
        "label",
        "command",
        "host",
    ),
    *("duration_s", "mapsave"),
)


def _summary(opened: image.Image, config: Config | None) -> dict[str, object]:
    """Return what superblock and metadata say; the domain XML is left to ``--xml``."""
    known, header = opened.metadata, opened.libvirt
    guest, domain = known.get("guest", {}), known.get("domain")
    hidden = ("xml", "cookie")
    return {
        "image": opened.path,
        "state": _state(opened, config),
        "pinned": config is not None and opened.block.uuid in pins.shown(config.state),
        "in_use_by": [user.shown() for user in _users(opened, config)],
        "working_set": _working_set(opened, config),
        "verified": _verified(opened, config),
        "note": known.get("note"),
        "format": opened.format,
        "uuid": str(opened.block.uuid),
        "file_bytes": opened.size,
        "allocated_bytes": opened.allocated,
        "exclusive_bytes": exclusive.Budget(_LOOK).of(
            opened.path, is_checkpoint=bool(known.get("checkpoint"))
        ),
        "guest": guest.get("name"),
        "guest_uuid": guest.get("uuid"),
        **{key: known.get(key) for key in _SHOWN},
        "data": digesting.summary(opened),
        "started": _time(known.get("started")),
        "ended": _time(known.get("ended")),
        "memory": {f"{key}_bytes": size for key, size in known.get("memory", {}).items()},
        "libvirt": header
        and {
            "version": header.version,
            "was_running": header.was_running,
            "data_bytes": header.data_length,
            "cookie": header.cookie is not None,
        },
        "domain": domain and {key: value for key, value in domain.items() if key not in hidden},
        "has_domain_xml": origin.domain_xml(opened) is not None,
    }


def _time(found: str | None) -> str | None:
    """Return a time of the metadata, which another program may have written, as JSON has it."""
    return found and units.timestamp(datetime.datetime.fromisoformat(found).timestamp())


def _users(opened: image.Image, config: Config | None) -> list[in_use.User]:
    return in_use.of_image(in_use.shown(config.state), opened) if config is not None else []


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


def verify(
    path: str,
    config: Config | None = None,
    watch: digesting.Watch | None = None,
    *,
    add: bool = False,
) -> dict[str, object]:
    """Read the structure of the image at ``path`` whole; ``config`` as for ``inspect``.

    With ``watch`` compare its data with its digests too, and note what was found where ``config``
    says. With ``add`` take those first, if they are still to be taken. Raises PartialImage,
    TruncatedImage, InvalidImage; ImageNotFound, NotPermitted; with ``watch`` what
    ``digesting.verify`` and ``digesting.add`` raise.
    """
    with image.opened(path) as opened:
        verified = None
        if watch is not None:
            is_new = add and opened.block.digests == "pending" and digesting.add(opened, watch)
            if is_new:
                verified = watch.done
            elif config is not None:
                verified = digesting.verify_noted(opened, config.state, watch)
            else:
                verified = digesting.verify(opened, watch)
        areas = ["libvirt header"] if opened.libvirt else []
        areas += ["superblock"] if opened.has_superblock else []  # which libvirt's own lack
        areas += ["metadata"] if opened.block.metadata_length else []
        areas += ["digests"] if opened.libvirt and opened.undigested is None else []
        areas += ["stream digest"] if opened.has_structure_digest else []
        contents = opened.validate()
        data = [] if verified is None else ["data"]
        warnings = origin.describe(opened, config)["warnings"]
        maps = instant_preview.of(config, opened, contents) if config is not None else None
        return {
            "image": opened.path,
            "state": _state(opened, config),
            "format": opened.format,
            "valid": True,
            "verified": [*areas, "structure", "bitmaps", "description", *data],
            "data": digesting.summary(opened, verified),
            "ram_blocks": len(contents.stream.blocks),
            "ram_bytes": contents.stream.ram_bytes,
            "data_bytes": contents.data_bytes,
            "written": opened.metadata.get("written"),
            "instant": maps,
            "warnings": [
                *warnings,
                *([] if watch is None else digesting.not_verified(opened)),
                *warnings_of_holes(opened, contents),
                *disks.changes(opened),
            ],
        }


async def verify_data(
    path: str, config: Config, report: Report = silent, *, add: bool = False
) -> dict[str, object]:
    """Do as ``verify`` with the image's data, off the event loop; cancelled, it reads no more.

    Raises UnreadableImage where its storage hangs.
    """
    phases = Phases(report)
    phases.enter("verify")
    work = functools.partial(verify, path, config, add=add)
    with reading_first.noted(config.state, path), descriptors.reading(path):
        return await digesting.watched(work, phases)


def _working_set(opened: image.Image, config: Config | None) -> dict[str, object] | None:
    """Return how much is read ahead at an instant restore; None where nothing is recorded."""
    found = working_sets.read(config.state, opened.block.uuid) if config is not None else None
    if found is None:
        return None
    return {"bytes": found.total_bytes, "recorded": units.timestamp(found.recorded), "by": found.by}


def _verified(opened: image.Image, config: Config | None) -> Facts | None:
    """Return what was found when its data was verified last; None where it was not."""
    if config is None:
        return None
    note = verified_notes.read(config.state, verified_notes.key_of(opened))
    return note.shown() if note is not None else None


def _state(opened: image.Image, config: Config | None) -> str:
    return restored_notes.block_as_used(config.state if config else None, opened).state.word


def has_lost_blocks(opened: image.Image, contents: Contents) -> bool:
    """Return whether ``warnings_of_holes`` may have something to say.

    Looking at each hole takes a second for a few GiB in short runs. Where the save has done that, a
    file that still takes as much space as its data needs has become no sparse copy since.
    """
    is_checked = opened.metadata.get("written", {}).get("holes") == "checked"
    return not is_checked or opened.allocated < contents.data_bytes


def warnings_of_holes(opened: image.Image, contents: Contents) -> list[str]:
    """Return what speaks against the image: set pages that are in holes now. Raises TruncatedImage.

    As many as the save has filled gaps with are as they should be. No error: a sparse copy makes
    holes of zeros, and a save may not have looked.
    """
    try:
        if not holes.are_known(opened.fd, opened.size):
            return []
        found = holes.find(opened.fd, contents.stream)
    except OSError:
        return []
    if found is None or found.pages <= contents.filled_pages:
        return []
    record = opened.metadata.get("written")
    if record is not None and record.get("holes") == "checked":
        why = "they were data when it was saved; a sparse copy turns zeros into holes"
    else:
        why = "its save did not check that they were written"
    where = f"the first of them page {found.page} of RAM block {found.block!r}"
    if contents.filled_pages:
        where = f"besides {contents.filled_pages} pages of gaps that the save has filled"
    return [
        f"{opened.path!r}: {found.pages - contents.filled_pages} used pages are in holes of the "
        f"file and read as zeros, {where}: {why}"
    ]
