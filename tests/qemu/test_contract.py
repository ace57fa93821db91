"""What scripts rely on: JSON on standard output, error ids, exit codes, explicit strategies."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, patterns, qemu, ram, storage
from tests.qemu.scene import saved, state_of

MIB = 1 << 20
SAVE_KEYS = {
    *("image", "guest", "format", "state", "ram_bytes", "data_bytes", "file_bytes"),
    *("allocated_bytes", "exclusive_bytes", "duration_s", "downtime_s", "phases_s", "bytes_per_s"),
    *("strategy", "label", "then"),
}
STRATEGY_KEYS = {"direct_io", "zero_pages", "channels", "preallocate", "bandwidth_bytes_per_s"}
RESTORE_KEYS = {"image", "guest", "run_state", "duration_s", "downtime_s", "bytes_per_s"}


def done(site: cli.Site, *arguments: str | os.PathLike[str]) -> dict[str, Any]:
    """Run a command with ``--json`` that succeeds; nothing else than its object is printed.

    Without ``--quiet`` it would say how far it is after ten seconds, as on a busy host.
    """
    result = site.run("--quiet", *arguments, "--json", check=0)
    assert result.stderr == ""
    return result.json()


def test_save_and_restore(site: cli.Site) -> None:
    with qemu.guest(
        site, "web01", machine="none", memory="16M", paused=False, ram=patterns.dense
    ) as guest:
        found = done(site, "save", "web01", "-o", "now.mapsave")
        guest.wait()
        image = site.images / "now.mapsave"
        stats = image.stat()
        assert found.keys() >= SAVE_KEYS
        assert found["strategy"].keys() == STRATEGY_KEYS
        assert (found["image"], found["guest"]) == (str(image), "web01")
        assert (found["format"], found["state"], found["then"]) == ("native", "saved", "quit")
        assert found["ram_bytes"] == 16 * MIB
        assert found["data_bytes"] == 15 * MIB  # the first MiB of the guest was left zero
        assert (found["file_bytes"], found["allocated_bytes"]) == (
            stats.st_size,
            stats.st_blocks * 512,
        )
        assert 0 < found["downtime_s"] <= found["duration_s"]
        assert sum(found["phases_s"].values()) == pytest.approx(found["duration_s"], rel=0.2)
        assert found["bytes_per_s"] > 0

        back = done(site, "restore", "now.mapsave")
        with guest.successor():
            assert back.keys() >= RESTORE_KEYS
            assert (back["image"], back["guest"]) == (str(image), "web01")
            assert back["run_state"] == "running"
            assert back["downtime_s"] >= 0
            assert back["duration_s"] > 0
            assert back["instant"] is True
            assert back["bytes_per_s"] == 0


def test_commands_that_look_at_an_image(site: cli.Site) -> None:
    with saved(site, machine="none", memory="16M") as scene:
        image = str(scene.image)
        inspected = done(site, "inspect", image)
        assert (inspected["image"], inspected["guest"]) == (image, "web01")
        assert (inspected["state"], inspected["run_state"]) == ("saved", "prelaunch")
        (block,) = inspected["ram_blocks"]
        assert (block["bytes"], block["page_bytes"]) == (16 * MIB, 4096)
        assert (block["used_pages"], block["zero_pages"]) == (15 * 256, 256)
        assert inspected["runs"] == {
            "total": 1,
            "by_length": [{"pages_from": 2048, "pages_to": 4095, "runs": 1}],
        }

        verified = done(site, "verify", image)
        assert (verified["image"], verified["valid"]) == (image, True)
        assert "structure" in verified["verified"]
        checked = done(site, "check", image)
        assert checked["launch"] is True
        assert (checked["guest"], checked["valid"]) == ("web01", True)

        (listed,) = done(site, "list")["images"]
        assert (listed["image"], listed["guest"]) == (image, "web01")
        assert (listed["state"], listed["error"]) == ("saved", None)
        assert listed["file_bytes"] == inspected["file_bytes"] == scene.image.stat().st_size

        two = site.run("verify", image, site.config, "--json", check=6).json()["images"]
        assert [each["valid"] for each in two] == [True, False]
        assert two[1]["error"]["id"] == "image.not_an_image"


def test_discard_and_recover(site: cli.Site) -> None:
    with saved(site, machine="none", memory="16M") as scene:
        error = site.run("discard", scene.image, "--json", check=3).error("check.refused")
        assert "--yes" in error["hint"]
        held = scene.image.stat().st_blocks * 512
        assert done(site, "recover") == {
            "operations": [],
            "swept": [],
            "damaged": [],
            "warnings": [],
            "dry_run": False,
        }
        assert scene.image.exists()
        gone = done(site, "discard", scene.image, "--yes")
        sizes = {"freed_bytes": held, "shared_bytes": 0}
        assert gone == {"image": str(scene.image), **sizes, "note": None}
        assert done(site, "list")["images"] == []


def test_job(site: cli.Site, tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    # Two runs may fall into one second, so the time alone does not make a name.
    save = '{then: resume, image: "{guest}-{uuid}.mapsave"}'
    job.write_text(f'job: both\nguests: ["*"]\nsave: {save}\n')
    with qemu.guest(site, "good", machine="none", memory="16M", paused=False):
        checked = done(site, "job", "check", job)
        assert [line["guest"] for line in checked["guests"]] == ["good"]
        ran = done(site, "job", "run", job)
        assert (ran["job"], ran["saved"], ran["failed"], ran["exit_code"]) == ("both", 1, 0, 0)
        assert ran["guests"][0]["result"].keys() >= SAVE_KEYS

        site.add_guest("gone", tmp_path / "gone.qmp")
        ran = site.run("job", "run", job, "--json", check=3).json()
        assert (ran["saved"], ran["failed"], ran["exit_code"]) == (1, 1, 3)
        lines = {line["guest"]: line for line in ran["guests"]}
        assert lines["gone"]["result"] is None
        assert lines["gone"]["error"]["id"] == "check.unreachable"
        assert lines["good"]["error"] is None


def test_check_of_a_guest_touches_nothing(site: cli.Site) -> None:
    with qemu.guest(site, "web01", machine="none", memory="16M", paused=False) as guest:
        before = guest.state()
        guest.control.events.clear()
        found = done(site, "check", "web01")
        assert (found["guest"], found["can_save"]) == ("web01", True)
        assert (found["run_state"], found["memory_bytes"]) == ("running", 16 * MIB)
        assert found["strategy"].keys() == STRATEGY_KEYS
        assert all(line["ok"] for line in found["checks"])
        assert guest.state() == before
        assert guest.control.event_names() == []
        assert list(site.images.iterdir()) == []

        # What would fail is told with every check that was made, and by the exit code.
        (site.images / "taken").touch()
        found = site.run("check", "web01", "--image", "taken", "--json", check=3).json()
        assert found["can_save"] is False
        failed = [line for line in found["checks"] if not line["ok"]]
        assert [line["error"]["id"] for line in failed] == ["check.image_exists"]


# Errors.


NOTES = "/a file that is neither image nor YAML of ours"


@pytest.mark.parametrize(
    ("arguments", "code", "identifier"),
    [
        (["save", "nosuch"], 2, "guest.unknown"),
        (["check", "nosuch"], 2, "guest.unknown"),
        (["save", "qmp:/nonexistent/qmp"], 3, "check.unreachable"),
        (["check", "qmp:/nonexistent/qmp"], 3, "check.unreachable"),
        (["save", "libvirt+qemu+unix:///system?socket=/nowhere#web01"], 3, "check.unreachable"),
        (["save", "qmp:/nonexistent/qmp", "--channels", "0"], 2, "usage"),
        (["save", "qmp:/nonexistent/qmp", "--channels", "256"], 2, "usage"),
        (["save", "qmp:/nonexistent/qmp", "--then", "explode"], 2, "usage"),
        (["save"], 2, "usage"),
        (["nosuch"], 2, "usage"),
        (["restore", "image", "--into", "/a/path"], 2, "usage"),
        (["restore", "/nonexistent/image"], 2, "image.not_found"),
        (["inspect", "nosuch.mapsave"], 2, "image.not_found"),
        (["verify", "nosuch.mapsave"], 2, "image.not_found"),
        (["discard", "nosuch.mapsave"], 2, "image.not_found"),
        (["check", "/nonexistent/image"], 2, "image.not_found"),
        (["inspect", NOTES], 6, "image.not_an_image"),
        (["restore", NOTES], 6, "image.not_an_image"),
        (["discard", NOTES, "--yes"], 6, "image.not_an_image"),
        (["job", "run", "/nonexistent/job.yaml"], 2, "config.missing"),
        (["job", "check", NOTES], 2, "config.invalid"),
        (["list", "/nonexistent"], 3, "check.directory"),
        (["--config", "/nonexistent/manager.yaml", "list"], 2, "config.missing"),
        (["--config", NOTES, "list"], 2, "config.invalid"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_errors_have_a_stable_id_and_exit_code(
    site: cli.Site, arguments: list[str], code: int, identifier: str
) -> None:
    notes = site.directory / "notes"
    notes.write_text("- remember the milk\n")
    words = [str(notes) if word == NOTES else word for word in arguments]
    result = site.run(*words, "--json", check=code)
    error = result.error(identifier)
    assert list(result.json()) == ["error"]
    assert error.keys() == {"id", "exit_code", "message", "hint", "data"}
    # People read the same on standard error, in one line and at most a hint.
    first, *rest = result.stderr.splitlines()
    assert first == f"mapsave: {error['message']} [{identifier}]"
    assert [line.strip() for line in rest] == ([f"hint: {error['hint']}"] if error["hint"] else [])
    assert notes.exists()


def test_global_options_stand_before_or_after(site: cli.Site, tmp_path: Path) -> None:
    printed = set()
    other = ["--config", str(tmp_path / "nosuch.yaml")]  # the one that is given last counts
    mine = ["--config", str(site.config)]
    for words in (
        ["--json", "list"],
        ["list", "--json"],
        ["--quiet", "list", "--json", "--local"],
        [*other, "list", *mine, "--json"],
    ):
        result = site.run(*words, check=0)
        assert result.json()["images"] == []
        printed.add(result.stdout)
    assert len(printed) == 1
    job = tmp_path / "job.yaml"
    job.write_text("job: none\nguests: [nosuch]\n")
    for words in (["--json", "job", "check"], ["job", "--json", "check"], ["job", "check"]):
        after = [] if "--json" in words else ["--json"]
        assert site.run(*words, str(job), *after, check=2).error_id() == "config.invalid"


@pytest.fixture(scope="module")
def source() -> Iterator[qemu.Qemu]:
    """A guest with long runs of dense and of zero pages, which every save leaves as it was."""
    traced = ("-trace", "handle_qmp_command", "-trace", "multifd_send_thread_start")
    with qemu.running(
        *traced,
        name="source",
        machine="none",  # without a processor that changes it, although it runs
        memory="32M",
        paused=False,
        ram=patterns.fragmented(1024),
    ) as guest:
        yield guest


@pytest.mark.parametrize(
    "options",
    [
        {"direct_io": "on"},
        {"direct_io": "off"},
        {"channels": 1},
        {"channels": 2, "direct_io": "off"},
        {"channels": 16},
        {"channels": 255},
        {"zero_pages": "legacy"},
        {"zero_pages": "none"},
        {"zero_pages": "multifd"},
        {"preallocate": "on"},
        {"preallocate": "off"},
    ],
    ids=lambda options: "-".join(f"{name}-{value}" for name, value in options.items()),
)
def test_explicit_strategy(site: cli.Site, source: qemu.Qemu, options: dict[str, Any]) -> None:
    before, told_before = source.state(), len(source.stderr())
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    found = done(site, "save", source.address, "-o", "image", "--then", "resume", *words)
    assert source.state() == before
    values = {"on": True, "off": False}
    for name, value in options.items():
        assert found["strategy"][name] == values.get(str(value), value)
    # What QEMU itself was told and did, as it traces it (docs/devel/tracing.rst).
    told = source.stderr()[told_before:]
    assert f'"direct-io": {json.dumps(found["strategy"]["direct_io"])}' in told
    assert f'"zero-page-detection": "{found["strategy"]["zero_pages"]}"' in told
    assert told.count("multifd_send_thread_start") == found["strategy"]["channels"]
    # A zero page costs room only if no one looks for it; what was reserved in vain is given back.
    held = 32 * MIB if options.get("zero_pages") == "none" else found["data_bytes"]
    assert found["data_bytes"] <= held
    assert held <= found["allocated_bytes"] <= held + 4 * MIB
    with qemu.running(machine="none", memory="32M", incoming=True) as waiting:
        channels = [word for word in words if "channels" in word]
        site.run("restore", "image", "--into", waiting.address, *channels, check=0)
        ram.assert_same(source.ram, waiting.ram)


@pytest.mark.root
def test_direct_io_where_there_is_none(site: cli.Site, source: qemu.Qemu, tmp_path: Path) -> None:
    with storage.without_direct_io(tmp_path) as place:
        command = ("save", source.address, "-o", place / "image", "--then", "resume", "--json")
        site.run(*command, "--direct-io", "on", check=3).error("check.direct_io")
        assert list(place.iterdir()) == []
        found = site.run(*command, check=0).json()
        assert found["strategy"]["direct_io"] is False
        assert state_of(site, place / "image") == "saved"
