"""The bodies of the service's answers, as its OpenAPI document describes them.

Answers may have fields beside these. They are built where what they tell is known.
"""

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
    rate: Annotated[float, help("Bytes per second.")]
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
    created: Annotated[float, help("Seconds since the epoch.")]
    started: float | None
    ended: float | None
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

    time: float
    step: str
    data: Facts


class Steps(Answer):
    """The steps of an operation, oldest first."""

    operation: Operation
    steps: list[Step]


class Guest(Answer):
    """A guest of the configuration."""

    name: str
    kind: str
    address: str | None
    policy: str | None
    priority: int
    launch: Annotated[bool, help("Whether a restore can start it.")]
    operation: Annotated[str | None, help("Its active operation.")]


class Guests(Answer):
    """The guests of the configuration."""

    guests: list[Guest]


class Image(Answer):
    """An image; sizes in bytes."""

    name: str
    guest: str | None
    state: str
    format: str | None
    modified: Annotated[float, help("Seconds since the epoch.")]
    file_bytes: int
    allocated_bytes: int
    writable_by: Annotated[list[str], help("Others who could have written it.")]
    error: Annotated[Error | None, help("Why it is invalid or unreadable.")]


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
    """A save job."""

    name: str
    file: str
    guests: list[str]
    schedule: Facts | None
    next_run: str | None
    last_run: Operation | None


class BrokenFile(Answer):
    """A file of the jobs directory that is none."""

    file: str
    error: Error


class Jobs(Answer):
    """The save jobs, and the files that could not be loaded."""

    jobs: list[Job]
    broken: list[BrokenFile]


class Health(Answer):
    """How the service is."""

    status: str
    version: str
    pid: int
    started: float
    operations: int
    recovered: bool
    problems: Annotated[list[str], help("What an operator has to look into.")]


class Reloaded(Answer):
    """The configuration was reloaded."""

    needs_restart: list[str]
