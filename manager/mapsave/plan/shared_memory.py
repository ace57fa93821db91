"""What to change where a guest is started, so that its RAM is a shared file: as data.

By its command line, or by libvirt's XML (https://libvirt.org/formatdomain.html#memory-backing).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence

from mapsave import domain_resources, qemu_options
from mapsave.plan import instant

_FILE = f"{instant.BACKEND}file"
# What machine types call main memory that no backend is named for, which images know it by.
_MAIN = {
    "aarch64": "mach-virt.ram",
    "arm": "mach-virt.ram",
    "ppc64": "ppc_spapr.ram",
    "riscv64": "riscv_virt_board.ram",
    "s390x": "s390.ram",
}
_X86, _MICROVM = "pc.ram", "microvm.ram"
_DEFAULT_SIZE = "128M"  # of the option -m


@dataclasses.dataclass(frozen=True)
class Change:
    """What to put in the place of what; an empty text is nothing. ``path`` is the RAM file's."""

    before: str
    after: str
    path: str = ""


def of_command(argv: Sequence[str], file_of: Callable[[str], str]) -> list[Change]:
    """Return what to change on a command line; ``file_of`` has a path for each backend.

    A shared file that is there already is in the list unchanged.
    """
    options = {
        str(each.text("id")): each
        for each in qemu_options.options(argv, "object")
        if str(each.text("qom-type")).startswith(instant.BACKEND)
    }
    used, main = instant.backends_in_use(argv)
    changes = []
    for name in sorted(used & options.keys()):
        option = options[name]
        path = option.text("mem-path")
        is_file = option.text("qom-type") == _FILE and path is not None and os.path.isabs(path)
        if is_file and option.is_on("share"):
            changes.append(Change(argv[option.at], argv[option.at], str(path)))
            continue
        path = path if is_file and path is not None else file_of(name)
        kept = {
            key: value
            for key, value in option.properties.items()
            if key.partition(".")[0] in instant.KEPT
        }
        wanted = {"qom-type": _FILE, **kept, "mem-path": path, "share": True}
        changes.append(
            Change(f"-object {argv[option.at]}", f"-object {option.replaced(wanted)}", path)
        )
    has_nodes = any(each.text("memdev") for each in qemu_options.options(argv, "numa"))
    if main is None and not has_nodes:
        changes.append(_of_main(argv, file_of))
    return changes


def _of_main(argv: Sequence[str], file_of: Callable[[str], str]) -> Change:
    """Return what gives main memory a backend that has none."""
    size = _DEFAULT_SIZE
    for option in qemu_options.options(argv, "m"):
        size = option.text("size") or size
    size = f"{size}M" if size.isdecimal() else size
    name, path = _main_name(argv), file_of("main")
    wanted = {"qom-type": _FILE, "id": name, "size": size, "mem-path": path, "share": True}
    written = qemu_options.written("object", wanted)
    before = "-mem-path " + argv[argv.index("-mem-path") + 1] if "-mem-path" in argv[:-1] else ""
    return Change(before, f"-object {written} -machine memory-backend={name}", path)


def _main_name(argv: Sequence[str]) -> str:
    for word in map(os.path.basename, argv):
        if word.startswith("qemu-system-") and (name := _MAIN.get(word.rpartition("-")[2])):
            return name
    machines = [each.text("type") or "" for each in qemu_options.options(argv, "machine", "M")]
    return _MICROVM if any(each.startswith("microvm") for each in machines) else _X86


def of_domain(xml: str) -> Iterator[Change]:
    """Yield what to change in a domain's XML. Raises InvalidImage where it is none."""
    root = domain_resources.parsed(xml)
    backing = root.find("./memoryBacking")
    parts = {each.tag: each for each in backing} if backing is not None else {}
    if "hugepages" in parts:
        yield Change("<memoryBacking><hugepages/>", "")
    source = parts.get("source")
    if source is None or source.get("type") != "file":
        before = "" if source is None else f"<source type='{source.get('type')}'/>"
        yield Change(before, "<memoryBacking><source type='file'/>")
    access = parts.get("access")
    if access is None or access.get("mode") != "shared":
        before = "" if access is None else f"<access mode='{access.get('mode')}'/>"
        yield Change(before, "<memoryBacking><access mode='shared'/>")
    for cell in root.iterfind("./cpu/numa/cell[@memAccess='private']"):
        yield Change(f"<cell id='{cell.get('id')}' memAccess='private'>", "memAccess='shared'")
    for memory in root.iterfind("./devices/memory[@access='private']"):
        yield Change(f"<memory model='{memory.get('model')}' access='private'>", "access='shared'")
