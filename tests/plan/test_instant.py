"""Which RAM may be mapped is decided by the command line; what may not be mapped is said."""

import dataclasses
import itertools
import json

import pytest
from mapsave.image.validation import Contents
from mapsave.plan import instant

from tests.image import build, ours
from tests.kit import memory

MIB = 1 << 20


def _contents(*blocks: build.Block) -> Contents:
    return ours.validated(build.Image(blocks=list(blocks)).built())


MAIN = (build.Block("pc.ram", 4 * MIB, (0,)), build.Block("pc.bios", 64 << 10, (1,)))


def _objects(argv: list[str]) -> list[str]:
    return [value for word, value in itertools.pairwise(argv) if word == "-object"]


def test_main_memory_gets_a_backend() -> None:
    argv = ["qemu-system-x86_64", "-m", "4", "-mem-path", "/nonexistent/x", "-S"]
    mapping, reasons = instant.plan(argv, _contents(*MAIN))
    assert mapping is not None
    assert reasons == []
    argv = mapping.arguments("/proc/self/fd/7")
    assert argv[:4] == ["qemu-system-x86_64", "-m", "4", "-S"]
    offset = mapping.placed[0].block.pages_offset
    started = ["qemu-system-x86_64", "-nodefaults", *argv[1:], "-incoming", "defer"]
    undone = mapping.undone(started, "/proc/self/fd/7")
    there = ["qemu-system-x86_64", "-nodefaults", "-m", "4", "-S", "-mem-path", "/nonexistent/x"]
    assert undone == [*there, "-incoming", "defer"]
    assert mapping.undone([], "/proc/self/fd/7") == list(mapping.argv)
    assert argv[4:] == [
        "-object",
        f"memory-backend-file,id=pc.ram,size={4 * MIB},mem-path=/proc/self/fd/7,offset={offset},"
        "share=off,readonly=on,rom=off,x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=pc.ram",
    ]


def test_memory_of_virtio_mem_is_not_mapped_but_no_obstacle() -> None:
    """QEMU gives back what is not plugged in when it loads it, which a mapping does not take."""
    backend = ["-object", "memory-backend-ram,id=v,size=2M"]
    argv = ["qemu-system-x86_64", *backend, "-device", "virtio-mem-pci,memdev=v"]
    mapping, reasons = instant.plan(argv, _contents(*MAIN, build.Block("0000:00:01.0/v", 2 * MIB)))
    assert mapping is not None, reasons
    assert [each.block.name for each in mapping.placed] == ["pc.ram"]


def test_backends_keep_their_place_and_form() -> None:
    nodes = memory.nodes("4M", "8M")
    backend = {"qom-type": "memory-backend-memfd", "id": "d0", "size": 2 * MIB, "share": False}
    backend |= {"host-nodes": [0], "policy": "bind", "prealloc": False}
    argv = ["qemu-system-x86_64", *nodes, "-object", json.dumps(backend)]
    argv += ["-device", '{"driver": "pc-dimm", "memdev": "d0"}', "-object", "rng-random,id=r"]
    blocks = [build.Block("n0", 4 * MIB), build.Block("n1", 8 * MIB, (3,))]
    mapping, reasons = instant.plan(argv, _contents(*blocks, build.Block("/objects/d0", 2 * MIB)))
    assert mapping is not None, reasons
    changed = mapping.arguments("/x")
    assert mapping.undone(["other", *changed[1:]], "/x") == ["other", *argv[1:]]
    assert mapping.undone([*changed, "/x"], "/x") == argv
    first, second, dimm, other = _objects(changed)
    assert first.startswith("memory-backend-file,id=n0,size=4194304,mem-path=/x,offset=")
    assert second.startswith("memory-backend-file,id=n1,size=8388608,mem-path=/x,offset=")
    assert other == "rng-random,id=r"
    found = json.loads(dimm)
    offset = found.pop("offset")
    assert offset == mapping.placed[2].block.pages_offset
    assert found == {
        "qom-type": "memory-backend-file",
        "id": "d0",
        "size": 2 * MIB,
        "host-nodes": [0],
        "policy": "bind",
        "mem-path": "/x",
        "share": False,
        "readonly": True,
        "rom": "off",
        "x-use-canonical-path-for-ramblock-id": True,
    }


def test_nothing_is_reserved_for_more_than_there_is() -> None:
    mapping, _ = instant.plan(["qemu-system-x86_64"], _contents(*MAIN))
    assert mapping is not None
    for reserves in (True, False):
        mapping = dataclasses.replace(mapping, reserves=reserves)
        (value,) = _objects(mapping.arguments("/x"))
        assert ("reserve=off" in value) is not reserves
        assert mapping.undone(mapping.arguments("/x"), "/x") == ["qemu-system-x86_64"]


_SHARED = ["-object", "memory-backend-memfd,id=m,size=4M", "-machine", "memory-backend=m"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sudo", "-u", "x", "qemu-system-x86_64"], "sudo, which closes descriptors"),
        (["/usr/bin/systemd-run", "--scope", "qemu-system-x86_64"], "systemd-run"),
        (["/usr/bin/sudo", "start-guest", "web01"], "sudo, which closes descriptors"),
        (["qemu-system-x86_64", "-m", "8"], "another RAM size"),
        (["qemu-system-x86_64", "-readconfig", "x"], "-readconfig"),
        (["qemu-system-x86_64", "-mem-prealloc"], "preallocated"),
        (["qemu-system-x86_64", "-overcommit", "mem-lock=on"], "locked"),
        (["qemu-system-x86_64", "-device", "vfio-pci,host=01:00.0"], "vfio-pci pins"),
        (["qemu-system-x86_64", "-device", '{"driver": "vfio-pci"}'], "vfio-pci pins"),
        (["qemu-system-x86_64", "-netdev", "vhost-vdpa,id=n"], "vhost-vdpa pins"),
        (["qemu-system-x86_64", "-device", "virtio-balloon-pci"], "balloon"),
        (["qemu-system-x86_64", "-machine", "q35,confidential-guest-support=s"], "encrypted"),
        (["qemu-system-x86_64", "-device", "nvdimm,memdev=pc.ram", *_SHARED], "no RAM block"),
    ],
)
def test_what_stands_against_it(argv: list[str], words: str) -> None:
    mapping, reasons = instant.plan(argv, _contents(*MAIN))
    assert mapping is None
    assert any(words in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("memfd,id=m,size=4M", "shared"),
        ("file,id=m,size=4M,mem-path=/x,share=on", "shared"),
        ("memfd,id=m,size=4M,share=off,hugetlb=on", "huge pages"),
        ("ram,id=m,size=4M,prealloc=on", "preallocated"),
        ("file,id=m,size=4M,mem-path=/x,pmem=on", "persistent"),
        ("shm,id=m,size=4M", "memory-backend-shm"),
        ("ram,id=m,size=8M", "another size"),
    ],
)
def test_backends_that_cannot_be_mapped(more: str, words: str) -> None:
    argv = ["qemu-system-x86_64", "-object", f"memory-backend-{more}"]
    argv += ["-M", "pc,memory-backend=m"]
    mapping, reasons = instant.plan(argv, _contents(build.Block("m", 4 * MIB)))
    assert mapping is None
    assert any(words in reason for reason in reasons), reasons


@pytest.mark.parametrize(
    "argv",
    [
        ["start-guest", "docker"],
        ["qemu-system-x86_64", "-name", "sudo", "-kernel", "/srv/podman"],
        ["qemu-system-x86_64", "-m", "0x4"],
        ["qemu-system-x86_64", "-m", "4096k"],
    ],
)
def test_what_does_not_stand_against_it(argv: list[str]) -> None:
    mapping, reasons = instant.plan(argv, _contents(*MAIN))
    assert mapping is not None, reasons


def test_sizes_in_hexadecimal_digits() -> None:
    backend = "memory-backend-ram,id=m,size=0x400000"
    argv = ["qemu-system-x86_64", "-object", backend, "-machine", "pc,memory-backend=m"]
    mapping, reasons = instant.plan(argv, _contents(build.Block("m", 4 * MIB)))
    assert mapping is not None, reasons


def test_too_much_in_other_memory() -> None:
    most = instant.MOST_LEFT // 4096 + 1
    video = build.Block("vga.vram", 4096 * most, tuple(range(most)))
    _, reasons = instant.plan(["qemu-system-x86_64"], _contents(*MAIN, video))
    assert "other memory" in reasons[0]


@pytest.mark.parametrize(
    ("argv", "user"),
    [
        (["setpriv", "--reuid=65534", "--regid", "1", "qemu-system-x86_64"], "65534"),
        (["setpriv", "--regid", "1", "--reuid", "qemu", "qemu-system-x86_64"], "qemu"),
        (["runuser", "-u", "qemu", "--", "qemu-system-x86_64"], "qemu"),
        (["qemu-system-x86_64", "-u", "x"], None),
        (["nice", "qemu-system-x86_64"], None),
    ],
)
def test_the_user_of_a_launch(argv: list[str], user: str | None) -> None:
    assert instant.user(argv) == user
