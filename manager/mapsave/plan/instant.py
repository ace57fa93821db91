"""Which RAM of a guest may be mapped from its image, by the command line that starts it.

A destination that maps the image needs no memory for what it does not change, and does not wait
until it is read (``image/stub.py``). That works for RAM that is the destination's own: main memory,
NUMA nodes and DIMMs that no other process shares, that are in usual pages, and that nothing pins.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence

from mapsave import instant_names, qemu_options, units
from mapsave.image.mapped_ram import RamBlock
from mapsave.image.validation import Contents
from mapsave.monitor import process
from mapsave.qemu_options import Option

# File systems whose files may be mapped for as long as a guest lives (linux/magic.h).
FILE_SYSTEMS = {0xEF53: "ext4", 0x58465342: "xfs", 0x9123683E: "btrfs", 0x01021994: "tmpfs"}
_HUGETLBFS = 0x958458F6
# What else the stub may hold, in memory while it is loaded: ROMs, video memory.
MOST_LEFT = 256 * units.MIB
# Programs that close the descriptors of what they start (sudo(8), bwrap(1), systemd-run(1)), or
# start it elsewhere.
CLOSING = frozenset(
    ("sudo", "doas", "bwrap", "systemd-run", "ssh", "docker", "podman", "machinectl")
)
BACKEND = "memory-backend-"
OBJECTS = "/objects/"
# What a backend keeps of its properties if it becomes a file (host-nodes.0 is one of host-nodes).
KEPT = frozenset(("id", "size", "host-nodes", "policy", "merge", "dump"))
_DEFAULT_UNIT = units.MIB  # of the option -m
_MEM_PATH = "-mem-path"


@dataclasses.dataclass(frozen=True)
class Placed:
    """A RAM block and the backend it gets: the option of one that is there, or a new one."""

    block: RamBlock
    id: str
    option: Option | None


@dataclasses.dataclass(frozen=True)
class Mapping:
    """How a command line is to be rewritten so that it maps these RAM blocks.

    ``reserves``: the kernel sets memory aside for what the guest may change. ``shares``: the file
    is not the image, but one in which all that the guest writes is to be.
    """

    argv: tuple[str, ...]
    placed: tuple[Placed, ...]
    reserves: bool = True
    shares: bool = False

    def arguments(self, path: str) -> list[str]:
        """Return the command line that maps the blocks from ``path``, in QEMU's sight."""
        words = list(self.argv)
        for each in self.placed:
            if each.option is not None:
                words[each.option.at] = each.option.replaced(self._file(each, path))
        added = self._added(path)
        if added and _MEM_PATH in words:  # of main memory, which has a backend of its own now
            at = words.index(_MEM_PATH)
            del words[at : at + 2]
        return words + added

    def undone(self, found: Sequence[str], path: str) -> list[str]:
        """Return the command line of the QEMU that ``arguments`` has started, as it would be else.

        What was started may be a program that starts QEMU, with arguments of its own. So the words
        that were changed are changed back; where they are not there, it is the command as it was.
        """
        words, added = list(found), self._added(path)
        if added:
            at = next(
                (at for at in range(len(words)) if words[at : at + len(added)] == added), None
            )
            if at is not None:
                kept = self.argv.index(_MEM_PATH) if _MEM_PATH in self.argv else len(self.argv)
                words[at : at + len(added)] = self.argv[kept : kept + 2]
        for each in self.placed:
            if each.option is not None:
                new, old = each.option.replaced(self._file(each, path)), self.argv[each.option.at]
                words = [old if word == new else word for word in words]
        is_undone = found and not any(path in word for word in words)
        return words if is_undone else list(self.argv)

    def _added(self, path: str) -> list[str]:
        """Return the words for the blocks that have no backend yet."""
        words: list[str] = []
        for each in self.placed:
            if each.option is None:
                words += ["-object", qemu_options.written("object", self._file(each, path))]
                words += ["-machine", f"memory-backend={each.id}"]
        return words

    def _file(self, placed: Placed, path: str) -> qemu_options.Properties:
        """Return the properties of a backend that maps a block from a file, privately or not.

        ``rom=off`` lets QEMU write to its copy of what is opened ``readonly``.
        """
        copies = {"share": False, "readonly": True, "rom": "off"}
        known = placed.option.properties if placed.option is not None else {"id": placed.id}
        return {
            "qom-type": f"{BACKEND}file",
            **{key: value for key, value in known.items() if key.partition(".")[0] in KEPT},
            "size": placed.block.used_length,
            "mem-path": path,
            "offset": placed.block.pages_offset,
            **({"share": True} if self.shares else copies),
            **({} if self.reserves else {"reserve": False}),
            # Old machine types name the blocks of files by their path; it must be the image's.
            "x-use-canonical-path-for-ramblock-id": placed.block.name.startswith(OBJECTS),
        }


def user(argv: Sequence[str]) -> str | None:
    """Return the user, by name or number, that a ``launch`` starts QEMU as; None: as we are.

    Known are setpriv(1) and runuser(1), which keep descriptors.
    """
    words = iter(argv)
    program = os.path.basename(next(words, ""))
    names = {"setpriv": ("--reuid", "--ruid", "--euid"), "runuser": ("-u", "--user")}.get(program)
    for word in words if names is not None else ():
        option, equals, value = word.partition("=")
        if option in (names or ()):
            return value if equals else next(words, None)
    return None


def plan(
    argv: Sequence[str], contents: Contents, *, shares: bool = False
) -> tuple[Mapping | None, list[str]]:
    """Return how to map what the image has, or None and why it cannot be mapped.

    ``shares``: not from the image, but from a file that is the guest's alone.
    """
    placed, reasons = place(argv, contents, shares=shares)
    against = obstacles(argv, shares=shares)
    mapping, reasons = planned(argv, placed, contents, [*against, *reasons])
    if mapping is None or not shares:
        return mapping, reasons
    return dataclasses.replace(mapping, reserves=True, shares=True), reasons


def place(
    argv: Sequence[str], contents: Contents, *, shares: bool = False
) -> tuple[list[Placed], list[str]]:
    """Return the blocks that are main memory, NUMA nodes or DIMMs, and what is against them."""
    reasons: list[str] = []
    backends = {
        str(each.text("id")): each
        for each in qemu_options.options(argv, "object")
        if str(each.text("qom-type")).startswith(BACKEND)
    }
    used, main = backends_in_use(argv)
    placed: list[Placed] = []
    for block in contents.stream.blocks:
        name = block.name.removeprefix(OBJECTS)
        if name in used and (option := backends.get(name)) is not None:
            reasons += _wrong(option, block, shares=shares)
            placed.append(Placed(block, name, option))
        elif main is None and name not in backends and instant_names.is_main(name):
            reasons += _wrong_size(argv, block)
            placed.append(Placed(block, name, None))
    return placed, reasons


def planned(
    argv: Sequence[str], placed: Sequence[Placed], contents: Contents, reasons: list[str]
) -> tuple[Mapping | None, list[str]]:
    """Return how to map the blocks that are ``placed``, unless there are ``reasons`` not to."""
    if not placed:
        reasons.append("the image has no RAM block that is main memory, a NUMA node or a DIMM")
    left = sum(
        used * block.page_size
        for block, used in zip(contents.stream.blocks, contents.used_pages, strict=True)
        if not any(each.block is block for each in placed)
    )
    if left > MOST_LEFT:
        reasons.append(
            f"{units.format_size(left)} are in other memory than main memory, NUMA nodes and DIMMs"
        )
    if reasons:
        return None, list(dict.fromkeys(reasons))
    reserves = _is_granted(sum(each.block.used_length for each in placed))
    return Mapping(tuple(argv), tuple(placed), reserves), []


def _is_granted(size: int) -> bool:
    """Return whether the kernel lets a process reserve so much memory, if that can be told.

    If not, nothing is reserved. For that QEMU has to read the kernel's setting, which not every
    policy of SELinux allows, and refuses it where that is to reserve whatever there is (10.0,
    ``util/mmap-alloc.c``: ``map_noreserve_effective``).
    """
    return process.overcommits() == process.NEVER or size <= process.available_bytes()


def backends_in_use(argv: Sequence[str]) -> tuple[frozenset[str], str | None]:
    """Return the backends of main memory, NUMA nodes and DIMMs, and the one of main memory."""
    main = None
    for option in qemu_options.options(argv, "machine", "M"):
        main = option.text("memory-backend") or main
    found = {main}
    found |= {option.text("memdev") for option in qemu_options.options(argv, "numa")}
    for device in qemu_options.options(argv, "device"):
        if device.text("driver") == "pc-dimm":
            found.add(device.text("memdev"))
    return frozenset(each for each in found if each is not None), main


def obstacles(argv: Sequence[str], *, shares: bool = False) -> Iterator[str]:
    """Yield what on a command line stands against it for all RAM."""
    words = [os.path.basename(word) for word in argv]
    # Without such a word the arguments are another program's, which is looked at alone.
    program = next((at for at, word in enumerate(words) if word.startswith("qemu-")), 1)
    for word in words[:program]:
        if word in CLOSING:
            yield f"the launch command begins with {word}, which closes descriptors"
    names = qemu_options.switches(argv)
    if "readconfig" in names:
        yield "a part of the command line is in a file (-readconfig)"
    if "mem-prealloc" in names:
        yield "RAM is preallocated (-mem-prealloc)"
    for option in qemu_options.options(argv, "overcommit"):
        if option.text("mem-lock") not in (None, "off"):
            yield "RAM is locked in memory (-overcommit mem-lock)"
    for option in qemu_options.options(argv, "machine", "M"):
        if option.text("confidential-guest-support") or option.text("memory-encryption"):
            yield "the guest's memory is encrypted"
    for option in qemu_options.options(argv, "device", "netdev"):
        driver = str(option.text("driver") or option.text("type"))
        if driver.startswith("vfio-") or driver == "vhost-vdpa":
            yield f"{driver} pins all RAM"
        elif driver.startswith("virtio-balloon") and not shares:
            # QEMU gives nothing back of a file that is read-only, and prints a line for each page
            # that it does not (system/physmem.c: ram_block_discard_range).
            yield "a balloon gives RAM back, which a mapping of the image cannot"
    at = argv.index(_MEM_PATH) + 1 if _MEM_PATH in argv else len(argv)
    if at < len(argv) and _is_huge(argv[at]):
        yield "RAM is on huge pages (-mem-path)"


def _wrong(option: Option, block: RamBlock, *, shares: bool) -> Iterator[str]:
    """Yield why a backend cannot become a mapping of a file."""
    kind, name = str(option.text("qom-type")), option.text("id")
    is_memfd = kind == f"{BACKEND}memfd"
    path = option.text("mem-path")
    if option.is_on("share", default=is_memfd) and not shares:
        yield f"RAM {name!r} is shared with other processes (share=on)"
    if option.is_on("hugetlb") or (path is not None and _is_huge(path)):
        yield f"RAM {name!r} is on huge pages"
    if option.is_on("prealloc"):
        yield f"RAM {name!r} is preallocated (prealloc=on)"
    if option.is_on("pmem"):
        yield f"RAM {name!r} is persistent memory"
    if not is_memfd and kind not in (f"{BACKEND}ram", f"{BACKEND}file"):
        yield f"RAM {name!r} is a {kind}"
    if _bytes(option.text("size"), 1) != block.used_length:
        yield f"RAM {name!r} has another size than in the image"


def _wrong_size(argv: Sequence[str], block: RamBlock) -> Iterator[str]:
    size = None
    for option in qemu_options.options(argv, "m"):
        size = option.text("size") or size
    here = _bytes(size, _DEFAULT_UNIT)
    if here is not None and here != block.used_length:
        yield "the destination has another RAM size than the image"


def _bytes(text: str | None, unit: int) -> int | None:
    """Return a size as QEMU means it, in bytes; None where it cannot be told.

    One that ends in a digit, be it hexadecimal, is of ``unit`` (10.0, ``system/vl.c``).
    """
    if text is None:
        return None
    try:
        size = int(text, 16) if text.lower().startswith("0x") else units.parse_size(text)
    except ValueError:
        return None
    return size * unit if text[-1:].isdecimal() else size


def _is_huge(path: str) -> bool:
    """Return whether files in a directory, or the file itself, are on huge pages."""
    from mapsave.image import syscalls

    for place in (path, os.path.dirname(path) or "."):
        try:
            fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            return syscalls.file_system_type(fd) == _HUGETLBFS
        finally:
            os.close(fd)
    return False
