"""``mapsave.client``: programs do by it what the commands do, blocking and with asyncio."""

import asyncio
import inspect
import os
import re
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave import errors
from mapsave.client import (
    AsyncClient,
    Client,
    Progress,
    Remote,
    RequestInterrupted,
    SaveOptions,
    Tls,
    calls,
    delegate,
    events,
    exchange,
    requests,
)
from mapsave.history.states import State
from mapsave.service.api import routes

from tests.kit import cli, emulated, ports, service, tree, wait
from tests.service.authority import Authority

RESUME = SaveOptions(then="resume", replace=True)
Either = Client | AsyncClient


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA that both sides trust."""
    return Authority(tmp_path_factory.mktemp("client") / "ca")


@pytest.fixture(scope="module")
def mapsaved(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    """A service with a quick guest and a slow one, which listens on a port as well."""
    site = cli.Site(tmp_path_factory.mktemp("client") / "site")
    listen = authority.listen(ports.reserved(), operators=["alice"])
    site.settings = {"service": {"listen": listen}}
    site.add_job("nightly", guests=["db"], save={"then": "resume"})
    site.add_guest("gone", site.directory / "gone.qmp")
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, "slow", throttle="32K"),
        service.running(site) as running,
    ):
        running.await_recovery()
        yield running


def remote(mapsaved: service.Service, authority: Authority, **other: Path) -> Remote:
    """Return how alice reaches the service; ``other`` are other files than hers."""
    certificate, key = authority.issue("/CN=alice")
    files = {"certificate": certificate, "key": key, "ca": authority.certificate, **other}
    return Remote(address=mapsaved.site.settings["service"]["listen"]["address"], **files)


@pytest.fixture(params=["socket", "tls"])
def address(
    request: pytest.FixtureRequest, mapsaved: service.Service, authority: Authority
) -> str | Tls:
    """Where the service listens."""
    if request.param == "tls":
        return Tls(remote(mapsaved, authority))
    return str(mapsaved.site.socket)


@pytest.fixture(params=[Client, AsyncClient])
async def do(
    request: pytest.FixtureRequest, address: str | Tls
) -> AsyncIterator[Callable[..., Coroutine[Any, Any, Any]]]:
    """What calls a method of either client, by its name, and returns the result."""
    client = request.param(address)

    async def called(method: str, *arguments: Any, **named: Any) -> Any:
        if isinstance(client, AsyncClient):
            return await getattr(client, method)(*arguments, **named)
        return await asyncio.to_thread(getattr(client, method), *arguments, **named)

    yield called


Do = Callable[..., Coroutine[Any, Any, Any]]


async def test_a_program_does_what_the_commands_do(do: Do, mapsaved: service.Service) -> None:
    seen: list[Progress] = []
    options = SaveOptions(then="resume", image="mine", note="before the upgrade", replace=True)
    saved = await do("save", "db", options, report=seen.append)
    assert (saved.image, saved.then) == (str(mapsaved.site.images / "mine"), "resume")
    assert all(each.phase for each in seen)
    (image, *_) = await do("images", "db", latest=True)
    assert (image.name, image.note, image.guest) == ("mine", "before the upgrade", "db")
    assert (await do("image", "mine"))["guest"] == "db"
    assert (await do("image_picture", "mine")).startswith("<svg")
    assert (await do("verify", "mine"))["valid"]
    found, error = await do("check", "db")
    assert (found["can_save"], error) == (True, None)
    run = await do("run_job", "nightly")
    assert (run["saved"], run["exit_code"]) == (1, 0)
    begun = await do("begin", "save", guest="db", save=RESUME)
    ended = await do("wait", begun.id[:6])
    assert (ended.id, ended.state, ended.result["guest"]) == (begun.id, State.DONE, "db")
    assert (await do("steps", begun.id))[0].step == "begin"
    assert (await do("operation_picture", begun.id)).startswith("<svg")
    assert (await do("operations", guest="db", limit=1))[0].id == begun.id
    assert {each.name for each in await do("guests", look=True)} == {"db", "slow", "gone"}
    assert (await do("job", "nightly")).guests == ["db"]
    assert [each.name for each in (await do("jobs")).jobs] == ["nightly"]
    assert (await do("status")).running == []
    assert (await do("health")).status == "ok"
    assert (await do("guest", "db")).kind == "qmp"
    assert "save" in (await do("caller")).may
    assert (await do("get", "/v1/guests", look=True))["guests"]


async def test_errors_are_those_of_the_commands(do: Do, mapsaved: service.Service) -> None:
    with pytest.raises(errors.UnknownGuest) as unknown:
        await do("save", "bd")
    assert (unknown.value.id, unknown.value.exit_code) == ("guest.unknown", 2)
    with pytest.raises(errors.ImageNotFound):
        await do("restore", "none")
    with pytest.raises(errors.RequestInvalid, match="channels"):
        await do("save", "db", SaveOptions(channels=1000))
    with pytest.raises(errors.UnknownOperation):
        await do("wait", "0123")


def slow_save(mapsaved: service.Service) -> str:
    """Return the id of the save of the slow guest, once it writes."""

    def writing() -> Any:
        found = mapsaved.get("/v1/operations?guest=slow&state=running")["operations"]
        return found[0]["id"] if found and found[0]["step"] == "migrate" else None

    return str(wait.until(writing, what="a save that is writing"))


@pytest.mark.parametrize("by", ["cancellation", "cancel"])
async def test_a_task_that_is_cancelled_leaves_the_guest_as_it_was(
    address: str | Tls, mapsaved: service.Service, by: str
) -> None:
    client = AsyncClient(address)
    number = exchange.new_number()
    save = asyncio.create_task(client.save("slow", RESUME, operation=number))
    assert await asyncio.to_thread(slow_save, mapsaved) == number
    if by == "cancel":
        assert (await client.cancel(number)).state == State.CANCELLED
        with pytest.raises(errors.Interrupted):
            await save
    else:
        save.cancel()
        with pytest.raises(asyncio.CancelledError):
            await save
    ended = await client.operation(number)
    assert ended.state == State.CANCELLED, ended
    found, error = await client.check("slow")
    assert (found["run_state"], error) == ("running", None)


def test_interrupt_has_the_operation_cancelled(
    address: str | Tls, mapsaved: service.Service
) -> None:
    client = Client(address)
    raised: list[BaseException] = []

    def save() -> None:
        with pytest.raises(errors.Interrupted) as interrupted:
            client.save("slow", RESUME)
        raised.append(interrupted.value)

    thread = threading.Thread(target=save)
    thread.start()
    number = slow_save(mapsaved)
    client.interrupt()
    thread.join(wait.LONG)
    assert raised and Client(address).operation(number).state == State.CANCELLED


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_wait_that_is_broken_off_has_the_operation_cancelled(
    mapsaved: service.Service, error: type[BaseException]
) -> None:
    """By a signal, or a mistake in the program: it is raised once everything is rolled back."""
    client = Client(str(mapsaved.site.socket))
    number = exchange.new_number()

    def report(_: Progress) -> None:
        raise error

    with pytest.raises(error):
        client.save("slow", RESUME, report=report, operation=number)
    ended = client.operation(number)
    assert ended.state == State.CANCELLED, ended


async def test_events_of_an_operation_to_its_end(
    address: str | Tls, mapsaved: service.Service
) -> None:
    client, waiting = AsyncClient(address), Client(address)
    begun = await client.begin("save", guest="slow", save=RESUME)
    states, kinds = [], set()
    await asyncio.to_thread(slow_save, mapsaved)
    await client.post(f"/v1/operations/{begun.id}/cancel")
    async for event in client.events(begun.id):
        kinds.add(event.kind)
        if event.kind == "operation":
            states.append(event.operation())
    assert states[-1].state == State.CANCELLED, states[-1]
    assert kinds <= {"operation", "progress", "idle"}
    (last,) = [each for each in waiting.events(begun.id) if each.kind == "operation"]
    assert last.operation().id == begun.id


def test_interrupt_ends_events(mapsaved: service.Service) -> None:
    client = Client(str(mapsaved.site.socket))
    timer = threading.Timer(0.2, client.interrupt)
    timer.start()
    with pytest.raises(RequestInterrupted):
        list(client.events())
    timer.join()


async def test_many_at_once(mapsaved: service.Service) -> None:
    client = AsyncClient(str(mapsaved.site.socket))
    found = await asyncio.gather(*(client.health() for _ in range(50)))
    assert {each.status for each in found} == {"ok"}, found[0]


@pytest.mark.parametrize("kind", [Client, AsyncClient])
async def test_a_service_that_cannot_be_asked(
    kind: type[Either], mapsaved: service.Service, authority: Authority, tmp_path: Path
) -> None:
    async def message(address: str | Tls) -> errors.MapsaveError:
        with pytest.raises(errors.ServiceUnreachable) as raised:
            found = kind(address).health()
            if isinstance(found, Coroutine):
                await found
        return raised.value

    stranger = Authority(tmp_path / "stranger")
    certificate, key = stranger.issue("/CN=alice")
    refused = await message(Tls(remote(mapsaved, authority, certificate=certificate, key=key)))
    assert "'Remote.certificate' must be current" in str(refused.hint)
    wrong = await message(Tls(remote(mapsaved, authority, ca=stranger.certificate), "kvm1"))
    assert "has not proved that it is 127.0.0.1" in wrong.message
    assert "hosts.kvm1.ca" in str(wrong.hint)
    assert "does not answer" in (await message(str(tmp_path / "nothing"))).message


@pytest.mark.parametrize("turns", [1, 2, 3, 5, 8])
async def test_cancelled_while_it_begins(mapsaved: service.Service, turns: int) -> None:
    """The request may be under way: what it begins is cancelled all the same."""
    client = AsyncClient(str(mapsaved.site.socket))
    number = exchange.new_number()
    save = asyncio.create_task(client.save("slow", RESUME, operation=number))
    for _ in range(turns):
        await asyncio.sleep(0)
    save.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save
    ended = await client.operation(number)
    assert ended.state == State.CANCELLED, ended


def test_all_that_the_service_can_do_is_in_the_client() -> None:
    parts = (calls, delegate, events, exchange)
    source = "".join(Path(str(part.__file__)).read_text() for part in parts)
    kinds = {kind for kind in requests.KINDS if f'"{kind}"' not in source}
    assert kinds == set()
    paths = {route.path for route in routes.ROUTES} - {"/v1/openapi.json", "/metrics"}
    ends = {path.rpartition("}")[2] or path.partition("{")[0] for path in paths}
    assert {end for end in ends if end not in source} == set()


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, str | None]:
        found = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.getdoc(each) for name, each in found if name[0] != "_"}

    assert methods(Client).keys() - methods(AsyncClient).keys() == {"interrupt"}
    assert methods(AsyncClient).keys() <= methods(Client).keys()
    assert all(methods(Client).values())


def test_an_option_that_does_not_exist() -> None:
    with pytest.raises(TypeError, match="than"):
        SaveOptions(than="resume")  # type: ignore[call-arg]


def example(mapsaved: service.Service, name: str, *words: str) -> subprocess.Popen[str]:
    """Start an example with the configuration of the service."""
    return subprocess.Popen(
        [sys.executable, str(tree.ROOT / "examples/client" / name), *words],
        env={
            **os.environ,
            "PYTHONPATH": tree.PYTHONPATH,
            "MAPSAVE_CONFIG": str(mapsaved.site.config),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where a shell runs the tests in the background, that is ignored, and Python leaves it so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


async def test_the_image_of_a_save_that_was_complete_is_discarded(
    mapsaved: service.Service,
) -> None:
    """By its operation: its task may have been cancelled when it was past the commit."""
    discard = runpy.run_path(str(tree.ROOT / "examples/client/save_all_or_none.py"))["discard"]
    client, number = AsyncClient(str(mapsaved.site.socket)), exchange.new_number()
    saved = await client.save("db", SaveOptions(then="resume"), operation=number)
    assert saved.image is not None
    await discard(client, number)
    assert not Path(saved.image).exists()
    await discard(client, exchange.new_number())


def test_examples(mapsaved: service.Service) -> None:
    watching = example(mapsaved, "watch_failures.py")
    try:
        saving = example(mapsaved, "save_and_verify.py", "db")
        shown, progress = saving.communicate(timeout=wait.LONG)
        assert saving.returncode == 0, progress
        assert re.fullmatch(r"db-\S+\.mapsave: \d+ bytes, paused for [\d.]+ s\n", shown)
        together = example(mapsaved, "save_all_or_none.py", "db", "slow", "none")
        shown, failures = together.communicate(timeout=wait.LONG)
        assert (together.returncode, shown) == (1, "")
        assert "no guest 'none'" in failures
        last = mapsaved.get("/v1/operations?guest=slow&limit=1")["operations"][0]
        assert last["state"] == "cancelled", last
        gone = example(mapsaved, "save_and_verify.py", "gone")
        _, failures = gone.communicate(timeout=wait.LONG)
        assert (gone.returncode, "hint: " in failures) == (3, True)
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("save gone: ")
    finally:
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=wait.LONG)
    assert watching.returncode == 0


@pytest.mark.root
async def test_a_client_does_no_more_than_the_role_it_wants(mapsaved: service.Service) -> None:
    path = str(mapsaved.site.socket)
    assert Client(path).caller().role == "admin"
    assert Client(path, role="operator").caller().role == "operator"
    assert (await AsyncClient(path, role="reader").caller()).role == "reader"
    with pytest.raises(errors.RoleMissing, match="reload"):
        Client(path, role="operator").reload()
