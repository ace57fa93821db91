"""Files that are right are read without pydantic; what is read is what pydantic would read."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mapsave import config_file, config_models, yaml_file
from mapsave.labels import policy_file, policy_models

from tests.kit import tree
from tests.kit.full import CONFIGURATION, POLICY

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mapsave.values import Reader

KINDS: dict[str, tuple[Reader, type[pydantic.BaseModel], str]] = {
    "configuration": (config_file.quick, config_models.ConfigModel, CONFIGURATION),
    "policy": (policy_file.quick, policy_models.PolicyModel, POLICY),
}
# What may stand in a file where something else belongs, or where it does belong.
ODD: list[Any] = [
    *(None, True, False, 0, 1, 4, 255, 256, -1, 1 << 62, 0.0, 4.0, "", "\0", "a\0b", "é", "a/b"),
    *("auto", "on", "off", "yes", "no", "true", "4", "64M", "0", "1.5K", "-1", "9" * 41),
    *("-incoming", "--incoming", "qmp:x", "a" * 200, "a" * 201, " x", "x ", "/x", "/{profile}"),
    *("/{pid}", "0600", "0900", "600", "a:b:c", "a:b:c:d", "keep", "default", "previous"),
    *([], [""], ["x"], ["x", 5], ["x", None], [[]], {}, {"x": "y"}, {"": {}}),
    *({"qmp": "/x"}, {"web01": {"qmp": "/x"}}, {"domain": "d"}, {"memory": 5}, [{"match": "x"}]),
]


def accepted(kind: str, data: Any) -> bool:
    """Assert that both ways accept ``data`` and read the same, or that both refuse it."""
    quick, model, _ = KINDS[kind]
    expected, found = "refused", "refused"
    # Compared as JSON, which tells True, 1 and 1.0 apart.
    with contextlib.suppress(pydantic.ValidationError):
        expected = json.dumps(model.model_validate(data).model_dump(), sort_keys=True)
    with contextlib.suppress(ValueError):
        found = json.dumps(quick(data), sort_keys=True)
    assert found == expected, data
    return found != "refused"


def full(kind: str) -> dict[str, Any]:
    """Return the data of a file that has every key."""
    return yaml_file.parse(KINDS[kind][2].encode(), Path("full.yaml")).data


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of keys to every value within ``data``."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in items:
        yield (*place, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*place, key))


def holder(data: Any, place: tuple[Any, ...]) -> Any:
    """Return the dict or list within ``data`` that holds what is at ``place``."""
    for key in place[:-1]:
        data = data[key]
    return data


@pytest.mark.parametrize("kind", KINDS)
def test_one_odd_value_anywhere(kind: str) -> None:
    assert accepted(kind, full(kind))
    assert accepted(kind, {}) is (kind == "configuration")
    outcomes = set()
    for place in places(full(kind)):
        for value in ODD:
            data = full(kind)
            holder(data, place)[place[-1]] = copy.deepcopy(value)
            outcomes.add(accepted(kind, data))
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", KINDS)
def test_one_key_missing_renamed_or_too_many(kind: str) -> None:
    outcomes = set()
    for place in places(full(kind)):
        data = full(kind)
        held = holder(data, place)
        value = held.pop(place[-1])
        outcomes.add(accepted(kind, data))
        if isinstance(held, dict):
            for name in ("uri", "qmp", "images", "label", "-x", "a/b", "", "Images"):
                outcomes.add(accepted(kind, {**full(kind), name: value}))
                held[name] = value
                outcomes.add(accepted(kind, data))
                del held[name]
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_several_odd_values(kind: str, data: st.DataObject) -> None:
    found = full(kind)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.sampled_from(list(places(found))))
        held = holder(found, place)
        if data.draw(st.booleans()):
            held.pop(place[-1])
        else:
            held[place[-1]] = data.draw(
                st.sampled_from(ODD).map(copy.deepcopy) | st.text(max_size=5) | st.integers()
            )
        if not found:
            break
    accepted(kind, found)


@pytest.mark.parametrize(
    "program",
    [
        "from mapsave.labels import policy; policy.load('selinux-svirt')",
        "from mapsave import config; assert config.load(pathlib.Path(sys.argv[1]), {}).guests",
    ],
)
def test_a_file_that_is_right_needs_no_pydantic(program: str, tmp_path: Path) -> None:
    file = tmp_path / "manager.yaml"
    file.write_text(CONFIGURATION)
    heavy = "{'pydantic', 'numpy', 'asyncio', 'importlib.metadata', 'click'}"
    shown = f"import sys, pathlib; {program}; print(*({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", shown, str(file)],
        cwd=tree.ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.stdout.strip(), done.stderr) == ("", "")
