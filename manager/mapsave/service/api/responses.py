"""The bodies of the service's answers, as its OpenAPI document describes them."""

from __future__ import annotations

from typing import Any

import pydantic
from pydantic import Field


class Answer(pydantic.BaseModel):
    """An object of an answer."""

    model_config = pydantic.ConfigDict(extra="allow")


class Error(Answer):
    """What is wrong, where, and what to do; ``id`` is stable."""

    id: str
    exit_code: int = Field(description="Exit code of the command line.")
    message: str
    hint: str | None
    data: dict[str, Any]


class Failure(Answer):
    """The answer to a request that failed."""

    error: Error


class Progress(Answer):
    """How far an operation is."""

    phase: str
    done_bytes: int
    total_bytes: int
    rate: float = Field(description="Bytes per second.")
    eta_s: float | None


class Operation(Answer):
    """One operation: pending, running, committing, done, failed or cancelled."""

    id: str
    kind: str
    state: str
    guest: str | None
    job: str | None
    parent: str | None = Field(description="The operation that it is part of.")
    image: str | None
    user: str
    request: dict[str, Any]
    created: float = Field(description="Seconds since the epoch.")
    started: float | None
    ended: float | None
    step: str | None
    progress: Progress | None
    result: dict[str, Any] | None = Field(description="What the command prints with --json.")
    error: Error | None
    revision: int = Field(description="Number of changes so far; 0 if it is not active.")


class Operations(Answer):
    """Operations, newest first."""

    operations: list[Operation]


class Step(Answer):
    """One step of an operation."""

    time: float
    step: str
    data: dict[str, Any]


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
    launch: bool = Field(description="Whether a restore can start it.")
    operation: str | None = Field(description="Its active operation.")


class Guests(Answer):
    """The guests of the configuration."""

    guests: list[Guest]


class Image(Answer):
    """An image; sizes in bytes."""

    name: str
    guest: str | None
    state: str
    file_bytes: int
    allocated_bytes: int


class Images(Answer):
    """The images of the image directory, newest first."""

    directory: str
    images: list[Image]


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
    problems: list[str] = Field(description="What an operator has to look into.")


class Reloaded(Answer):
    """The configuration was reloaded."""

    needs_restart: list[str]
