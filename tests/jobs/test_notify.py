"""Webhooks are real servers here, on the loopback: told, tried again, given up, never raised."""

import asyncio
import base64
import contextlib
import email.utils
import json
import logging
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import mapsave
import pytest
from aiohttp import web
from mapsave import errors, units
from mapsave.service import webhooks
from mapsave.service_settings import Outcome, Webhook

from tests.kit import wait
from tests.service.authority import Authority

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


OPERATION = {"id": "0123456789ab", "kind": "save", "state": "done", "result": {"then": "quit"}}
MESSAGE = webhooks.message_of(OPERATION)
PACE = 0.01
SECRETS = ("hunter2", "T0ken", "p4th")


class Server:
    """What came to a webhook, and when (``time.monotonic``)."""

    def __init__(self, *answers: Answer | int) -> None:
        self._answers = list(answers)
        self.requests: list[web.BaseRequest] = []
        self.bodies: list[bytes] = []
        self.times: list[float] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Give the next answer; the last one again and again."""
        self.requests.append(request)
        self.times.append(time.monotonic())
        self.bodies.append(await request.read())
        next_one = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(next_one, int):
            return web.Response(status=next_one, text="words of the server")
        return await next_one(request)


@contextlib.asynccontextmanager
async def served(
    *answers: Answer | int, secured: ssl.SSLContext | None = None
) -> AsyncIterator[Server]:
    server = Server(*answers)
    application = web.Application()
    application.router.add_post("/{tail:.*}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=secured).start()
        server.url = f"http{'s' if secured else ''}://127.0.0.1:{runner.addresses[0][1]}/"
        yield server
    finally:
        await runner.cleanup()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


@pytest.mark.parametrize("how", ["url_file", "url_credential"])
async def test_an_address_from_elsewhere_is_read_for_each_report(
    how: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    path = tmp_path / "chat"
    webhook = Webhook(**{how: path if how == "url_file" else "chat"}, on=("success",))
    with pytest.raises(errors.ConfigError, match=r"notify\[0\]: cannot read '.*/chat'"):
        webhooks.check([webhook])
    path.write_text("hunter2")
    with pytest.raises(errors.ConfigError, match="does not hold an address") as refused:
        webhooks.check([webhook])
    assert "hunter2" not in str(refused.value)
    async with served(200) as server:
        path.write_text(f"{server.url}\n")
        webhooks.check([webhook])
        await webhooks.send([webhook], MESSAGE, "success", pace=PACE)
        assert len(server.requests) == 1
        path.unlink()
        await webhooks.send([webhook], MESSAGE, "success", pace=PACE)
    (warning,) = warnings(caplog)
    assert "webhook 1 was not notified: cannot read" in warning


async def tell(*urls: str, **settings: Any) -> None:
    listed = [Webhook(url, on=("failure", "success"), **settings) for url in urls]
    await webhooks.send(listed, MESSAGE, "success", pace=PACE)


@pytest.mark.parametrize(
    ("facts", "outcome", "summary"),
    [
        ({"kind": "save", "guest": "db", "state": "done"}, "success", "save db done"),
        (
            {"state": "done", "result": {"saved": 2, "failed": 0, "exit_code": 0}},
            *("success", "job nightly done: 2 saved"),
        ),
        (
            {"state": "done", "result": {"saved": 4, "failed": 2, "exit_code": 4}},
            *("failure", "job nightly done: 4 saved, 2 FAILED"),
        ),
        (
            {"state": "failed", "result": {"saved": 0, "failed": 2, "exit_code": 4}},
            *("failure", "job nightly failed: 0 saved, 2 FAILED"),
        ),
        (
            {"state": "done", "result": {"saved": 4, "failed": 0, "exit_code": 7}},
            *("failure", "job nightly done: 4 saved, old images NOT removed"),
        ),
        (
            {"state": "cancelled", "error": {"message": "words", "id": "interrupted"}},
            *("failure", "job nightly cancelled: words [interrupted]"),
        ),
    ],
)
def test_message(facts: dict[str, Any], outcome: Outcome, summary: str) -> None:
    before = time.time()
    unsaid = {"kind": "job", "job": "nightly", "guest": None, "result": None, "error": None}
    operation = {**unsaid, **facts} | ({"job": None} if "guest" in facts else {})
    message = webhooks.message_of(operation)
    assert units.timestamp(before) <= message.pop("time") <= units.timestamp(time.time())
    assert message == {
        "mapsave": mapsave.__version__,
        "host": socket.gethostname(),
        "outcome": outcome,
        "summary": summary,
        "operation": operation,
    }


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "unknown"])
async def test_https_is_verified_by_the_certificates_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_known: bool
) -> None:
    """By those of now: what aiohttp read when it was imported is of no account."""
    authority = Authority(tmp_path / "ca")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*map(str, authority.issue("/CN=webhook", "serverAuth")))
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate) if is_known else os.devnull)
    async with served(204, secured=context) as server:
        await tell(server.url)
    assert len(server.requests) == is_known


async def test_a_webhook_gets_the_message(caplog: pytest.LogCaptureFixture) -> None:
    async with served(204) as server:
        url = server.url.replace("//", "//user:hunter2@") + "some/path?token=T0ken"
        await tell(url)
    (request,) = server.requests
    assert request.path_qs == "/some/path?token=T0ken"
    assert request.headers["Content-Type"] == "application/json"
    credentials = base64.b64encode(b"user:hunter2").decode()
    assert request.headers["Authorization"] == f"Basic {credentials}"
    assert json.loads(server.bodies[0]) == MESSAGE
    assert warnings(caplog) == []


@pytest.mark.parametrize("outcome", ["failure", "success"])
async def test_only_who_wants_to_know_is_told(outcome: Outcome) -> None:
    async with served(200) as failures, served(200) as successes, served(200) as both:
        listed = [
            Webhook(failures.url),
            Webhook(successes.url, on=("success",)),
            Webhook(both.url, on=("failure", "success")),
        ]
        await webhooks.send(listed, MESSAGE, outcome, pace=PACE)
    assert len(failures.bodies) == (outcome == "failure")
    assert len(successes.bodies) == (outcome == "success")
    assert len(both.bodies) == 1


async def _hang_up(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


def _name(answer: object) -> str:
    return getattr(answer, "__name__", str(answer))


async def _sleep(request: web.Request) -> web.StreamResponse:
    await asyncio.sleep(600)
    return web.Response()


@pytest.mark.parametrize("failure", [500, 502, 503, 429, _hang_up], ids=_name)
async def test_what_may_pass_is_tried_again(
    caplog: pytest.LogCaptureFixture, failure: Answer | int
) -> None:
    async with served(failure, failure, failure, failure, 200) as server:
        await tell(server.url)
    assert len(server.bodies) == webhooks.TRIES == 5
    assert set(server.bodies) == {server.bodies[0]}
    assert warnings(caplog) == []
    waits = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert all(each >= PACE * 2**n for n, each in enumerate(waits))


async def test_a_slow_server_is_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async with served(_sleep, 200) as server:
        await tell(server.url, timeout=1.0)
    assert len(server.bodies) >= 2  # the second answer may be slow as well, on a busy machine
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (500, "the server answered 500"),
        (429, "the server answered 429"),
        (_hang_up, "ServerDisconnectedError"),
    ],
    ids=_name,
)
async def test_it_is_given_up_after_five_tries(
    caplog: pytest.LogCaptureFixture, answer: Answer | int, words: str
) -> None:
    async with served(answer) as server:
        await tell(server.url)
    assert len(server.bodies) == 5
    (warning,) = warnings(caplog)
    assert "was not notified, after 5 attempts" in warning
    assert words in warning


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        await tell(f"http://127.0.0.1:{bound.getsockname()[1]}/")
    (warning,) = warnings(caplog)
    assert "was not notified, after 5 attempts: Connect" in warning


@pytest.mark.parametrize("status", [400, 401, 404, 410, 413])
async def test_what_will_not_pass_is_tried_once(
    caplog: pytest.LogCaptureFixture, status: int
) -> None:
    async with served(status) as server:
        await tell(server.url)
    assert len(server.bodies) == 1
    (warning,) = warnings(caplog)
    assert warning.endswith(f"was not notified: the server answered {status}")


async def test_redirects_are_not_followed(caplog: pytest.LogCaptureFixture) -> None:
    async with served(200) as elsewhere:

        async def redirect(request: web.Request) -> web.StreamResponse:
            raise web.HTTPTemporaryRedirect(elsewhere.url)

        async with served(redirect) as server:
            await tell(server.url)
    assert (len(server.bodies), len(elsewhere.bodies)) == (1, 0)
    assert "answered 307, and redirects are not followed" in warnings(caplog)[0]


async def test_an_answer_that_is_no_http_is_no_failure_of_ours(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-p4th\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    async with server:
        await tell(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/p4th")
    (warning,) = warnings(caplog)
    assert "was not notified" in warning
    assert "p4th" not in warning


@pytest.mark.parametrize("answer", [404, 503, _hang_up], ids=_name)
async def test_secrets_of_the_address_are_not_logged(
    caplog: pytest.LogCaptureFixture, answer: Answer | int
) -> None:
    caplog.set_level(logging.INFO)
    async with served(answer) as server:
        host = server.url.removeprefix("http://").rstrip("/")
        await tell(f"http://user:hunter2@{host}/p4th/more?token=T0ken#T0ken")
    (warning,) = warnings(caplog)
    assert warning.startswith(f"webhook 1 (http://{host}/...) was not notified")
    said = [each.getMessage() for each in caplog.records if each.name == webhooks.__name__]
    assert not [line for line in said if any(secret in line for secret in SECRETS)]


def test_a_bare_address_is_shown_as_it_is() -> None:
    assert webhooks.shown("https://[::1]:8443/") == "https://[::1]:8443"


@pytest.mark.parametrize("level", [logging.INFO, logging.DEBUG])
async def test_an_endless_answer_is_left(caplog: pytest.LogCaptureFixture, level: int) -> None:
    caplog.set_level(level, webhooks.__name__)
    sent: list[int] = []

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"x" * 65536)
                sent.append(65536)
        return response

    async with served(endless) as server:
        await tell(server.url, timeout=30.0)
    assert sum(sent) < 64 << 20
    said = [each.getMessage() for each in caplog.records if each.name == webhooks.__name__]
    assert sum("xxx" in line for line in said) == (level == logging.DEBUG)
    assert max(map(len, said)) < webhooks.BODY_LIMIT + 200
    assert warnings(caplog) == [f"{said[-1]}"]
    assert said[-1].endswith("the server answered 400")


async def test_each_is_told_whatever_befalls_the_others(caplog: pytest.LogCaptureFixture) -> None:
    async with served(200) as first, served(_sleep) as slow, served(200) as last:
        telling = asyncio.ensure_future(tell(first.url, slow.url, last.url, "http://[", timeout=60))
        servers = (first, slow, last)
        await asyncio.to_thread(wait.until, lambda: all(each.bodies for each in servers))
        assert not telling.done()
        telling.cancel()
        await asyncio.wait({telling}, timeout=wait.LONG)
        assert telling.cancelled()
    wrong, given_up = warnings(caplog)
    assert wrong.startswith("webhook 4")
    assert given_up.startswith("webhook 2")


async def test_cancelled_while_it_waits_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    async with served(503) as server:
        listed = [Webhook(server.url)]
        telling = asyncio.ensure_future(webhooks.send(listed, MESSAGE, "failure", pace=1000))
        await asyncio.to_thread(wait.until, lambda: server.bodies)
        telling.cancel()
        await asyncio.wait({telling}, timeout=wait.LONG)
        assert telling.cancelled()
    (warning,) = warnings(caplog)
    assert warning.startswith("webhook 1 (http://127.0.0.1:")
    assert "was not notified: the service is stopping" in warning


def _later(after: str) -> Answer:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": after})

    return answer


async def test_retry_after_is_honoured() -> None:
    async with served(_later("50"), 200) as server:
        await tell(server.url)
    assert server.times[1] - server.times[0] >= 50 * PACE


async def test_retry_after_of_a_day_is_a_minute() -> None:
    async with served(_later("86400"), 200) as server:
        async with asyncio.timeout(60):  # a day at this pace is 864 s
            await tell(server.url)
    assert server.times[1] - server.times[0] >= webhooks.RETRY_AFTER_LIMIT * PACE


@pytest.mark.parametrize(
    ("value", "least", "most"),
    [
        ("", 0, 0),
        ("soon", 0, 0),
        ("-5", 0, 0),
        ("1.5", 0, 0),
        ("²", 0, 0),
        ("0", 0, 0),
        ("17", 17, 17),
        pytest.param("9" * 5000, 999_999_999, 999_999_999, id="too long"),
        pytest.param(email.utils.formatdate(time.time() + 9000), 1000, 9001, id="in a while"),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
        ("Wed, 99 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)
def test_retry_after(value: str, least: float, most: float) -> None:
    assert least <= webhooks.retry_after(value) <= most


def test_without_webhooks_no_library_is_loaded() -> None:
    program = (
        "import asyncio, sys; from mapsave.service import webhooks\n"
        "asyncio.run(webhooks.send((), {}, 'failure'))\n"
        "print({'aiohttp', 'tenacity'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout == b"set()\n"
