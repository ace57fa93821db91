"""mapsaved inside the virtual machine, told of by the socket where systemd's would be."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mapsave.history.states import ENDED

from tests.kit import cli, service, wait
from tests.kit.service import Service

_NOTIFY = Path("/run/systemd/notify")


@contextmanager
def running(site: cli.Site, command: list[str] | None = None) -> Iterator[Service]:
    """Run a service from the moment it says that it is ready: ``service.running`` asks for that.

    There is one processor, and whoever asks takes it from the service that starts.
    """
    with (
        _heard() as heard,
        service.started(site, command=command, env={"NOTIFY_SOCKET": str(_NOTIFY)}) as started,
    ):
        try:
            said = heard.recv(1 << 12)
        except TimeoutError:
            raise AssertionError(f"not ready: {started.logged()}") from None
        assert said == b"READY=1", said
        yield started
        assert "Traceback (most recent call last)" not in started.logged(), started.logged()


def await_begin(site: cli.Site) -> None:
    """Wait until an operation has begun: until then asking QEMU would only take time from it."""
    wait.until(lambda: any(site.state.glob("journal/*")), what="an operation")


def done(service: Service, **body: Any) -> None:
    """Do an operation to its end, which must be a good one; the service tells when that is."""
    found = service.begin(**body)
    while found["state"] not in ENDED:
        found = service.get(f"/v1/operations/{found['id']}?wait=30&since={found['revision']}")
    assert found["state"] == "done", found


@contextmanager
def _heard() -> Iterator[socket.socket]:
    _NOTIFY.parent.mkdir(exist_ok=True)
    _NOTIFY.unlink(missing_ok=True)  # of a service before this one, which was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(_NOTIFY))
        heard.settimeout(wait.LONG)
        yield heard
    _NOTIFY.unlink(missing_ok=True)
