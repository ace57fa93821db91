"""What makes a guest's RAM a shared file: changes to its command line, and to its XML."""

import json

import pytest
from mapsave.plan import instant, shared_memory
from mapsave.plan.shared_memory import Change

from tests.image import build, ours
from tests.kit import memory

MIB = 1 << 20
PROGRAM = "qemu-system-x86_64"


def _file_of(backend: str) -> str:
    return f"/images/web01-{backend}.ram"


def _changes(*argv: str) -> list[Change]:
    return shared_memory.of_command(argv, _file_of)


@pytest.mark.parametrize(
    ("argv", "size", "name"),
    [
        ([PROGRAM, "-m", "4G"], "4G", "pc.ram"),
        ([PROGRAM, "-m", "512"], "512M", "pc.ram"),
        ([PROGRAM, "-M", "microvm"], "128M", "microvm.ram"),
        (["/opt/qemu-system-aarch64", "-m", "size=1G"], "1G", "mach-virt.ram"),
    ],
)
def test_main_memory_gets_a_file(argv: list[str], size: str, name: str) -> None:
    """By the name that the machine type has for it: older images fit too."""
    file = f"memory-backend-file,id={name},size={size},mem-path=/images/web01-main.ram,share=on"
    after = f"-object {file} -machine memory-backend={name}"
    assert _changes(*argv) == [Change("", after, "/images/web01-main.ram")]


def test_mem_path_goes() -> None:
    (change,) = _changes(PROGRAM, "-m", "1G", "-mem-path", "/dev/hugepages")
    assert change.before == "-mem-path /dev/hugepages"


def test_backends_become_files_in_their_form() -> None:
    kept = {"id": "d1", "size": MIB, "dump": True}
    data = json.dumps({"qom-type": "memory-backend-memfd", **kept, "share": True})
    argv = [*memory.nodes("16M", "16M"), *memory.dimm("8M")]
    argv += ["-object", data, "-device", "pc-dimm,memdev=d1"]
    changes = {change.path: change for change in _changes(PROGRAM, *argv)}
    assert sorted(changes) == [f"/images/web01-{name}.ram" for name in ("d0", "d1", "n0", "n1")]
    assert changes["/images/web01-n0.ram"] == Change(
        "-object memory-backend-ram,id=n0,size=16M",
        "-object memory-backend-file,id=n0,size=16M,mem-path=/images/web01-n0.ram,share=on",
        "/images/web01-n0.ram",
    )
    path = "/images/web01-d1.ram"
    after = json.loads(changes[path].after.removeprefix("-object "))
    assert after == {"qom-type": "memory-backend-file", **kept, "mem-path": path, "share": True}


def test_a_private_file_keeps_its_path_and_a_shared_one_all() -> None:
    private = "memory-backend-file,id=m,size=1G,mem-path=/x/m,share=off"
    shared = "memory-backend-file,id=m,size=1G,mem-path=/x/m,share=on"
    main = ("-machine", "memory-backend=m")
    assert _changes(PROGRAM, "-object", private, *main) == [
        Change(f"-object {private}", f"-object {shared}", "/x/m")
    ]
    assert _changes(PROGRAM, "-object", shared, *main) == [Change(shared, shared, "/x/m")]


@pytest.mark.parametrize(
    ("backing", "expected"),
    [
        (
            "",
            [
                Change("", "<memoryBacking><source type='file'/>"),
                Change("", "<memoryBacking><access mode='shared'/>"),
            ],
        ),
        (
            "<memoryBacking><hugepages/><source type='memfd'/><access mode='private'/>"
            "</memoryBacking>",
            [
                Change("<memoryBacking><hugepages/>", ""),
                Change("<source type='memfd'/>", "<memoryBacking><source type='file'/>"),
                Change("<access mode='private'/>", "<memoryBacking><access mode='shared'/>"),
            ],
        ),
        ("<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>", []),
        (
            "<memoryBacking><source type='file'/><access mode='shared'/></memoryBacking>"
            "<cpu><numa><cell id='0' memAccess='private'/></numa></cpu>",
            [Change("<cell id='0' memAccess='private'>", "memAccess='shared'")],
        ),
    ],
    ids=["none", "huge", "right", "private cell"],
)
def test_a_domain(backing: str, expected: list[Change]) -> None:
    assert list(shared_memory.of_domain(f"<domain>{backing}</domain>")) == expected


def test_a_shared_mapping() -> None:
    """What rules out a private mapping of the image does not rule out a file of the guest's own."""
    image = build.Image(blocks=[build.Block("m", 4 * MIB, (0,)), build.Block("pc.bios", 64 << 10)])
    contents = ours.validated(image.built())
    backend = "memory-backend-memfd,id=m,size=4M,share=on,prealloc=off"
    argv = [PROGRAM, "-object", backend, "-machine", "memory-backend=m", "-device"]
    argv.append("virtio-balloon-pci")
    mapping, reasons = instant.plan(argv, contents)
    assert mapping is None
    assert len(reasons) == 2
    mapping, reasons = instant.plan(argv, contents, shares=True)
    assert mapping is not None, reasons
    offset = mapping.placed[0].block.pages_offset
    assert mapping.arguments("/proc/self/fd/64")[2] == (
        f"memory-backend-file,id=m,size={4 * MIB},mem-path=/proc/self/fd/64,offset={offset},"
        "share=on,x-use-canonical-path-for-ramblock-id=off"
    )
