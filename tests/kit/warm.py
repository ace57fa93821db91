"""Start mapsave without the start of Python: a process that has loaded its modules forks.

To load four hundred modules is most of what a command takes of a processor, and the tests run some
thousands of commands, services and emulated guests. One process of each kind loads them once a test
run; what is started is a child of it, with words, environment, directory and streams of its own,
and runs what ``python -m`` or ``python -c`` would. It is a process as any other: its signals,
locks, descriptors and its end are real.

Python is started for what depends on that: under another command (``prlimit``, ``setpriv``), with
an environment that Python or the linker read, on a terminal, and where ``PYTHONPATH`` is not the
kit's, as in tests of the start. With ``MAPSAVE_TEST_COLD=1`` in the environment it is for all.
"""

import array
import contextlib
import functools
import json
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.kit import shown_words, tree

_COLD = "MAPSAVE_TEST_COLD"
_SERVER = "tests.kit.warm_server"
_COMMANDS = ("mapsave", "tests.faults.killer", "tests.faults.failing")
_EMULATOR = "mapsave.emulator"
# What is read when Python, or the C library, starts.
_PATH = "PYTHONPATH"
_EARLY = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
_OPTIONS = frozenset(("stdin", "stdout", "stderr", "text", "cwd"))


def program(
    words: Sequence[str | os.PathLike[str]],
    environment: Mapping[str, str],
    options: Mapping[str, Any],
) -> str | None:
    """Return which process is to fork what is to be started with these options of Popen.

    None where Python must be started for it.
    """
    if words[0] != sys.executable or len(words) < 3 or _COLD in os.environ:
        return None
    if _early(environment) != _early(os.environ):
        return None
    if environment.get(_PATH) != tree.PYTHONPATH:
        return None
    files = [options.get(name) for name in ("stdin", "stdout", "stderr")]
    if any(isinstance(file, int) and file >= 0 and os.isatty(file) for file in files):
        return None
    if not options.keys() <= _OPTIONS:
        return None
    match words[1:3]:
        # Its command line is read.
        case ["-m", module] if module == _EMULATOR:
            return "emulator" if _can_show_words() else None
        case ["-m", module] if module in _COMMANDS:
            return "service" if "serve" in words else "commands"
        case ["-c", code] if "mapsave" in str(code):
            return "service" if "serve" in words else "commands"
    return None


@functools.cache
def _can_show_words() -> bool:
    own = Path("/proc/self/cmdline").read_bytes().split(b"\0")[:-1]
    return shown_words.show([os.fsdecode(word) for word in own])


@contextlib.contextmanager
def cold() -> Iterator[None]:
    """Have Python started for all that is begun in this context."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(_COLD, "1")
        yield


def pids() -> set[int]:
    """Return the processes that fork, which live as long as the test run."""
    return {server.process.pid for server in _servers.values()}


class Popen(subprocess.Popen[Any]):
    """A process that is a fork, used as any other.

    Its methods of one underscore do what those of CPython 3.11 to 3.13 (``subprocess.py``) do.
    """

    def _execute_child(self, words: Any, *given: Any) -> None:
        directory, environment = given[4], given[5]
        ends = given[9:15]  # of pipes: (read, write) of standard input, output and error
        streams = (ends[0], ends[3], ends[5])
        environment = dict(os.environ if environment is None else environment)
        request = {
            "words": [os.fspath(word) for word in words],
            "environment": environment,
            "directory": os.fspath(directory or os.getcwd()),
        }
        files = [number if file == -1 else file for number, file in enumerate(streams)]
        kind = program(words, environment, {})
        assert kind is not None, words
        self.pid, self._told = _server(kind, environment).fork(request, files)
        self._child_created = True
        self._close_pipe_fds(*ends)  # type: ignore[attr-defined]

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """Return pid and wait status as waitpid(2) does: 0 twice where the process still runs."""
        if not select.select([self._told], [], [], 0 if wait_flags else None)[0]:
            return 0, 0
        with self._told:
            raw = self._told.recv(4)
            self._told.send(b"heard")
            self._told.recv(1)  # it is reaped now
        code = int.from_bytes(raw, "big", signed=True)
        return self.pid, code << 8 if code >= 0 else -code

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        if self.returncode is None:
            pid, status = self._try_wait(os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


class _Server:
    """A process that forks; it ends with ours, whose end of the socket is closed then."""

    def __init__(self, kind: str, environment: Mapping[str, str]) -> None:
        self._asking = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", _SERVER, kind, str(theirs.fileno())],
                # With the mark by which its children are found, too.
                env={**environment, _PATH: tree.PYTHONPATH},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )

    def fork(self, request: Mapping[str, Any], files: Sequence[int]) -> tuple[int, socket.socket]:
        """Have a process forked; return its pid, and the socket that gets its exit code."""
        told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with self._asking, tells:
            rights = array.array("i", [*files, tells.fileno()])
            control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            self._socket.sendmsg([json.dumps(request).encode()], control)
            pid = int.from_bytes(self._socket.recv(8), "big")
        assert pid, "the process that forks has ended"
        return pid, told


_servers: dict[str, _Server] = {}
_starting = threading.Lock()


def _server(kind: str, environment: Mapping[str, str]) -> _Server:
    with _starting:
        if kind not in _servers:
            _servers[kind] = _Server(kind, environment)
        return _servers[kind]


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        key: value for key, value in environment.items() if key.startswith(_EARLY) and key != _PATH
    }
