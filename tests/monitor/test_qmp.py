"""The session over a QMP socket: reaching a monitor, losing it, and waiting for its events."""

import asyncio
import contextlib
import gc
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import qemu.qmp
from mapsave import errors
from mapsave.monitor import qmp

from tests.kit import wait
from tests.kit.emulated import Emulated, emulated

GREETING = (
    b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 9}, "package": ""}, '
    b'"capabilities": []}}\r\n'
)


@contextlib.contextmanager
def listening(path: Path, says: bytes | None = None) -> Iterator[None]:
    """Listen at ``path``; with ``says``, say that to the first client and hang up."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        if says is None:
            yield
            return
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
            task = asyncio.get_running_loop().run_in_executor(None, _say, server, says)
            yield
            client.connect(str(path))  # whoever did not connect must not leave the thread waiting
            task.cancel()


def _say(server: socket.socket, says: bytes) -> None:
    client, _ = server.accept()
    with client:
        client.sendall(says)


async def unreachable(path: Path | str, timeout: float = 5.0) -> errors.Unreachable:
    with pytest.raises(errors.Unreachable) as caught:
        async with qmp.connected(str(path), timeout=timeout):
            pass
    assert caught.value.exit_code == 3
    return caught.value


async def test_monitor_that_greets_twice_is_asked_again(tmp_path: Path) -> None:
    """As a real QEMU does now and then that has only just begun to listen."""
    path = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        serving = asyncio.get_running_loop().run_in_executor(None, _greet, server, (2, 1))
        async with qmp.connected(str(path), timeout=wait.LONG) as session:
            assert session.version.major == 9
        await serving


async def test_monitor_that_never_answers_right_is_unreachable(tmp_path: Path) -> None:
    path = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        serving = asyncio.get_running_loop().run_in_executor(None, _greet, server, (2, 2))
        await unreachable(path)
        await serving


async def test_monitor_that_hangs_up_as_soon_as_it_has_answered_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library takes a session for established which has ended by then, and asserts."""
    establish = qemu.qmp.QMPClient._establish_session

    async def slowly(client: qemu.qmp.QMPClient) -> None:
        await establish(client)
        if not ended:
            ended.append(True)
            if client.runstate == qemu.qmp.Runstate.RUNNING:
                await client.runstate_changed()

    ended: list[bool] = []
    monkeypatch.setattr(qemu.qmp.QMPClient, "_establish_session", slowly)
    path = tmp_path / "monitor"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        serving = asyncio.get_running_loop().run_in_executor(None, _answer, server)
        async with qmp.connected(str(path), timeout=wait.LONG) as session:
            assert session.version.major == 9
        await serving
    assert ended


def _answer(server: socket.socket) -> None:
    """Answer two clients, and hang up on the first at once."""
    for is_first in (True, False):
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(GREETING)
            client.recv(65536)  # qmp_capabilities
            client.sendall(b'{"return": {}}\r\n')
            if not is_first:
                client.recv(65536)


def _greet(server: socket.socket, greetings: tuple[int, ...]) -> None:
    """Serve a client after the other, each greeted so many times before it is answered."""
    for count in greetings:
        client, _ = server.accept()
        with client, contextlib.suppress(OSError):
            client.sendall(GREETING * count)
            client.recv(65536)  # qmp_capabilities
            client.sendall(b'{"return": {}, "id": "x"}\r\n')
            client.recv(65536)


async def test_greeting_tells_version_and_pid(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        assert session.address == f"qmp:{emulator.path}"
        assert session.version.release == (10, 0, 2)
        assert str(session.version) == "10.0.2"
        assert session.pid == emulator.process.pid


async def test_nothing_there(tmp_path: Path) -> None:
    error = await unreachable(tmp_path / "none")
    assert "No such file or directory" in error.message
    assert error.hint is not None and "is the guest running" in error.hint


async def test_not_a_socket(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    assert "Connection refused" in (await unreachable(tmp_path / "file")).message
    assert "Connection refused" in (await unreachable(tmp_path)).message


@pytest.mark.parametrize("path", ["nul\0byte", "/x" * 5000, "/tmp/" + "x" * 300])
async def test_impossible_path(path: str) -> None:
    assert (await unreachable(path)).id == "check.unreachable"


async def test_socket_that_nobody_serves_any_more(emulator: Emulated) -> None:
    emulator.kill()
    assert "cannot connect" in (await unreachable(emulator.path)).message


async def test_monitor_held_by_another_client(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path):
        began = time.monotonic()
        error = await unreachable(emulator.path, timeout=0.2)
        assert time.monotonic() - began < 8  # usually it waits for ten seconds
        assert error.id == "check.unreachable"
        assert "no greeting within 200 ms" in error.message
        assert (
            error.hint is not None and "another client is connected to this monitor" in error.hint
        )
    async with qmp.connected(emulator.path) as session:
        await session.execute("query-status")


async def test_listener_that_never_greets(tmp_path: Path) -> None:
    with listening(tmp_path / "silent"):
        assert "no greeting within 100 ms" in (await unreachable(tmp_path / "silent", 0.1)).message


async def test_limits_that_expire_one_after_the_other_are_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As those of a look at a guest and of its greeting: the library takes that for a bug."""
    waits, get_greeting = asyncio.Event(), qemu.qmp.QMPClient._get_greeting

    async def seen(client: qemu.qmp.QMPClient) -> object:
        waits.set()
        return await get_greeting(client)

    monkeypatch.setattr(qemu.qmp.QMPClient, "_get_greeting", seen)
    with listening(tmp_path / "silent"):
        asking = asyncio.ensure_future(unreachable(tmp_path / "silent", wait.LONG))
        await waits.wait()
        for _ in range(9):
            asking.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert not [each for each in caplog.records if each.levelname == "CRITICAL"]


async def test_cancelled_as_it_is_connected(
    emulator: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was just connected is disconnected: else its number stays in the event loop's list."""
    establish, clients = qemu.qmp.QMPClient._establish_session, []

    async def established(client: qemu.qmp.QMPClient) -> None:
        await establish(client)
        clients.append(client)
        asking.cancel()

    async def ask() -> None:
        async with qmp.connected(emulator.path):
            raise AssertionError("it was cancelled before")

    with monkeypatch.context() as patch:
        patch.setattr(qemu.qmp.QMPClient, "_establish_session", established)
        asking = asyncio.ensure_future(ask())
        with pytest.raises(asyncio.CancelledError):
            await asking
    assert [each.runstate for each in clients] == [qemu.qmp.Runstate.IDLE]
    async with qmp.connected(emulator.path) as session:
        await session.execute("query-status")


async def test_cancelled_as_it_is_disconnected(
    emulator: Emulated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its socket is closed only once the library has let go of it."""
    disconnect, clients = qemu.qmp.QMPClient.disconnect, []

    async def disconnected(client: qemu.qmp.QMPClient) -> None:
        clients.append(client)
        asyncio.get_running_loop().call_soon(asking.cancel)
        await disconnect(client)

    async def ask() -> None:
        async with qmp.connected(emulator.path):
            monkeypatch.setattr(qemu.qmp.QMPClient, "disconnect", disconnected)

    asking = asyncio.ensure_future(ask())
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert [each.runstate for each in clients] == [qemu.qmp.Runstate.IDLE]


@pytest.mark.parametrize(
    "says", [b"", b"SSH-2.0-x\r\n", b"{}\r\n", b'{"QMP": 3}\r\n', b"[" * 5000 + b"\r\n", GREETING]
)
async def test_listener_that_is_no_monitor(tmp_path: Path, says: bytes) -> None:
    with listening(tmp_path / "other", says):
        error = await unreachable(tmp_path / "other")
    assert "no QMP monitor answered" in error.message


@pytest.mark.parametrize("length", [107, 108, 109, 300, 1000])
async def test_path_longer_than_a_socket_address(tmp_path: Path, length: int) -> None:
    with emulated(tmp_path / "e.qmp") as running:
        place = tmp_path
        while length - len(str(place)) > 250:
            place /= "d" * 200
        place.mkdir(parents=True, exist_ok=True)
        path = place / ("s" * (length - len(str(place)) - 1))
        assert len(str(path)) == length
        os.rename(running.path, path)
        async with qmp.connected(str(path)) as session:
            assert session.pid == running.process.pid


async def test_refused_command_has_its_words(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        with pytest.raises(errors.CommandRefused) as caught:
            await session.execute("nosuch")
        assert caught.value.command == "nosuch"
        assert caught.value.error_class == "CommandNotFound"
        assert caught.value.desc == "The command nosuch has not been found"
        await session.execute("query-status")


async def test_monitor_lost_during_a_command(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        emulator.freeze()
        task = asyncio.ensure_future(session.execute("query-status"))
        await asyncio.sleep(0.05)
        assert not await session.wait_lost(0.01)
        emulator.kill()
        with pytest.raises(errors.MonitorLost, match="lost during query-status"):
            await task
        with pytest.raises(errors.MonitorLost):
            await session.execute("query-status")
        with pytest.raises(errors.MonitorLost):
            await session.pass_descriptor(0, 5, "x")
        assert await session.wait_lost(wait.LONG)


async def test_unanswered_command_times_out_and_the_next_works(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        emulator.freeze()
        with pytest.raises(errors.MonitorTimeout, match=r"no answer to query-status within 100 ms"):
            await session.execute("query-status", timeout=0.1)
        emulator.thaw()
        # The late answer is no one's, and not taken for that of the next command.
        assert await session.execute("query-name") == {}
        assert (await session.execute("query-status"))["status"] == "running"


async def test_events_arrive_in_order(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        with session.events("STOP", "RESUME") as events:
            began = time.monotonic()
            assert await events.next(timeout=0.1) is None
            assert time.monotonic() - began > 0.05
            for command in ("stop", "cont", "stop"):
                await session.execute(command)
            names = [
                event.name for _ in range(3) if (event := await events.next(timeout=wait.LONG))
            ]
            assert names == ["STOP", "RESUME", "STOP"]
            assert await events.next(timeout=0.05) is None


async def test_no_event_is_lost_by_a_wait_that_timed_out(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        with session.events("STOP", "RESUME") as events:
            for number in range(40):
                waiting = asyncio.ensure_future(events.next(timeout=0.002))
                await session.execute("cont" if number % 2 else "stop")
                event = await waiting or await events.next(timeout=wait.LONG)
                assert event is not None and event.name == ("RESUME" if number % 2 else "STOP")


async def test_events_after_the_loss_come_first(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        with session.events("STOP") as events:
            await session.execute("stop")
            emulator.kill()
            assert await session.wait_lost(wait.LONG)
            event = await events.next(timeout=wait.LONG)
            assert event is not None and event.name == "STOP"
            with pytest.raises(errors.MonitorLost, match="closed the monitor"):
                await events.next(timeout=wait.LONG)
        with session.events("STOP") as late, pytest.raises(errors.MonitorLost):
            await late.next(timeout=wait.LONG)


async def test_waiting_for_an_event_ends_with_the_connection(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        with session.events("NEVER") as events:
            waiting = asyncio.ensure_future(events.next())
            await asyncio.sleep(0.02)
            emulator.kill()
            with pytest.raises(errors.MonitorLost):
                await asyncio.wait_for(waiting, wait.LONG)


async def test_descriptors_passed_at_once_all_arrive(emulator: Emulated) -> None:
    async with qmp.connected(emulator.path) as session:
        given = [session.pass_descriptor(0, number, f"n{number}") for number in range(30)]
        assert len(set(await asyncio.gather(*given))) == 30
        sets = await session.execute("query-fdsets")
        assert {entry["fdset-id"]: entry["fds"][0]["opaque"] for entry in sets} == {
            number: f"n{number}" for number in range(30)
        }


async def test_error_of_the_body_is_not_hidden_by_a_lost_monitor(emulator: Emulated) -> None:
    with pytest.raises(ZeroDivisionError):
        async with qmp.connected(emulator.path):
            emulator.kill()
            _ = 1 / 0


@pytest.mark.parametrize("path", ["localhost:4444", "tcp:[::1]:4444,server=on", "/run/host:4444"])
async def test_addresses_of_tcp_are_refused_with_the_reason(path: str) -> None:
    with pytest.raises(errors.NoDescriptors, match="not over TCP"):
        async with qmp.connected(path):
            pass


async def test_no_one_need_wait_for_the_processors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who asked for them was cancelled, and then the monitor is lost: no error that no one saw."""
    with emulated(tmp_path / "monitor") as guest:
        async with qmp.connected(guest.path, timeout=20.0) as session:
            guest.freeze()
            asking = asyncio.create_task(session.processors())
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            guest.kill()
            with pytest.raises(errors.MonitorLost):
                await session.execute("query-name")
        del session, asking
        gc.collect()
    assert "never retrieved" not in caplog.text
