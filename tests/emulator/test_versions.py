"""The versions of QEMU that the emulator can be, without a QEMU: what mapsave must cope with."""

import re
from pathlib import Path
from typing import get_args

import pytest
from mapsave import config
from mapsave.emulator.versions import VERSIONS

from tests.emulator import helpers


def test_every_version_of_the_configuration_is_there() -> None:
    assert tuple(VERSIONS) == get_args(config.EmulatedVersion)
    assert len({frozenset(version.load) for version in VERSIONS.values()}) == 1


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.0", r"setup pass_1 active (pass_\d+ )*STOP device pass_\d+ completed RESUME"),
        ("11.1", r"setup active pass_2 (pass_\d+ )*STOP device completed RESUME"),
    ],
)
def test_order_of_events(tmp_path: Path, version: config.EmulatedVersion, expected: str) -> None:
    with helpers.emulator(tmp_path, version=version) as qmp:
        assert qmp.greeting["version"]["qemu"]["major"] == int(version.partition(".")[0])
        # How many passes there are before it stops depends on how fast the host was found to be.
        assert helpers.save(qmp, f"{tmp_path}/image")["ram"]["dirty-sync-count"] >= 2
        qmp.wait_run_state("postmigrate")
        qmp("cont")
        trace = " ".join(event.replace(" ", "_") for event in qmp.trace())
        assert re.fullmatch(expected, trace), trace


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("10.0", ["setup", "failed"]),
        ("11.1", ["setup", "failing", "failed"]),
    ],
)
def test_a_save_that_fails_at_once(
    tmp_path: Path, version: config.EmulatedVersion, expected: list[str]
) -> None:
    with helpers.emulator(tmp_path, version=version) as qmp:
        qmp.capabilities("events")
        assert "error" in qmp.ask("migrate", uri=f"file:{tmp_path}/no/image")
        assert qmp.trace() == expected
        assert ("return" in qmp.ask("migrate", uri=f"file:{tmp_path}/x", detach=True)) == (
            version == "10.0"
        )


@pytest.mark.parametrize(
    ("version", "text"),
    [
        ("10.0", "Parameter 'multifd_channels' expects a value between 1 and 255"),
        ("11.1", "Option multifd-channels expects a value between 1 and 255"),
    ],
)
def test_values_out_of_range(tmp_path: Path, version: config.EmulatedVersion, text: str) -> None:
    with helpers.emulator(tmp_path, version=version) as qmp:
        refused = qmp.ask("migrate-set-parameters", multifd_channels=0)["error"]["desc"]
        assert refused == text
        listed = {each["capability"] for each in qmp("query-migrate-capabilities")}
        assert ("zero-blocks" in listed) == (version == "10.0")


@pytest.mark.parametrize(
    ("version", "errors"),
    [
        ("10.0", ["JSON parse error, key is not a string in object"]),
        ("11.1", ["2:2: JSON parse error, expecting key"]),
    ],
)
def test_bad_json(tmp_path: Path, version: config.EmulatedVersion, errors: list[str]) -> None:
    with helpers.emulator(tmp_path, version=version) as qmp:
        qmp.send(b"\n{1:2}\n")
        assert [qmp.reply()["error"]["desc"]] == errors
