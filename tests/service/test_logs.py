"""The log: one form for all loggers, fields that cannot be forged, and nothing that can fail."""

import asyncio
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave.service.log import setup
from mapsave.service_settings import LogFormat

from tests.kit import tree
from tests.service.observing import Receiver, bound, configured, receiving

DOCUMENT = tree.ROOT / "docs/metrics.md"
plain = logging.getLogger("mapsave.labels.test")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """What takes the place of journald."""
    with receiving() as made:
        yield made


def written(form: LogFormat, message: str = "done", **fields: Any) -> str:
    """Return the line that is written about ``message`` and ``fields``."""
    stream = io.StringIO()
    with configured(form, stream=stream), bound(**fields):
        plain.warning(message)
    (line,) = stream.getvalue().split("\n")[:-1]
    return line


def fields_of(line: str) -> dict[str, str]:
    """Read a line of the text form as a stranger would who knows the document only."""
    day, time, level, rest = line.split(" ", 3)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", day)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}[+-]\d\d:\d\d", time)
    string = r'"(?:[^"\\]|\\.)*"'
    match = re.fullmatch(rf'({string}|[^"=\\]+?)((?: [\w.-]+=(?:{string}|[^\s"=]+))*)', rest)
    assert match is not None, line
    found = {"level": level, "event": _unquoted(match[1])}
    for name, value in re.findall(rf'([\w.-]+)=({string}|[^\s"=]+)', match[2]):
        assert name not in found
        found[name] = _unquoted(value)
    return found


def _unquoted(text: str) -> str:
    return str(json.loads(text)) if text.startswith('"') else text


def test_what_is_bound_is_on_every_line() -> None:
    context = {"operation": "6f1c0a9be2d4", "guest": "db", "job": "nightly", "step": "commit"}
    line = written("text", **context)
    found = fields_of(line)
    name = found.pop("logger")
    assert name.startswith("mapsave.")
    assert found == {"level": "warning", "event": "done", **context}
    assert "done operation=6f1c0a9be2d4 guest=db job=nightly step=commit logger=" in line
    assert {"event": "done", **context}.items() <= json.loads(written("json", **context)).items()


async def test_tasks_have_contexts_of_their_own() -> None:
    stream = io.StringIO()

    async def one(name: str) -> None:
        with bound(guest=name):
            await asyncio.sleep(0)
            await asyncio.to_thread(plain.info, "in a thread")

    with configured("json", stream=stream):
        await asyncio.gather(*(one(str(number)) for number in range(5)))
        plain.info("outside")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.get("guest") for line in lines[-1:]] == [None]
    assert {line["guest"] for line in lines[:-1]} == {"0", "1", "2", "3", "4"}


def test_fields_can_be_given_with_a_line() -> None:
    stream = io.StringIO()
    with configured("json", stream=stream):
        plain.info("took %d", 3, extra={"step": "rules", "other": 5})
    (found,) = map(json.loads, stream.getvalue().splitlines())
    assert (found["event"], found["step"]) == ("took 3", "rules")
    assert "other" not in found


@pytest.mark.parametrize(
    "name",
    [
        *("a\nb", "a\r\n2026-01-01T00:00:00Z info forged guest=x", "\x1b[2J", "\x7f\x85\u2028"),
        *('"', "\\", '\\"', "a b=c", "x operation=000000000000", "für \U0001f4be", "\u202egnp"),
        *("\0", "'", "a=", "=", " ", "-"),
    ],
)
@pytest.mark.parametrize("form", ["text", "json"])
def test_a_name_cannot_forge_a_line(form: LogFormat, name: str) -> None:
    line = written(form, message=name, guest=name)
    assert line.isprintable()
    found = fields_of(line) if form == "text" else json.loads(line)
    assert found["guest"] == name
    assert found["event"] == name
    assert "operation" not in found


def test_bytes_of_a_file_name_that_are_no_text() -> None:
    for form in ("text", "json"):
        line = written(form, guest=os.fsdecode(b"a\xff"))  # type: ignore[arg-type]
        assert r"a\udcff" in line


def test_a_traceback_is_one_line_too() -> None:
    for form in ("text", "json"):
        stream = io.StringIO()
        with configured(form, stream=stream):  # type: ignore[arg-type]
            try:
                raise ValueError("what\nhappened")
            except ValueError:
                plain.exception("a bug")
        (line,) = stream.getvalue().splitlines()
        found = fields_of(line) if form == "text" else json.loads(line)
        assert found["exception"].startswith("Traceback (most recent call last):\n")
        assert found["exception"].endswith("ValueError: what\nhappened")


def test_levels() -> None:
    stream = io.StringIO()
    others = ["asyncio", "aiohttp.access", "aiohttp.server", "qemu.qmp.protocol", "mapsave.x"]

    def all_say() -> set[tuple[str, str]]:
        stream.truncate(0)
        stream.seek(0)
        for name in others:
            for level in ("debug", "info", "error"):
                getattr(logging.getLogger(name), level)("words")
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        return {(line["logger"], line["level"]) for line in lines}

    with configured("json", stream=stream):
        usual = {("aiohttp.server", "info"), ("mapsave.x", "info")}
        errors = {(name, "error") for name in others if not name.startswith("qemu")}
        assert all_say() == usual | errors
    with configured("json", stream=stream, level=logging.DEBUG):
        every = {(name, level) for name in others for level in ("debug", "info", "error")}
        assert all_say() == every - {("asyncio", "debug"), ("asyncio", "info")}


def test_all_is_as_before_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    other = logging.StreamHandler(io.StringIO())
    monkeypatch.setattr(root, "handlers", [*root.handlers, other])
    before = (list(root.handlers), root.level)
    with configured("text", stream=io.StringIO(), level=logging.DEBUG):
        assert other not in root.handlers  # or each line would come twice
        first = root.handlers[-1]
        setup.configure("json", stream=io.StringIO())  # a reload
        assert first not in root.handlers
        assert len(root.handlers) == len(before[0])
    assert (root.handlers, root.level) == before
    assert logging.getLogger("aiohttp.access").level == logging.NOTSET


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_cannot_be_written_raises_nothing_and_is_told(
    form: LogFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own raise
    stream = io.StringIO()
    with configured(form, stream=stream):
        plain.info("%d of %d", "three")
        plain.info("%s", Unprintable())
        with bound(guest=Unprintable()):
            plain.info("inside")
        plain.info("after")
    lines = stream.getvalue().splitlines()
    assert "TypeError" in lines[0]
    assert "RuntimeError" in lines[1]
    assert "RuntimeError" in lines[2]
    assert "after" in lines[3]
    assert all("test_logs.py" in line for line in lines[:3])


# The journal of systemd


def test_entries_have_fields(receiver: Receiver) -> None:
    stream = io.StringIO()
    with (
        configured("journald", stream=stream, journal=receiver.path),
        bound(operation="6f1c0a9be2d4", guest="a\nPRIORITY=0", job="nightly", step="commit"),
    ):
        plain.error("cannot write\nit")
    assert stream.getvalue() == ""
    (only,) = receiver.entries()
    message = only.pop("MESSAGE").decode()
    assert only == {
        "PRIORITY": b"3",
        "SYSLOG_IDENTIFIER": b"mapsaved",
        "MAPSAVE_OPERATION": b"6f1c0a9be2d4",
        "MAPSAVE_GUEST": b"a\nPRIORITY=0",
        "MAPSAVE_JOB": b"nightly",
        "MAPSAVE_STEP": b"commit",
        "MAPSAVE_LOGGER": b"mapsave.labels.test",
    }
    assert message.startswith(r'"cannot write\nit" operation=6f1c0a9be2d4 guest="a\nPRIORITY=0" ')


def test_a_traceback_has_lines_in_the_journal(receiver: Receiver) -> None:
    with configured("journald", stream=io.StringIO(), journal=receiver.path):
        try:
            raise ValueError("esc \x1b[31m")
        except ValueError:
            plain.exception("a bug")
    (only,) = receiver.entries()
    first, second, *_, last = only["MESSAGE"].decode().split("\n")
    assert (first, second) == ("a bug", "Traceback (most recent call last):")
    assert last == r"ValueError: esc \u001b[31m"
    assert b"Traceback" in only["MAPSAVE_EXCEPTION"]


def test_without_journald_stderr_has_priorities(receiver: Receiver) -> None:
    receiver.socket.close()
    stream = io.StringIO()
    with (
        configured("journald", stream=stream, journal=receiver.path, level=logging.DEBUG),
        bound(guest="a\n<0>b"),
    ):
        for level in ("debug", "info", "warning", "error", "critical"):
            getattr(plain, level)(level)
    lines = stream.getvalue().splitlines()
    end = r'guest="a\n<0>b" logger=mapsave.labels.test'
    words = [(7, "debug"), (6, "info"), (4, "warning"), (3, "error"), (2, "critical")]
    assert lines == [f"<{number}>{word} {end}" for number, word in words]


@pytest.mark.parametrize("is_journal", [True, False])
def test_auto_is_the_journal_where_stderr_is(
    receiver: Receiver, tmp_path: Path, is_journal: bool
) -> None:
    with (tmp_path / "a").open("w") as stream:
        stats = os.fstat(stream.fileno())
        environ = {"JOURNAL_STREAM": f"{stats.st_dev}:{stats.st_ino + (not is_journal)}"}
        with configured("auto", stream=stream, environ=environ, journal=receiver.path):
            plain.info("words")
    lines = (tmp_path / "a").read_text().splitlines()
    assert (len(lines), len(receiver.entries())) == ((0, 1) if is_journal else (1, 0))
    assert all(fields_of(line)["event"] == "words" for line in lines)


def test_each_key_of_the_log_is_documented(receiver: Receiver) -> None:
    context = {"operation": "6f1c0a9be2d4", "guest": "db", "job": "nightly", "step": "commit"}
    with (
        configured("journald", stream=io.StringIO(), journal=receiver.path),
        bound(**context),
    ):
        plain.error("x", exc_info=ValueError("x"))
    (entry,) = receiver.entries()
    keys = json.loads(written("json", **context))
    _, _, section = DOCUMENT.read_text().partition("\n## Logs\n")
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", section, re.M)
    assert {key for key, _ in rows} == {*keys, "exception"}
    named = {field for _, text in rows for field in re.findall(r"`([A-Z_]+)`", text)}
    assert named == set(entry) - {"SYSLOG_IDENTIFIER"}
