"""A host that gets mapsave, until it is shut down. Each case needs those before it."""

import fcntl
import json
import os
import struct
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from tests.kit import emulated, tree, wait
from tests.outside.guest import host

SHUTDOWN_AND_BOOT = ("mapsave-save-all.service", "mapsave-restore-all.service")
_RTC_SET_TIME = 0x4024700A  # rtc(4), linux/rtc.h: nine ints


def test_it_installs() -> None:
    host.run("dpkg", "--install", tree.ROOT / "mapsave.deb")
    host.run("systemctl", "enable", *SHUTDOWN_AND_BOOT)
    host.run("systemctl", "start", "mapsave-save-all.service")
    assert host.is_active("mapsaved.socket")
    assert not host.is_active("mapsaved.service")
    assert host.run("mapsave", "--version").stdout.startswith("mapsave")


def test_guests_are_units_of_their_own() -> None:
    Path("/etc/tmpfiles.d/guests.conf").write_text("d /run/guests 0755 root root -\n")
    host.run("systemd-tmpfiles", "--create", "guests.conf")
    for number, guest in enumerate(host.GUESTS):
        host.run(*host.start(guest), "--pattern", "random", "--seed", str(number))
    wait.until(
        lambda: all(emulated.answers(host.monitor(guest)) for guest in host.GUESTS),
        what="their monitors",
    )
    content = {
        "guests": {
            guest: {"qmp": str(host.monitor(guest)), "launch": host.start(guest)}
            for guest in host.GUESTS
        },
        "service": {"operators": ["mapsave"], "readers": ["monitoring"]},
    }
    host.CONFIGURATION.write_text(yaml.safe_dump(content))
    host.run("groupadd", "monitoring")
    for user, groups in host.GROUPS.items():
        host.run("useradd", "--create-home", f"--groups={','.join(groups)}", user)


def test_a_client_at_the_socket_starts_the_service() -> None:
    assert not host.is_active("mapsaved.service")
    told = host.run("mapsave", "status", "--json").json()
    assert host.is_active("mapsaved.service")
    assert str(told["pid"]) == host.shown("mapsaved.service", "MainPID")


def test_an_operator_saves() -> None:
    saved = host.run("mapsave", "save", "web01", "--then", "resume", "--json", user=host.OPERATOR)
    assert Path(saved.json()["image"]).stat().st_uid == 0  # the service wrote it
    (operation,) = host.operations(kind="save")
    assert operation["user"] == f"user {host.OPERATOR!r}"


def test_a_reader_reads_alone() -> None:
    listed = host.run("mapsave", "list", "--json", user=host.READER).json()
    assert [each["guest"] for each in listed["images"]] == ["web01"]
    refused = host.run("mapsave", "save", "web01", user=host.READER, code=7)
    assert "'mapsave'" in refused.stderr, refused  # the group that may
    assert len(host.operations(kind="save")) == 1


def test_others_may_do_nothing() -> None:
    refused = host.run("mapsave", "list", "--json", user=host.STRANGER, code=7).json()
    assert refused["error"]["id"] == "permission.role"


def test_who_logs_in_to_cockpit_has_the_role_of_their_groups() -> None:
    host.run("systemctl", "start", "cockpit.socket")
    operator, stranger = host.Cockpit(host.OPERATOR), host.Cockpit(host.STRANGER)
    assert "Saved guests" in operator.get("/cockpit/@localhost/mapsave/index.html")
    found = json.loads(operator.ask_service("/v1/caller"))
    assert (found["user"], found["role"]) == (f"user {host.OPERATOR!r}", "operator")
    refused = json.loads(stranger.ask_service("/v1/caller"))
    assert refused["error"]["id"] == "permission.role"


def test_who_turns_on_administrative_access_is_root() -> None:
    """By sudo, as Cockpit does it."""
    host.run("usermod", "--append", "--groups=sudo", host.STRANGER)
    found = json.loads(host.Cockpit(host.STRANGER, administrates=True).ask_service("/v1/caller"))
    assert (found["user"], found["role"]) == ("user 'root'", "admin")
    refused = json.loads(host.Cockpit(host.STRANGER).ask_service("/v1/caller"))
    assert refused["error"]["id"] == "permission.role"
    host.run("systemctl", "stop", "cockpit.socket", "cockpit.service")


def test_a_job_runs_by_its_schedule() -> None:
    job = {
        "job": host.JOB,
        "guests": ["*"],
        "save": {"then": "resume"},
        "schedule": {"cron": "30 2 * * *", "time_zone": "UTC"},
    }
    (host.JOBS / f"{host.JOB}.yaml").write_text(yaml.safe_dump(job))
    time.clock_settime(time.CLOCK_REALTIME, datetime(2040, 6, 1, 2, 29, 55, tzinfo=UTC).timestamp())
    host.run("mapsave", "reload")
    ran = host.await_operation(kind="job")
    assert (ran["job"], ran["state"]) == (host.JOB, "done")
    assert ran["created"] >= datetime(2040, 6, 1, 2, 30, tzinfo=UTC).timestamp()
    assert [guest["error"] for guest in ran["result"]["guests"]] == [None] * len(host.GUESTS), ran


def test_what_the_next_boot_has_to_find() -> None:
    """Note how the guests are, and set the clock that runs while the host is off to tomorrow."""
    notes = {guest: host.digest(guest) for guest in host.GUESTS}
    assert len(set(notes.values())) == len(host.GUESTS)
    host.NOTES.write_text(json.dumps(notes))
    clock = os.open("/dev/rtc0", os.O_RDONLY)
    # Seconds, minutes, hours, day, month from 0, years from 1900; the others are not looked at.
    fcntl.ioctl(clock, _RTC_SET_TIME, struct.pack("9i", 0, 0, 4, 2, 5, 140, 0, 0, 0))
    os.close(clock)
