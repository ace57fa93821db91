import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from mapsave.labels import apparmor_rules

PARSER = shutil.which("apparmor_parser", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")

# path -> as written in a profile
QUOTED = {
    "/a b": '"/a b"',
    '/a"b': r'"/a\"b"',
    "/a\\b": r'"/a\\b"',
    "/a*?b": r'"/a\*\?b"',
    "/a[b]{c,d}^e": r'"/a\[b\]\{c,d\}\^e"',
    "/a@{HOME}": r'"/a@\{HOME\}"',
    "/a\nb\t\x7f": r'"/a\012b\011\177"',
    "/a#b,c": '"/a#b,c"',
    "/é\u2028": '"/é\u2028"',
    "/a(b)|c.d+$": '"/a(b)|c.d+$"',
}


@pytest.mark.parametrize("path", QUOTED, ids=repr)
def test_quoting(path: str) -> None:
    assert apparmor_rules.quote(path) == QUOTED[path]


@pytest.mark.skipif(PARSER is None, reason="apparmor_parser is not installed")
@pytest.mark.parametrize("path", [*QUOTED, "/bytes\udce9"], ids=repr)
def test_the_real_parser_reads_the_very_path(path: str, tmp_path: Path) -> None:
    """The parser turns the rule into an expression; unescaped, that is the path again."""
    (tmp_path / "parser.conf").touch()
    rule = apparmor_rules.rule(path, "rw") + apparmor_rules.MARK
    said = subprocess.run(
        [str(PARSER), "--config-file", str(tmp_path / "parser.conf"), "-Q", "-K",
         "--dump=rule-exprs"],
        input=os.fsencode(f"profile x {{\n  {rule}\n}}\n"), capture_output=True, check=True,
    )  # fmt: skip
    expressions = re.findall(
        rb"^aare: (/.*?)   ->   (?:/.*)$", said.stderr + said.stdout, re.M | re.S
    )
    assert [re.sub(rb"\\(.)", rb"\1", each, flags=re.S) for each in expressions] == [
        os.fsencode(path)
    ]


def test_adding_and_removing_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "local" / "rules"
    file.parent.mkdir()
    file.write_bytes(b'  "/disk\xe2\x80\xa8" rwk,\n  # no newline at the end')
    file.chmod(0o640)
    rules = [apparmor_rules.rule(path, "rw") for path in ("/a\u2028", "/b\udce9", "/a\u2028")]
    apparmor_rules.add(file, rules)
    text = file.read_bytes()
    assert text.startswith(b'  "/disk\xe2\x80\xa8" rwk,\n  # no newline at the end\n')
    assert text.endswith(b'  "/b\xe9" rw,  # mapsave\n  "/a\xe2\x80\xa8" rw,  # mapsave\n')
    assert apparmor_rules.remove(file, rules[:2]) is True
    assert file.read_bytes().count(b"# mapsave") == 1
    assert apparmor_rules.remove(file, rules[2:]) is True
    assert file.read_bytes() == b'  "/disk\xe2\x80\xa8" rwk,\n  # no newline at the end\n'
    assert apparmor_rules.remove(file, rules) is False
    assert file.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in file.parent.iterdir()] == ["rules"]


def test_what_a_dead_one_was_writing_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    (tmp_path / ".mapsave-rules").write_text('"/of the dead" rw,\n' * 100)
    apparmor_rules.add(file, ['"/a" rw,'])
    assert file.read_text() == f'  "/a" rw,{apparmor_rules.MARK}\n'
    assert list(tmp_path.iterdir()) == [file]


def test_administrators_own_line_is_not_removed(tmp_path: Path) -> None:
    file = tmp_path / "rules"
    file.write_text('  "/a" rw,\n')
    apparmor_rules.add(file, ['"/a" rw,'])
    apparmor_rules.remove(file, ['"/a" rw,'])
    assert file.read_text() == '  "/a" rw,\n'


def test_new_file_is_readable_by_all(tmp_path: Path) -> None:
    apparmor_rules.add(tmp_path / "new", ['"/a" r,'])
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("  #include <libvirt/libvirt-1.files>", True),
        ("include if exists <libvirt/libvirt-1.files>", True),
        ('include "/etc/apparmor.d/libvirt/libvirt-1.files"', True),
        ("include if exists <libvirt>", True),
        ("include <libvirt/libvirt-1.files> # the disks", True),
        ("include if exists <libvirt/libvirt-1.files>#", True),
        ("include <libvirt/libvirt-12.files>", False),
        ("# include <libvirt/libvirt-1.files>", False),
        ("/a rw, # include <libvirt/libvirt-1.files>", False),
        ("# no include of libvirt-1.files here", False),
        ("", False),
    ],
)
def test_finding_the_include(tmp_path: Path, line: str, expected: bool) -> None:
    file = tmp_path / "libvirt" / "libvirt-1.files"
    assert apparmor_rules.includes(f"profile x {{\n{line}\n}}\n", file) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("profile x flags=(attach_disconnected) {\n}", True),
        ("profile x /usr/bin/{a,b} flags=(complain attach_disconnected,) {", True),
        ('profile "x" (attach_disconnected)\n{\n}', True),
        ("profile x { # flags=(attach_disconnected)\n}", False),
        ("profile x flags=(complain) {\n profile y flags=(attach_disconnected) {\n}\n}", False),
        ("profile xx flags=(attach_disconnected) {\n}\nprofile x {\n}", False),
        ("# profile x {\nprofile xx {\n}", None),
        ("include <x>", None),
    ],
)
def test_finding_the_flag(text: str, expected: bool | None) -> None:
    assert apparmor_rules.attaches(text, "x") is expected
