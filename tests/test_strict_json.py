"""JSON of others: only what is plain, and what is printed is as json itself prints it."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import strict_json

_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Bytes of names that are not UTF-8 are halves of surrogate pairs.
    | st.text(st.characters(exclude_categories=())),
    lambda inside: st.lists(inside) | st.dictionaries(st.text(), inside),
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(), _VALUES))
def test_indented_is_what_json_indents(data: dict[str, Any]) -> None:
    assert strict_json.indented(data) == json.dumps(data, indent=2)


@settings(max_examples=40, deadline=None)
@given(_VALUES)
def test_what_is_encoded_is_decoded(data: object) -> None:
    raw = strict_json.encoded(data)
    assert json.loads(raw) == json.loads(json.dumps(data))
    assert strict_json.decoded(raw) == strict_json.decoded(json.dumps(data)) == json.loads(raw)


def test_what_json_does_not_know_is_encoded_as_text() -> None:
    data = {"path": Path("/a"), "name": "\udcff", "number": 1 << 70, "none": float("nan")}
    known = {"path": "/a", "name": "\udcff", "number": 1 << 70}
    for name, value in known.items():
        assert strict_json.decoded(strict_json.encoded({name: data[name]})) == {name: value}
    assert strict_json.encoded({"none": data["none"]}) == b'{"none":null}'


def test_depth_is_counted_in_lists_and_mappings() -> None:
    deep: object = 1
    for number in range(4):
        deep = [deep] if number % 2 else {"a": deep, "b": 2}
    assert strict_json.loads(json.dumps(deep), max_depth=4) == deep
    with pytest.raises(ValueError, match="more than 3 deep"):
        strict_json.loads(json.dumps(deep), max_depth=3)


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"\\udfff": 1}', '[["x\\udc00"]]'])
@pytest.mark.parametrize("kind", [str, str.encode])
def test_half_a_surrogate_pair(text: str, kind: Any) -> None:
    with pytest.raises(ValueError, match="surrogate"):
        strict_json.loads(kind(text))
