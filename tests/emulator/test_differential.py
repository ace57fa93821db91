"""The same requests to emulator and QEMU: replies and events must be the same, literally."""

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.emulator import alike, helpers, requests
from tests.emulator.helpers import MIB, MULTIFD
from tests.kit import files, wait

SCRIPTS = {
    "syntax": [line + "\n" for line in requests.SYNTAX],
    "queries": requests.QUERIES,
    "descriptors": requests.DESCRIPTORS,
    "run-states": requests.RUN_STATES,
    "capabilities": requests.CAPABILITIES,
    "parameters": requests.PARAMETERS,
    "compression-trap": requests.COMPRESSION_TRAP,
    "migrate-plain": requests.migrations("migrate"),
    "migrate-mapped-ram": [
        requests.capabilities("mapped-ram", "events"),
        *requests.migrations("migrate"),
        *requests.OTHER_TRANSPORTS,
    ],
    "migrate-multifd": [
        requests.capabilities("mapped-ram", "multifd", "events"),
        *requests.migrations("migrate"),
        requests.request("query-status"),
    ],
    "multifd-alone": [requests.capabilities("multifd"), *requests.migrations("migrate")],
    "not-incoming": requests.migrations("migrate-incoming"),
}


@pytest.mark.parametrize("arguments", [(), ("-S",)], ids=["running", "stopped"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_same_answers(tmp_path: Path, name: str, arguments: tuple[str, ...]) -> None:
    alike.compare(tmp_path, SCRIPTS[name], *arguments)


def test_negotiation(tmp_path: Path) -> None:
    alike.compare(tmp_path, requests.NEGOTIATION, negotiate=False)


def test_out_of_band(tmp_path: Path) -> None:
    alike.compare(tmp_path, requests.OUT_OF_BAND, oob=True)


def test_name_and_uuid(tmp_path: Path) -> None:
    uuid = "11111111-2222-3333-4444-555555555555"
    lines = [requests.request("query-name"), requests.request("query-uuid")]
    with helpers.emulator(tmp_path, "--name", "web", "--uuid", uuid) as qmp:
        emulated = alike.conversation(qmp, lines)
    with helpers.real_qemu(tmp_path, "-name", "web", "-uuid", uuid) as qmp:
        assert alike.conversation(qmp, lines) == emulated


INCOMING = [
    requests.request("query-status"),
    requests.request("query-migrate"),
    requests.request("migrate", uri="file:/tmp/x"),
    requests.request("stop"),
    requests.request("cont"),
    requests.request("migrate_cancel"),
    requests.request("query-status"),
    requests.capabilities("mapped-ram", "multifd", "events"),
]


@pytest.mark.parametrize(
    "line", [line for line in requests.migrations("migrate-incoming") if "query" not in line]
)
def test_incoming_refusals(tmp_path: Path, line: str) -> None:
    """Every bad start, and what a second one says after it."""
    query = [requests.request("query-migrate"), requests.request("query-status")]
    lines = [line, *query, line, *query]
    alike.compare(tmp_path, INCOMING + lines, "-incoming", "defer")


def test_descriptor_sets(tmp_path: Path) -> None:
    """The same descriptors in the same order give the same sets, whatever their numbers."""
    image = tmp_path / "image"
    image.touch()
    heard = []
    for start in (helpers.emulator, helpers.real_qemu):
        with start(tmp_path) as qmp:
            heard.append(_descriptor_talk(qmp, image))
    assert heard[0] == heard[1]


def _descriptor_talk(qmp: helpers.Qmp, image: Path) -> list[str]:
    out: list[str] = []

    def say(execute: str, *fds: int, **arguments: Any) -> None:
        reply = qmp.ask(execute, *fds, **arguments)
        text = re.sub(r"('fd': |fd=)[0-9]+", r"\1N", alike.normal(reply))
        out.append(f"{execute} {arguments}: {text}")

    qmp.capabilities(*MULTIFD)
    with (
        files.opened(image, os.O_WRONLY) as w,
        files.opened(image, os.O_WRONLY | os.O_DIRECT) as wd,
        files.opened(image, os.O_RDONLY) as r,
        files.opened(image, os.O_RDWR) as rw,
        files.opened(image, os.O_WRONLY | os.O_SYNC) as ws,
        files.opened(image, os.O_WRONLY | os.O_DSYNC) as wds,
    ):
        say("add-fd", w, fdset_id=-1)
        say("add-fd", fdset_id=5)  # the descriptor before was consumed
        say("add-fd", wd, r, opaque="z")
        say("add-fd", w, fdset_id=(1 << 63) - 1)
        say("add-fd", r, fdset_id=3)
        say("add-fd", r)
        say("add-fd", rw, fdset_id=3, opaque="")
        say("add-fd", ws, fdset_id=4)
        say("add-fd", wds, fdset_id=6)
        say("query-fdsets")
        for number in (0, 3, 4, 5, 6):
            say("migrate", uri=f"file:/dev/fdset/{number}")
            say("query-migrate")
        say("remove-fd", fdset_id=3, fd=9999)
        say("remove-fd", fdset_id=3)
        say("query-fdsets", w)
        say("query-status")
        say("add-fd")  # takes the one that came with query-fdsets
        say("add-fd")
        say("getfd", w, fdname="1a")
        say("getfd", fdname="a")
        say("getfd", w, fdname="a")
        say("getfd", r, fdname="a")
        say("closefd", fdname="a")
        say("closefd", fdname="a")
    return [*out, *qmp.trace()]


@pytest.mark.parametrize("arguments", [(), ("-S",)], ids=["running", "stopped"])
@pytest.mark.parametrize(
    ("capabilities", "parameters"),
    [
        pytest.param(MULTIFD, {"direct_io": True}, id="multifd"),
        pytest.param(MULTIFD, {"zero_page_detection": "none"}, id="no-zero-pages"),
        pytest.param(MULTIFD, {"zero_page_detection": "legacy"}, id="legacy"),
        pytest.param(("events", "mapped-ram"), {"direct_io": True}, id="mapped-ram"),
        pytest.param((*MULTIFD, "return-path"), {}, id="return-path"),
        pytest.param((*MULTIFD, "zero-copy-send"), {}, id="zero-copy"),
        pytest.param((*MULTIFD, "validate-uuid"), {}, id="validate-uuid"),
        pytest.param(("mapped-ram", "multifd"), {}, id="without-events"),
    ],
)
def test_save_of_an_empty_guest(
    tmp_path: Path,
    arguments: tuple[str, ...],
    capabilities: tuple[str, ...],
    parameters: dict[str, object],
) -> None:
    """Events, final statistics, run state, and what a second save and ``cont`` say afterwards."""
    heard = []
    for start in (helpers.emulator, helpers.real_qemu):
        with start(tmp_path, *arguments) as qmp:
            helpers.save(qmp, f"{tmp_path}/image", *capabilities, **parameters)
            final = "postmigrate" if "return-path" not in capabilities else None
            qmp.wait_run_state(final or ("prelaunch" if arguments else "running"))
            told: list[Any] = alike.ending(qmp)
            told += [qmp.ask("stop"), qmp("query-status"), qmp.ask("migrate_cancel")]
            if final:
                told.append(qmp.ask("migrate", uri=f"file:{tmp_path}/second"))
            told += [qmp.ask("cont"), qmp("query-status"), *alike.ending(qmp)]
            heard.append(told)
    assert heard[0] == heard[1]


def test_switchover_ack_is_never_given(tmp_path: Path) -> None:
    heard = []
    for start in (helpers.emulator, helpers.real_qemu):
        with start(tmp_path) as qmp:
            qmp.capabilities("mapped-ram", "multifd", "return-path", "switchover-ack")
            told: list[Any] = [qmp.ask("migrate", uri=f"file:{tmp_path}/image")]
            qmp.wait("active", "failed")
            wait.until(lambda qmp=qmp: "error-desc" in qmp("query-migrate"), what="its reason")
            told += [qmp("query-migrate")["error-desc"], qmp.status(), qmp.ask("migrate_cancel")]
            qmp.wait("cancelled", "failed")  # QEMU 11.1 fails at its end, older ones go on forever
            heard.append([*told, *alike.ending(qmp)])
    assert heard[0] == heard[1]


def test_pause_before_switchover(tmp_path: Path) -> None:
    heard = []
    for start in (helpers.emulator, helpers.real_qemu):
        with start(tmp_path) as qmp:
            qmp.capabilities(*MULTIFD, "pause-before-switchover")
            told: list[Any] = [qmp.ask("migrate", uri=f"file:{tmp_path}/image")]
            qmp.wait("pre-switchover")
            told += [qmp.ask(name) for name in ("query-status", "cont", "stop", "query-status")]
            told += [qmp.ask("migrate", uri=f"file:{tmp_path}/x"), qmp.capabilities("xbzrle")]
            states = ("device", "active", "nope", "pre-switchover")
            told += [qmp.ask("migrate-continue", state=state) for state in states]
            qmp.wait("completed")
            qmp.wait_run_state("postmigrate")
            heard.append([*told, *alike.ending(qmp)])
    assert heard[0] == heard[1]


@pytest.mark.parametrize("arguments", [(), ("-S",)], ids=["running", "stopped"])
def test_cancel_in_pre_switchover(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    heard = []
    for start in (helpers.emulator, helpers.real_qemu):
        with start(tmp_path, *arguments) as qmp:
            qmp.capabilities(*MULTIFD, "pause-before-switchover")
            told: list[Any] = [qmp.ask("migrate", uri=f"file:{tmp_path}/image")]
            qmp.wait("pre-switchover")
            told.append(qmp.ask("migrate_cancel"))
            qmp.wait("cancelled")
            heard.append([*told, *alike.ending(qmp)])
    assert heard[0] == heard[1]


def _damages(good: bytes) -> dict[str, bytes]:
    """Return damaged copies of an image that begins at OFFSET and has the layout of 33 MiB."""
    end = 34 * MIB
    at = helpers.OFFSET
    cuts = [at, at + 4, at + 14, at + 60, at + 75, at + 100, at + 0x86, end, end + 0x20, end + 0x36]
    cuts += [
        at + 10,
        at + 0x33,
        end + 8,
        end + 0x0F,
        end + 0x50,
        end + 0x90,
        end + 0xF2,
        end + 0x400,
    ]
    damaged = {f"cut-{cut - at:#x}": good[:cut] for cut in cuts}
    patches: dict[str, tuple[int, bytes]] = {
        "magic": (at, b"X"),
        "version": (at + 7, b"\4"),
        "unknown-capability": (at + 0x37, b"X"),
        "section-type": (at + 0x40, b"\x42"),
        "ram-name": (at + 0x47, b"x"),
        "block-name": (at + 0x5A, b"x"),
        "mapped-version": (at + 0x68, b"\2"),
        "unaligned-pages": (at + 0x80, b"\1"),
        "shorter": (at + 0x5C, b"\0\0\0\0\0\1\0\0"),
        "longer": (at + 0x5C, b"\0\0\0\0\3\0\0\0"),
        "flags": (end + 7, b"\x08"),
        "footer": (end + 8, b"\x7d"),
        "device-name": (end + 0x3C, b"x"),
        "configuration": (at + 8, b"\1"),
        "subsection-name": (at + 0x24, b"x"),
        "part-id": (end + 0x11, b"\x09"),
        "footer-id": (end + 0x0C, b"\x09"),
        "page-size": (at + 0x73, b"\2"),
    }
    for name, (place, new) in patches.items():
        damaged[name] = good[:place] + new + good[place + len(new) :]
    return damaged


@pytest.fixture(scope="module")
def good_image(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    directory = tmp_path_factory.mktemp("good")
    with helpers.real_qemu(directory) as qmp:
        helpers.save(qmp, f"{directory}/image,offset={helpers.OFFSET}", *MULTIFD[:2])
    return (directory / "image").read_bytes()


@pytest.mark.parametrize("name", list(_damages(b"\0" * 35 * MIB)))
def test_damaged_images(tmp_path: Path, good_image: bytes, name: str) -> None:
    """A damaged image fails, or passes, in both with the same words, stderr included."""
    image = tmp_path / "image"
    image.write_bytes(_damages(good_image)[name])
    heard = []
    for start, log in ((helpers.emulator, "emulator.stderr"), (helpers.real_qemu, "qemu.stderr")):
        with start(tmp_path, "-incoming", "defer") as qmp:
            helpers.restore(qmp, f"{image},offset={helpers.OFFSET}", *MULTIFD[:2])
            told = alike.ending(qmp)
        lines = (tmp_path / log).read_text().splitlines()
        heard.append([*told, *(line.partition(": ")[2] for line in lines)])
    assert heard[0] == heard[1]
