"""Metadata of any type and shape: an image is good, or it is refused with the key that is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors
from mapsave.image import metadata

GOOD: dict[str, Any] = {
    "mapsave": "0.1.0",
    "guest": {"name": "web01", "qemu_name": None, "uuid": "b1e2"},
    "qemu": {"version": "10.0.2", "package": ""},
    "machine": "pc-q35-10.0",
    "cpu": None,
    "run_state": "running",
    "process": {"pid": 7, "started": 8, "boot": "b"},
    "memory": {"base": 1 << 30, "plugged": 0},
    "command": {"argv": ["qemu", "\udcff"], "cwd": "/", "executable": "/usr/bin/qemu"},
    "domain": {"uri": "qemu:///system", "xml": "<domain/>", "cookie": None},
    "strategy": {"channels": 2},
    "live": False,
    "then": "quit",
    "job": None,
    "started": "2026-01-02T03:04:05.678+00:00",
    "ended": "2026-01-02T03:04:06.678+00:00",
    "ram_blocks": [{"name": "pc.ram", "bytes": 4096, "used_pages": 1}],
    "data_bytes": 4096,
    "label": None,
    "paused_at": 1767323045.5,
    "duration_s": 1,
    "from a later version": [1, {"a": None}],
}


def test_what_a_save_writes_is_read_as_it_is() -> None:
    assert metadata.parse(json.dumps(GOOD).encode()) == GOOD


WRONG: list[tuple[str, Any]] = [
    *((key, [1]) for key in GOOD if key not in ("ram_blocks", "from a later version")),
    *((key, 1.5) for key in GOOD if key not in ("paused_at", "duration_s", "from a later version")),
    ("guest", None),
    ("guest.name", None),
    ("guest.name", "a\0b"),
    ("qemu.version", 10),
    ("memory.base", True),
    ("memory.base", -1),
    ("memory.plugged", 1 << 63),
    ("command.argv", "qemu"),
    ("command.argv", ["qemu", 1]),
    ("command.argv", ["qe\0mu"]),
    ("command.cwd", "/\0"),
    ("domain.xml", {}),
    ("domain.cookie", 0),
    ("ram_blocks", {}),
    ("ram_blocks", [1]),
    ("ram_blocks", [{"bytes": "1"}]),
    ("started", "yesterday"),
    ("started", "0001-01-01T00:00:00"),
    ("ended", "1000000000-01-01T00:00:00"),
    ("paused_at", -1),
    ("paused_at", 1e300),
    ("paused_at", "now"),
    ("duration_s", 10**15),
    ("data_bytes", -1),
]


@pytest.mark.parametrize(("key", "value"), WRONG)
def test_a_wrong_type_is_named(key: str, value: Any) -> None:
    changed = json.loads(json.dumps(GOOD))
    *parents, last = key.split(".")
    place = changed
    for each in parents:
        place = place[each]
    place[last] = value
    with pytest.raises(errors.InvalidImage, match=f"metadata: '{key}"):
        metadata.parse(json.dumps(changed).encode())


@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"{", b"[]", b"1", b"null", b"\xff", b'{"a": 1} x', b"[" * 100_000),
        *(b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": 1, "a": 1}'),
        *(b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": 18446744073709551616}'),
        b'{"a": ' + b"[" * 32 + b"]" * 32 + b"}",
        b'{"a": -' + b"9" * 100_000 + b"}",
    ],
)
def test_what_is_not_json_is_refused(raw: bytes) -> None:
    with pytest.raises(errors.InvalidImage, match="metadata is not"):
        metadata.parse(raw)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=5), inside),
    max_leaves=8,
)


@settings(max_examples=300, deadline=5000)
@given(st.dictionaries(st.sampled_from(sorted(GOOD)), ANY, max_size=4))
def test_whatever_the_values_are(values: dict[str, Any]) -> None:
    raw = json.dumps({**GOOD, **values}).encode()
    try:
        found = metadata.parse(raw)
    except errors.InvalidImage as error:
        assert error.message.startswith("metadata")
    else:
        json.dumps(found, allow_nan=False)
