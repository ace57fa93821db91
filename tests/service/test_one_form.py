"""Times, sizes, durations, rates and addresses of guests have one form, in all that is put out.

docs/commands.md says which. What is looked at here is every command's output, for people and as
JSON, every answer of the API, its events, a report to a webhook, and the log.
"""

import contextlib
import json
import pprint
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mapsave.cli import main
from mapsave.service import webhooks
from mapsave.service.api import routes

from tests.kit import cli, emulated, service

RESUME = ("--then", "resume")
ZONE = {"TZ": "XYZ-5:30"}  # tzset(3): five and a half hours ahead of UTC

TIMES = {"created", "started", "ended", "time", "saved", "modified", "measured", "next_run"}
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
ADDRESSES = {"address", "monitor"}
ADDRESS = re.compile(r"qmp:/.+|libvirt:.+|libvirt\+.+#.+")
# What other names such figures might have.
FORBIDDEN = re.compile(
    r"(^|_)(rate|seconds|secs|duration|elapsed|eta|size|length|bandwidth|age|timeout|jitter|"
    r"deadline|date|when|at|kib|mib|gib|ms)$"
)
RATIOS = {"filled"}
# Not looked into: what was asked for, as it was asked for; what a step recorded, which is QEMU's;
# labels of a process. Of a process "started" is the clock ticks that are part of its identity.
AS_GIVEN = {"request", "data", "process"}
# What looks like a time, and how it must look.
SOME_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*(?: [+-]\d\d\S*)?")
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{3})?\+05:30,?")
# Sizes and durations that are not as ``units`` writes them.
ODD_FIGURE = re.compile(
    r"\b\d[\d.]*(?:s|sec|m|min|h|KB|MB|GB|K|M|G|KiB|MiB|GiB)\b"
    r"|\b\d[\d.]* (?:sec|secs|seconds?|minutes?|hours?|bytes|KB|kB|MB|GB)\b"
)


def deviations(found: Any, kind: str = "", path: str = "") -> Iterator[str]:
    """Yield what in the JSON is in another form; ``kind`` is what it is about."""
    if isinstance(found, list):
        for each in found:
            yield from deviations(each, kind, f"{path}[]")
    if not isinstance(found, dict):
        return
    for key, value in found.items():
        place = f"{path}.{key}"
        if isinstance(value, dict | list):
            if key not in AS_GIVEN:
                yield from deviations(value, found.get("kind", kind), place)
        elif value is not None and not is_right(key, value, kind, path):
            yield f"{place}: {value!r}"


def is_right(key: str, value: object, kind: str, path: str) -> bool:
    """Return whether a value that is no object has the form that its key demands."""
    if key in ADDRESSES:  # of a guest; as a number it is one in its memory
        return isinstance(value, int) or bool(ADDRESS.fullmatch(str(value)))
    if key in TIMES and not isinstance(value, int):
        return bool(TIMESTAMP.fullmatch(str(value)))
    if isinstance(value, bool):
        return True
    if isinstance(value, str):
        return not TIMESTAMP.fullmatch(value) or key in TIMES
    if FORBIDDEN.search(key) and not key.endswith(("_s", "bytes")):
        return False
    is_of_it = (key, path.rpartition(".")[2])
    has_unit = any(each.endswith(("_s", "_bytes")) or each == "bytes" for each in is_of_it)
    if isinstance(value, float):
        return has_unit or key in RATIOS
    # A whole number may be a count; a time since the epoch has as many digits as a large size.
    return has_unit or abs(int(str(value))) < 1_600_000_000


def odd(text: str, names: tuple[str, ...]) -> list[str]:
    """Return the times, sizes and durations in a text for people that are in another form."""
    for name in names:
        text = text.replace(name, "")
    found = [each for each in SOME_TIME.findall(text) if not LOCAL_TIME.fullmatch(each)]
    return found + ODD_FIGURE.findall(SOME_TIME.sub("", text))


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service that has done something of every kind."""
    site = cli.Site(tmp_path_factory.mktemp("form") / "site")
    site.add_guest("gone", site.directory / "gone.qmp")
    site.add_guest("toy", emulator={"memory": "8M"})
    job: dict[str, Any] = {"guests": ["db", "gone"], "save": {"then": "resume"}, "timeout": "1min"}
    job |= {"schedule": {"cron": "@daily", "jitter": "5 minutes"}, "keep": {"last": 2}}
    site.add_job("nightly", **job, retries={"times": 1, "wait": "100 msec"})
    with emulated.guest(site, "db"), service.running(site, env=ZONE) as running:
        yield running


@pytest.fixture(autouse=True)
def _guests_end(mapsaved: service.Service) -> Iterator[None]:
    with service.emulated_ended(mapsaved.site):
        yield


COMMANDS = (
    ("save", "db", *RESUME, "-o", "one", "--replace", "--note", "a note"),
    ("save", "toy", "-o", "two", "--replace"),
    ("restore", "two", "--again"),
    ("check", "db"),
    ("check", "one"),
    ("plan", "db"),
    ("plan", "one"),
    ("probe",),
    ("inspect", "one"),
    ("verify", "one"),
    ("diff", "one", "two"),
    ("diff", "one", "db"),
    ("pin", "one"),
    ("unpin", "one"),
    ("warm", "one", "--all"),
    ("guests",),
    ("list",),
    ("job", "list"),
    ("job", "check", "nightly"),
    ("job", "run", "nightly"),
    ("job", "prune", "nightly"),
    ("save-all", "--dry-run", "db"),
    ("save-all", "toy", "gone"),
    ("restore-all",),
    ("recover",),
    ("ps", "--all"),
    ("status",),
)


def run(capsys: pytest.CaptureFixture[str], site: cli.Site, *words: str) -> str:
    """Run a command in this process, which takes a tenth of the time; return all it has printed."""
    with pytest.raises(SystemExit):
        main.main(["--config", str(site.config), *words])
    said = capsys.readouterr()
    return said.out + ("" if "--json" in words else said.err)


def test_every_command_and_answer(
    mapsaved: service.Service, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    site, found = mapsaved.site, {}
    names = (str(site.directory),)
    monkeypatch.setenv("TZ", ZONE["TZ"])
    time.tzset()
    try:
        for words in COMMANDS:
            kind = " ".join(words[: 2 if words[0] == "job" else 1])
            said = json.loads(run(capsys, site, "--json", *words))
            assert "error" not in said, said
            found[kind] = list(deviations(said, words[0], kind))
            found[f"{kind} as text"] = odd(run(capsys, site, *words), names)
        newest = mapsaved.get("/v1/operations?kind=save&state=done")["operations"][0]
        for words in (("logs", newest["id"]), ("wait", newest["id"])):
            said = json.loads(run(capsys, site, "--json", *words))
            found[words[0]] = list(deviations(said, words[0], words[0]))
            found[f"{words[0]} as text"] = odd(run(capsys, site, *words), names)
    finally:
        monkeypatch.undo()
        time.tzset()
    found["webhook"] = list(deviations(webhooks.message_of(newest)))
    found["log"] = odd(mapsaved.logged(), names)
    assert mapsaved.logged().count("+05:30 info ") > 5
    wrong = {name: each for name, each in found.items() if each}
    assert not wrong, pprint.pformat(wrong)


def test_every_answer_and_event(mapsaved: service.Service) -> None:
    done = mapsaved.done(kind="save", guest="db", save={"then": "resume"})
    operation = mapsaved.get("/v1/operations?kind=save")["operations"][0]["id"]
    image = Path(done["image"]).name
    parts = {"guest": "db", "image": image, "job": "nightly", "operation": operation}
    found = {}
    for route in routes.ROUTES:
        is_json = not route.path.endswith(("/picture", "openapi.json", "/metrics"))
        if route.method == "GET" and not route.endless and is_json:
            look = "?look=true" if "guests" in route.path else ""
            answer = mapsaved.get(route.path.format(**parts) + look)
            found[route.path] = list(deviations(answer, "", route.path))
    with contextlib.closing(service.connect(mapsaved.site.socket)) as sock:
        sock.sendall(b"GET /v1/events HTTP/1.0\r\n\r\n")
        mapsaved.done(kind="save", guest="db", save={"then": "resume"})
        lines = sock.makefile("rb")
        events = [json.loads(line[6:]) for line in lines_of_data(lines)]
    found["events"] = [each for event in events for each in deviations(event, "save")]
    assert any(event.get("progress") for event in events)
    wrong = {name: each for name, each in found.items() if each}
    assert not wrong, pprint.pformat(wrong)


def lines_of_data(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the data of server-sent events up to the end of an operation."""
    for line in lines:
        if line.startswith(b"data: "):
            yield line
            if b'"state":"done"' in line.replace(b" ", b""):
                return


def test_the_log_as_json(site: cli.Site) -> None:
    site.settings = {"service": {"log": "json"}}
    site.write()
    with service.running(site) as running:
        (entry, *_) = map(json.loads, running.logged().splitlines())
    assert list(deviations(entry)) == []
    assert TIMESTAMP.fullmatch(entry["time"])


@pytest.mark.parametrize(
    "wrong",
    [
        {"created": 1795747752.3},
        {"begun": 1795747752},
        {"saved": "2026-11-26 09:23:26"},
        {"whenever": "2026-11-26T09:23:26.000+00:00"},
        {"phases": {"write": 0.5}},
        {"took": 0.5},
        {"page_size": 4096},
        {"timeout": 30},
        {"rate": 1},
        {"address": "/run/x.qmp"},
    ],
    ids=str,
)
def test_a_deviation_is_seen(wrong: dict[str, Any]) -> None:
    assert len(list(deviations({"guests": [wrong]}))) == 1


@pytest.mark.parametrize(
    "wrong",
    ["2026-11-26 09:23:26", "2026-11-26T09:23:26.1Z", "3.4s", "15 minutes", "4096 bytes", "12 MB"],
)
def test_a_deviation_in_text_is_seen(wrong: str) -> None:
    assert odd(f"it was {wrong} then", ()) == [wrong]
