"""What an image says about itself: who was saved, by what, from which command line, and when."""

import platform
import time

import mapsave
from mapsave import units
from mapsave.image.libvirt_header import NewLibvirtHeader
from mapsave.image.metadata import DomainPart, Metadata, ProcessPart
from mapsave.image.validation import Contents
from mapsave.labels.label import Label
from mapsave.monitor.process import boot_id
from mapsave.operations import facts as guest_facts
from mapsave.operations import journal
from mapsave.operations.save_request import Request
from mapsave.operations.written import Written
from mapsave.plan.strategy import Strategy


def now() -> str:
    """Return the time as JSON has it."""
    return units.timestamp(time.time())


def before(guest: str, found: guest_facts.Facts, strategy: Strategy, request: Request) -> Metadata:
    """Return what is known before the save: the metadata of the partial image."""
    host = platform.uname()
    domain = found.domain
    known: Metadata = {
        "mapsave": mapsave.__version__,
        "guest": {"name": guest, "qemu_name": found.name, "uuid": found.uuid},
        "qemu": {"version": str(found.version), "package": found.version.package},
        "machine": found.machine,
        "cpu": found.cpu,
        "hardware": found.hardware,
        "run_state": found.run_state,
        "process": process(found),
        "memory": {"base": found.memory.base, "plugged": found.memory.plugged},
        # libvirt builds a new command line from its definition, which has passwords, at each start.
        "command": None if domain else found.command,
        "strategy": strategy.as_dict(),
        "live": request.settings.live,
        "managed": request.settings.managed == "on",
        "then": request.then_for(runs=found.runs),
        "note": request.note,
        "job": request.job,
        "operation": journal.watching(),
        "host": {"name": host.node, "kernel": host.release, "architecture": host.machine},
        "started": now(),
    }
    if domain is not None:
        part: DomainPart = {
            "uri": domain.uri,
            "name": domain.name,
            "uuid": domain.uuid,
            "persistent_xml": domain.persistent_xml,
        }
        if request.format == "native":  # else libvirt's own header has them
            part |= {"xml": domain.xml, "cookie": domain.cookie}
        known["domain"] = part
    return known


def process(found: guest_facts.Facts) -> ProcessPart | None:
    """Return what names the guest's QEMU on this host; None where its process is not in sight.

    ``started`` is in clock ticks since boot (proc(5)).
    """
    if found.process is None:
        return None
    pid, started = found.process
    return {"pid": pid, "started": started, "boot": boot_id()}


def libvirt_header(found: guest_facts.Facts, request: Request) -> NewLibvirtHeader | None:
    """Return what goes into libvirt's header; None for an image of the native format."""
    if request.format == "native" or found.domain is None:
        return None
    return NewLibvirtHeader(found.domain.xml, found.domain.cookie, was_running=found.runs)


def after(
    known: Metadata,
    contents: Contents,
    label: Label | None,
    written: Written,
    *,
    duration: float,
    paused_at: float | None,
) -> Metadata:
    """Return ``known`` completed by what the save has shown: the metadata of the saved image.

    ``duration`` in seconds; ``paused_at`` since the epoch, None for a guest that did not run.
    """
    final: Metadata = {
        **known,
        "machine": contents.stream.machine,
        "ram_blocks": [
            {"name": block.name, "bytes": block.used_length, "used_pages": used}
            for block, used in zip(contents.stream.blocks, contents.used_pages, strict=True)
        ],
        "data_bytes": contents.data_bytes,
        "filled_bytes": contents.filled_bytes,
        "written": written.as_dict(),
        "label": label.as_dict() if label else None,
        "paused_at": paused_at,
        "ended": now(),
        "duration_s": round(duration, 6),
    }
    if contents.structure_digest is not None:
        final["structure_digest"] = contents.structure_digest
    final.pop("recovery", None)  # of a partial image only
    return final
