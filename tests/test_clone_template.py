"""``clone:`` of a guest: its mistakes, and which guest a name means."""

from pathlib import Path

import pytest
from mapsave import config, errors

_QEMU = """\
guests:
  web01:
    qmp: /run/web01.qmp
    launch: [qemu]
    priority: 7
    clone:
      {clone}
"""
_GOOD = 'qmp: "/run/{name}.qmp", launch: [qemu]'


def _load(directory: Path, text: str) -> config.Config:
    file = directory / "manager.yaml"
    file.write_text(text)
    return config.load(file, {})


def _with(directory: Path, clone: str) -> config.Config:
    return _load(directory, _QEMU.replace("{clone}", f"{{{clone}}}"))


def test_a_clone_is_as_its_guest_but_for_what_has_its_name(tmp_path: Path) -> None:
    launch = '[qemu, -m, 64, "mac=52:54:00:00:00:{n:02x}", \'{"id": "{name}"}\', "${x}", "{n}"]'
    found = _with(tmp_path, f'qmp: "run/{{name}}.qmp", launch: {launch}')
    clone = found.guest("web01-12")
    assert (clone.name, clone.clone_of, clone.priority) == ("web01-12", "web01", 7)
    assert clone.qmp == tmp_path / "run/web01-12.qmp"
    words = ("mac=52:54:00:00:00:0c", '{"id": "web01-12"}', "${x}", "12")
    assert clone.launch == ("qemu", "-m", "64", *words)
    assert found.guest("web01").clone_of == ""
    for name in (
        "web01-",
        "web01-a",
        "web01-1 ",
        "web01-1,b",
        "web01-../x",
        "web02-1",
        "web01-1x",
        "web01-01",
    ):
        assert found.named(name) is None


@pytest.mark.parametrize("part", ["a", "3", "a.b-c_d", "A" * 64])
def test_without_a_format_it_need_not_be_a_number(tmp_path: Path, part: str) -> None:
    assert _with(tmp_path, _GOOD).guest(f"web01-{part}").qmp == Path(f"/run/web01-{part}.qmp")


@pytest.mark.parametrize("part", ["", ".", "..", "-a", "a,b", "a/b", "a b", "a\n", "A" * 65, "é"])
def test_what_is_not_safe_in_paths_and_lists_is_no_name(tmp_path: Path, part: str) -> None:
    found = _with(tmp_path, _GOOD)
    assert found.named(f"web01-{part}") is None
    with pytest.raises(errors.UnknownGuest):
        found.guest(f"web01-{part}")


def test_a_guest_of_that_name_and_the_longest_pattern_come_first(tmp_path: Path) -> None:
    template = 'clone: {name: "web-{n}"}'
    longer = 'clone: {name: "web-a-{n}"}'
    guests = [
        f"a: {{emulator: {{memory: 4M}}, {template}}}",
        f"b: {{emulator: {{memory: 4M}}, {longer}}}",
        "web-1: {emulator: {memory: 8M}}",
    ]
    found = _load(tmp_path, "guests:\n" + "".join(f"  {each}\n" for each in guests))
    assert found.guest("web-1").clone_of == ""
    assert found.guest("web-2").clone_of == "a"
    assert found.guest("web-a-2").clone_of == "b"


@pytest.mark.parametrize(
    ("clone", "place", "said"),
    [
        ("qmp: /run/x.qmp, launch: [q]", "7:13", "must contain {name} or {n}"),
        ('qmp: "/run/{nam}.qmp", launch: [q]', "7:13", "unknown field {nam}"),
        ('qmp: "/run/{n}", launch: [q, "{guest}"]', "7:37", "unknown field {guest}"),
        ('qmp: "/run/{n}", launch: [q, "{n:5.2f}"]', "7:37", "{n:5.2f} is not a format"),
        ('qmp: "/run/{n}", launch: [q, "{name:02x}"]', "7:37", "{name:02x} is not a format"),
        ('qmp: "/run/{n}", launch: [q], name: web', "7:44", "must contain {n} once"),
        ('qmp: "/run/{n}", launch: [q], name: "{n}-{n}"', "7:44", "must contain {n} once"),
        ('qmp: "/run/{n}", launch: [q], name: "{n}"', "7:44", "must contain more than {n}"),
        ('qmp: "/run/{n}", launch: [q], name: "a/{n}"', "7:44", "contains a slash"),
        ('qmp: "/run/{n}"', "2:3", "clone needs qmp and launch"),
        ('qmp: "/run/{n}", launch: [q, -incoming, x]', "2:3", "must not contain -incoming"),
    ],
)
def test_mistakes_have_a_place(tmp_path: Path, clone: str, place: str, said: str) -> None:
    with pytest.raises(errors.ConfigError) as raised:
        _with(tmp_path, clone)
    assert said in raised.value.message
    assert raised.value.message.startswith(f"{tmp_path}/manager.yaml:{place}: ")


@pytest.mark.parametrize(
    ("guest", "said"),
    [
        ("{libvirt: {domain: a}, clone: {}}", "not to libvirt ones"),
        ('{emulator: {memory: 4M}, clone: {qmp: "/{n}"}}', "takes no qmp for emulator guests"),
    ],
)
def test_other_kinds_of_guests(tmp_path: Path, guest: str, said: str) -> None:
    with pytest.raises(errors.ConfigError, match=said):
        _load(tmp_path, f"guests:\n  a: {guest}\n")
