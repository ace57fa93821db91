"""A scrub job: which images to verify against their digests, how often, when, and how fast."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, field, structs

from mapsave import units, yaml_file
from mapsave.jobs.schedule import When
from mapsave.key_types import Duration, Name, Size, Text
from mapsave.keys import Check, Keys, help

_MONTH = 30 * 86400.0  # seconds


def _rate(value: int | None) -> int | None:
    if value is not None and value < units.MIB:
        raise ValueError("must be at least 1M: what has one digest is read at once")
    return value


def _word(value: str) -> str:
    if "/" in value:
        raise ValueError("must be the name of an image in the image directory, or a pattern")
    return value


class ScrubJob(Keys, frozen=True):
    """A job of mapsave that verifies images. ``document`` is the file that it is from."""

    name: Annotated[Name, help("The job's name.")] = field(name="job")
    kind: Annotated[Literal["scrub"], help("What the job does.")]
    images: Annotated[
        tuple[Annotated[Text, Check(_word)], ...],
        Meta(min_length=1),
        help("Names of images in the image directory, or patterns such as `web*`."),
    ] = ("*",)
    guests: Annotated[
        tuple[Text, ...],
        Meta(min_length=1),
        help("Names of guests, or patterns: only their images; by default those of all."),
    ] = ()
    every: Annotated[Duration, help("An image that was verified more recently is left alone.")] = (
        _MONTH
    )
    rate: Annotated[
        Size | None,
        Check(_rate),
        help("Most bytes per second that are read; by default what idle disks yield."),
    ] = None
    limit: Annotated[
        Size | None, help("Most bytes that one run reads; the next run goes on from there.")
    ] = None
    timeout: Annotated[
        Duration | None, help("How long one run may take; the next run goes on from there.")
    ] = None
    schedule: When = None
    document: yaml_file.Document = field(default_factory=lambda: yaml_file.Document(Path(), {}))

    @property
    def source(self) -> Path:
        """The file that the job is from."""
        return self.document.path

    def is_about(self, image: str, guest: str | None) -> bool:
        """Return whether the job verifies the image of that name, which is of that guest.

        Of an image that is damaged it may not be known whose it is (None).
        """
        if not _matches(image, self.images):
            return False
        return not self.guests or (guest is not None and _matches(guest, self.guests))


def _matches(name: str, words: Iterable[str]) -> bool:
    return any(name == word or fnmatch.fnmatchcase(name, word) for word in words)


def of_document(document: yaml_file.Document) -> ScrubJob:
    """Return the scrub job in a YAML file. Raises ConfigError with file and line for a mistake."""
    found = structs.replace(document.validate(ScrubJob), document=document)
    if found.schedule is not None:
        _ = found.schedule.zone  # one that is not known is reported now, not when the job is due
    return found
