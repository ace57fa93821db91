"""Keys that are defined once: what is read, what is said of mistakes, what the schema has."""

import typing
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema_rs
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import config, key_text, keys, yaml_file
from mapsave.fleet import settings as fleet_settings
from mapsave.jobs import job, scrub_job
from mapsave.key_types import Argument, Channels, Duration, Name, Size, Switch, Text, Truth
from mapsave.keys import Keys, help
from mapsave.labels import policy

from tests.kit import key_tables, tree
from tests.kit.full import CONFIGURATION, FLEET, JOB, POLICY, SCRUB

SLASH = "the name 'a/b' contains a slash or an unprintable character"


class Guest(Keys, frozen=True):
    """One guest."""

    name: str = ""
    qmp: Annotated[Text | None, help("Its socket.")] = None
    launch: Annotated[tuple[Argument, ...], msgspec.Meta(min_length=1), help("How.")] = ()

    def __post_init__(self) -> None:
        if self.launch and self.qmp is None:
            raise ValueError("launch applies to qmp")


class Start(Keys, tag="start", frozen=True):
    """Begin."""

    guest: Annotated[Name, help("Which.")]


class Stop(Keys, tag="stop", frozen=True):
    """End."""

    mode: Annotated[Literal["fast", "safe"], help("How.")] = "safe"
    given: tuple[str, ...] = ()


class File(Keys, frozen=True):
    """Everything."""

    memory: Annotated[Size, help("How much.")]
    stall: Annotated[Duration, help("How long.")] = 30.0
    channels: Annotated[Channels, help("How many.")] = "auto"
    direct: Annotated[Switch, help("Whether.")] = "auto"
    live: Annotated[Truth, help("Whether.")] = False
    guests: Annotated[dict[Name, Guest], help("Who.")] = msgspec.field(default_factory=dict)
    action: Annotated[Start | Stop | None, help("What.")] = None


def mistakes(data: Any) -> list[tuple[str, str, bool]]:
    with pytest.raises(keys.Mistakes) as caught:
        keys.read(data, File)
    return [(keys.path(each.loc), each.message, each.at_key) for each in caught.value.found]


def test_values_are_read_as_people_write_them() -> None:
    data = {
        "memory": "64M",
        "stall": "1m",
        "channels": 4,
        "direct": True,
        "live": "yes",
        "guests": {"a": {"qmp": "/x", "launch": ["qemu", "-m", 64]}},
        "action": {"type": "stop", "mode": "fast"},
    }
    assert keys.read(data, File) == File(
        memory=64 << 20,
        stall=60.0,
        channels=4,
        direct="on",
        live=True,
        guests={"a": Guest(qmp="/x", launch=("qemu", "-m", "64"))},
        action=Stop("fast", ("mode",)),
    )


def test_a_key_without_a_value_counts_as_not_given() -> None:
    data = {"memory": 1, "stall": None, "guests": None, "live": None}
    assert keys.read(data, File) == File(1)
    assert keys.read({"mode": None}, Stop) == Stop("safe", given=())
    assert keys.read({"type": "stop", "mode": "safe"}, Stop) == Stop("safe", given=("mode",))
    assert ("memory", "the key 'memory' is missing", False) in mistakes({"memory": None})


def test_every_mistake_is_named_at_once() -> None:
    data = {
        "stal": 1,
        "memory": 1.5,
        "stall": 0,
        "channels": 300,
        "direct": "perhaps",
        "live": 1,
        "guests": {"a/b": {"name": "x", "qmp": 5, "launch": []}, "c": None, "d": {"launch": ["x"]}},
        "action": {"type": "pause"},
    }
    assert mistakes(data) == [
        ("stal", "unknown key 'stal': did you mean 'stall'?", True),
        ("memory", "memory: must be a size, such as 64M, not 1.5", False),
        ("stall", "stall: must be longer than 0", False),
        ("channels", "channels: must be 'auto' or a number from 1 to 255, not 300", False),
        ("direct", "direct: must be 'auto', 'on' or 'off', not 'perhaps'", False),
        ("live", "live: must be true or false, not 1", False),
        ("guests.a/b", f"guests.a/b: {SLASH}", True),
        ("guests.a/b.name", "unknown key 'name' (known: launch, qmp)", True),
        ("guests.a/b.qmp", "guests.a/b.qmp: must be text: put it in quotes", False),
        (
            "guests.a/b.launch",
            "guests.a/b.launch: must be a list that is not empty, not an empty list",
            False,
        ),
        ("guests.c", "guests.c: must be a mapping, not nothing", False),
        ("guests.d", "guests.d: launch applies to qmp", False),
        ("action.type", "action.type: must be 'start' or 'stop', not 'pause'", False),
    ]


def test_what_is_missing_is_named() -> None:
    assert mistakes({"action": {"type": "start"}, "memory": "9" * 50}) == [
        ("memory", "memory: not a size (write bytes or a number with K, M, G or T)", False),
        ("action.guest", "the key 'guest' is missing in action", False),
    ]
    assert mistakes({"memory": 1, "action": {}}) == [
        ("action.type", "the key 'type' is missing in action", False)
    ]
    assert mistakes([]) == [("", "must be a mapping, not an empty list", False)]


def test_schema_has_what_people_may_write() -> None:
    schema = keys.schema(File)
    assert schema["required"] == ["memory"]
    assert schema["additionalProperties"] is False
    properties = schema["properties"]
    assert properties["memory"]["type"] == ["integer", "string"]
    assert properties["memory"]["description"] == "How much."
    assert {"type": "null"} in properties["stall"]["anyOf"]
    assert properties["stall"]["default"] == 30.0
    assert {"enum": ["auto", "on", "off", True, False]}.items() <= properties["direct"]["anyOf"][
        0
    ].items()
    guest = schema["$defs"]["Guest"]["properties"]
    assert list(guest) == ["qmp", "launch"]
    assert guest["launch"]["anyOf"][0]["items"]["type"] == ["string", "integer"]
    assert schema["$defs"]["Stop"]["required"] == ["type"]


# What may be in a file where something else belongs, or where it does belong.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 4, 255, 256, -1, 1 << 62, 0.0, 4.0, "", "\0", "a\0b", "é", "a/b"),
    *("auto", "on", "off", "yes", "no", "true", "4", "64M", "0", "1.5K", "-1", "9" * 41),
    *("-incoming", "--incoming", "qmp:x", "a" * 200, "a" * 201, " x", "x ", "/x", "/{profile}"),
    *("/{pid}", "0600", "0900", "600", "a:b:c", "a:b:c:d", "keep", "default", "previous"),
    *([], [""], ["x"], ["x", 5], ["x", None], [[]], {}, {"x": "y"}, {"": {}}),
    *({"qmp": "/x"}, {"web01": {"qmp": "/x"}}, {"domain": "d"}, {"memory": 5}, [{"match": "x"}]),
]
KINDS: dict[type[Keys], str] = {
    config.Config: CONFIGURATION,
    job.Job: JOB,
    scrub_job.ScrubJob: SCRUB,
    policy.Policy: POLICY,
    fleet_settings.Settings: FLEET,
}


def changed(value: Any, draw: Any) -> Any:
    """Return plain data with something odd in it at some places."""
    if draw(st.integers(0, 20)) == 0:
        return draw(st.sampled_from(ODD) | st.text(max_size=5) | st.integers())
    if isinstance(value, dict):
        extra = {"uri": 1} if draw(st.integers(0, 30)) == 0 else {}
        return {**{key: changed(each, draw) for key, each in value.items()}, **extra}
    return [changed(each, draw) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_odd_values_are_read_or_named_in_our_words(kind: type[Keys], data: st.DataObject) -> None:
    plain = yaml_file.parse(KINDS[kind].encode(), Path("full.yaml")).data
    hook = config.place_from(Path("full.yaml"))
    assert keys.read(plain, kind, hook)
    odd = changed(plain, data.draw)
    try:
        found = keys.read(odd, kind, hook)
    except keys.Mistakes as error:
        assert error.found
        assert not [each for each in error.found if "Expected" in each.message]
    else:
        assert isinstance(found, kind)
        assert jsonschema_rs.validator_for(keys.schema(kind)).is_valid(odd)


def test_tables_in_the_documentation_are_made_of_the_definitions() -> None:
    """After a change of keys: ``python -m tests.kit.key_tables``."""
    documents = [(tree.ROOT / "docs" / name).read_text() for name in key_tables.DOCUMENTS]
    for text in documents:
        assert key_tables.rewritten(text) == text
    # A class that adds no key to another one's needs no table.
    every = {each for kind in KINDS for each in parts(kind) if key_text.own(each)}
    assert every == {kind for text in documents for kind in key_tables.kinds(text)}


def parts(kind: Any) -> set[type[Any]]:
    """Return the classes of keys within a type, and within those."""
    core, _ = keys.peel(kind)
    if isinstance(core, type) and issubclass(core, Keys):
        inner = (parts(each.type) for each in keys.fields(core).values())
        return {core}.union(*inner)
    return set().union(*(parts(each) for each in typing.get_args(core)))
