"""How a log entry is written: text as logfmt has it, JSON, or fields for systemd's journal.

Values come from guests, users and QEMU. None can end a line, begin another field or steer a
terminal: control characters and what is not printable are escaped, as JSON escapes them.
"""

import datetime
import json
import re

from mapsave import units
from mapsave.service.log import journald
from mapsave.strict_json import Facts

# First in the text, in this order; whose names journald's fields follow.
CONTEXT = ("operation", "guest", "job", "step")
_HEAD = ("time", "level", "event")
_TAIL = ("logger", "exception")
_WORDS = re.compile(r"[^\"=\\]+")
_BARE = re.compile(r"[^\s\"'=\\]+")
_IDENTIFIER = "mapsaved"


def as_json(entry: Facts) -> str:
    """Return the entry as one object on one line, in ASCII."""
    time = units.timestamp(_time(entry).timestamp())
    found = {key: entry[key] for key in _ordered(entry)}
    return json.dumps({**found, "time": time}, default=str)


def as_text(entry: Facts) -> str:
    """Return ``TIME LEVEL EVENT key=value ...``."""
    time = units.format_time(_time(entry), precisely=True)
    return f"{time} {entry['level']} {_line(entry, *_TAIL)}"


def to_journald(journal: journald.Journald, entry: Facts) -> str:
    """Send the entry; return the empty text where journald has taken it, else a line for stderr.

    That has the prefix by which systemd knows its priority, see sd-daemon(3).
    """
    priority = journald.PRIORITIES.get(str(entry["level"]), journald.PRIORITIES["info"])
    fields = {"PRIORITY": str(priority), "SYSLOG_IDENTIFIER": _IDENTIFIER}
    for key, value in entry.items():
        if key not in _HEAD and value is not None:
            fields[journald.field_name("MAPSAVE_", key)] = _plain(value)
    fields["MESSAGE"] = _line(entry)
    if "exception" in entry:
        # A field may have lines, and journalctl shows them; only they are left as they are.
        lines = str(entry["exception"]).split("\n")
        fields["MESSAGE"] += "\n" + "\n".join(map(_escaped, lines))
    return "" if journal.send(fields) else f"<{priority}>{_line(entry, *_TAIL)}"


def _time(entry: Facts) -> datetime.datetime:
    when = entry["time"]
    assert isinstance(when, datetime.datetime)
    return when


def _ordered(entry: Facts) -> list[str]:
    first = [key for key in (*_HEAD, *CONTEXT) if key in entry]
    last = [key for key in _TAIL if key in entry]
    return first + [key for key in entry if key not in first and key not in last] + last


def _line(entry: Facts, *tail: str) -> str:
    """Return ``EVENT key=value ...`` with the keys of ``tail`` at the end, others of _TAIL not."""
    event = str(entry["event"])
    # An event is words; one that has a "key=" in it must not look like a field.
    words = [event if _WORDS.fullmatch(event) and event.isprintable() else _quoted(event)]
    for key in _ordered(entry):
        if key not in _HEAD and (key in tail or key not in _TAIL) and entry[key] is not None:
            name = re.sub(r"[^A-Za-z0-9_.-]", "_", str(key))
            text = _plain(entry[key])
            is_bare = _BARE.fullmatch(text) and text.isprintable()
            words.append(f"{name}={text if is_bare else _quoted(text)}")
    return " ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value, default=str)
    return str(value)


def _quoted(text: str) -> str:
    return _escaped(json.dumps(text, ensure_ascii=False))


def _escaped(text: str) -> str:
    """Return ``text`` with what is not printable as JSON escapes it; that is in force already."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
