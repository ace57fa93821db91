"""The Tab key in a real bash: what it offers, and how that is quoted."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.cli import completion

from tests.kit import cli, command_line, emulated, processes, service, tree, wait

# What becomes of the line is printed by a key of its own.
RC = r"""
PS1= PS2=
bind 'set enable-bracketed-paste off'
bind -x '"\C-t": printf "@@%s@@" "$READLINE_LINE"'
"""
MARKED = re.compile(r"@@(.*)@@", re.DOTALL)
OPERATION = "0123456789ab"
ODD = """it's "odd" $1.img"""


class Shell:
    """A bash that reads what is typed at a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def tab(self, typed: str) -> str:
        """Return what becomes of a line when Tab is pressed at its end."""
        os.write(self._terminal, b"\x15" + typed.encode() + b"\t\x14")
        shown = b""

        def line() -> str | None:
            nonlocal shown
            if select.select([self._terminal], [], [], 1.0)[0]:
                shown += os.read(self._terminal, 65536)
            found = MARKED.search(shown.decode(errors="replace"))
            return found[1] if found else None

        return wait.until(line, what="the line")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[cli.Site]:
    """A site with names of every kind, and a service that has done something."""
    site = cli.Site(tmp_path_factory.mktemp("completion") / "site")
    for name in ("web01", "db one"):
        site.add_guest(name, emulated.socket_of(site, name))
    site.add_job("nightly", guests=["web01"])
    for name in ("my image.img", ODD, "unfinished.partial"):
        (site.images / name).touch()
    with service.running(site) as mapsaved:
        own = {"Mapsave-Operation": OPERATION}
        mapsaved.request("POST", "/v1/operations", {"kind": "recover"}, own)
        mapsaved.ended(OPERATION)
        yield site


@pytest.fixture(scope="module")
def shell(site: cli.Site) -> Iterator[Shell]:
    programs = site.directory / "bin"
    programs.mkdir()
    (programs / "mapsave").write_text(f'#!/bin/sh\nexec {sys.executable} -m mapsave "$@"\n')
    (programs / "mapsave").chmod(0o755)
    (site.directory / "here.img").touch()
    rc = site.directory / "bashrc"
    rc.write_text(RC + completion.SCRIPTS["bash"])
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": tree.PYTHONPATH,
        "MAPSAVE_CONFIG": str(site.config),
        "MAPSAVE_FLEET": str(tree.ROOT / "examples/fleet/fleet.yaml"),
        "HOME": str(site.directory),
        "TERM": "dumb",
        "LC_ALL": "C.UTF-8",
    }
    ours, theirs = pty.openpty()
    command = ["bash", "--noprofile", "--rcfile", str(rc), "-i"]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with processes.running(command, env=env, cwd=site.directory, start_new_session=True, **streams):
        os.close(theirs)
        yield Shell(ours)
    os.close(ours)


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("mapsave disc", "mapsave discard "),
        ("mapsave sa", "mapsave save"),
        ("mapsave config sh", "mapsave config show "),
        ("mapsave save --zero", "mapsave save --zero-pages "),
        ("mapsave save web01 --zero-pages mul", "mapsave save web01 --zero-pages multifd "),
        ("mapsave --json save w", "mapsave --json save web01 "),
        ("mapsave save d", r"mapsave save db\ one "),
        (r"mapsave save db\ o", r"mapsave save db\ one "),
        ('mapsave save "db o', 'mapsave save "db one" '),
        ("mapsave save 'd", "mapsave save 'db one' "),
        ("mapsave list --guest=w", "mapsave list --guest=web01 "),
        ("mapsave list --guest='d", "mapsave list --guest='db one' "),
        ("mapsave inspect my", r"mapsave inspect my\ image.img "),
        ("mapsave inspect i", r"mapsave inspect it\'s\ \"odd\"\ \$1.img "),
        ('mapsave inspect "i', r'mapsave inspect "it' + r"'" + r's \"odd\" \$1.img" '),
        ("mapsave inspect 'i", r"mapsave inspect 'it'\''s " + r'"odd" $1.img' + "' "),
        ("mapsave inspect unf", "mapsave inspect unf"),
        ("mapsave inspect ./he", "mapsave inspect ./here.img "),
        ("mapsave verify 'my image.img' m", "mapsave verify 'my image.img' m"),
        ("mapsave job run n", "mapsave job run nightly "),
        ("mapsave save web01 --policy no", "mapsave save web01 --policy none "),
        ("mapsave logs 01", "mapsave logs 0123456789ab "),
        ("mapsave fleet ev", "mapsave fleet evacuate "),
        ("mapsave fleet run n", "mapsave fleet run nightly "),
        ("mapsave fleet ps --job w", "mapsave fleet ps --job weekly "),
        ("mapsave fleet evacuate r", "mapsave fleet evacuate rack1-a "),
        ("mapsave fleet ps '*@", "mapsave fleet ps '*@rack1-a' "),
    ],
)
def test_tab(shell: Shell, typed: str, completed: str) -> None:
    assert shell.tab(typed) == completed


@pytest.mark.parametrize(
    ("shell", "words", "shown"),
    [
        ("zsh", ["mapsave", "save", "'db o"], "plain\ndb one\tqmp guest\n"),
        ("zsh", ["mapsave", "inspect", "./x"], "file\n"),
        ("fish", ["mapsave", "verify", "my image.img", "my"], "plain\n"),
        ("fish", ["mapsave", "list", "--guest=d"], "plain\n--guest=db one\tqmp guest\n"),
        ("fish", ["mapsave", "--config", "/nowhere", "save", ""], ""),
    ],
)
def test_other_shells_get_values_and_what_they_are(
    site: cli.Site, shell: str, words: list[str], shown: str
) -> None:
    env = {"MAPSAVE_CONFIG": str(site.config), "PYTHONPROFILEIMPORTTIME": "1"}
    done = cli.mapsave("__complete", shell, *words, env=env, check=0)
    assert done.stdout == shown
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "mapsave.cli.complete" in loaded
    assert not loaded & {"asyncio", "http.client", "logging", "qemu.qmp", "mapsave.operations"}


@pytest.mark.parametrize("shell", [name for name in completion.SCRIPTS if shutil.which(name)])
def test_scripts_are_such_of_their_shells(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(cli.mapsave("completion", shell, check=0).stdout)
    subprocess.run([shell, "-n", script], check=True, timeout=wait.LONG)


NAMES = {"guest", "guests", "image", "images", "job", "operation", "operations", "policy", "target"}


def test_every_name_is_completed() -> None:
    """But where something new is named: the image of a save."""
    missing = [
        f"{context.command_path} {parameter.name}"
        for context in command_line.contexts()
        for parameter in context.command.params
        if parameter.name in NAMES and not getattr(parameter, "_custom_shell_complete", None)
    ]
    assert missing == [f"mapsave {each} image" for each in ("save", "checkpoint", "check")]
