"""Real journals, damaged in every line and field: what they say is true, or is called unsure."""

import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mapsave.migration.parameters import Settings
from mapsave.operations import journal, journal_file
from mapsave.operations.attach import Monitor
from mapsave.operations.begun import SaveBegun
from mapsave.operations.steps import Step

STEPS = ("begin", "label", "hand-over", "pause", "migrate", "complete", "commit", "committed")
BEGUN = SaveBegun(
    guest="web01",
    monitor=Monitor("/run/web01.qmp"),
    pid=1234,
    process_started=None,
    directory="/images",
    name="one",
    replace=False,
    then="quit",
    was_running=True,
    settings=Settings({"multifd": False}, {}),
    fdset=5,
)
FACTS: dict[str, Any] = msgspec.to_builtins(BEGUN)


@pytest.fixture
async def data(tmp_path: Path) -> bytes:
    """The bytes of a journal as a save writes it."""
    async with journal.operation(tmp_path, "save", BEGUN) as log:
        await log.step(Step.LABEL, uuid="of-the-image")
        for step in STEPS[2:]:
            await log.step(Step(step))
        return log.path.read_bytes()


def _earlier(data: bytes) -> bytes:
    """Return a journal as an earlier version wrote it: each fact once, and no checksum."""
    known: dict[str, Any] = {}
    lines = []
    for line in data.splitlines():
        record = json.loads(line)
        new = {key: record[key] for key in record if key not in (*known, "sum", "steps")}
        known |= {key: record[key] for key in new if key not in ("step", "time")}
        lines.append(json.dumps(new).encode() + b"\n")
    return b"".join(lines)


def _parsed(data: bytes) -> journal_file.Contents:
    return journal_file.parse(data, is_sealed=True)


def test_a_whole_journal(data: bytes) -> None:
    found = _parsed(data)
    assert found.steps == STEPS
    assert FACTS.items() <= found.facts.items()
    assert found.facts["uuid"] == "of-the-image"
    assert not found.is_damaged and not found.is_unsure


def test_a_journal_of_an_earlier_version(data: bytes) -> None:
    found = journal_file.parse(_earlier(data), is_sealed=False)
    assert (found.steps, found.is_damaged) == (STEPS, False)
    assert found.facts == _parsed(data).facts


@pytest.mark.parametrize("change", ["flipped", "gone", "zeroed", "nested", "not UTF-8", "long"])
@pytest.mark.parametrize("number", range(len(STEPS)))
def test_one_damaged_line_costs_no_fact(data: bytes, number: int, change: str) -> None:
    lines = data.splitlines(keepends=True)
    line = lines[number]
    lines[number] = {
        "flipped": line[:20] + bytes([line[20] ^ 1]) + line[21:],
        "gone": b"",
        "zeroed": bytes(len(line) - 1) + b"\n",
        "nested": b"[" * 100_000 + b"\n",
        "not UTF-8": b"\xff\xfe" + line,
        "long": b"x" * (3 << 20) + b"\n",
    }[change]
    found = _parsed(b"".join(lines))
    is_last = number == len(STEPS) - 1
    assert FACTS.items() <= found.facts.items()
    assert found.steps == (STEPS[:-1] if is_last else STEPS)
    assert found.is_damaged is (change != "gone")
    assert found.is_unsure is (is_last and change != "gone")


def test_every_bit_counts(data: bytes) -> None:
    """Whatever byte is another, the file says so, and at most its last line is lost.

    Or the last two, which are one where the end of the line between them is what was changed.
    """
    whole = _parsed(data)
    last_but_one = data.rstrip().rfind(b"\n")
    for at in {*range(0, len(data), 3), last_but_one}:
        found = _parsed(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        assert found.facts == whole.facts, at
        assert found.is_damaged, at
        lost = len(whole.steps) - len(found.steps)
        assert found.steps == whole.steps[: len(found.steps)], at
        assert lost <= (2 if at == last_but_one else 1), at


def test_wherever_it_is_torn(data: bytes) -> None:
    """The steps whose lines are whole were taken, the one after them was not."""
    ends = [at for at, byte in enumerate(data) if byte == ord("\n")]
    for at in range(len(data)):
        found = _parsed(data[:at])
        count = sum(end <= at for end in ends)
        assert (found.steps, found.is_damaged) == (STEPS[:count], False), at
        assert found.is_blank is (count == 0), at


@pytest.mark.parametrize(
    "rotten",
    [
        b"\0" * 700,
        b"rot",
        b"\n",
        b"[" * 100_000,
        b"[" * 100_000 + b"\n",
        b"\xff" * 5000,
        b'{"step": "begin"}',
        b'{"step": "begin", "guest": "x"}\n',
        b"x" * (5 << 20),
    ],
)
def test_what_says_nothing_is_not_taken_for_empty(rotten: bytes) -> None:
    found = _parsed(rotten)
    if rotten == b"\n":
        assert found.is_blank
        return
    assert found.is_damaged and found.is_unsure and not found.is_blank
    assert (found.facts, found.steps) == ({}, ())


@pytest.mark.parametrize("field", ["step", "kind", "guest", "monitor", "pid", "time"])
def test_an_earlier_journal_whose_fields_are_damaged(data: bytes, field: str) -> None:
    lines = _earlier(data).splitlines(keepends=True)
    for value in (b'"' + field.encode()[:-1] + b'\x01"', b"{"):
        broken = lines[0].replace(f'"{field}"'.encode(), value, 1)
        found = journal_file.parse(b"".join([broken, *lines[1:]]), is_sealed=False)
        assert found.is_damaged and found.is_unsure
        assert found.steps == STEPS[1:]


def test_a_step_is_added_behind_damage_and_behind_a_torn_line(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / f"save-x{journal_file.SUFFIX}"
    for before, is_damaged in ((data + b"rot", True), (data[:-40], False), (data[:-1], False)):
        path.write_bytes(before)
        journal_file.append(path, "tidy", {"outcome": "done"})
        found = journal_file.read(path)
        assert found.steps[-1] == "tidy"
        assert (found.facts["outcome"], found.facts["guest"]) == ("done", "web01")
        assert (found.is_damaged, found.is_unsure) == (is_damaged, False)


async def test_a_step_that_was_not_written_is_not_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    async with journal.operation(tmp_path, "save", BEGUN) as log:
        with monkeypatch.context() as patch, pytest.raises(journal.JournalUnwritable):
            patch.setattr(os, "write", lambda fd, text: write(fd, text[:9]))
            await log.step(Step.LABEL)
        await log.step(Step.TIDY)
        found = journal_file.read(log.path)
        assert (found.steps, found.is_damaged) == (("begin", "tidy"), False)
