"""The bodies of the service's answers, as its OpenAPI document describes them.

Answers may have fields beside these. They are built where what they tell is known.
"""

from datetime import datetime
from typing import Annotated, Any

import msgspec

from mapsave.errors import ErrorDict
from mapsave.history.states import State
from mapsave.keys import help

Facts = dict[str, Any]  # an object whose members depend on what it is about


class Answer(msgspec.Struct):
    """An object of an answer."""


class Error(ErrorDict):
    """What is wrong, where, and what to do; ``id`` is stable, ``exit_code`` the command line's."""


class Failure(Answer):
    """The answer to a request that failed."""

    error: Error


class Progress(Answer):
    """How far an operation is."""

    phase: str
    done_bytes: int
    total_bytes: int
    bytes_per_s: float
    eta_s: float | None


class Operation(Answer):
    """One operation: pending, running, committing, done, failed or cancelled."""

    id: str
    kind: str
    state: State
    guest: str | None
    job: str | None
    parent: Annotated[str | None, help("The operation that it is part of.")]
    image: str | None
    user: str
    request: Facts
    created: datetime
    started: datetime | None
    ended: datetime | None
    step: str | None
    progress: Progress | None
    result: Annotated[Facts | None, help("What the command prints with --json.")]
    error: Error | None
    revision: Annotated[int, help("Number of changes so far; 0 if it is not active.")]


class Operations(Answer):
    """Operations, newest first."""

    operations: list[Operation]


class Step(Answer):
    """One step of an operation."""

    time: datetime
    step: str
    data: Facts


class Sample(Answer):
    """How far an operation was at some time."""

    time: datetime
    phase: str
    done_bytes: int
    total_bytes: int


class Steps(Answer):
    """The steps of an operation, oldest first, and samples of its progress."""

    operation: Operation
    steps: list[Step]
    course: list[Sample]


class Image(Answer):
    """An image; sizes in bytes."""

    name: str
    guest: str | None
    state: str
    pinned: Annotated[bool, help("Whether it is kept: neither deleted nor replaced.")]
    in_use_by: Annotated[
        list[Facts], help("Guests whose RAM is mapped from it, each with its pid.")
    ]
    note: Annotated[str | None, help("What was noted at the save.")]
    verified: Annotated[
        Facts | None,
        help("What was found when its data was verified last, and when; null if it never was."),
    ]
    format: str | None
    saved: Annotated[
        datetime, help("When its save began; where that is not known, when it was changed last.")
    ]
    modified: Annotated[datetime, help("When it was changed last, as by a restore.")]
    file_bytes: int
    allocated_bytes: int
    writable_by: Annotated[list[str], help("Others who could have written it.")]
    error: Annotated[Error | None, help("Why it is invalid or unreadable.")]
    exclusive_bytes: Annotated[
        int | None,
        help("Bytes on disk that no other file shares, as those of checkpoints do; null: unknown."),
    ] = None


class Guest(Answer):
    """A guest of the configuration; of libvirt, or of an image alone, where it is not there."""

    name: str
    kind: Annotated[str, help("qmp, libvirt or emulator; image, if only an image knows it.")]
    address: str | None
    policy: str | None
    priority: int
    launch: Annotated[bool, help("Whether a restore can start it.")]
    operation: Annotated[str | None, help("Its active operation.")]
    state: Annotated[
        str | None,
        help("Run state in QEMU or libvirt, 'not running' or 'busy'; null if it was not asked."),
    ]
    error: Annotated[Error | None, help("Why it could not be asked.")]
    last_image: Annotated[Image | None, help("The image saved last; null if not looked up.")]


class Guests(Answer):
    """The guests."""

    guests: list[Guest]
    unreachable: Annotated[
        list[Error], help("Why libvirt could not be asked, or clones that run are not shown.")
    ]


class Images(Answer):
    """The images of the image directory, newest first."""

    directory: str
    images: list[Image]
    next: Annotated[str | None, help("The 'before' of the next page; null on the last one.")]


class ImageContents(Answer):
    """What an image holds, as ``mapsave inspect --json`` prints it."""

    image: str
    state: str
    format: str


class Job(Answer):
    """A job."""

    name: str
    kind: Annotated[str, help("save or scrub.")]
    file: str
    guests: Annotated[list[str], help("Those that it saves.")]
    schedule: Facts | None
    next_run: datetime | None
    last_run: Operation | None


class BrokenFile(Answer):
    """A file of the jobs directory that is none."""

    file: str
    error: Error


class Jobs(Answer):
    """The jobs, and the files that could not be loaded."""

    jobs: list[Job]
    broken: list[BrokenFile]


class Caller(Answer):
    """Who asks, and what they may do."""

    user: str
    role: str
    may: Annotated[list[str], help("The kinds of operations that this role may begin.")]
    hint: Annotated[str | None, help("How to be allowed more; null for an admin.")]


class Health(Answer):
    """How the service is."""

    status: Annotated[
        str, help("ok; degraded; or starting, until interrupted operations were looked for.")
    ]
    version: str
    pid: int
    started: datetime
    operations: int
    recovered: bool
    reasons: Annotated[list[str], help("Why it is degraded.")]
    problems: Annotated[list[str], help("Those of them that an operator has to look into.")]


class Status(Health):
    """How the service is, and what it does."""

    running: Annotated[list[Operation], help("Active operations, oldest first.")]
    waiting: Annotated[list[Operation], help("Those that wait for their turn, oldest first.")]
    failed: Annotated[list[Operation], help("The last operations that failed, newest first.")]
    jobs: Annotated[list[Job], help("The save jobs, and when they run next.")]


class Reloaded(Answer):
    """The configuration was reloaded."""

    needs_restart: list[str]
