"""Hostile images in libvirt format: an error, and libvirtd, whom some would abort, sees none."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns
from tests.kit.libvirtd import Daemon
from tests.libvirt.victim import _COOKIE_OFFSET, _DATA_LENGTH, _FORMAT, _HEADER, _VERSION, Victim

_MOST = (1 << 32) - 1
_BOMB = (
    "<?xml version='1.0'?><!DOCTYPE domain [<!ENTITY a0 'ha'>"
    + "".join(f"<!ENTITY a{n} '{f'&a{n - 1};' * 10}'>" for n in range(1, 30))
    + "]><domain type='kvm'><name>&a29;</name></domain>"
)
_OUTSIDE = (
    "<!DOCTYPE domain [<!ENTITY a SYSTEM 'file:///etc/passwd'>]>"
    "<domain type='kvm'><name>&a;</name></domain>"
)
_PLAIN = "<domain type='kvm'><name>web01</name><uuid>{}</uuid></domain>"
_DAMAGES: dict[str, Callable[[Victim], None]] = {
    "cookie beyond the data": lambda each: each.number(_COOKIE_OFFSET, each.length + 1),
    "cookie at the end of all": lambda each: each.number(_COOKIE_OFFSET, _MOST),
    "cookie within the XML": lambda each: each.number(_COOKIE_OFFSET, 7),
    "data of 4 GiB": lambda each: each.number(_DATA_LENGTH, _MOST),
    "no data": lambda each: each.number(_DATA_LENGTH, 0),
    "data that ends elsewhere": lambda each: each.number(_DATA_LENGTH, each.length - 1),
    "format unknown": lambda each: each.number(_FORMAT, _MOST),
    "version unknown": lambda each: each.number(_VERSION, _MOST),
    "XML without end": lambda each: each.data(_HEADER, b"x" * each.length),
    "XML unterminated": lambda each: each.xml("<domain type='kvm'><name>web01</name>"),
    "XML bomb": lambda each: each.xml(_BOMB),
    "XML that reads files": lambda each: each.xml(_OUTSIDE),
    "XML deeper than any": lambda each: each.xml("<a>" * 20_000),
    "XML not UTF-8": lambda each: each.xml(b"<domain>\xff\xfe</domain>"),
    "XML of something else": lambda each: each.xml("<network><name>x</name></network>"),
    "XML with a uuid that is none": lambda each: each.xml(_PLAIN.format("../../etc")),
    "no XML": lambda each: each.xml(""),
    "cut in the header": lambda each: each.cut(50),
    "cut in the XML": lambda each: each.cut(_HEADER + 100),
    "cut before the stream": lambda each: each.cut(_HEADER + each.length),
    "cut in the stream": lambda each: each.cut(_HEADER + each.length + 5000),
}

_COOKIES: dict[str, str | bytes] = {
    "deeper than any": f"<cookie><cpu>{'<a>' * 5000}{'</a>' * 5000}</cpu></cookie>",
    "unterminated": "<cookie><cpu>",
    "of something else": "cookie",
    "bomb": _BOMB.replace("<domain", "<cookie"),
    "not UTF-8": b"<cookie>\xff\xfe</cookie>",
}


@pytest.mark.parametrize("maker", ["virsh", "mapsave"])
def test_hostile_images(daemon: Daemon, site: cli.Site, tmp_path: Path, maker: str) -> None:
    with domain.running(daemon, "web01", ram=patterns.sparse, memory=16 << 20) as guest:
        good = tmp_path / "good"
        if maker == "virsh":
            guest.virsh("save", good, "--image-format", "sparse")
        else:
            site.run("save", guest.address, "--image", good, check=0)
        content, pid = good.read_bytes(), daemon.pid
        wrong: list[tuple[object, ...]] = []
        for name, damage in _DAMAGES.items():
            path = site.images / "hostile"
            path.write_bytes(content)
            damage(Victim(path))
            into = ("restore", path, "--guest", guest.address)
            commands = [(*into, "--through-libvirt")]
            if maker == "virsh":
                commands += [into, ("verify", path), ("inspect", path)]
            for command in commands:
                result = site.run(*command, "--json")
                if result.returncode != 6:
                    wrong.append((name, command[0], command[-1], result.returncode, result.stderr))
            assert daemon.alive(), name
            assert daemon.domains() == [], name
        assert not wrong
        assert daemon.pid == pid
        # The cookie is of use to the restore only, which reads it last.
        for name, text in _COOKIES.items():
            path.write_bytes(content)
            Victim(path).cookie(text)
            for command in (into, (*into, "--trust-recorded-command")):
                error = site.run(*command, "--json", check=6).error()
                assert "cookie" in error["message"], name
        assert daemon.alive() and daemon.domains() == []
        # The undamaged one is good.
        site.run("restore", good, "--guest", guest.address, check=0)
