"""What a domain XML makes a host run, open and use (https://libvirt.org/formatdomain.html).

An image carries such an XML, and libvirt runs whatever it names as root. So it is read by what it
may hold, not by what is known to harm: any value with a slash counts as a path wherever it is, any
element of a foreign namespace as arguments for QEMU, and beside those everything that libvirt looks
up by a name of another kind. What cannot name anything of the host is left out.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

from mapsave import domain_xml, errors

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

Kind = Literal["program", "path", "device", "other"]

_QEMU = "{http://libvirt.org/schemas/domain/qemu/1.0}"
# Only the guest, or no one, reads what is in these.
_IGNORED = frozenset(
    ("metadata", "name", "uuid", "genid", "title", "description", "cmdline", "resource", "cpu")
)
_PROGRAMS = frozenset(("emulator", "init", "bootloader", "helper"))  # named by their text
_PROGRAM_PATHS = frozenset(("script", "downscript", "binary"))  # named by their attribute "path"
_FILES = frozenset(("loader", "nvram", "kernel", "initrd", "dtb", "shim", "table"))  # by their text
_SOURCE_PATHS = frozenset(("file", "dir", "path", "socket"))
_ELSEWHERE = frozenset((*(("source", key) for key in _SOURCE_PATHS), ("target", "dir")))
_SOURCE_DEVICES = frozenset(("dev", "evdev", "bridge", "network", "portgroup", "pool", "volume"))
# What a libvirt-started helper is called, where the XML has no path of it.
_HELPERS = {
    ("backend", "type", "emulator"): "swtpm",
    ("backend", "type", "passt"): "passt",
    ("driver", "type", "virtiofs"): "virtiofsd",
    ("driver", "name", "vhostuser"): "vhost-user-gpu",
}
_ENCODING = re.compile(r"\s*<\?xml[^>]*encoding\s*=\s*[\"']([^\"']*)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True, order=True)
class Resource:
    """One thing of the host: ``other`` are arguments for QEMU, sockets and settings."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


# Open to every user of a host.
_HARMLESS = frozenset(
    Resource("device", f"/dev/{name}") for name in ("urandom", "random", "null", "kvm")
)


def of_xml(xml: str) -> list[Resource]:
    """Return what the domain XML names, sorted.

    Takes hostile input. Raises InvalidImage where it is no XML, too long or deep, has a document
    type declaration, or says that it is in another encoding than UTF-8: libvirt would read another
    text there than we do.
    """
    declared = _ENCODING.match(xml)
    if declared is not None and declared.group(1).lower() not in ("utf-8", "us-ascii", "ascii"):
        raise errors.InvalidImage(
            f"the domain XML declares the encoding {declared.group(1)[:40]!r}"
        )
    if len(xml) > domain_xml.MAX_CHARACTERS:
        raise errors.InvalidImage(f"the domain XML has {len(xml)} characters")
    return sorted({each for each in _below(parsed(xml)) if each.name and each not in _HARMLESS})


class _Builder(ElementTree.TreeBuilder):
    """Builds a tree that is no deeper than libvirt reads: what writes it out again recurses."""

    def __init__(self) -> None:
        super().__init__()
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str], /) -> ElementTree.Element:
        self._depth += 1
        if self._depth > domain_xml.MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {domain_xml.MAX_DEPTH} elements")
        return super().start(tag, attributes)

    def end(self, tag: str, /) -> ElementTree.Element:
        self._depth -= 1
        return super().end(tag)


def parsed(xml: str, what: str = "domain XML") -> ElementTree.Element:
    """Return the root of ``xml``, which may be hostile. Raises InvalidImage naming ``what``."""
    if "<!DOCTYPE" in xml:
        raise errors.InvalidImage(f"the {what} has a document type declaration")
    try:
        # No document type, hence no entities: what S314 warns of cannot be in it.
        return ElementTree.fromstring(xml, ElementTree.XMLParser(target=_Builder()))  # noqa: S314
    except (ElementTree.ParseError, ValueError) as error:
        raise errors.InvalidImage(f"the {what} is not XML: {error}") from None


def _local(element: Element) -> str:
    """Return an element's name without its namespace, which parts of libvirt pass over too."""
    return element.tag.rpartition("}")[2]


def _below(root: Element) -> Iterator[Resource]:
    """Yield what ``root`` and the elements in it name; no recursion, for they may be deep."""
    pending: list[tuple[Element, str]] = [(root, "")]
    while pending:
        element, parent = pending.pop()
        name = _local(element)
        if element.tag.startswith("{"):
            yield from _foreign(element)
        if name in _IGNORED and parent in ("domain", "os"):
            continue
        yield from _named(element, name, parent)
        pending += [(child, name) for child in element]


def _foreign(element: Element) -> Iterator[Resource]:
    """Yield what an element of a foreign namespace passes to QEMU."""
    if element.tag == f"{_QEMU}commandline":
        values = [each.get("value", "") for each in element if each.tag == f"{_QEMU}arg"]
        if values[-2:] == ["-incoming", "defer"]:  # as mapsave's own restore adds it
            del values[-2:]
        if values:
            yield Resource("other", f"arguments {shlex.join(values)}")
    elif element.tag != f"{_QEMU}arg":
        attributes = " ".join(f"{key}={value}" for key, value in sorted(element.attrib.items()))
        text = (element.text or "").strip()
        yield Resource("other", " ".join(filter(None, (_local(element), attributes, text))))


def _named(element: Element, name: str, parent: str) -> Iterator[Resource]:
    texts = [element.text or "", *(child.tail or "" for child in element)]
    # libvirt takes the text of the elements in it as well (XPath's string()).
    text = "".join(element.itertext()).strip() if name in _PROGRAMS | _FILES else ""
    if name in _PROGRAMS:
        yield Resource("program", text)
    elif name in _FILES:
        yield Resource("path", text)
    else:
        yield from (_by_path(each.strip()) for each in texts if "/" in each)
    for (tag, key, value), helper in _HELPERS.items():
        if name == tag and element.get(key) == value:
            yield Resource("program", helper)
    if name == "source":
        yield from _source(element, parent)
    elif name == "shmem":
        yield Resource("path", f"/dev/shm/{element.get('name', '')}")  # noqa: S108
    elif name in ("hostdev", "redirdev"):
        yield from _host_device(element)
    elif name == "seclabel":
        yield from _security_label(element)
    elif (name == "on_crash" and "coredump" in texts[0]) or (
        name == "watchdog" and element.get("action") == "dump"
    ):
        yield Resource("other", f"dump by {name}")
    for key, value in element.attrib.items():
        if name in _PROGRAM_PATHS and key == "path":
            yield Resource("program", value)
        elif "/" in value and (name, key) not in _ELSEWHERE:
            yield _by_path(value)


def _by_path(value: str) -> Resource:
    return Resource("device" if value.startswith("/dev/") else "path", value)


def _source(element: Element, parent: str) -> Iterator[Resource]:
    """Yield what a ``source`` names: of a disk, a network, a character device, a share."""
    address = element.find("./address")
    if address is not None and parent != "hostdev":
        yield Resource("device", _flat(address))
    if protocol := element.get("protocol"):
        hosts = ",".join(_flat(host) for host in element.iterfind("./host"))
        yield Resource("path", f"{protocol}://{hosts}/{element.get('name', '')}")
    elif "host" in element.attrib:
        yield Resource("other", f"socket {_flat(element)}")
    for key, value in element.attrib.items():
        if key in _SOURCE_PATHS:
            yield _by_path(value)
        elif key in _SOURCE_DEVICES and not value.startswith("/"):
            yield Resource("device", f"{key} {value}")


def _host_device(element: Element) -> Iterator[Resource]:
    source = element.find("./source")
    kind = " ".join(element.get(key, "") for key in ("mode", "type")).strip()
    if source is None:
        if _local(element) == "hostdev":
            yield Resource("device", f"host {kind}")
        return
    inner = " ".join(_flat(child) for child in source.iter())
    yield Resource("device", f"host {kind} {inner}".strip())


def _security_label(element: Element) -> Iterator[Resource]:
    """Yield a label of its own, or none: QEMU would run as another user, or unconfined."""
    is_usual = element.get("type", "dynamic") == "dynamic" and element.get("relabel") != "no"
    if not is_usual or element.find("./baselabel") is not None:
        labels = "".join(f" {(child.text or '').strip()}" for child in element)
        yield Resource("other", f"{_flat(element)}{labels}")


def _flat(element: Element) -> str:
    pairs = (f"{key}={value}" for key, value in sorted(element.attrib.items()))
    return " ".join([_local(element), *pairs])
