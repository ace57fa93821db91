"""An image and the QEMU that it was saved from, be its memory anonymous, shared or private."""

import pytest

from tests.kit import cli, patterns, qemu

PAGE = 4096
MIB = 1 << 20
BACKENDS = {
    "anonymous": (),
    "shared": (
        "-object",
        "memory-backend-memfd,id=m,size=32M,share=on",
        "-machine",
        "memory-backend=m",
    ),
}


@pytest.mark.parametrize("kind", BACKENDS)
def test_pages_that_are_written_after_the_save(site: cli.Site, kind: str) -> None:
    with qemu.running(*BACKENDS[kind], name="web01", memory="32M", ram=patterns.sparse) as guest:
        site.add_guest("web01", guest.qmp)
        site.run("save", "web01", "-o", "image", "--then", "leave", check=0)
        same = site.run("diff", "image", "web01", "--json", check=0).json()
        assert (same["differing_pages"], same["only_in_other"]) == (0, [])
        name = guest.ram.largest()
        guest.ram.write(name, 8 * MIB - PAGE, b"\xa5" * 3 * PAGE)
        found = site.run("diff", "image", "web01", "--json", check=0).json()
        ranges = {each["name"]: each["ranges"] for each in found["ram_blocks"] if each["ranges"]}
        assert ranges == {name: [{"address": 8 * MIB - PAGE, "pages": 3}]}
