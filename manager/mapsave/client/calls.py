"""What the service can be asked for, each with its result: the methods of the clients.

``options`` are made by SaveOptions and its like; what they leave out is as the configuration says.
``report`` is called with how far an operation is, and ``operation`` is an id for it, of 12
hexadecimal digits. Sizes are in bytes, times in seconds.

A call that does something ends when that is done. Given up, by a KeyboardInterrupt, the
cancellation of its task, or ``Client.interrupt``, it has the operation cancelled and waits until
everything is rolled back. It raises what the operation failed with.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast

from mapsave import errors
from mapsave.client import delegate, exchange
from mapsave.client.delegate import Follow, Patience
from mapsave.client.exchange import Answer, Ask, Call
from mapsave.migration.progress import Report, silent
from mapsave.strict_json import Facts

if TYPE_CHECKING:
    from mapsave.client import responses
    from mapsave.evacuation.clones import Cloned
    from mapsave.evacuation.restore_all import RestoredAll
    from mapsave.evacuation.save_all import SavedAll
    from mapsave.history.states import State
    from mapsave.jobs.engine import Run
    from mapsave.jobs.retention import Pruned
    from mapsave.jobs.scrub import Scrubbed
    from mapsave.operations.preview import Preview
    from mapsave.operations.recover import Recovered
    from mapsave.operations.results import RestoreResult, SaveResult
    from mapsave.operations.warm import Done as Warmed

Options = Mapping[str, object]
T = TypeVar("T")
_PAGE = 1000  # images; what the service returns at most
_NONE: Options = {}


def save(
    guest: str,
    options: Options = _NONE,
    *,
    report: Report = silent,
    operation: str | None = None,
) -> Call[SaveResult]:
    """Save ``guest``, a name of the configuration or an address, as SaveOptions say."""
    from mapsave.operations import results

    found = yield from _run(Follow(report, operation), "save", guest=guest, save=options)
    return _as(results.SaveResult, found)


def restore(
    image: str,
    options: Options = _NONE,
    *,
    report: Report = silent,
    operation: str | None = None,
) -> Call[RestoreResult]:
    """Restore ``image``, a name in the image directory, as RestoreOptions say."""
    from mapsave.operations import results

    found = yield from _run(Follow(report, operation), "restore", image=image, restore=options)
    return _as(results.RestoreResult, found)


def clone(
    image: str,
    options: Options = _NONE,
    *,
    report: Report = silent,
    operation: str | None = None,
) -> Call[Cloned]:
    """Start several guests from ``image``, as CloneOptions say. One that failed is a line."""
    found = yield from _run(Follow(report, operation), "clone", image=image, clone=options)
    return cast("Cloned", found)


def check(
    guest: str, options: Options = _NONE, *, operation: str | None = None
) -> Call[tuple[Preview, errors.MapsaveError | None]]:
    """Report what a save of ``guest`` as CheckOptions say would do, and why it would be refused."""
    found = yield from _run(Follow(operation=operation), "check", guest=guest, check=options)
    error = found.pop("error")
    return cast("Preview", found), None if error is None else errors.from_dict(error)


def verify(
    image: str,
    *,
    data: bool = False,
    add_digests: bool = False,
    report: Report = silent,
    operation: str | None = None,
) -> Call[Answer]:
    """Prove that ``image`` is whole; with ``data`` compare its data with its digests too, with
    ``add_digests`` take those first. Raises InvalidImage and its like where it is not."""
    how = Follow(report=report, operation=operation)
    return _run(how, "verify", image=image, data=data, add_digests=add_digests)


def discard(
    image: str, *, unrestored: bool = False, in_use: bool = False, operation: str | None = None
) -> Call[Answer]:
    """Delete ``image``; one that was never restored only if ``unrestored``, one that a guest lives
    on only if ``in_use``."""
    how = Follow(operation=operation)
    return _run(how, "discard", image=image, unrestored=unrestored, in_use=in_use)


def pin(image: str, *, operation: str | None = None) -> Call[Answer]:
    """Keep ``image``: it is neither deleted nor replaced."""
    return _run(Follow(operation=operation), "pin", image=image)


def unpin(image: str, *, operation: str | None = None) -> Call[Answer]:
    """Let a pinned ``image`` be deleted again."""
    return _run(Follow(operation=operation), "unpin", image=image)


def warm(
    image: str,
    *,
    learn: bool = False,
    all: bool = False,
    rate: int | None = None,
    timeout: float | None = None,
    report: Report = silent,
    operation: str | None = None,
) -> Call[Warmed]:
    """Read the working set of ``image`` into the page cache, and ``all`` after it, at most ``rate``
    bytes per second; or ``learn`` it from the guests that live on the image."""
    how: dict[str, object] = {"learn": learn, "all": all, "rate": rate, "timeout": timeout}
    found = yield from _run(Follow(report, operation), "warm", image=image, **how)
    return cast("Warmed", found)


def recover(*, dry_run: bool = False, operation: str | None = None) -> Call[Recovered]:
    """Finish or undo what an interrupted mapsave left."""
    found = yield from _run(Follow(operation=operation), "recover", dry_run=dry_run)
    return cast("Recovered", found)


def save_all(
    options: Options = _NONE,
    *,
    report: Report = silent,
    operation: str | None = None,
    patience: Patience | None = None,
) -> Call[SavedAll]:
    """Save every guest, or those that SaveAllOptions name, before the host goes down."""
    found = yield from _run(Follow(report, operation, patience), "save-all", **options)
    return cast("SavedAll", found)


def restore_all(
    options: Options = _NONE, *, report: Report = silent, operation: str | None = None
) -> Call[RestoredAll]:
    """Bring back what save-all saved, as RestoreAllOptions say."""
    found = yield from _run(Follow(report, operation), "restore-all", **options)
    return cast("RestoredAll", found)


def run_job(
    job: str, *, report: Report = silent, operation: str | None = None
) -> Call[Run | Scrubbed]:
    """Run a job now. A guest that could not be saved, or an image that is damaged, is a line of the
    result."""
    found = yield from _run(Follow(report, operation), "job", job=job)
    return cast("Run | Scrubbed", found)


def check_job(job: str, *, operation: str | None = None) -> Call[Run | Scrubbed]:
    """Report what would fail if the job were run, or which images it would verify."""
    found = yield from _run(Follow(operation=operation), "check", job=job)
    return cast("Run | Scrubbed", found)


def prune(
    job: str, *, dry_run: bool = False, in_use: bool = False, operation: str | None = None
) -> Call[Pruned]:
    """Remove the images that a job does not keep; those that guests live on if ``in_use``."""
    how = Follow(operation=operation)
    found = yield from _run(how, "prune", job=job, dry_run=dry_run, in_use=in_use)
    return cast("Pruned", found)


def begin(
    kind: str, /, *, operation: str | None = None, **fields: object
) -> Call[responses.Operation]:
    """Begin an operation of this kind, and return it without waiting for its end.

    ``fields`` are those of its request: ``begin("save", guest="web01", save=SaveOptions(...))``.
    """
    from mapsave.client import responses

    found = yield from delegate.begin({"kind": kind, **fields}, operation)
    return _as(responses.Operation, found)


def wait(operation: str, *, report: Report = silent) -> Call[responses.Operation]:
    """Wait until an operation has ended, and return it; ``error`` says what it failed with.

    ``operation`` is its id, or the beginning of it. Given up, the operation goes on.
    """
    from mapsave.client import responses

    number = (yield exchange.get(exchange.operation(operation)))["id"]
    found = yield from delegate.follow(number, Follow(report))
    return _as(responses.Operation, found)


def cancel(operation: str) -> Call[responses.Operation]:
    """Cancel an operation, wait until everything is rolled back, and return it.

    Its state is ``done`` where it was too late. Raises NotCancellable where it had ended, or is
    committing.
    """
    from mapsave.client import responses

    number = (yield from delegate.cancel(operation))["id"]
    found = yield from delegate.follow(number, Follow())
    return _as(responses.Operation, found)


def operation(operation: str) -> Call[responses.Operation]:
    """Return an operation as it is now."""
    from mapsave.client import responses

    return _as(responses.Operation, (yield exchange.get(exchange.operation(operation))))


def operations(
    *,
    active: bool = False,
    state: State | str | None = None,
    kind: str | None = None,
    guest: str | None = None,
    job: str | None = None,
    parent: str | None = None,
    before: str | None = None,
    limit: int = 100,
) -> Call[list[responses.Operation]]:
    """Return operations, newest first; ``before`` is the id of the last one of the page before."""
    from mapsave.client import responses

    wanted: dict[str, object] = {"state": state, "kind": kind, "guest": guest, "job": job}
    wanted |= {"parent": parent, "before": before, "limit": limit, "active": active or None}
    found = yield exchange.get("/v1/operations", **wanted)
    return _as(responses.Operations, found).operations


def steps(operation: str) -> Call[list[responses.Step]]:
    """Return the steps of an operation, oldest first."""
    from mapsave.client import responses

    found = yield exchange.get(f"{exchange.operation(operation)}/steps")
    return _as(responses.Steps, found).steps


def guests(*, look: bool = False) -> Call[list[responses.Guest]]:
    """Return the guests of the configuration; ``look`` asks them for their state, and looks up the
    last image of each."""
    from mapsave.client import responses

    found = yield exchange.get("/v1/guests", look=look or None)
    return _as(responses.Guests, found).guests


def guest(name: str) -> Call[responses.Guest]:
    """Return one guest. Raises UnknownGuest."""
    from mapsave.client import responses

    return _as(responses.Guest, (yield exchange.get(f"/v1/guests/{exchange.quoted(name)}")))


def images(guest: str | None = None, *, latest: bool = False) -> Call[list[responses.Image]]:
    """Return all images, newest first, or those of one guest; with ``latest`` each one's last."""
    from mapsave.client import responses

    return _as(responses.Images, (yield from all_images(guest, latest=latest))).images


def all_images(guest: str | None = None, *, latest: bool = False) -> Call[Answer]:
    """Return what the service answers about all images, page by page, as one answer."""
    wanted: dict[str, object] = {"limit": _PAGE, "guest": guest, "latest": latest or None}
    found = page = yield exchange.get("/v1/images", **wanted)
    while page["next"] is not None:
        page = yield exchange.get("/v1/images", **wanted, before=page["next"])
        found["images"] += page["images"]
    return {**found, "next": None}


def image(name: str) -> Call[Answer]:
    """Return what an image holds, as ``mapsave inspect --json`` prints it."""
    return (yield exchange.get(f"/v1/images/{exchange.quoted(name)}"))


def image_picture(name: str) -> Call[str]:
    """Return a picture of what an image holds, as SVG."""
    return _text(f"/v1/images/{exchange.quoted(name)}/picture")


def operation_picture(operation: str) -> Call[str]:
    """Return a picture of the phases of an operation and its rate, as SVG."""
    return _text(f"{exchange.operation(operation)}/picture")


def jobs() -> Call[responses.Jobs]:
    """Return the save jobs, when they run next, and the files that could not be loaded."""
    from mapsave.client import responses

    return _as(responses.Jobs, (yield exchange.get("/v1/jobs")))


def job(name: str) -> Call[responses.Job]:
    """Return one save job."""
    from mapsave.client import responses

    return _as(responses.Job, (yield exchange.get(f"/v1/jobs/{exchange.quoted(name)}")))


def caller() -> Call[responses.Caller]:
    """Return who we are to the service, and what that role may do."""
    from mapsave.client import responses

    return _as(responses.Caller, (yield exchange.get("/v1/caller")))


def health() -> Call[responses.Health]:
    """Return how the service is."""
    from mapsave.client import responses

    return _as(responses.Health, (yield exchange.get("/v1/health")))


def status() -> Call[responses.Status]:
    """Return how the service is, what runs, waits and failed last, and the jobs."""
    from mapsave.client import responses

    return _as(responses.Status, (yield exchange.get("/v1/status")))


def reload() -> Call[responses.Reloaded]:
    """Have the service reload its configuration and the jobs."""
    from mapsave.client import responses

    return _as(responses.Reloaded, (yield exchange.post("/v1/reload")))


def _run(how: Follow, kind: str, /, **fields: object) -> Call[Answer]:
    body: Facts = {"kind": kind, **fields}
    return delegate.run(body, how)


def _text(path: str) -> Call[str]:
    return str((yield Ask("GET", path, is_text=True))["text"])


def _as(kind: type[T], found: object) -> T:
    from mapsave import typed

    return typed.convert(found, kind)
