"""Save and restore with the hooks around them: what the command line, jobs and service call.

Behind an operation comes exactly one of ``after_...`` and ``on_failure``, also where a hook
before it refused: so what a hook has begun beforehand can always be ended. Where mapsave dies in
the meantime, ``recover.py`` runs them, from the journal that is kept here.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from mapsave import errors, shielded
from mapsave.config import Config, Guest
from mapsave.hooks import monitor
from mapsave.migration import progress
from mapsave.migration.progress import Report
from mapsave.operations import answering, journal
from mapsave.operations.results import RestoreResult, SaveResult
from mapsave.operations.steps import Step
from mapsave.service_settings import Moment
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.operations import restore_request, save_request

More = Mapping[str, tuple[str, ...]]
R = TypeVar("R", SaveResult, RestoreResult)

_log = logging.getLogger(__name__)

_NO_MORE: More = {}
MOMENTS: dict[str, tuple[Moment, Moment]] = {
    "save": ("before_save", "after_save"),
    "restore": ("before_restore", "after_restore"),
}

AFTER_SAVE: Moment = "after_save"
ON_FAILURE: Moment = "on_failure"
# Seconds for the hooks after an operation, where time is up.
_GRACE = 5.0
_until: contextvars.ContextVar[float | None] = contextvars.ContextVar("until", default=None)


@contextlib.contextmanager
def hooks_until(deadline: float | None) -> Iterator[None]:
    """Give up the hooks after what this task does a little after ``deadline``.

    That is by the event loop's clock, None for never. Hooks that begin later get as little time.
    """
    token = _until.set(deadline)
    try:
        yield
    finally:
        _until.reset(token)


async def save(
    guest: Guest,
    config: Config,
    request: save_request.Request,
    report: Report = progress.silent,
    *,
    more: More = _NO_MORE,
) -> SaveResult:
    """Save ``guest`` as ``operations.save`` does, with the hooks of the configuration and ``more``.

    ``more`` are names of hooks by moment, run after those of the configuration. The time limit of
    the request does not count the hooks' time, which have their own. ``report`` is informed of
    hooks after the save by a phase of the moment's name: the image is committed, or the save has
    failed. Raises HookRefused or NotPermitted where a hook refuses it, and what the save raises.
    """
    from mapsave.operations import save as saving

    image = request.image
    if image is not None:
        image = os.path.abspath(image if "/" in image else config.images / image)
    facts = {
        "guest": guest.name,
        "job": request.job,
        "image": image,
        **monitor.facts(config, guest.name),
    }
    work = functools.partial(saving.save, guest, config, request, report)
    return await _around("save", config, more, facts, work, report)


async def restore(
    config: Config,
    request: restore_request.Request,
    report: Report = progress.silent,
    *,
    more: More = _NO_MORE,
) -> RestoreResult:
    """Restore an image as ``operations.restore`` does, with the hooks around it; see ``save``.

    Where its RAM is mapped it goes on to read the pages that the guest needs; that ends with the
    time for it. So does verifying its data, which raises as ``Verifying.finish``. A cancellation
    ends both, and has come too late for all else.
    """
    from mapsave.operations import destination_choice, images, verifying, warming
    from mapsave.operations import restore as restoring

    image = images.resolve(request.image, config)
    address = request.guest if request.into is None else f"qmp:{request.into}"
    facts = {
        "guest": request.guest,
        "clone_of": _original(config, request),
        "job": None,
        "image": image,
        **monitor.facts(config, address),
    }
    with warming.beside(config.state) as warm, verifying.beside(config) as verified:
        beside = destination_choice.Beside(warm, verified)

        async def work() -> RestoreResult:
            done = await restoring.restore(config, request, report, beside)
            verified.guard(done)
            return done

        done = await _around("restore", config, more, facts, work, report)
        if done.instant:
            try:
                done.warm = await warm.finished(report)
                await verified.finish(done, report)
            except asyncio.CancelledError:
                shielded.drop_cancellation()
                done.warm = warm.so_far()
                await verified.interrupt(done)
        return done


def _original(config: Config, request: restore_request.Request) -> str | None:
    """Return the guest that the restored one becomes a clone of; None where it is itself."""
    guest = config.named(request.guest or "") if request.is_clone else None
    return guest.clone_of if guest is not None else None


async def _around(
    kind: Literal["save", "restore"],
    config: Config,
    more: More,
    facts: Facts,
    work: Callable[[], Awaitable[R]],
    report: Report = progress.silent,
) -> R:
    before, after = MOMENTS[kind]
    hooks = config.hooks
    if not any(hooks.of(each) or more.get(each) for each in (before, after, "on_failure")):
        return await work()
    from mapsave.hooks import runner as running

    async def run(moment: Moment, **outcome_facts: object) -> None:
        document = {"operation": journal.watching(), "outcome": None, "result": None, "error": None}
        await running.run(hooks, moment, {**document, **facts, **outcome_facts}, more_of(moment))

    def more_of(moment: Moment) -> tuple[str, ...]:
        return tuple(more.get(moment, ()))

    async def run_behind(moment: Moment, **outcome_facts: object) -> None:
        await _note(log, moment, outcome_facts)
        if not (hooks.of(moment) or more.get(moment)):
            return
        report(progress.Progress(moment))
        try:
            end, now = _until.get(), asyncio.get_running_loop().time()
            async with asyncio.timeout_at(None if end is None else max(end, now) + _GRACE):
                await run(moment, **outcome_facts)
        except TimeoutError:
            _log.warning("the hooks of %s were stopped: no time left", moment)
        except asyncio.CancelledError:
            # What has come of the operation stays so, and must be what the caller gets.
            shielded.drop_cancellation()
            _log.warning("the hooks of %s were cancelled; the outcome does not change", moment)

    log: journal.Journal | None = None
    async with contextlib.AsyncExitStack() as stack:
        try:
            begun = {**facts, "of": kind, "more": more, "began": time.time()}
            await answering.check(config.state, writable=True)
            log = await stack.enter_async_context(journal.around(config.state, begun))
            await run(before)
            result = await work()
        except (Exception, asyncio.CancelledError) as error:
            cancelled = isinstance(error, (asyncio.CancelledError, errors.Interrupted))
            outcome = "cancelled" if cancelled else "failure"
            await run_behind("on_failure", outcome=outcome, error=_described(error))
            raise
        known: Facts = {"guest": result.guest, "image": result.image}
        if isinstance(result, RestoreResult):
            known = {**known, **monitor.facts(config, result.monitor)}
        await run_behind(after, outcome="success", result=result.as_dict(), **known)
    return result


async def _note(log: journal.Journal | None, moment: Moment, facts: Facts) -> None:
    """Write down what the hooks of ``moment`` receive, for one who finds that we died of it."""
    if log is None:
        return
    try:
        facts = json.loads(json.dumps(facts, default=str))
        await log.recorded(Step.BEHIND, {"moment": moment, **facts})
    except OSError as error:
        _log.warning("cannot record the hooks of %s in the journal: %s", moment, error.strerror)


def _described(error: BaseException) -> errors.ErrorDict:
    if isinstance(error, asyncio.CancelledError):
        error = errors.Interrupted("cancelled; everything was rolled back")
    return errors.as_ours(error).as_dict()
