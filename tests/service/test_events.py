"""Server-sent events: what is told, to whom, and what becomes of listeners that do not read."""

import json
import re
import resource
import selectors
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from mapsave.history.states import ENDED

from tests.kit import cli, emulated, limits, service, wait, warm
from tests.service import impatient

LISTENERS = 2000
DEAF = 20
ROUNDS = 6
MOST_KEPT = 64 << 20  # bytes of memory
LARGE: dict[str, Any] = {"kind": "save-all", "guests": ["x" * 1000] * 25, "dry_run": True}
_NUMBER = re.compile(rb"id: (\d+)\n")


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with a guest that is slow to save; not a fork, for its memory is measured."""
    site = cli.Site(tmp_path_factory.mktemp("events") / "site")
    with (
        emulated.guest(site, "db", throttle="4M"),
        warm.cold(),
        # Patient with those that read, however busy the machine is.
        service.running(site, command=impatient.command(reading=10.0, beat=0.5)) as running,
    ):
        yield running


class Listener:
    """Somebody who listens: parses what was read so far."""

    def __init__(self, mapsaved: service.Service, query: str = "") -> None:
        self.socket = service.connect(mapsaved.site.socket)
        self.socket.sendall(f"GET /v1/events{query} HTTP/1.0\r\n\r\n".encode())
        self.numbers: list[int] = []
        self.events: list[tuple[str, Any]] = []
        self.latest = b""
        self.comments = 0
        self.keeps = True
        self._head, self._rest = b"", b""

    @property
    def status(self) -> bytes:
        """The first line of the answer."""
        return self._head.split(b"\r\n", 1)[0]

    def read(self) -> bool:
        """Read what there is; return False once the service has closed the connection."""
        try:
            piece = self.socket.recv(1 << 18)
        except ConnectionResetError:
            return False
        self._rest += piece
        if not self._head and b"\r\n\r\n" in self._rest:
            self._head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        if self._head:
            *whole, self._rest = self._rest.split(b"\n\n")
            for event in whole:
                self._take(event)
        return bool(piece)

    def _take(self, event: bytes) -> None:
        if event.startswith(b":"):
            self.comments += 1
            return
        found = _NUMBER.match(event)
        assert found is not None, event
        self.numbers.append(int(found[1]))
        self.latest = event
        if self.keeps:
            fields = dict(line.split(": ", 1) for line in event.decode().splitlines())
            self.events.append((fields["event"], json.loads(fields["data"])))

    def until(self, condition: Any) -> None:
        while not condition(self):
            assert self.read(), (self._head, self._rest, self.events)


@contextmanager
def listening(mapsaved: service.Service, query: str = "") -> Iterator[Listener]:
    """Yield a listener that is being served."""
    listener = Listener(mapsaved, query)
    with listener.socket:
        # A comment is the proof that it is among those who are told.
        listener.until(lambda it: it.comments)
        yield listener


def ended(listener: Listener, operation: str) -> bool:
    """Return whether the end of an operation has been told."""
    return any(
        kind == "operation" and data["id"] == operation and data["state"] in ENDED
        for kind, data in listener.events
    )


def test_a_save_is_told_from_its_begin_to_its_end(mapsaved: service.Service) -> None:
    with listening(mapsaved) as listener:
        number = mapsaved.begin(kind="save", guest="db", save={"then": "resume"})["id"]
        listener.until(lambda it: ended(it, number))
    assert listener.status == b"HTTP/1.0 200 OK"
    assert listener.numbers == list(range(listener.numbers[0], listener.numbers[-1] + 1))
    operations = [data for kind, data in listener.events if kind == "operation"]
    states = list(dict.fromkeys(each["state"] for each in operations))
    assert states == ["pending", "running", "committing", "done"]
    steps = [each["step"] for each in operations if each["step"]]
    assert list(dict.fromkeys(steps))[-1:] == ["committed"]
    assert {**operations[-1], "revision": 0} == mapsaved.get(f"/v1/operations/{number}")
    progress = [data for kind, data in listener.events if kind == "progress"]
    assert {each["id"] for each in progress} == {number}
    done = [each["progress"]["done_bytes"] for each in progress]
    assert any(each > 0 for each in done)
    assert {each["progress"]["phase"] for each in progress} >= {"write"}


def test_one_operation_alone_can_be_listened_to(mapsaved: service.Service) -> None:
    number = mapsaved.begin(kind="save", guest="db", save={"then": "resume"})["id"]
    listener = Listener(mapsaved, f"?operation={number[:11]}")
    with listener.socket:
        other = mapsaved.begin(kind="verify", image="nothing")["id"]
        listener.until(lambda it: ended(it, number))
    assert mapsaved.ended(other)["state"] == "failed"
    assert {data["id"] for _, data in listener.events} == {number}


def test_a_listener_with_nothing_to_hear_gets_comments(mapsaved: service.Service) -> None:
    with listening(mapsaved) as listener:
        listener.until(lambda it: it.comments >= 3)
        assert listener.events == []


def test_the_end_of_the_service_ends_the_listening(site: cli.Site) -> None:
    with service.running(site) as mapsaved:
        listener = Listener(mapsaved)
        with listener.socket:
            wait.until(lambda: metric(mapsaved, "mapsave_event_listeners") == 1, what="listener")
            assert mapsaved.stop() == 0
            while listener.read():
                pass
    assert listener.status == b"HTTP/1.0 200 OK"


def metric(mapsaved: service.Service, name: str) -> float:
    """Return the value of a metric without labels."""
    text = mapsaved.request("GET", "/metrics").body.decode()
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@contextmanager
def _enough_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Talk(threading.Thread):
    """Begins operations of which there is much to tell, and looks at the service in the
    meantime."""

    def __init__(self, mapsaved: service.Service) -> None:
        super().__init__()
        self.mapsaved = mapsaved
        self.error: Exception | None = None
        self.last: str | None = None

    def run(self) -> None:
        try:
            for _ in range(ROUNDS):
                number = self.mapsaved.begin(**LARGE)["id"]
                self.mapsaved.get("/v1/health")
                self.mapsaved.ended(number)
            self.last = number
        except Exception as error:
            self.error = error


def _has_heard(listener: Listener, operation: str | None) -> bool:
    """Return whether the last that a listener heard is the end of an operation."""
    ends = (b'"state":"done"', b'"state":"failed"')
    told = listener.latest
    return operation is not None and operation.encode() in told and any(e in told for e in ends)


def _hear(listeners: list[Listener], talk: Talk) -> None:
    """Let all listeners hear until nothing more is told."""
    with selectors.DefaultSelector() as selector:
        for each in listeners:
            each.socket.setblocking(False)
            selector.register(each.socket, selectors.EVENT_READ, each)
        talk.start()
        while talk.error is None and not all(_has_heard(each, talk.last) for each in listeners):
            for key, _ in selector.select(0.2):
                assert key.data.read(), "a listener that reads was disconnected"
        talk.join()
    if talk.error is not None:
        raise talk.error


def test_thousands_listen_and_those_that_do_not_read_are_disconnected(
    mapsaved: service.Service,
) -> None:
    descriptors, memory = limits.descriptors(mapsaved.pid), impatient.memory(mapsaved)
    with _enough_descriptors(), ExitStack() as stack:
        listeners = [Listener(mapsaved) for _ in range(LISTENERS)]
        for each in listeners:
            stack.enter_context(each.socket)
            each.keeps = False
        wait.until(
            lambda: metric(mapsaved, "mapsave_event_listeners") == LISTENERS, what="listeners"
        )
        deaf, others = listeners[:DEAF], listeners[DEAF:]
        talk = Talk(mapsaved)
        _hear(others, talk)
        heard = others[0].numbers
        assert heard == list(range(heard[0], heard[-1] + 1))
        assert len(heard) >= 3 * ROUNDS
        assert all(each.numbers == heard for each in others)
        wait.until(
            lambda: metric(mapsaved, "mapsave_event_listeners") == LISTENERS - DEAF,
            what="end of those that do not read",
        )
        for each in deaf:
            while each.read():
                pass
            assert len(each.numbers) < len(heard)
    wait.until(lambda: metric(mapsaved, "mapsave_event_listeners") == 0, what="end of listeners")
    wait.until(lambda: limits.descriptors(mapsaved.pid) <= descriptors, what="end of connections")
    # An interpreter keeps some of what it once had for the next time, and gives back the rest
    # when the service looks at its memory the next time.
    wait.until(lambda: impatient.memory(mapsaved) - memory < MOST_KEPT, what="memory given back")
