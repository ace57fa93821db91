"""Which RAM of a libvirt guest may be mapped is decided by its XML; what may not be is said."""

import pytest
from mapsave.plan import instant_domain

from tests.image import build, ours
from tests.kit import domain

MIB = 1 << 20
CONTENTS = ours.validated(
    build.Image(
        blocks=[build.Block("pc.ram", 4 * MIB, (0,)), build.Block("pc.bios", 64 << 10, (1,))]
    ).built()
)
XML = domain.definition("web01", memory=4 * MIB, arguments=["-S"])
# What is put into the domain, and a word of what is said.
OBSTACLES = [
    ("<memoryBacking><hugepages/></memoryBacking>", "huge pages"),
    ("<memoryBacking><source type='memfd'/></memoryBacking>", "memfd"),
    ("<memoryBacking><source type='file'/></memoryBacking>", "files"),
    ("<memoryBacking><access mode='shared'/></memoryBacking>", "shared"),
    ("<memoryBacking><locked/></memoryBacking>", "locked"),
    ("<memoryBacking><allocation mode='immediate'/></memoryBacking>", "preallocated"),
    ("<cpu><numa><cell id='0' cpus='0' memory='4096'/></numa></cpu>", "NUMA"),
    ("<launchSecurity type='sev'/>", "encrypted"),
    ("<devices><memory model='dimm'/></devices>", "DIMM"),
    ("<devices><hostdev mode='subsystem' type='pci'/></devices>", "VFIO"),
    ("<devices><hostdev mode='subsystem' type='mdev'/></devices>", "VFIO"),
    ("<devices><interface type='hostdev'/></devices>", "VFIO"),
    ("<devices><interface type='vdpa'/></devices>", "vDPA"),
    ("<devices><disk type='nvme'/></devices>", "VFIO"),
    ("<devices><memballoon model='virtio' freePageReporting='on'/></devices>", "free page"),
]


def test_main_memory_gets_another_backend_by_its_alias() -> None:
    mapping, reasons = instant_domain.plan(XML, CONTENTS)
    assert mapping is not None, reasons
    offset = mapping.placed[0].block.pages_offset
    assert mapping.arguments("/a/b") == [
        "-object",
        f"memory-backend-file,id=Pc.ram,size={4 * MIB},mem-path=/a/b,offset={offset},"
        "share=off,readonly=on,rom=off,x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=Pc.ram",
    ]


@pytest.mark.parametrize(("more", "words"), OBSTACLES, ids=[words for _, words in OBSTACLES])
def test_obstacles(more: str, words: str) -> None:
    mapping, reasons = instant_domain.plan(XML.replace("<vcpu>", f"{more}<vcpu>", 1), CONTENTS)
    assert mapping is None
    assert any(words in reason for reason in reasons), reasons


def test_other_backings_are_none() -> None:
    """A balloon either, though it gives nothing back: libvirt's guests have one by default."""
    fine = "<memoryBacking><source type='anonymous'/><access mode='private'/></memoryBacking>"
    text = XML.replace("<vcpu>", f"{fine}<vcpu>", 1)
    text = text.replace("<memballoon model='none'/>", "<memballoon model='virtio'/>")
    assert instant_domain.plan(text, CONTENTS)[0] is not None
    assert instant_domain.has_balloon(text)
    assert not instant_domain.has_balloon(XML)


@pytest.mark.parametrize(
    "words",
    [
        ("-machine", "memory-backend=m"),
        ("-numa", "node,memdev=m"),
        ("-mem-path", "/nonexistent"),
        ("-mem-prealloc",),
        ("-overcommit", "mem-lock=on"),
        ("-device", "vfio-pci,host=0"),
    ],
)
def test_arguments_of_its_own(words: tuple[str, ...]) -> None:
    text = domain.definition("web01", memory=4 * MIB, arguments=words)
    mapping, reasons = instant_domain.plan(text, CONTENTS)
    assert (mapping, len(reasons)) == (None, 1)


def test_another_ram_size() -> None:
    text = XML.replace(f"<memory unit='b'>{4 * MIB}", "<memory unit='KiB'>8192")
    assert instant_domain.plan(text, CONTENTS)[0] is None
    text = XML.replace(f"<memory unit='b'>{4 * MIB}", "<memory unit='KiB'>4096")
    assert instant_domain.plan(text, CONTENTS)[0] is not None


def test_an_image_that_has_the_alias_is_read_into_such_memory() -> None:
    assert instant_domain.read(CONTENTS) == []
    theirs = ours.validated(build.Image(blocks=[build.Block("Pc.ram", 4 * MIB, (0,))]).built())
    assert [block.name for block in theirs.stream.blocks] == ["pc.ram"]
    assert instant_domain.read(theirs) == [
        "-object",
        f"memory-backend-ram,id=Pc.ram,size={4 * MIB}",
        "-machine",
        "memory-backend=Pc.ram",
    ]
