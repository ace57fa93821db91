"""Notifications: report the outcome of an operation to webhooks, by a POST of JSON.

The receiver may be down, slow or wrong: that costs the operation nothing but a line in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import mapsave
from mapsave import strict_json
from mapsave.jobs import outcome as jobs_outcome
from mapsave.service_settings import Outcome, Webhook

if TYPE_CHECKING:
    import aiohttp
    import tenacity

_log = logging.getLogger(__name__)

TRIES = 5
BODY_LIMIT = 64 << 10  # bytes of an answer that are read
RETRY_AFTER_LIMIT = 60.0
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
    """Return what webhooks receive about ``operation``, an operation as the API shows it.

    ``time`` is in seconds since the epoch.
    """
    return {
        "mapsave": mapsave.__version__,
        "host": socket.gethostname(),
        "time": round(time.time(), 3),
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
    secured = await asyncio.to_thread(ssl.create_default_context)
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

    name = f"webhook {number} ({shown(webhook.url)})"

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
        await retrying(_try, session, name, webhook, body)
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


async def _try(session: aiohttp.ClientSession, name: str, webhook: Webhook, body: bytes) -> None:
    import aiohttp

    limit = aiohttp.ClientTimeout(total=webhook.timeout)
    try:
        async with session.post(
            webhook.url, data=body, timeout=limit, allow_redirects=False
        ) as response:
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
        raise _Again(f"no answer within {webhook.timeout:g} s") from None
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
