"""Jobs of each kind: what a file says it is, and keys that do not go together."""

from pathlib import Path

import jsonschema_rs
import pytest
from mapsave import errors, yaml_file
from mapsave.jobs import loading, schedule
from mapsave.jobs.job import Job
from mapsave.jobs.scrub_job import ScrubJob

from tests.kit.full import JOB, SCRUB


def load(tmp_path: Path, text: str) -> loading.AnyJob:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return loading.load(path)


def error_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(errors.ConfigError) as caught:
        load(tmp_path, text)
    return caught.value.message.removeprefix(f"{tmp_path}/")


def test_a_file_is_of_the_kind_that_it_says(tmp_path: Path) -> None:
    assert isinstance(load(tmp_path, "job: a\nguests: [b]\n"), Job)
    assert isinstance(load(tmp_path, JOB), Job)
    found = load(tmp_path, SCRUB)
    assert found == ScrubJob(
        name="weekly-scrub",
        kind="scrub",
        images=("*.mapsave",),
        guests=("web01", "db*"),
        every=30 * 86400.0,
        rate=100 << 20,
        limit=2 << 40,
        timeout=4 * 3600.0,
        schedule=schedule.Schedule("0 1 * * sat", "Europe/Berlin", False, 600.0),
        document=found.document,
    )
    bare = load(tmp_path, "job: a\nkind: scrub\n")
    assert isinstance(bare, ScrubJob)
    assert (bare.images, bare.guests, bare.every, bare.rate) == (("*",), (), 30 * 86400.0, None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: srub", "job.yaml:2:7: kind: must be 'save' or 'scrub', not 'srub'"),
        ("kind: [scrub]", "job.yaml:2:7: kind: must be 'save' or 'scrub', not ['scrub']"),
        ("kind: scrub\nkeep: {last: 1}", "job.yaml:3:1: 'keep' is a key of save jobs, and this is"),
        ("kind: scrub\nconcurrency: 2", "job.yaml:3:1: 'concurrency' is a key of save jobs"),
        (
            "guests: [db]\nrate: 1M",
            "job.yaml:3:1: 'rate' is a key of scrub jobs, and this is a",
        ),
        ("kind: scrub\nrate: 100K", "job.yaml:3:7: rate: must be at least 1M"),
        ("kind: scrub\nimages: [a/b]", "job.yaml:3:10: images[0]: must be the name of an image in"),
        ("kind: scrub\nimages: []", "job.yaml:3:9: images: must be a list that is not empty"),
        ("kind: scrub\nevry: 1d", "job.yaml:3:1: unknown key 'evry': did you mean 'every'?"),
        ("kind: scrub\nschedule: 61 * * * *", "job.yaml:3:11: schedule.cron: minute"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    assert error_of(tmp_path, f"job: a\n{text}\n").startswith(words)


def test_the_schema_takes_both_kinds_and_not_their_mixture() -> None:
    schema = jsonschema_rs.validator_for(loading.schema())
    for text, more in ((JOB, "rate: 1M"), (SCRUB, "keep: {last: 1}")):
        plain = yaml_file.parse(text.encode(), Path("full.yaml")).data
        mixed = yaml_file.parse(f"{text}{more}\n".encode(), Path("full.yaml")).data
        assert schema.is_valid(plain)
        assert not schema.is_valid(mixed)


@pytest.mark.parametrize(
    ("image", "guest", "is_meant"),
    [
        ("a.mapsave", "web01", True),
        ("a.mapsave", "db7", True),
        ("a.mapsave", "web02", False),
        ("a.mapsave", None, False),
        ("a.img", "web01", False),
    ],
)
def test_which_images_are_meant(
    tmp_path: Path, image: str, guest: str | None, is_meant: bool
) -> None:
    found = load(tmp_path, SCRUB)
    assert isinstance(found, ScrubJob)
    assert found.is_about(image, guest) is is_meant
