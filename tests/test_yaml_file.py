"""YAML files: whatever is in them, plain data or an error with file, line and column comes out."""

import importlib.util
import math
import os
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import errors, yaml_file
from mapsave.keys import Keys, help
from msgspec import Meta, field

FILE = Path("some.yaml")


class Guest(Keys, frozen=True):
    qmp: Annotated[str, help("Socket.")]
    launch: Annotated[tuple[str, ...], help("Command.")] = ()


class Save(Keys, frozen=True):
    channels: Annotated[int, Meta(ge=1, le=255), help("How many.")] = 8
    mode: Annotated[Literal["fast", "safe"], help("How.")] = "safe"


class Model(Keys, frozen=True):
    images: Annotated[str, help("Where.")] = "here"
    guests: Annotated[dict[str, Guest], help("Who.")] = field(default_factory=dict)
    save: Annotated[Save | None, help("How.")] = None


def parse(text: str) -> yaml_file.Document:
    return yaml_file.parse(text.encode(), FILE)


def error_of(text: str, model: type[Keys] | None = None) -> errors.ConfigError:
    with pytest.raises(errors.ConfigError) as caught:
        document = parse(text)
        if model:
            document.validate(model)
    return caught.value


def test_plain_data_comes_out() -> None:
    document = parse("a: [1, -2, 1.5, true, ~, text, 'x y']\nb:\n  c: |\n    two\n    lines\n")
    assert document.data == {
        "a": [1, -2, 1.5, True, None, "text", "x y"],
        "b": {"c": "two\nlines\n"},
    }


@pytest.mark.parametrize("word", ["on", "off", "yes", "no", "1:30", "2026-01-01", "0x10", "1_000"])
def test_words_that_yaml_1_1_turns_into_something_else_stay_text(word: str) -> None:
    assert parse(f"a: {word}").data == {"a": word}


def test_file_mode_is_octal() -> None:
    assert parse("mode: 0640").data == {"mode": 0o640}


@pytest.mark.parametrize("text", ["", "# only a comment\n", "---\n", "\ufeff"])
def test_empty_file_is_an_empty_mapping(text: str) -> None:
    document = parse(text)
    assert document.data == {}
    assert document.validate(Model).images == "here"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("a: 1\nb: 2\na: 3", "3:1", "duplicate key 'a': also in line 1"),
        ("x:\n  - {k: 1, k: 2}", "2:12", "duplicate key 'k'"),
        ("a: !!python/object:os.system x", "1:4", "!!python/object:os.system"),
        ("a: !mine x", "1:4", "'!mine'"),
        ("a: !!str [1]", "1:4", "!!str"),
        ("a: &x\n  - *x", "1:4", "points at what contains it"),
        ("a: &x {b: *x}", "1:8", "points at what contains it"),
        ("a: &x {b: 1}\nc:\n  <<: *x", "3:3", "merge keys"),
        ("a:\n  1: b", "2:3", "put it in quotes"),
        ("a: {true: b}", "1:5", "the key true must be text"),
        ("? [a]\n: b", "1:3", "a key must be text"),
        ("a: b: c", "1:5", "mapping values are not allowed"),
        ("a:\n\tb: 1", "2:1", "cannot start any token"),
        ("a: 1\n---\nb: 1", "2:1", "single document"),
        ("- a", "1:1", "must be a mapping"),
        ("just text", "1:1", "must be a mapping"),
        ("a: 1\nb: *nothing", "2:4", "undefined alias"),
        ("a: !!int x", "1:4", "not a valid int: 'x'"),
        ("a: !!int ''", "1:4", "not a valid int"),
        ("a: !!bool maybe", "1:4", "not a valid bool"),
        ("a: !!float x", "1:4", "not a valid float"),
        ("a: 9223372036854775808", "1:4", "too large"),
        ("a: " + "9" * 5000, "1:4", "not a valid int"),
        ("a: 1\nb: \x07", "2:4", r"'\x07'"),
        ("a: 'open", "1:9", "quoted scalar"),
    ],
)
def test_error_names_file_line_and_column(text: str, place: str, words: str) -> None:
    error = error_of(text)
    assert error.message.startswith(f"some.yaml:{place}: ")
    assert words in error.message
    assert f"{error.data['line']}:{error.data['column']}" == place
    assert error.data["file"] == "some.yaml"


def test_bytes_that_are_not_utf8_are_placed() -> None:
    with pytest.raises(errors.ConfigError, match=r"^some\.yaml:2:4: not UTF-8"):
        yaml_file.parse(b"a: 1\nb: \xff", FILE)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- ", "? "])
def test_deep_nesting_is_refused_at_once(opening: str) -> None:
    """By us, or since PyYAML 6.0.4 by its scanner, which reads ahead and has a limit of its own."""
    start = time.process_time()
    words = error_of(opening * 200_000).message
    assert "nested deeper than 32" in words or "exceeded maximum nesting depth" in words
    assert time.process_time() - start < 30


def test_alias_is_expanded() -> None:
    document = parse("a: &x [1, 2]\nb:\n  c: *x\n")
    assert document.data == {"a": [1, 2], "b": {"c": [1, 2]}}
    assert document.line(("b", "c")) == 3


def test_bomb_of_aliases_is_refused() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "more than 400000 values" in error_of("\n".join(lines)).message


def test_memory_for_a_file_of_many_small_values_is_bounded() -> None:
    text = "a: [" + "x," * 1_000_000 + "]"
    tracemalloc.start()
    try:
        assert "more than 400000 values" in error_of(text).message
        assert tracemalloc.get_traced_memory()[1] < 20 * len(text)
    finally:
        tracemalloc.stop()


def test_large_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * (yaml_file.MAX_BYTES + 1))
    with pytest.raises(errors.ConfigError, match="larger than 8388608 bytes"):
        yaml_file.read(path)
    assert yaml_file.parse(b"#" * yaml_file.MAX_BYTES, path).data == {}


def test_missing_file_and_directory_are_config_missing(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigMissing, match="No such file") as caught:
        yaml_file.read(tmp_path / "none.yaml")
    assert caught.value.exit_code == 2
    with pytest.raises(errors.ConfigMissing, match="directory"):
        yaml_file.read(tmp_path)
    with pytest.raises(errors.ConfigMissing):
        yaml_file.read(Path("a\0b"))


def test_a_pipe_can_be_read(tmp_path: Path) -> None:
    """``--config <(generate)`` gives a pipe, whose size says nothing."""
    reader, writer = os.pipe()
    os.write(writer, b"a: 1\n")
    os.close(writer)
    try:
        assert yaml_file.read(Path(f"/dev/fd/{reader}")).data == {"a": 1}
    finally:
        os.close(reader)


WRONG = """\
images: 5
guests:
  web01:
    qmp: /x
    lunch: [a]
  db01: {launch: [1, on]}
save:
  chanels: 3
  channels: 300
  mode: slow
"""


def test_all_errors_of_a_model_are_listed_in_order_of_lines() -> None:
    error = error_of(WRONG, Model)
    assert [each["message"] for each in error.data["errors"]] == [
        "some.yaml:1:9: images: must be text: put it in quotes",
        "some.yaml:5:5: unknown key 'lunch': did you mean 'launch'?",
        "some.yaml:6:9: the key 'qmp' is missing in guests.db01",
        "some.yaml:6:19: guests.db01.launch[0]: must be text: put it in quotes",
        "some.yaml:8:3: unknown key 'chanels': did you mean 'channels'?",
        "some.yaml:9:13: save.channels: must be a number from 1 to 255, not 300",
        "some.yaml:10:9: save.mode: must be 'fast' or 'safe', not 'slow'",
    ]
    assert error.message == error.data["errors"][0]["message"] + " (and 6 more)"
    assert error.hint is not None
    assert "some.yaml:10:9: save.mode" in error.hint
    assert [each["line"] for each in error.data["errors"]] == [1, 5, 6, 6, 8, 9, 10]


def test_unknown_key_that_resembles_none_lists_the_known_ones() -> None:
    assert error_of("zzz: 1", Model).message == (
        "some.yaml:1:1: unknown key 'zzz' (known: guests, images, save)"
    )


def test_error_in_an_alias_is_placed_where_it_is_used() -> None:
    error = error_of("images: &x none\nguests:\n  web01: *x\n", Model)
    assert error.data["line"] == 3


def test_line_of_a_value_and_of_what_is_not_there() -> None:
    document = parse("a:\n  b:\n    - x\n    - y\n")
    assert document.line(("a", "b", 1)) == 4
    assert document.line(("a", "missing")) == 1
    assert parse("").line(("a",)) is None


def outcome(raw: bytes) -> Any:
    """Return the data or None; any other exception than ConfigError escapes to the test."""
    try:
        document = yaml_file.parse(raw, FILE)
    except errors.ConfigError as exc:
        assert exc.message.startswith("some.yaml:")
        return None
    try:
        document.validate(Model)
    except errors.ConfigError as exc:
        assert exc.message.startswith("some.yaml")
        assert exc.data["errors"]
    return document.data


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_give_data_or_a_declared_error(raw: bytes) -> None:
    outcome(raw)


TOKENS = st.sampled_from(
    [
        *("a: ", "- ", "? ", ": ", ", ", "[", "]", "{", "}", "\n", "\n  ", "\n- ", "&x ", "*x "),
        *("!!str ", "!!int ", "!!bool ", "!!set ", "!!binary ", "! ", "<<: ", "'", '"', "|", ">"),
        *("\\ud800", "\\x00", "#", "%YAML 1.1\n", "---\n", "...\n", "--", "\t", "=", "@", "`"),
        *("~", "true", "0", "07", "1.5", ".inf", ".nan", "1e9", "é", "\u2028", "\ufeff"),
        *("images: ", "guests: ", "save: ", "qmp: ", "channels: "),
    ]
)


@settings(max_examples=600, deadline=None)
@given(st.lists(TOKENS, max_size=25).map("".join))
def test_random_yaml_gives_data_or_a_declared_error(text: str) -> None:
    outcome(text.encode())


TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(TEXT, PLAIN, max_size=5), st.booleans())
def test_what_a_yaml_writer_writes_comes_back(data: dict[str, Any], flow: bool) -> None:
    """Writers quote by the rules of YAML 1.1; what they leave unquoted must mean the same here."""
    assert outcome(yaml.safe_dump(data, default_flow_style=flow).encode()) == data


def test_without_libyaml_it_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader is chosen at import: import the file again as with a PyYAML without libyaml."""
    monkeypatch.delattr(yaml, "CSafeLoader")
    spec = importlib.util.spec_from_file_location("plain_yaml_file", yaml_file.__file__)
    assert spec is not None
    assert spec.loader is not None
    plain = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, plain)
    spec.loader.exec_module(plain)
    assert plain.parse(b"a: [1, on, 0640]\n", FILE).data == {"a": [1, "on", 0o640]}
    for raw in (b'a: "\\ud800"', b"a: 1\na: 2", b"[" * 100_000, b"a: \x01", b"a: [", b"a: &x [*x]"):
        with pytest.raises(errors.ConfigError, match=r"some\.yaml:\d+:\d+: "):
            plain.parse(raw, FILE)


def test_floats_are_finite() -> None:
    assert parse("a: 1.5e+3").data == {"a": 1500.0}
    assert parse("a: [.inf, .nan]").data == {"a": [".inf", ".nan"]}
    assert math.isfinite(parse("a: 1.0").data["a"])
