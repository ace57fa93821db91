"""What an image says about itself: read once, checked against its types, and typed from then on.

The file may come from anyone, so a value of another type is an error of the image before anything
is done with it. Keys that are not known here are kept as they are: a later mapsave may write more.
"""

import datetime
import re
from collections.abc import Mapping
from typing import Annotated, TypedDict, cast

import msgspec
from msgspec import Meta

from mapsave import errors, strict_json, typed

_LATEST = 253402300800 - 2 * 86400  # seconds; year 9999, in whatever time zone it is shown
_PLACE = re.compile(r"at `\$\.(.*)`$")  # of what is wrong, in what msgspec says

Word = Annotated[str, Meta(pattern=r"^[^\x00]*$")]  # may become an argument or part of a path
Size = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
Seconds = Annotated[float, Meta(ge=0, lt=_LATEST)]
Time = str  # ISO 8601


class GuestPart(TypedDict, total=False):
    """Who was saved: its name to mapsave, and name and uuid that QEMU has."""

    name: Word
    qemu_name: Word | None
    uuid: Word | None


class QemuPart(TypedDict, total=False):
    version: Word
    package: str


class MemoryPart(TypedDict, total=False):
    """The sizes of the guest's RAM in bytes: at start, and plugged in since."""

    base: Size
    plugged: Size


class HardwarePart(TypedDict, total=False):
    """What the guest saw of its machine: see ``operations.hardware``.

    ``features`` by CPUID register; ``vcpus`` where each is; ``topology`` how many of each level.
    """

    target: str
    model: str
    vcpus: list[str]
    topology: dict[str, Size]
    features: dict[str, Size]
    processor: dict[str, bool | int | str]
    machine: dict[str, bool | int | str]


class CommandPart(TypedDict, total=False):
    argv: list[Word]
    cwd: Word | None
    executable: Word


class DomainPart(TypedDict, total=False):
    uri: Word
    name: Word
    uuid: Word
    xml: str
    cookie: str | None
    persistent_xml: str | None


class ProcessPart(TypedDict, total=False):
    """The QEMU process that was saved: see ``operations.metadata.process``."""

    pid: Size
    started: Size
    boot: Word | None


class DigestsPart(TypedDict, total=False):
    """Digests of what is before the stream and has no checksum of its own: see ``digests.py``."""

    libvirt_header: Word


class WrittenPart(TypedDict, total=False):
    """What the save saw of the pages that QEMU wrote: see ``operations.read_back.Written``."""

    holes: str
    compared: Size
    not_compared: Size
    reason: str | None


class ProofPart(TypedDict, total=False):
    """How the image was proven before the guest could go: ``by`` is ``load`` or ``pages``.

    ``qemu`` is the version that loaded it, ``devices`` how many it loaded; ``compared_bytes`` of
    RAM were compared, in ``compare_s`` of the ``took_s`` seconds.
    """

    by: Word
    qemu: Word
    devices: Size
    compared_bytes: Size
    compare_s: Seconds
    took_s: Seconds


class PlanPart(TypedDict, total=False):
    """What the save's plan had predicted, and how it came out, stable storage included.

    ``restarted``: the strategy that was begun with, and given up because it was too slow.
    """

    predicted_s: Seconds
    predicted_bytes: Size
    took_s: Seconds
    restarted: Mapping[str, object]


class CheckpointPart(TypedDict, total=False):
    """How a checkpoint was taken (``operations.checkpoint``).

    RAM of ``shared_bytes`` is shared with the RAM files, ``written_bytes`` were written. The RAM
    files had ``extents``, of which ``extents_while_paused`` were shared during the ``paused_s``, in
    several pauses if ``pauses`` says so; ``predicted_pause_s`` was predicted. ``afresh``: RAM was
    written to the image after all, and the RAM files share it since, in ``extents_after``.
    """

    shared_bytes: Size
    written_bytes: Size
    extents: Size
    extents_while_paused: Size
    pauses: Size
    paused_s: Seconds
    predicted_pause_s: Seconds
    afresh: bool
    extents_after: Size


class BlockPart(TypedDict, total=False):
    """One RAM block; ``bytes`` and how many of its pages are in the file."""

    name: str
    bytes: Size
    used_pages: Size


class DiskPart(TypedDict):
    """The file of a disk, and when it was last changed: see ``operations.disks``."""

    path: Word
    modified_ns: Size  # since the epoch


class Metadata(TypedDict, total=False):
    """All that mapsave reads from an image's metadata. ``duration_s`` in seconds.

    ``filled_bytes``: zeros in short gaps between used pages that the save has marked as used, so
    that a restore reads in long runs; ``data_bytes`` are the used pages without them.
    """

    mapsave: str
    guest: GuestPart
    qemu: QemuPart
    machine: str
    cpu: str | None
    hardware: HardwarePart | None
    run_state: str
    process: ProcessPart | None
    memory: MemoryPart
    command: CommandPart | None
    domain: DomainPart | None
    strategy: Mapping[str, object]
    live: bool
    managed: bool
    then: str
    note: Word | None
    job: Word | None
    operation: Word | None
    host: dict[str, object]
    started: Time
    ended: Time
    ram_blocks: list[BlockPart]
    data_bytes: Size
    filled_bytes: Size
    label: dict[str, object] | None
    paused_at: Seconds | None
    duration_s: Seconds
    recovered: bool
    continued: bool
    digests: DigestsPart
    structure_digest: Word
    written: WrittenPart
    plan: PlanPart | None
    proof: ProofPart | None
    checkpoint: CheckpointPart | None
    disks: list[DiskPart]
    recovery: dict[str, object]  # of a partial image: see ``operations.interrupted``


def parse(raw: bytes) -> Metadata:
    """Return the metadata that ``raw`` holds. Raises InvalidImage where they are not such."""
    try:
        found = strict_json.loads(raw)
    except ValueError as error:
        raise errors.InvalidImage(f"metadata is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise errors.InvalidImage("metadata is not a JSON object")
    return check(found)


def check(found: dict[str, object]) -> Metadata:
    """Return ``found`` where it is what metadata must be. Raises InvalidImage naming the key."""
    try:
        typed.convert(found, Metadata)
        where = next((key for key in ("started", "ended") if not _is_time(found.get(key))), None)
    except msgspec.ValidationError as error:
        place = _PLACE.search(str(error))
        where = re.sub(r"\[(\w+)\]", r".\1", place[1]) if place else ""
    if where is not None:
        raise errors.InvalidImage(
            f"metadata: {where!r} has an invalid value",
            hint="the image is damaged or was made by another program; restore from a good copy",
        )
    return cast("Metadata", found)


def _is_time(value: object) -> bool:
    try:
        return (
            value is None or 0 <= datetime.datetime.fromisoformat(str(value)).timestamp() < _LATEST
        )
    except (ValueError, OverflowError, OSError):
        return False
