"""Notifications: report the outcome of an operation to webhooks, by a POST of JSON.

The receiver may be down, slow or wrong: that costs the operation nothing but a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mapsave
from mapsave import blocking, errors, strict_json, units
from mapsave.jobs import outcome as jobs_outcome
from mapsave.service_settings import Outcome, Webhook, check_url

if TYPE_CHECKING:
    import aiohttp
    import tenacity

_log = logging.getLogger(__name__)

TRIES = 5
BODY_LIMIT = 64 << 10  # bytes of an answer that are read
RETRY_AFTER_LIMIT = 60.0
_MOST = 4096  # bytes of a file with an address
_TOO_MANY = 429  # RFC 6585, section 4


class _Again(Exception):
    """This try failed, another may do: ``after`` is how many seconds later, as the server says."""

    def __init__(self, words: str, after: float = 0.0) -> None:
        super().__init__(words)
        self.after = after


class _Refused(Exception):
    """The server answered, and would answer the same to another try."""


def outcome_of(operation: Mapping[str, object]) -> Outcome:
    """Return the outcome of an operation as the API shows it.

    A job of which some guests were not saved is done, and a failure; its result says so.
    """
    result = operation.get("result")
    code = result.get("exit_code", 0) if isinstance(result, dict) else 0
    return "success" if operation["state"] == "done" and code == 0 else "failure"


def summary_of(operation: Mapping[str, Any]) -> str:
    """Return a line about the outcome, for people."""
    of_it = operation.get("job") or operation.get("guest")
    what = " ".join(filter(None, (operation["kind"], of_it, operation["state"])))
    error = operation.get("error")
    if error is not None:
        return f"{what}: {error['message']} [{error['id']}]"
    whole = jobs_outcome.whole(operation["kind"], operation.get("result"))
    return what if whole is None else f"{what}: {whole.words}"


def message_of(operation: Mapping[str, object]) -> dict[str, object]:
    """Return what webhooks receive about ``operation``, an operation as the API shows it."""
    return {
        "mapsave": mapsave.__version__,
        "host": socket.gethostname(),
        "time": units.timestamp(time.time()),
        "outcome": outcome_of(operation),
        "summary": summary_of(operation),
        "operation": dict(operation),
    }


async def send(
    webhooks: Sequence[Webhook],
    message: Mapping[str, object],
    outcome: Outcome,
    *,
    pace: float = 1.0,
) -> None:
    """Tell ``message`` to those of ``webhooks`` that want to know of ``outcome``, side by side.

    Each is tried up to five times, where the connection, the time or the server fails; the waits
    between are 1, 2, 4 and 8 seconds and a little, times ``pace``, or what ``Retry-After`` says
    up to a minute (RFC 9110, section 10.2.3). A webhook may thus be notified twice. Raises
    nothing; where it is cancelled, the log says which webhook was not notified.
    """
    wanted = [(number, each) for number, each in enumerate(webhooks, 1) if outcome in each.on]
    if not wanted:
        return
    body = strict_json.dumps(dict(message), default=str).encode("ascii")
    async with await _session() as session, asyncio.TaskGroup() as group:
        for number, webhook in wanted:
            group.create_task(_send_one(session, number, webhook, body, pace))


async def _session() -> aiohttp.ClientSession:
    import ssl

    import aiohttp

    # aiohttp's own has no certificates: see ``mapsave serve``. In a thread, for it reads files.
    secured = await blocking.call(ssl.create_default_context)
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=secured),
        headers={
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": f"mapsave/{mapsave.__version__}",
        },
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,  # 64 KiB could become a great deal more
    )


async def _send_one(
    session: aiohttp.ClientSession, number: int, webhook: Webhook, body: bytes, pace: float
) -> None:
    import tenacity

    try:
        url = await blocking.call(address, webhook)
    except errors.ConfigError as error:
        _log.warning("webhook %d was not notified: %s", number, error)
        return
    name = f"webhook {number} ({shown(url)})"

    def log_retry(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        _log.info("%s, attempt %d of %d: %s", name, state.attempt_number, TRIES, error)

    retrying = tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(TRIES),
        wait=_wait(pace),
        retry=tenacity.retry_if_exception_type(_Again),
        before_sleep=log_retry,
        reraise=True,
    )
    try:
        await retrying(_try, session, name, url, webhook.timeout, body)
    except _Again as error:
        _log.warning("%s was not notified, after %d attempts: %s", name, TRIES, error)
    except _Refused as error:
        _log.warning("%s was not notified: %s", name, error)
    except asyncio.CancelledError:
        _log.warning(
            "%s was not notified: the service is stopping, and the notification is dropped", name
        )
        raise
    except Exception as error:
        # Its message might contain the address with its secrets.
        _log.warning("%s was not notified: %s", name, type(error).__name__)


def check(webhooks: Sequence[Webhook]) -> None:
    """Raise ConfigError where the address of one of them cannot be read."""
    for number, webhook in enumerate(webhooks):
        try:
            address(webhook)
        except errors.ConfigError as error:
            error.message = f"notify[{number}]: {error.message}"
            raise


def address(webhook: Webhook) -> str:
    """Return the address of a webhook, read again where a file or a credential holds it.

    systemd puts credentials into files of $CREDENTIALS_DIRECTORY (systemd.exec(5)). Raises
    ConfigError, which does not show what is in the file.
    """
    if webhook.url is not None:
        return webhook.url
    path, hint = webhook.url_file, "the service must be able to read it"
    if path is None:
        directory = os.environ.get("CREDENTIALS_DIRECTORY")
        hint = f"the unit needs LoadCredential={webhook.url_credential}:FILE"
        if not directory:
            raise errors.ConfigError(
                f"the credential {webhook.url_credential!r} is not there: $CREDENTIALS_DIRECTORY "
                "is not set",
                hint=hint,
            )
        path = Path(directory) / str(webhook.url_credential)
    try:
        with path.open("rb") as file:
            return check_url(file.read(_MOST).decode().strip())
    except OSError as error:
        raise errors.ConfigError(
            f"cannot read {str(path)!r}: {error.strerror}", hint=hint
        ) from None
    except UnicodeDecodeError:
        raise errors.ConfigError(f"{str(path)!r} does not hold text") from None
    except ValueError as error:
        raise errors.ConfigError(f"{str(path)!r} does not hold an address: {error}") from None


def shown(url: str) -> str:
    """Return of an address what may be logged: the path and all after it may hold secrets."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "not an address"
    more = "/..." if parts.path.strip("/") or parts.query else ""
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{more}"


def _wait(pace: float) -> Callable[[tenacity.RetryCallState], float]:
    import tenacity

    longer_each_time = tenacity.wait_exponential_jitter(initial=1, jitter=1)

    def seconds(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.after if isinstance(error, _Again) else 0.0
        return pace * max(longer_each_time(state), min(asked, RETRY_AFTER_LIMIT))

    return seconds


async def _try(
    session: aiohttp.ClientSession, name: str, url: str, timeout: float, body: bytes
) -> None:
    import aiohttp

    limit = aiohttp.ClientTimeout(total=timeout)
    try:
        async with session.post(url, data=body, timeout=limit, allow_redirects=False) as response:
            if 200 <= response.status < 300:
                return
            await _log_answer(response, name)
            words = f"the server answered {response.status}"
            if response.status == _TOO_MANY or response.status >= 500:
                raise _Again(words, retry_after(response.headers.get("Retry-After", "")))
            if response.status < 400:
                words += ", and redirects are not followed"
            raise _Refused(words)
    except TimeoutError:
        raise _Again(f"no answer within {units.format_duration(timeout)}") from None
    except aiohttp.ClientConnectionError as error:
        # Those of aiohttp are named for what happened: ServerDisconnectedError and the like.
        raise _Again(getattr(error, "strerror", None) or type(error).__name__) from None


async def _log_answer(response: aiohttp.ClientResponse, name: str) -> None:
    """Log how the server explains itself, for who debugs: it may repeat the address."""
    import aiohttp

    if not _log.isEnabledFor(logging.DEBUG):
        return
    with contextlib.suppress(aiohttp.ClientError, TimeoutError):
        _log.debug("%s answered: %r", name, await response.content.read(BODY_LIMIT))


def retry_after(value: str) -> float:
    """Return how many seconds a ``Retry-After`` header says, 0 where it says nothing."""
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, OverflowError):
        return 0.0
