"""Which RAM of a libvirt guest may be mapped from its image, by the XML that it is started from.

libvirt writes QEMU's command line itself, and ``<qemu:commandline>`` can only add to it: another
backend for main memory, which the machine then uses in place of libvirt's. NUMA cells and DIMMs
name theirs once, so they cannot get another.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mapsave import domain_resources, instant_names, qemu_options, units
from mapsave.image.validation import Contents
from mapsave.monitor import definition
from mapsave.plan import instant
from mapsave.plan.instant import Mapping, Placed

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Elements, and what they mean (https://libvirt.org/formatdomain.html).
_OBSTACLES = {
    "./memoryBacking/hugepages": "RAM is on huge pages (<hugepages>)",
    "./memoryBacking/source[@type='memfd']": "RAM is a memfd (<source type='memfd'>)",
    "./memoryBacking/source[@type='file']": "RAM is in files of libvirt's (<source type='file'>)",
    "./memoryBacking/access[@mode='shared']": "RAM is shared with other processes (<access>)",
    "./memoryBacking/locked": "RAM is locked in memory (<locked>)",
    "./memoryBacking/allocation[@mode='immediate']": "RAM is preallocated (<allocation>)",
    "./cpu/numa/cell": "RAM is in NUMA cells, each of which has a backend of libvirt's (<numa>)",
    "./devices/memory": "a DIMM or another memory device has a backend of libvirt's (<memory>)",
    "./launchSecurity": "the guest's memory is encrypted (<launchSecurity>)",
    "./devices/hostdev[@type='pci']": "a PCI device of the host pins all RAM (VFIO)",
    "./devices/hostdev[@type='mdev']": "a mediated device of the host pins all RAM (VFIO)",
    "./devices/interface[@type='hostdev']": "a network device of the host pins all RAM (VFIO)",
    "./devices/interface[@type='vdpa']": "a vDPA device of the host pins all RAM",
    "./devices/disk[@type='vhostvdpa']": "a vDPA device of the host pins all RAM",
    "./devices/disk[@type='nvme']": "an NVMe disk of the host pins all RAM (VFIO)",
    "./devices/memballoon[@freePageReporting='on']": "free page reporting gives RAM back, which a "
    "mapping of the image cannot",
}


def plan(xml: str, contents: Contents) -> tuple[Mapping | None, list[str]]:
    """Return how to map what the image has, or None and why it cannot be mapped.

    Raises InvalidImage where the XML is none.
    """
    root = domain_resources.parsed(definition.without_restore(xml))
    reasons = [text for path, text in _OBSTACLES.items() if root.find(path) is not None]
    reasons += _of_arguments(root)
    mains = [block for block in contents.stream.blocks if instant_names.is_main(block.name)]
    placed = [Placed(block, instant_names.alias(block.name), None) for block in mains]
    memory = _memory(root)
    for block in mains:
        if memory is not None and block.used_length != memory:
            reasons.append("the domain has another RAM size than the image")
    return instant.planned((), placed, contents, reasons)


def read(contents: Contents) -> list[str]:
    """Return the arguments with which a domain reads an image that has main memory by an alias.

    Such an image is made by libvirt itself, of a guest whose RAM is mapped from another.
    """
    for block in contents.stream.blocks:
        if block.has_alias:
            name = instant_names.alias(block.name)
            backend = {"qom-type": "memory-backend-ram", "id": name, "size": block.used_length}
            written = qemu_options.written("object", backend)
            return ["-object", written, "-machine", f"memory-backend={name}"]
    return []


def has_balloon(xml: str) -> bool:
    """Return whether the guest can give memory back by a balloon, as libvirt's guests do."""
    balloon = domain_resources.parsed(xml).find("./devices/memballoon")
    return balloon is not None and balloon.get("model") != "none"


def _of_arguments(root: Element) -> Iterator[str]:
    """Yield what the XML's own arguments for QEMU have against it."""
    words = [each.get("value", "") for each in root.iterfind(f"./{_QEMU}commandline/{_QEMU}arg")]
    yield from instant.obstacles(["qemu-system", *words])
    backends = (each.text("memory-backend") for each in qemu_options.options(words, "machine", "M"))
    if any(backends) or qemu_options.switches(words) & {"numa", "mem-path", "m"}:
        yield "the XML has arguments of its own for QEMU's memory (<qemu:commandline>)"


def _memory(root: Element) -> int | None:
    """Return the bytes of main memory; None where libvirt has not written the XML itself."""
    element = root.find("./memory[@unit='KiB']")
    text = element.text if element is not None else None
    return int(text) * units.KIB if text is not None and text.isdecimal() else None
