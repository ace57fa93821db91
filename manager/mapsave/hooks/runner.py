"""Hooks: the operator's own executables, run before and after a save or a restore.

A hook before an operation may refuse it, while nothing has been touched yet. One after it comes
too late for that: whatever it does, the outcome stays, and the log says what went wrong.
"""

import logging
import os
import signal
from collections.abc import Mapping

import mapsave
from mapsave import errors, strict_json, units
from mapsave.hooks import process
from mapsave.hooks.process import Ended
from mapsave.service_settings import Hooks, Moment
from mapsave.strict_json import Facts

_log = logging.getLogger(__name__)

ABORT = 62  # as in barman's hook scripts; sysexits.h and shells leave it free
GRACE = 2.0  # a command ends within five seconds of a signal
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The facts that a hook also finds in its environment, so that a shell script needs no JSON.
_IN_ENVIRONMENT = (
    "operation",
    "guest",
    "clone_of",
    "job",
    "image",
    "domain",
    "uri",
    "socket",
    "outcome",
)


async def run(
    hooks: Hooks,
    moment: Moment,
    facts: Facts,
    more: tuple[str, ...] = (),
    *,
    grace: float = GRACE,
) -> None:
    """Run the hooks of ``moment``, then ``more`` of the same directory, one after the other.

    Each gets ``facts`` as a JSON object on its standard input. One that is over its time is told to
    end, and killed ``grace`` seconds later; so it is where we are cancelled.

    Before an operation the first that says no, or fails, is the last. Raises HookRefused then, or
    NotPermitted where others than root could have written the hook; after an operation nothing.
    """
    if not (names := hooks.of(moment) + more):
        return
    document = {"moment": moment, **facts, "mapsave": mapsave.__version__}
    document_bytes = strict_json.dumps(document, default=str).encode("ascii")
    variables = environment(moment, facts)
    for name in names:
        try:
            await _run_one(hooks, moment, name, document_bytes, variables, grace)
        except errors.MapsaveError as error:
            if moment.startswith("before_"):
                raise
            hint = f" ({error.hint})" if error.hint else ""
            _log.warning("%s%s; the outcome does not change", error.message, hint)


def environment(moment: Moment, facts: Facts) -> dict[str, str]:
    """Return the whole environment of a hook; a fact that is not known is empty."""
    variables = {f"MAPSAVE_{key.upper()}": str(facts.get(key) or "") for key in _IN_ENVIRONMENT}
    return {"PATH": PATH, "LANG": "C.UTF-8", "HOME": "/", "MAPSAVE_HOOK": moment, **variables}


async def _run_one(
    hooks: Hooks, moment: Moment, name: str, given: bytes, known: Mapping[str, str], grace: float
) -> None:
    def say(line: str) -> None:
        _log.info("hook %s of %s: %s", name, moment, line)

    try:
        ended = await process.run(
            directory=hooks.directory,
            name=name,
            facts=given,
            environment=known,
            say=say,
            timeout=hooks.timeout,
            grace=grace,
        )
    except (OSError, ValueError) as error:
        path = str(hooks.directory / name)
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, PermissionError):
            raise errors.denied(
                f"hook {name!r} of {moment} cannot be run: {reason}", path, os.X_OK, hook=name
            ) from None
        raise errors.HookRefused(
            f"hook {name!r} of {moment} cannot be run: {reason}",
            hint=f"check that {path!r} exists, and the interpreter its first line names after '#!'",
            hook=name,
            moment=moment,
            path=path,
        ) from None
    if ended.status != 0:
        raise errors.HookRefused(
            f"hook {name!r} of {moment} {_how(ended, hooks.timeout)}",
            hook=name,
            moment=moment,
            status=ended.status,
        )


def _how(ended: Ended, timeout: float) -> str:
    if ended.status is None:
        how = f"did not finish within {units.format_duration(timeout)}"
    elif ended.status == ABORT:
        how = "said no"
    elif ended.status < 0:
        how = f"was killed by {_signal_name(-ended.status)}"
    else:
        how = f"failed with exit status {ended.status}"
    return f"{how}: {ended.words}" if ended.words else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # of real time, which have no names
