"""A person at a terminal: a real bash in a real terminal (tmux). It completes ``save w<Tab>``, and
shows the progress of a save at three widths, and after Ctrl-C."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.cli import completion

from tests.kit import cli, emulated, need, processes, tree, wait

# Bytes, percent and time left, as they are at any width.
FIGURES = re.compile(r"\d+\.\d/8\.0 MiB \d+% (\d.*|\?) left")
NAME = "web01-production"


class Terminal:
    """A terminal with a bash in it, of which tmux says what is to be seen."""

    def __init__(self, socket: Path) -> None:
        self._tmux = ["tmux", "-u", "-S", str(socket)]

    def do(self, *words: str) -> str:
        """Run a command of tmux(1), and return what it prints."""
        done = subprocess.run(
            [*self._tmux, *words], capture_output=True, text=True, check=False, timeout=wait.LONG
        )
        assert done.returncode == 0, done
        return done.stdout

    def answers(self) -> bool:
        """Return whether tmux takes commands by now."""
        return subprocess.run([*self._tmux, "ls"], capture_output=True, check=False).returncode == 0

    def type(self, text: str, *keys: str) -> None:
        """Type text, then keys by their names, such as ``Tab``."""
        self.do("send-keys", "-l", "--", text)
        for key in keys:
            self.do("send-keys", key)

    def widen(self, columns: int) -> None:
        self.do("resize-window", "-x", str(columns), "-y", "20")

    def lines(self) -> list[str]:
        """Return the lines that are to be seen, without empty ones."""
        return [line for line in self.do("capture-pane", "-p").splitlines() if line.strip()]

    def await_line(self, pattern: str) -> str:
        """Return the last line that is to be seen once ``pattern`` is in it."""

        seen: list[str] = []

        def found() -> str | None:
            seen[:] = self.lines()
            return seen[-1] if seen and re.search(pattern, seen[-1]) else None

        try:
            return wait.until(found, what=f"{pattern!r} on the terminal")
        except AssertionError as error:
            raise AssertionError(f"{error}; the terminal shows {seen}") from None


@pytest.fixture
def site(tmp_path: Path) -> Iterator[cli.Site]:
    """A site with a guest whose save takes two minutes."""
    made = cli.Site(tmp_path / "site")
    with emulated.guest(made, NAME, throttle="64K"):
        yield made


@pytest.fixture
def terminal(site: cli.Site) -> Iterator[Terminal]:
    need.skip_if(None if shutil.which("tmux") else "no tmux")
    programs = site.directory / "bin"
    programs.mkdir()
    (programs / "mapsave").write_text(f'#!/bin/sh\nexec {sys.executable} -m mapsave "$@"\n')
    (programs / "mapsave").chmod(0o755)
    env = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": tree.PYTHONPATH,
        "MAPSAVE_CONFIG": str(site.config),
        "HOME": str(site.directory),
        "LC_ALL": "C.UTF-8",
    }
    # tmux passes on only some of the variables that it has itself.
    exports = "".join(f"export {key}={shlex.quote(value)}\n" for key, value in env.items())
    rc = site.directory / "bashrc"
    rc.write_text(f"{exports}PS1='> '\n{completion.SCRIPTS['bash']}")
    socket = site.directory / "tmux"
    server = ["tmux", "-u", "-D", "-S", str(socket), "-f", "/dev/null"]
    with processes.running(server, env={"TERM": "xterm", **env}, cwd=site.directory):
        found = Terminal(socket)
        wait.until(found.answers, what="tmux")
        shell = f"bash --noprofile --rcfile {rc} -i"
        found.do("new-session", "-d", "-x", "80", "-y", "20", shell)
        found.await_line("^> *$")
        yield found
        found.do("kill-server")


def test_tab_progress_at_three_widths_and_ctrl_c(site: cli.Site, terminal: Terminal) -> None:
    terminal.type("mapsave save w", "Tab")
    terminal.await_line(f"^> mapsave save {NAME} *$")
    terminal.type("--then resume", "Enter")
    for columns, line in (
        (80, rf"^saving {NAME[:5]}.*: write \[#* *\] {FIGURES.pattern} .*/s$"),
        (60, rf"^saving {NAME[:5]}.*: write {FIGURES.pattern}( .*/s)?$"),
        (40, rf"^(saving )?{NAME[:2]}.*…: (write )?{FIGURES.pattern}$"),
    ):
        terminal.widen(columns)
        shown = terminal.await_line(line)
        assert len(shown) < columns
    terminal.widen(80)
    terminal.do("send-keys", "C-c")
    terminal.await_line("^> *$")
    shown = "\n".join(terminal.lines())
    assert f"mapsave: saving {NAME}: resuming the guest …\n" in shown
    assert "interrupted by SIGINT; everything was rolled back [interrupted]\n" in shown
    assert emulated.status(emulated.socket_of(site, NAME)) == "running"
