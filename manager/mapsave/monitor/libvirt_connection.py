"""A connection to a libvirt daemon, its events bridged into asyncio.

libvirt-python's calls block, so they run in other threads, which are daemons, so that a libvirtd
that hangs cannot hold us at the end. Whoever drops the last reference to a connection, or to a
handle of a domain, closes the connection and waits for the daemon: handles stay in those threads,
and what is dropped is dropped there. Events come from libvirt's own loop, which sleeps in poll(2)
in one thread for the whole process, and are handed over by ``call_soon_threadsafe``.
``libvirtaio`` is not used: it is not safe against calls from other threads than the loop's.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import importlib
import math
import queue
import shlex
import threading
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from mapsave import errors, units

if TYPE_CHECKING:
    from libvirt import libvirtError, virConnect, virDomain

T = TypeVar("T")

INSTALL = (
    "install libvirt-python: apt install python3-libvirt where mapsave is Debian's package, "
    "otherwise pip install 'mapsave[libvirt]' (it builds against libvirt-dev)"
)
_EXPECTED = "expected a URI such as qemu:///system"
# Seconds between two signs of life of the daemon, and how many may be missing.
_KEEPALIVE = (5, 6)
# Seconds that a call which is cancelled may still take.
GRACE = 5.0
# Seconds for a call of libvirt's that neither starts nor ends a guest.
CALL_TIMEOUT = 60.0
CLOSE_TIMEOUT = 2.0
# Connections to daemons that hang: when the last reference to one goes, libvirt-python closes it
# once more, in the thread that drops it, which may be that of the event loop.
_hanging: list[virConnect] = []
_loop_lock = threading.Lock()
_loop_runs = False


@dataclass(frozen=True)
class Life:
    """A domain in one of its lives; its id is -1 where it is shut off."""

    name: str
    uuid: str
    id: int


def life(handle: virDomain) -> Life:
    """Return the life that a domain was in when its handle was made."""
    return Life(handle.name(), handle.UUIDString(), handle.ID())


def library() -> ModuleType:
    """Return the module ``libvirt``, its event loop running. Raises Unsupported without it."""
    try:
        libvirt = importlib.import_module("libvirt")
    except ImportError:
        raise errors.Unsupported(
            "libvirt guests need libvirt-python, which is not installed", hint=INSTALL
        ) from None
    _run_event_loop(libvirt)
    return libvirt


def monitor_library() -> ModuleType:
    """Return the module ``libvirt_qemu``, which is part of libvirt-python: its monitor calls."""
    return importlib.import_module("libvirt_qemu")


def _run_event_loop(libvirt: ModuleType) -> None:
    """Start the thread of libvirt's event loop, once: it must exist before the first connection."""
    global _loop_runs
    with _loop_lock:
        if _loop_runs:
            return
        libvirt.virEventRegisterDefaultImpl()
        libvirt.registerErrorHandler(lambda *_: None, None)  # else it prints what it raises

        def turn() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        threading.Thread(target=turn, name="libvirt-events", daemon=True).start()
        _loop_runs = True


class _Worker:
    def __init__(self) -> None:
        self._given: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        threading.Thread(target=self._turn, name="libvirt-call", daemon=True).start()

    def do(self, work: Callable[[], None]) -> None:
        """Do ``work``, which must not raise, and be idle again."""
        self._given.put(work)

    def _turn(self) -> None:
        while True:
            self._given.get()()
            _idle.append(self)


# A new thread for every call took longer than most calls: libvirt sets much up for each thread.
_idle: collections.deque[_Worker] = collections.deque()


def _idle_worker() -> _Worker:
    """Return a worker that is idle, or a new one: a call that hangs holds up no other."""
    try:
        return _idle.pop()
    except IndexError:
        return _Worker()


async def call(
    function: Callable[..., T],
    *arguments: object,
    grace: float | None = None,
    timeout: float | None = math.inf,
) -> T:
    """Run a blocking function in a daemon thread; what it raises is raised here.

    Cancelled, it waits ``grace`` seconds (GRACE) for the function, so that what undoes it comes
    after it; then the function runs on without us. Raises MonitorTimeout after ``timeout`` seconds
    (CALL_TIMEOUT); with None the caller limits it. What is returned too late is dropped in its
    thread, and so are the handles that an exception's frames have.
    """
    grace = GRACE if grace is None else grace
    limit = CALL_TIMEOUT if timeout == math.inf else timeout
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    # What comes late no one else looks at, and asyncio would log that.
    done.add_done_callback(lambda late: late.cancelled() or late.exception())
    returned: list[T] = []
    is_abandoned = threading.Event()

    def deliver(error: BaseException | None) -> None:
        if done.done():  # the loop is winding up
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def work() -> None:
        raised: BaseException | None = None
        try:
            returned.append(function(*arguments))
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            raised = error
        if is_abandoned.is_set():
            returned.clear()
        with contextlib.suppress(RuntimeError):  # the loop has ended in the meantime
            loop.call_soon_threadsafe(deliver, raised)

    _idle_worker().do(work)
    try:
        async with asyncio.timeout(limit):
            await asyncio.shield(done)
        return returned.pop()
    except TimeoutError:
        raise errors.MonitorTimeout(
            f"libvirt has not answered for {units.format_duration(limit or 0)}"
        ) from None
    except asyncio.CancelledError:
        if not done.done():
            await asyncio.wait({done}, timeout=grace)
        raise
    finally:
        is_abandoned.set()
        if returned:
            _idle_worker().do(returned.clear)


async def connect(uri: str) -> virConnect:
    """Return a ``virConnect`` to ``uri``, whose driver is QEMU's.

    Raises Unsupported, Unreachable, NotPermitted; NoDescriptors where it is remote; UsageError
    where the URI is none, or of another driver.
    """
    libvirt = library()
    _check_local(uri, uri)
    try:
        connection = await call(libvirt.open, uri)
    except errors.MonitorTimeout as error:
        raise _is_silent(uri, error) from None
    except libvirt.libvirtError as error:
        raise _not_reached(libvirt, uri, error) from None
    except ValueError:  # as libvirt-python has it for what is no C string in UTF-8
        raise errors.UsageError(
            f"the URI {uri!r} contains a NUL, or bytes that are not UTF-8", hint=_EXPECTED
        ) from None
    try:
        driver, real = await call(lambda: (connection.getType(), connection.getURI()))
        if driver != "QEMU":
            raise errors.UsageError(
                f"libvirt at {uri!r} uses the driver {driver!r}, whose guests have no QEMU monitor",
                hint=_EXPECTED,
            )
        _check_local(uri, real)  # ``uri`` may be an alias of libvirt.conf
    except BaseException as error:
        await close(connection)
        if isinstance(error, libvirt.libvirtError):
            raise _not_reached(libvirt, uri, error) from None
        if isinstance(error, errors.MonitorTimeout):
            raise _is_silent(uri, error) from None
        raise
    # Not every driver has it (embed): then a daemon that hangs is noticed by time limits only.
    with contextlib.suppress(libvirt.libvirtError):
        connection.setKeepAlive(*_KEEPALIVE)
    return connection


def _check_local(uri: str, real: str) -> None:
    """Raise NoDescriptors unless ``real``, what ``uri`` is an alias of, leads to a socket here.

    libvirt passes descriptors over unix sockets only (``rpc/virnetclient.c``); the transport is in
    the URI's scheme, and without one a host name means a remote daemon (libvirt's ``uri.html``).
    """
    try:
        parts = urllib.parse.urlsplit(real)
        transport, is_remote = parts.scheme.partition("+")[2], bool(parts.netloc)
    except ValueError:
        return  # libvirt says what is wrong with it
    if is_remote or transport not in ("", "unix"):
        raise errors.NoDescriptors(
            f"libvirt at {uri!r} is remote, and descriptors are passed only through a socket of "
            "the same host",
            hint="run mapsave on the host of the guest, with a URI such as qemu:///system",
            uri=uri,
        )


def _is_silent(uri: str, error: errors.MonitorTimeout) -> errors.MapsaveError:
    return errors.Unreachable(
        f"cannot connect to libvirt at {uri!r}: {error.message}", hint="is libvirtd hanging?"
    )


def _not_reached(libvirt: ModuleType, uri: str, error: libvirtError) -> errors.MapsaveError:
    message = f"cannot connect to libvirt at {uri!r}: {error}"
    code = error.get_error_code()
    denied = _codes(libvirt, "AUTH_FAILED", "AUTH_UNAVAILABLE", "AUTH_CANCELLED")
    if code in denied or "Permission denied" in str(error):
        return errors.NotPermitted(message, hint="run as root, or as a member of the libvirt group")
    # To libvirt it is an "internal error" too (viruri.c, virConnectValidateURIPath).
    bad_uri = code in _codes(libvirt, "INTERNAL_ERROR") and "URI" in str(error)
    if bad_uri or code in _codes(libvirt, "INVALID_ARG", "NO_CONNECT"):
        return errors.UsageError(message, hint=_EXPECTED)
    return errors.Unreachable(message, hint="is libvirtd (or virtqemud) running?")


def _codes(libvirt: ModuleType, *names: str) -> set[int]:
    return {getattr(libvirt, f"VIR_ERR_{name}") for name in names}


@contextlib.asynccontextmanager
async def connected(uri: str) -> AsyncIterator[virConnect]:
    """Connect to ``uri`` for as long as the context lasts. Raises as ``connect`` does."""
    connection = await connect(uri)
    try:
        yield connection
    finally:
        await close(connection)


async def capabilities(uri: str) -> str:
    """Return what libvirt says that this host can do, as XML. Raises as ``connect``."""
    async with connected(uri) as connection:
        return await call(lambda: str(connection.getCapabilities()))


async def close(connection: virConnect) -> None:
    """Close a connection, alive or not."""
    try:
        await call(connection.close, timeout=CLOSE_TIMEOUT)
    except errors.MonitorTimeout:
        _hanging.append(connection)
    except asyncio.CancelledError:
        _hanging.append(connection)
        raise
    except library().libvirtError:
        pass


async def find_domain(connection: virConnect, uri: str, named: str) -> Life:
    """Return a domain by its name, else uuid, else id. Raises UnknownGuest, Unreachable."""
    libvirt = library()
    lookups: list[Callable[[], virDomain]] = [
        functools.partial(connection.lookupByName, named),
        functools.partial(connection.lookupByUUIDString, named),
    ]
    if named.isdecimal() and len(named) < 10:
        lookups.append(functools.partial(connection.lookupByID, int(named)))
    for lookup in lookups:
        try:
            return await call(lambda look: life(look()), lookup)
        except errors.MonitorTimeout as error:
            raise errors.Unreachable(f"libvirt at {uri!r}: {error.message}") from None
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (
                libvirt.VIR_ERR_NO_DOMAIN,
                libvirt.VIR_ERR_INVALID_ARG,
            ):
                raise errors.Unreachable(f"libvirt at {uri!r}: {error}") from None
        except ValueError:  # a NUL, or no UTF-8: libvirt has no such name
            continue
    raise errors.UnknownGuest(
        f"libvirt at {uri!r} has no domain {named!r}",
        hint=f"see 'virsh -c {shlex.quote(uri)} list --all', or 'mapsave list --libvirt'",
    )
