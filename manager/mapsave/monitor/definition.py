"""What is read from, and changed in, the XML definition of a domain.

Changes are made in the text, at the places that a parser finds: everything else stays to the letter
as libvirt wrote it, foreign metadata included (https://libvirt.org/formatdomain.html).
"""

import re
from collections.abc import Sequence
from xml.etree import ElementTree
from xml.parsers import expat
from xml.sax import saxutils

from mapsave.domain_resources import parsed as _parsed

_QEMU = "http://libvirt.org/schemas/domain/qemu/1.0"
_WAIT = ("-incoming", "defer")
# As libvirt writes what ``waiting`` has added, in the live definition of a restored domain: two
# words more where its RAM has another backend, which is called by an alias.
_ARGUMENT = r"\s*<qemu:arg value='{}'/>"
_ALIAS = r"(?:[A-Z][\w.-]*\.ram|Ram)"
_BACKEND = ("-object", rf"memory-backend-(?:file|ram),id={_ALIAS},[^'<>]*", "-machine")
_OWN = (*_BACKEND, rf"memory-backend={_ALIAS}")
_WAITS = re.compile(
    f"(?:{''.join(map(_ARGUMENT.format, _OWN))})?{''.join(map(_ARGUMENT.format, _WAIT))}"
)
_EMPTY = re.compile(r"\s*<qemu:commandline>\s*</qemu:commandline>")


def image_label(live_xml: str, model: str) -> str | None:
    """Return the label that the domain's own disks have under a security model; None without."""
    return _parsed(live_xml).findtext(f"./seclabel[@model='{model}']/imagelabel")


def security_models(capabilities: str) -> list[str]:
    """Return the security models by which libvirt confines guests, such as ``selinux``."""
    models = _parsed(capabilities, "libvirt's capabilities").iterfind("./host/secmodel/model")
    return [each.text or "" for each in models]


def seclabel(xml: str, model: str) -> tuple[str | None, str | None]:
    """Return the type of the domain's ``<seclabel>`` of a security model, and a static label."""
    found = _parsed(xml).find(f"./seclabel[@model='{model}']")
    found = found if found is not None else _parsed(xml).find("./seclabel[@type='none']")
    if found is None:
        return None, None
    return found.get("type"), found.findtext("label") if found.get("type") == "static" else None


def disks(xml: str) -> list[str]:
    """Return the names of the domain's disks in the guest, such as ``vda``."""
    targets = _parsed(xml).iterfind("./devices/disk/target")
    return [target.attrib["dev"] for target in targets if "dev" in target.attrib]


def restarts(live_xml: str) -> bool:
    """Return whether libvirt starts the domain again when it shuts down (``on_poweroff``)."""
    return _parsed(live_xml).findtext("./on_poweroff") == "restart"


def takes_internal_snapshots(xml: str) -> bool:
    """Return whether a disk of the domain can hold snapshots itself (``snapshot-create-as``)."""
    return _parsed(xml).find("./devices/disk/driver[@type='qcow2']") is not None


def qemu_user(xml: str, capabilities: str) -> str | None:
    """Return the user, by name or number, that libvirt starts the domain's QEMU as.

    ``capabilities`` are the daemon's. None where it is the daemon's own user.
    """
    root = _parsed(xml)
    label = root.findtext("./seclabel[@type='static'][@model='dac']/label")
    if label is None:
        models = _parsed(capabilities, "libvirt's capabilities").iterfind("./host/secmodel")
        dac = next((each for each in models if each.findtext("./model") == "dac"), None)
        of_type = f"./baselabel[@type='{'kvm' if root.get('type') == 'kvm' else 'qemu'}']"
        label = dac.findtext(of_type) if dac is not None else None
    return label.partition(":")[0].removeprefix("+") if label is not None else None


def host_devices(xml: str) -> list[str]:
    """Return the kinds of the host's own devices that the domain uses, such as ``pci``."""
    devices = _parsed(xml).iterfind("./devices/hostdev")
    return [device.get("type") or device.get("mode") or "unknown" for device in devices]


def cookie(live_xml: str) -> str:
    """Return the cookie of a save image: the CPU as it came out when the domain was started.

    libvirt starts its own helper for a user network only where the cookie says that the domain had
    none without (qemu_domain.c: qemuDomainGetSlirpHelperOk).
    """
    domain = _parsed(live_xml)
    root = ElementTree.Element("cookie")
    cpu = domain.find("./cpu")
    if cpu is not None:
        for numa in cpu.findall("./numa"):
            cpu.remove(numa)  # is the definition's, not the CPU's
        root.append(cpu)
    networks = domain.iterfind("./devices/interface[@type='user']")
    if all(network.find("./backend[@type]") is not None for network in networks):
        ElementTree.SubElement(root, "slirpHelper")
    return ElementTree.tostring(root, encoding="unicode")


def without_restore(xml: str) -> str:
    """Return the definition without what ``waiting`` has added to it."""
    return _EMPTY.sub("", _WAITS.sub("", xml))


def waiting(xml: str, image_cookie: str | None, memory: Sequence[str] = ()) -> str:
    """Return the definition of a domain that waits for a guest to come in (``-incoming defer``).

    With the cookie's CPU in it, for a host may expand the definition's to another one. ``memory``
    are arguments for QEMU that give it another backend for its RAM. Raises InvalidImage where one
    of the two is no XML, or deeper than libvirt's.
    """
    plain = without_restore(xml)
    _parsed(plain)
    cpu = _parsed(image_cookie, "cookie").find("./cpu") if image_cookie else None
    if cpu is not None:
        plain = _with_cpu(plain, cpu)
    _, end = _span(plain, ("domain",))
    at = plain.rindex("</", 0, end)
    words = (f"<mapsave:arg value={saxutils.quoteattr(word)}/>" for word in (*memory, *_WAIT))
    added = f"<mapsave:commandline xmlns:mapsave='{_QEMU}'>{''.join(words)}</mapsave:commandline>"
    return plain[:at] + added + plain[at:]


def _with_cpu(xml: str, cpu: ElementTree.Element) -> str:
    own = _parsed(xml).find("./cpu")
    if own is None:
        return xml
    for numa in own.findall("./numa"):
        cpu.append(numa)
    start, end = _span(xml, ("domain", "cpu"))
    return xml[:start] + ElementTree.tostring(cpu, encoding="unicode").strip() + xml[end:]


def _span(xml: str, path: tuple[str, ...]) -> tuple[int, int]:
    """Return where the first element at ``path`` begins and ends, in characters."""
    raw = xml.encode()
    parser = expat.ParserCreate("utf-8")
    open_tags: list[str] = []
    found: list[int] = []

    def start(tag: str, _: dict[str, str]) -> None:
        open_tags.append(tag)
        if tuple(open_tags) == path and not found:
            found.append(parser.CurrentByteIndex)

    def end(tag: str) -> None:
        if tuple(open_tags) == path and len(found) == 1:
            at = parser.CurrentByteIndex
            # Of an element that is empty, <cpu/>, the end is reported after it.
            has_end_tag = raw.startswith(f"</{tag}".encode(), at)
            found.append(raw.index(b">", at) + 1 if has_end_tag else at)
        open_tags.pop()

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.Parse(raw, True)
    return len(raw[: found[0]].decode()), len(raw[: found[1]].decode())
