"""The native protocol of journald, against a real socket read as journald reads it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mapsave.service.log import journald

from tests.service.observing import Receiver, receiving


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
