"""fleet.yaml: what is read from it, and what is said, with its line, of each mistake."""

from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from mapsave import errors, yaml_file
from mapsave.fleet import settings
from mapsave.jobs import schedule

from tests.kit import tree

EXAMPLE = tree.ROOT / "examples/fleet/fleet.yaml"
DATABASE = "database: {dsn: dbname=fleet}\n"
GOOD = f"""\
{DATABASE}\
targets:
  nas1: {{saves: 4}}
hosts:
  rack1-a: {{target: nas1, saves: 1}}
  "rack1-*": {{target: nas1}}
jobs:
  nightly:
    guests: ["web*@rack1-*"]
"""


def read(text: str) -> settings.Settings:
    return settings.of_document(yaml_file.parse(text.encode(), Path("fleet.yaml")))


def mistakes(text: str) -> list[str]:
    with pytest.raises(errors.ConfigError) as caught:
        read(text)
    found: list[dict[str, Any]] = caught.value.data["errors"]
    return [each["message"].removeprefix("fleet.yaml:") for each in found]


def test_example_is_read_and_is_what_the_schema_says() -> None:
    found = settings.load(EXAMPLE)
    nightly = found.jobs["nightly"]
    assert found.targets["nas1"] == settings.Target(4, 2 << 30)
    assert nightly.guests == ("web*@rack1-*", "db*")
    assert nightly.schedule == schedule.Schedule("30 1 * * *", "Europe/Berlin")
    assert (nightly.window, nightly.max_failures, nightly.timeout) == ("01:00-05:00", 20, 3600.0)
    assert nightly.save.settings() == {"then": "resume"}
    assert found.rights("alice").return_to == ("rack1-*",)
    assert found.rights("bob") == settings.Rights(run=("weekly",), cancel=True)
    assert found.rights("stranger") == settings.Rights()
    assert found.document.path == EXAMPLE
    plain = yaml_file.read(EXAMPLE).data
    assert jsonschema_rs.validator_for(settings.schema()).is_valid(plain)


def test_a_host_has_its_own_settings_else_those_of_the_first_pattern() -> None:
    found = read(GOOD + "silent_after: 5m\n")
    first, second = found.host("rack1-a"), found.host("rack1-b")
    assert first is not None
    assert second is not None
    assert (first.saves, second.saves) == (1, 2)
    assert found.host("rack2-a") is None
    more = GOOD.replace('  "rack1-*"', '  "*": {target: nas1, saves: 9}\n  "rack1-*"')
    third = read(more).host("rack1-b")
    assert third is not None
    assert third.saves == 9


def test_every_mistake_is_named_with_its_place() -> None:
    text = f"""\
{DATABASE}\
targets:
  nas1: {{saves: 0}}
hosts:
  rack1-a: {{saves: 1}}
  "a b": {{target: nas1}}
  {"h" * 41}: {{target: nas1}}
jobs:
  nightly:
    guests: ["web*@", "@rack1-*", ""]
    window: 25:00-26:00
    max_failure: 3
    save: {{image: same.mapsave, policy: p.yaml}}
    timeout: 2d
  empty: {{guests: []}}
may:
  alice: {{runs: [nightly]}}
silent_after: 0
"""
    assert mistakes(text) == [
        "3:17: targets.nas1.saves: must be a number from 1 to 1000, not 0",
        "5:12: the key 'target' is missing in hosts.rack1-a",
        "6:3: hosts.a b: 'a b' is not the name of a host, nor a pattern such as 'rack1-*'",
        f"7:3: hosts.{'h' * 41}: the name '{'h' * 20}'... is longer than 40 characters",
        "10:14: jobs.nightly.guests[0]: 'web*@' names no host: write GUEST@HOST, or 'web*' for any "
        "host",
        "10:23: jobs.nightly.guests[1]: '@rack1-*' names no guest: write GUEST@HOST, such as "
        "'*@rack1-*'",
        "10:35: jobs.nightly.guests[2]: must not be empty",
        "11:13: jobs.nightly.window: '25:00-26:00': 25:00 is not a time of the day",
        "12:5: unknown key 'max_failure': did you mean 'max_failures'?",
        "13:19: jobs.nightly.save.image: two guests of a host would get the same image name: add "
        "{guest} to it",
        "13:41: jobs.nightly.save.policy: must be the name of a label policy of the host, not the "
        "path of a file",
        "14:14: jobs.nightly.timeout: must be from 1 second to 1 day",
        "15:19: jobs.empty.guests: must be a list that is not empty, not an empty list",
        "17:11: unknown key 'runs': did you mean 'run'?",
        "18:15: silent_after: must be longer than 0",
    ]


def test_names_that_are_not_there_are_named_with_the_nearest() -> None:
    text = f"""\
{DATABASE}\
targets:
  nas1: {{saves: 1}}
hosts:
  rack1-a: {{target: nas2}}
jobs:
  nightly:
    guests: ["web*@rack9-*", "db@rack1-b", "db@rack1-a", "*"]
    save: {{managed: on}}
may:
  alice:
    run: [nightli, "night*", "week*"]
    evacuate: [rack1-a, "rack2*"]
    return: [rack1-aa]
"""
    assert mistakes(text) == [
        "5:21: hosts.rack1-a.target: no target 'nas2' in 'targets:': did you mean 'nas1'?",
        "8:14: jobs.nightly.guests[0]: no host in 'hosts:' matches the pattern 'rack9-*': did you "
        "mean 'rack1-a'?",
        "8:30: jobs.nightly.guests[1]: no host in 'hosts:' is called 'rack1-b': did you mean "
        "'rack1-a'?",
        "9:12: jobs.nightly.save.managed: where images are is not for the fleet to say",
        "12:11: may.alice.run[0]: no job in 'jobs:' is called 'nightli': did you mean 'nightly'?",
        "12:30: may.alice.run[2]: no job in 'jobs:' matches the pattern 'week*'",
        "13:25: may.alice.evacuate[1]: no host in 'hosts:' matches the pattern 'rack2*': did you "
        "mean 'rack1-a'?",
        "14:14: may.alice.return[0]: no host in 'hosts:' is called 'rack1-aa': did you mean "
        "'rack1-a'?",
    ]
    # Which hosts suit two patterns is not known before they are there.
    assert read(GOOD.replace("web*@rack1-*", "web*@*-a")).jobs


def test_a_database_is_needed() -> None:
    assert mistakes("targets: {}\n") == ["1:1: the key 'database' is missing"]


@pytest.mark.parametrize(
    ("environ", "explicit", "place"),
    [
        ({}, None, "/etc/mapsave/fleet.yaml"),
        ({"MAPSAVE_FLEET": "/x"}, None, "/x"),
        ({"MAPSAVE_FLEET": ""}, None, "/etc/mapsave/fleet.yaml"),
        ({"MAPSAVE_FLEET": "/x"}, Path("/y"), "/y"),
    ],
)
def test_file_in_force(environ: dict[str, str], explicit: Path | None, place: str) -> None:
    assert settings.place(explicit, environ) == Path(place)
