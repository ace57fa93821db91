"""Jobs of any kind, as they are in files."""

from pathlib import Path
from typing import Any

from mapsave import errors, keys, yaml_file
from mapsave.jobs import job, scrub_job
from mapsave.jobs.job import Job
from mapsave.jobs.scrub_job import ScrubJob

AnyJob = Job | ScrubJob
KINDS: dict[str, type[Job] | type[ScrubJob]] = {"save": Job, "scrub": ScrubJob}


def load(path: Path) -> AnyJob:
    """Return the job in the YAML file at ``path``: one that saves, unless its ``kind`` is another.

    Raises ConfigMissing if it cannot be read, ConfigError with file and line for each mistake.
    """
    document = yaml_file.read(path)
    kind = document.data.get("kind")
    if kind is not None and (not isinstance(kind, str) or kind not in KINDS):
        known = " or ".join(map(repr, KINDS))
        guess = keys.nearest(kind, KINDS) if isinstance(kind, str) else ""
        raise document.error(("kind",), f"kind: must be {known}, not {kind!r}{guess}")
    _check_keys(document, str(kind or "save"))
    return scrub_job.of_document(document) if kind == "scrub" else job.of_document(document)


def _check_keys(document: yaml_file.Document, kind: str) -> None:
    """Raise ConfigError for a key that only jobs of another kind have."""
    for key in document.data:
        others = [name for name, each in KINDS.items() if key in keys.fields(each)]
        if others and kind not in others:
            words = f"{key!r} is a key of {others[0]} jobs, and this is a {kind} job"
            hint = "add 'kind: scrub' to it" if others == ["scrub"] else "omit it"
            raise document.error((key,), words, hint=hint, at_key=True)


def saving(found: AnyJob) -> Job:
    """Return a job that saves. Raises UsageError for any other."""
    if isinstance(found, ScrubJob):
        raise errors.UsageError(
            f"the job {found.name!r} is of kind 'scrub': it saves no images, so it keeps none",
            hint="'mapsave job list' lists the jobs",
        )
    return found


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a job of any kind, for editors."""
    parts = {name: keys.schema(each) for name, each in KINDS.items()}
    definitions = {
        name: each for part in parts.values() for name, each in part.pop("$defs").items()
    }
    is_scrub = {"properties": {"kind": {"const": "scrub"}}, "required": ["kind"]}
    return {
        "type": "object",
        "if": is_scrub,
        "then": parts["scrub"],
        "else": parts["save"],
        "$defs": definitions,
    }
