"""A Unix socket that leads to another one, and that can be cut as a network is.

    with socket_proxy.running(directory / ".s.PGSQL.5432", target) as proxy:
        proxy.cut()
        proxy.heal()

What is cut is not closed: either side waits, and learns nothing.
"""

import contextlib
import selectors
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_LOOK = 0.05  # seconds until a change is seen
_PIECE = 1 << 16


@dataclass
class Proxy:
    """A proxy that runs. ``target`` may be changed: connections that there are go on."""

    path: Path
    target: Path
    _cut: threading.Event = field(default_factory=threading.Event, repr=False)
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _drop: threading.Event = field(default_factory=threading.Event, repr=False)

    def cut(self) -> None:
        """Pass on nothing any more, in neither direction, and connect no one."""
        self._cut.set()

    def heal(self, *, drop: bool = False) -> None:
        """Pass on what has waited; with ``drop`` close its connections instead."""
        if drop:
            self._drop.set()
            # Until they are gone: what waits must not be passed on.
            while self._drop.is_set() and not self._ended.is_set():
                self._ended.wait(_LOOK)
        self._cut.clear()

    def run(self, listener: socket.socket) -> None:
        """Pass on until ``stop``."""
        pairs: dict[socket.socket, socket.socket] = {}
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._ended.is_set():
                if self._drop.is_set():
                    for each in list(pairs):
                        self._close(selector, pairs, each)
                    self._drop.clear()
                if self._cut.is_set():
                    self._ended.wait(_LOOK)
                    continue
                for key, _ in selector.select(_LOOK):
                    if self._cut.is_set():
                        break
                    if key.fileobj is listener:
                        self._accept(selector, pairs, listener)
                    elif isinstance(key.fileobj, socket.socket) and key.fileobj in pairs:
                        self._pass_on(selector, pairs, key.fileobj)
        for each in list(pairs):
            each.close()

    def _accept(
        self,
        selector: selectors.BaseSelector,
        pairs: dict[socket.socket, socket.socket],
        listener: socket.socket,
    ) -> None:
        near, _ = listener.accept()
        far = socket.socket(socket.AF_UNIX)
        try:
            far.connect(str(self.target))
        except OSError:
            near.close()
            far.close()
            return
        for one, other in ((near, far), (far, near)):
            pairs[one] = other
            selector.register(one, selectors.EVENT_READ)

    def _pass_on(
        self,
        selector: selectors.BaseSelector,
        pairs: dict[socket.socket, socket.socket],
        one: socket.socket,
    ) -> None:
        try:
            piece = one.recv(_PIECE)
            if piece:
                pairs[one].sendall(piece)
                return
        except OSError:
            pass
        self._close(selector, pairs, one)

    @staticmethod
    def _close(
        selector: selectors.BaseSelector,
        pairs: dict[socket.socket, socket.socket],
        one: socket.socket,
    ) -> None:
        if one in pairs:
            for each in (pairs.pop(one), one):
                pairs.pop(each, None)
                selector.unregister(each)
                each.close()

    def stop(self) -> None:
        """Have ``run`` end."""
        self._ended.set()


@contextlib.contextmanager
def running(path: Path, target: Path) -> Iterator[Proxy]:
    """Listen at ``path`` and pass on to ``target`` what comes, until the end."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o777)
        listener.listen(64)
        proxy = Proxy(path, target)
        thread = threading.Thread(target=proxy.run, args=(listener,), daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            proxy.stop()
            thread.join()
            path.unlink()
