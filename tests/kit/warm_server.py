"""``python -m tests.kit.warm_server KIND FD``: load modules, and fork a process for each request.

A request comes through the socket FD: what to run, and the descriptors of its streams and of the
socket that gets its exit code. The answer is its pid (``tests/kit/warm.py``).
"""

import array
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import time
from typing import Any

from tests.kit import shown_words

_MOST = 1 << 20  # bytes of a request
# What begins to run when it is loaded, and what is not of a kind.
_NEVER = ("mapsave.__main__", "mapsave.emulator.__main__")
_OF_A_FLEET = "mapsave.fleet."
_LEFT_OUT = {"commands": ("mapsave.service", "mapsave.emulator"), "service": ("mapsave.emulator",)}


def load(kind: str) -> None:
    """Load the modules that commands, the service or the emulator use."""
    package = importlib.import_module("mapsave.emulator" if kind == "emulator" else "mapsave")
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if found.name.startswith((*_NEVER, *_LEFT_OUT.get(kind, ()))):
            continue
        # The machines of tests/vm have no libraries for a fleet.
        lacks = ImportError if found.name.startswith(_OF_A_FLEET) else ()
        with contextlib.suppress(lacks):
            importlib.import_module(found.name)
    gc.collect()
    gc.freeze()


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request; return the request in the child, None at the end."""
    children: dict[int, socket.socket] = {}
    wakes, wakened = os.pipe()
    for end in (wakes, wakened):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakened)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    told: dict[socket.socket, int] = {}
    while True:
        waits: list[Any] = [requests, wakes, *told]
        ready, _, _ = select.select(waits, [], [])
        with contextlib.suppress(BlockingIOError):
            os.read(wakes, 512)
        for client in told.keys() & set(ready):
            # It has read how the process has ended, or has gone. No pid is used anew before that.
            client.recv(8)
            os.waitpid(told.pop(client), 0)
            client.close()
        told |= _tell(children)
        if requests not in ready:
            continue
        request, files = _received(requests)
        if request is None:
            return None
        begun, begins = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (requests, *children.values(), *told):
                each.detach()
            _take(files)
            return request
        os.close(begins)
        os.read(begun, 1)  # until it has closed what it has of ours
        os.close(begun)
        *streams, client_end = files
        children[pid] = socket.socket(fileno=client_end)
        for file in streams:
            os.close(file)
        requests.send(pid.to_bytes(8, "big"))


def _tell(children: dict[int, socket.socket]) -> dict[socket.socket, int]:
    """Tell the exit codes of those that have ended, as Popen has them; return who was told."""
    told = {}
    for pid in list(children):
        found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if found is not None:
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            client = children.pop(pid)
            with contextlib.suppress(BrokenPipeError):  # it has gone
                client.send(code.to_bytes(4, "big", signed=True))
            told[client] = pid
    return told


def _received(requests: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    files = array.array("i")
    raw, control, _, _ = requests.recvmsg(_MOST, socket.CMSG_SPACE(4 * files.itemsize))
    if not raw:
        return None, []
    for _, _, rights in control:
        files.frombytes(rights)
    return json.loads(raw), list(files)


def _take(files: list[int]) -> None:
    """Have these streams, and no other descriptor."""
    for number, file in enumerate(files[:3]):
        os.dup2(file, number)
    os.closerange(3, 1 << 16)


def become(request: dict[str, Any]) -> None:
    """Run what ``python -m MODULE…`` or ``python -c CODE…`` would."""
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    shown_words.show(request["words"])
    _, kind, what, *words = request["words"]
    sys.path[0] = request["directory"] if kind == "-m" else ""
    sys.argv = [kind, *words]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


if __name__ == "__main__":
    load(sys.argv[1])
    with socket.socket(fileno=int(sys.argv[2])) as end:
        wanted = serve(end)
    if wanted is not None:
        become(wanted)
