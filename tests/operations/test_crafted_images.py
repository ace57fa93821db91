"""Every command that reads an image, on images made to hurt: an error of its own, and soon."""

import datetime
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.config import Config
from mapsave.evacuation import forecast
from mapsave.image import store
from mapsave.jobs import retention
from mapsave.jobs.job import Keep
from mapsave.operations import images, inspect, results

from tests.image import build
from tests.image.fuzz import CHANGES, GOOD, NUMBERS, NUMERIC, little_memory, mutated
from tests.kit import cli, qemu

MEMORY = 8 << 20
_CONFIG = Config(state=Path("/proc/none"))  # nothing is kept from one image to the next
CRAFTED = {
    "guest is a list": {"guest": []},
    "name is a number": {"guest": {"name": 7}},
    "memory is text": {"memory": {"base": "8M", "plugged": 0}},
    "memory is negative": {"memory": {"base": -1, "plugged": 0}},
    "paused at text": {"paused_at": "yesterday"},
    "paused at NaN": {"paused_at": float("nan")},
    "strategy NaN": {"strategy": {"rate": float("inf")}},
    "version is a list": {"qemu": {"version": [10]}},
    "year 1": {"started": "0001-01-01T00:00:00+14:00"},
    "command without words": {"command": {"argv": [None]}},
    "NUL in an argument": {"command": {"argv": ["qemu\0"]}},
    "domain is text": {"domain": "web01"},
    "RAM blocks are numbers": {"ram_blocks": [1, 2]},
    "data is negative": {"data_bytes": -1},
    "huge": {"duration_s": 10**400},
    "deep": {"label": json.loads('{"a":' * 900 + "1" + "}" * 900)},
    "half a pair": {"host": {"name": "\ud800"}},
}


def crafted(path: Path, metadata: dict[str, Any], **parts: Any) -> None:
    """Write an image that the destination of ``waiting`` could load, with this metadata."""
    block = build.Block("ram", MEMORY, (0, 1, 5), **parts)
    raw = json.dumps({"guest": {"name": "toy"}, **metadata}).encode()
    made = build.Image(machine=b"none", blocks=[block], devices=[], metadata=raw).built()
    with path.open("wb") as file:
        for offset, data in made.pieces:
            file.seek(offset)
            file.write(data)
        file.truncate(made.size)


@contextmanager
def waiting() -> Iterator[qemu.Qemu]:
    """Run a destination of real QEMU with nothing but RAM."""
    with qemu.running(machine="none", memory="8M", incoming=True) as found:
        yield found


def error_of(result: cli.Result) -> dict[str, Any]:
    found = json.loads(result.stdout, parse_constant=pytest.fail)["error"]
    assert isinstance(found, dict)
    return found


def test_no_command_acts_on_metadata_of_a_wrong_type(site: cli.Site) -> None:
    with waiting() as destination:
        for name, metadata in CRAFTED.items():
            path = site.images / "bad.mapsave"
            crafted(path, metadata)
            restore = ("restore", str(path), "--into", destination.address)
            for words in (("verify", str(path)), ("inspect", str(path)), restore):
                error = error_of(site.run(*words, "--json", check=6))
                assert error["message"].count("metadata") == 1, (name, error)
        assert destination.status() == "inmigrate"
        assert "status" not in destination.control.execute("query-migrate")


@pytest.mark.parametrize("name", ["paused at NaN", "deep", "name is a number"])
def test_the_other_commands_show_it_as_invalid(site: cli.Site, name: str) -> None:
    path = site.images / "bad.mapsave"
    crafted(path, CRAFTED[name])
    (line,) = json.loads(site.run("list", "--json", check=0).stdout, parse_constant=pytest.fail)[
        "images"
    ]
    assert (line["state"], line["error"]["exit_code"]) == ("invalid", 6)
    site.run("check", path, "--json", check=6)
    site.run("discard", path, "--json", check=0)
    assert not path.exists()


def test_pages_of_another_size_are_refused_before_qemu_reads_them(site: cli.Site) -> None:
    path = site.images / "pages.mapsave"
    crafted(path, {}, page_size=8192)
    # Machine "none" is of any architecture, so the image alone is good.
    site.run("verify", path, check=0)
    with waiting() as destination:
        into = ("--into", destination.address, "--json")
        error = error_of(site.run("restore", path, *into, check=3))
        assert error["id"] == "check.destination"
        assert "pages of 8192 bytes" in error["message"]
        assert destination.status() == "inmigrate"
        crafted(path, {})
        site.run("restore", path, *into, "--paused", check=0)


def test_names_that_steer_a_terminal(site: cli.Site) -> None:
    path = site.images / "esc.mapsave"
    crafted(path, {"guest": {"name": "a\x1b[2Jb\nc\u202e"}, "cpu": "\x9b31m"})
    for words in (("list",), ("inspect", str(path)), ("verify", str(path)), ("check", str(path))):
        found = site.run(*words)
        for text in (found.stdout, found.stderr):
            assert all(c.isprintable() or c == "\n" for c in text), (words, text)


# In one process: what all of them read, on anything.


def read_by_all(path: Path) -> None:
    """Do what every command and the service do with an image; only InvalidImage may come out."""
    begun = time.process_time()
    for look in (inspect.inspect, inspect.verify):
        try:
            json.dumps(look(str(path)), allow_nan=False, indent=2)
        except errors.InvalidImage as error:
            json.dumps(error.as_dict(), allow_nan=False)
    with store.directory(path.parent) as held:
        json.dumps(images.listing(held, _CONFIG, with_managed=True), allow_nan=False, indent=2)
        entries = store.entries(held)
    now = datetime.datetime.now(datetime.UTC)
    zone = datetime.timezone(datetime.timedelta(hours=14))
    for entry in entries:
        json.dumps(results.recovered_save(entry).as_dict(), allow_nan=False, indent=2)
        json.dumps(results.recovered_restore(entry, None, None).as_dict(), allow_nan=False)
        job, guest = str(entry.metadata.get("job")), str(entry.guest)
        retention.plan(entries, job, guest, Keep(last=1, daily=1), now=now, zone=zone)
    forecast.rate_of(entries)
    assert time.process_time() - begun < 60


SOME = settings(max_examples=60, deadline=None)
KEYS = (
    *("guest", "qemu", "memory", "command", "domain", "process", "strategy", "host", "label"),
    *("started", "ended", "paused_at", "duration_s", "data_bytes", "ram_blocks", "job", "then"),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "bytes", "version", "argv", "xml"]), inside)
    ),
    max_leaves=6,
)


@SOME
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
def test_any_metadata_in_every_reader(
    tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, Any]
) -> None:
    path = tmp_path_factory.mktemp("any") / "image"
    crafted(path, metadata)
    with little_memory():
        read_by_all(path)
    path.unlink()


@SOME
@given(CHANGES, st.lists(st.tuples(st.sampled_from(NUMERIC), NUMBERS), max_size=2))
def test_flipped_bits_in_every_reader(
    tmp_path_factory: pytest.TempPathFactory,
    changes: list[tuple[str, int, bytes]],
    numbers: list[tuple[str, int]],
) -> None:
    built = GOOD
    for name, value in numbers:
        built = built.patched(name, value & ((1 << 8 * GOOD.fields[name][1]) - 1))
    data = bytearray(built.size)
    for at, piece in built.pieces:
        data[at : at + len(piece)] = piece
    path = tmp_path_factory.mktemp("flipped") / "image"
    path.write_bytes(mutated(bytes(data[:9000]), changes) + data[9000:])
    with little_memory():
        read_by_all(path)
    path.unlink()
