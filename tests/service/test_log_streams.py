"""Where the log goes: streams that do not take it, and journald by its native protocol."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave.service.log import journald

from tests.kit import tree, wait
from tests.service.observing import Receiver, configured, receiving

plain = logging.getLogger("mapsave.labels.test")


def run(code: str, **how: Any) -> subprocess.CompletedProcess[str]:
    """Run ``code`` after what configures the log in a fresh Python."""
    begin = "import logging, os, sys\nfrom mapsave.service.log import setup as logs\n"
    begin += "log = logging.getLogger('x')\n"
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        cwd=tree.ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=wait.LONG,
        check=False,
        **how,
    )


def test_a_full_stderr_is_no_error() -> None:
    with open("/dev/full", "w") as full:
        done = run("logs.configure('text')\nlog.error('x' * 10000)\nprint('on')", stderr=full)
    assert (done.returncode, done.stdout) == (0, "on\n")


@pytest.mark.parametrize(
    "close", ["os.close(2)", "sys.stderr.close()", "sys.stderr = None; logs.configure('text')"]
)
def test_a_closed_stderr_is_no_error(close: str) -> None:
    code = f"logs.configure('text')\n{close}\nlog.error('x')\nprint('on')"
    done = run(code, stderr=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "on\n", "")


def test_a_closed_stderr_writes_to_no_other_file(tmp_path: Path) -> None:
    """Behind a stream that is closed its number may be that of an image."""
    code = (
        "stream = open('a', 'w')\nlogs.configure('text', stream=stream)\nnumber = stream.fileno()\n"
        "stream.close()\nfile = os.open('b', os.O_CREAT | os.O_WRONLY)\n"
        "assert file == number\nlog.error('x')\nprint(os.fstat(file).st_size)"
    )
    done = run(f"os.chdir({os.fspath(tmp_path)!r})\n{code}", stderr=subprocess.PIPE)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.fixture
def pipe() -> Iterator[tuple[int, Any]]:
    """A pipe: the end to read, and a stream that writes to it."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def test_nobody_waits_for_a_reader_that_hangs(pipe: tuple[int, Any]) -> None:
    """The pipe blocks: only whoever asks before can go on."""
    reading, stream = pipe
    with configured("json", stream=stream):
        for number in range(2000):
            plain.info("x" * 200, extra={"step": number})
        data = os.read(reading, 1 << 20)
        plain.info("after")
        data += os.read(reading, 1 << 20)
    lines = data.splitlines()
    steps = [json.loads(line).get("step") for line in lines[:-2]]
    assert steps == list(range(len(steps)))
    assert 10 < len(steps) < 2000
    assert json.loads(lines[-1])["event"] == "after"


def test_a_line_longer_than_the_pipe_is_cut_and_the_next_is_whole(pipe: tuple[int, Any]) -> None:
    reading, stream = pipe
    with configured("json", stream=stream):
        plain.info("x" * 300_000)
        assert 0 < len(os.read(reading, 1 << 20)) < 300_000
        plain.info("next")
        first, second = os.read(reading, 1 << 20).splitlines()
    assert first == b""
    assert json.loads(second)["event"] == "next"


def test_a_reader_that_is_gone_is_no_error(pipe: tuple[int, Any]) -> None:
    reading, stream = pipe
    with configured("text", stream=stream):
        other = os.dup(os.open(os.devnull, os.O_RDONLY))
        os.dup2(other, reading)
        os.close(other)
        plain.info("nobody reads it")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """What takes the place of journald."""
    with receiving() as made:
        yield made


@pytest.fixture
def journal(receiver: Receiver) -> Iterator[journald.Journald]:
    """Our side of it."""
    made = journald.Journald(receiver.path)
    yield made
    made.close()


@pytest.mark.parametrize(
    "value", ["db", "a=b=c", "a\nPRIORITY=0\nb", "\n", "", "für\0 \x1b[31m", "x" * 100_000]
)
def test_a_value_arrives_as_it_is(
    receiver: Receiver, journal: journald.Journald, value: str
) -> None:
    assert journal.send({"PRIORITY": "6", "MAPSAVE_GUEST": value, "MESSAGE": "words"})
    (only,) = receiver.entries()
    assert only == {"PRIORITY": b"6", "MAPSAVE_GUEST": value.encode(), "MESSAGE": b"words"}


def test_what_is_no_text_arrives_escaped(receiver: Receiver, journal: journald.Journald) -> None:
    assert journal.send({"MAPSAVE_GUEST": "a\udcff"})
    assert receiver.entries() == [{"MAPSAVE_GUEST": rb"a\udcff"}]


def test_an_entry_too_large_for_a_datagram_arrives_as_a_file(
    receiver: Receiver, journal: journald.Journald
) -> None:
    before = os.listdir("/proc/self/fd")
    assert journal.send({"MESSAGE": "x" * 3_000_000, "PRIORITY": "6"})
    (only,) = receiver.entries()
    assert (len(only["MESSAGE"]), only["PRIORITY"]) == (3_000_000, b"6")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_nobody_there(receiver: Receiver, journal: journald.Journald) -> None:
    receiver.socket.close()
    assert not journal.send({"MESSAGE": "x"})
    assert not journal.send({"MESSAGE": "x" * 3_000_000})
    os.unlink(receiver.path)
    assert not journal.send({"MESSAGE": "x"})


def test_a_journald_that_was_restarted_is_found(
    receiver: Receiver, journal: journald.Journald
) -> None:
    assert journal.send({"MESSAGE": "1"})
    receiver.socket.close()
    os.unlink(receiver.path)
    again = Receiver(Path(receiver.path))
    with again.socket:
        assert journal.send({"MESSAGE": "2"})
        assert again.entries() == [{"MESSAGE": b"2"}]


def test_a_journald_that_does_not_read_is_not_waited_for(
    receiver: Receiver, journal: journald.Journald
) -> None:
    sent = 0
    while journal.send({"MESSAGE": str(sent)}):
        sent += 1
        assert sent < 100_000
    assert [each["MESSAGE"] for each in receiver.entries()] == [b"%d" % n for n in range(sent)]


@pytest.mark.parametrize(
    ("key", "name"),
    [("guest", "MAPSAVE_GUEST"), ("a-b.c", "MAPSAVE_A_B_C"), ("é=\n", "MAPSAVE____")],
)
def test_names_are_those_that_journald_takes(key: str, name: str) -> None:
    assert journald.field_name("MAPSAVE_", key) == name
    assert len(journald.field_name("MAPSAVE_", key * 100)) == 64


def test_the_stream_is_the_journal_only_where_the_variable_names_it(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as file, (tmp_path / "b").open("w") as other:
        stats = os.fstat(file.fileno())
        named = f"{stats.st_dev}:{stats.st_ino}"
        assert journald.names(file.fileno(), named)
        assert not journald.names(other.fileno(), named)
        for wrong in (None, "", "1", "a:b", f"{named}:1", f"{named}\n"):
            assert not journald.names(file.fileno(), wrong)
        assert not journald.names(None, named)
        number = other.fileno()
    assert not journald.names(number, named)
