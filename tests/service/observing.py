"""What a service would say of itself to its metrics, and what takes the place of journald."""

import contextlib
import dataclasses
import fcntl
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mapsave.client import requests
from mapsave.history import states
from mapsave.history.rows import Record
from mapsave.service.log import setup
from mapsave.service.metrics.metrics import Metrics
from mapsave.service.metrics.scrape import JobState, Sources
from mapsave.service_settings import LogFormat
from prometheus_client import parser
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics_parser

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclasses.dataclass
class State:
    """What the service would say."""

    images: Path
    running: dict[str, int] = dataclasses.field(default_factory=dict)
    pending: int = 0
    journal: int = 4096
    jobs: dict[str, JobState] = dataclasses.field(default_factory=dict)
    listeners: int = 0

    def sources(self, **other: Any) -> Sources:
        return Sources(
            **{
                "kinds": requests.KINDS,
                "running": lambda: self.running,
                "pending": lambda: self.pending,
                "journal_bytes": lambda: self.journal,
                "images": lambda: self.images,
                "state": lambda: self.images.parent / "state",
                "jobs": lambda: self.jobs,
                "listeners": lambda: self.listeners,
                **other,
            }
        )


def saved(**different: Any) -> Record:
    result = {"guest": "db", "data_bytes": 1 << 30, "bytes_per_s": 2_000_000, "duration_s": 3.0}
    record = {
        "id": "0123456789ab",
        "kind": "save",
        "state": "done",
        "parent": None,
        "image": None,
        "user": "root",
        "request": {},
        "created": 1000.0,
        "guest": "db",
        "job": "nightly",
        "started": 1000.0,
        "ended": 1009.0,
        "result": {**result, "downtime_s": 0.2},
        "error": None,
    }
    known = {**record, **different}
    return Record(**{**known, "state": states.State(known["state"])})


async def families(metrics: Metrics, accept: str | None = None) -> list[Metric]:
    content, content_type = await metrics.render(accept)
    of = openmetrics_parser if "openmetrics" in content_type else parser
    return list(of.text_string_to_metric_families(content.decode()))


async def samples(metrics: Metrics) -> Samples:
    """Return all samples by name and labels, those without a value left out."""
    return {
        (each.name, frozenset((k, v) for k, v in each.labels.items() if v)): each.value
        for family in await families(metrics)
        for each in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"mapsave_{name}", frozenset(labels.items())


class Receiver:
    """A socket at a path; ``entries`` parses what arrived, as the protocol's description has it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)

    def entries(self) -> list[dict[str, bytes]]:
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                data, fds, _, _ = socket.recv_fds(self.socket, 1 << 20, 1)
                found.append(parsed(data or content(fds[0])))
        return found


def content(fd: int) -> bytes:
    """Return what a sealed file holds; journald takes no other, for it could be changed."""
    with open(fd, "rb") as file:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals & fcntl.F_SEAL_WRITE
        assert seals & fcntl.F_SEAL_SHRINK
        return os.pread(fd, os.fstat(file.fileno()).st_size, 0)


def parsed(data: bytes) -> dict[str, bytes]:
    """Return the fields of an entry."""
    fields = {}
    while data:
        line, _, rest = data.partition(b"\n")
        if b"=" in line:
            name, _, value = line.partition(b"=")
            data = rest
        else:
            name, length = line, int.from_bytes(rest[:8], "little")
            value, end, data = (
                rest[8 : 8 + length],
                rest[8 + length : 9 + length],
                rest[9 + length :],
            )
            assert end == b"\n"
        assert name.decode() not in fields
        fields[name.decode()] = value
    return fields


@contextlib.contextmanager
def receiving() -> Iterator[Receiver]:
    """Yield a receiver; its path is short enough for an address."""
    with tempfile.TemporaryDirectory(prefix="mapsave-test-") as directory:
        made = Receiver(Path(directory) / "socket")
        with made.socket:
            yield made


@contextlib.contextmanager
def configured(form: LogFormat = "auto", **how: Any) -> Iterator[None]:
    """Log as ``setup.configure`` does, and as before at the end."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    loud = [logging.getLogger(name) for name in ("qemu.qmp", "aiohttp.access", "asyncio")]
    levels = [each.level for each in loud]
    try:
        setup.configure(form, **how)
        yield
    finally:
        for each in [each for each in root.handlers if each not in handlers]:
            root.removeHandler(each)
            each.close()
        for each in [each for each in handlers if each not in root.handlers]:
            root.addHandler(each)
        root.setLevel(level)
        for logger, was in zip(loud, levels, strict=True):
            logger.setLevel(was)


@contextlib.contextmanager
def bound(**facts: object) -> Iterator[None]:
    """Do as ``setup.bind`` does for what is inside."""
    token = setup.bind(**facts)
    try:
        yield
    finally:
        token.var.reset(token)
