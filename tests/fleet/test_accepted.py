"""What a task may ask: saves and restores by name. The rest is refused, whatever it looks like."""

import contextlib
import json
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mapsave import errors
from mapsave.client import requests
from mapsave.fleet import accepted, naming, outcomes

TASK = uuid.UUID("8c7d9a3e-52a1-4c8e-9f0e-0a5b3c2d1e0f")
SAVE = {"kind": "save", "guest": "web01", "save": {"then": "resume", "image": "web01-1"}}
RESTORE = {"kind": "restore", "image": "web01-1", "restore": {"run": "paused"}}


def arguments(request: object = SAVE, **more: object) -> dict[str, Any]:
    return {"task": str(TASK), "run": 7, "request": request, "limit_s": 600, **more}


def refused(found: object) -> str:
    with pytest.raises(errors.TaskRefused) as refusal:
        accepted.read(found)
    return refusal.value.message


def test_a_save_is_accepted_with_the_tasks_limit() -> None:
    wanted = accepted.read(arguments(target="nas1", not_after=None))
    assert (wanted.task, wanted.kind, wanted.limit, wanted.target) == (TASK, "save", 600, "nas1")
    assert wanted.operation == naming.operation_of(TASK)
    save = {"then": "resume", "image": "web01-1", "timeout": 600}
    assert wanted.body == {**SAVE, "save": save}
    assert wanted.limited(None) == wanted.body
    assert wanted.limited(1 << 20)["save"] == {**save, "bandwidth": 1 << 20}


def test_a_shorter_limit_of_the_request_holds_and_a_longer_one_does_not() -> None:
    def limited(timeout: object) -> object:
        body = {**SAVE, "save": {"timeout": timeout}}
        return accepted.read(arguments(body)).body["save"]

    assert limited(60) == {"timeout": 60}
    assert limited("1m") == {"timeout": 60}
    assert limited("2h") == {"timeout": 600}
    assert accepted.read(arguments({"kind": "save", "guest": "db"})).body["save"] == {
        "timeout": 600
    }


def test_a_restore_is_accepted_and_has_no_bandwidth() -> None:
    wanted = accepted.read(arguments(RESTORE))
    assert wanted.limited(1000) == {**RESTORE, "restore": {"run": "paused", "timeout": 600}}


@pytest.mark.parametrize("kind", sorted(set(requests.KINDS) - {"save", "restore"}))
def test_no_other_kind_is_done_for_a_fleet(kind: str) -> None:
    assert "may be save or restore" in refused(arguments({**SAVE, "kind": kind}))


@pytest.mark.parametrize(
    "option",
    ["replace", "in_use", "managed", "bandwidth", "given", "unheard_of"],
)
def test_what_reaches_further_of_a_save_is_refused(option: str) -> None:
    for value in (True, False, None, 1):
        body = {**SAVE, "save": {option: value}}
        assert repr(option) in refused(arguments(body))


@pytest.mark.parametrize(
    "option",
    [
        *("into", "xml", "trust_image", "trust_recorded_command", "without_metadata", "force"),
        *("again", "guest", "through_libvirt", "unheard_of"),
    ],
)
def test_what_reaches_further_of_a_restore_is_refused(option: str) -> None:
    for value in (True, False, None, "x"):
        body = {**RESTORE, "restore": {option: value}}
        assert repr(option) in refused(arguments(body))


@pytest.mark.parametrize(
    "body",
    [
        {**SAVE, "guest": "qmp:/run/qemu.sock"},
        {**SAVE, "guest": "libvirt:web01"},
        {**SAVE, "guest": "../web01"},
        {**SAVE, "guest": 1},
        {**SAVE, "save": {"image": "/etc/shadow"}},
        {**SAVE, "save": {"image": "../x"}},
        {**SAVE, "save": {"policy": "/tmp/policy.yaml"}},
        {**SAVE, "save": {"timeout": -1}},
        {**SAVE, "save": {"timeout": float("nan")}},
        {**SAVE, "save": {"then": "burn"}},
        {**SAVE, "save": []},
        {**SAVE, "restore": {}},
        {**SAVE, "image": "x"},
        {**RESTORE, "image": "/etc/shadow"},
        {**RESTORE, "image": "x\0y"},
        {**RESTORE, "image": "\ud800"},
        {"kind": "save"},
        {"kind": ["save"], "guest": "db"},
        [],
        None,
        "save",
    ],
)
def test_what_no_scheduler_asks_for_is_refused(body: object) -> None:
    assert refused(arguments(body))


@pytest.mark.parametrize("limit", [None, 0, -1, True, "600", 1e9, float("inf"), float("nan"), []])
def test_a_task_has_a_limit(limit: object) -> None:
    assert "time limit" in refused(arguments(limit_s=limit))


def test_what_a_newer_scheduler_says_is_not_passed_over() -> None:
    assert "'sudo'" in refused(arguments(sudo=True))
    assert "target" in refused(arguments(target=1))


@pytest.mark.parametrize("task", [None, 1, "", "x" * 36, str(TASK)[:-1], "{" + str(TASK) + "}"])
def test_a_job_without_a_task_is_none(task: object) -> None:
    assert "no id" in refused(arguments(task=task))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=20,
)
OPTIONS = st.dictionaries(
    st.sampled_from(
        sorted(
            {*requests.SaveOptions.__struct_fields__, *requests.RestoreOptions.__struct_fields__}
        )
    ),
    JSON,
    max_size=4,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(sorted(requests.KINDS)) | JSON,
        "guest": st.sampled_from(["db", "qmp:/run/x", "libvirt:db"]) | JSON,
        "image": st.sampled_from(["one", "../one", "/one"]) | JSON,
        "save": OPTIONS | JSON,
        "restore": OPTIONS | JSON,
    },
)
ARGUMENTS = st.fixed_dictionaries(
    {"task": st.just(str(TASK)), "request": BODIES | JSON, "limit_s": st.just(60) | JSON},
    optional={"run": JSON, "target": JSON, "not_after": JSON, "more": JSON},
)


@given(ARGUMENTS | JSON)
def test_whatever_comes_is_refused_or_harmless(found: Any) -> None:
    with contextlib.suppress(errors.TaskRefused):
        wanted = accepted.read(found)
        request = requests.parse(dict(wanted.limited(1 << 30)))
        assert isinstance(request, requests.Save | requests.Restore)
        assert 1 <= wanted.limit <= accepted.LONGEST
        if isinstance(request, requests.Save):
            assert not request.guest.startswith(("qmp:", "libvirt"))
            assert not (request.save.replace or request.save.in_use)
            assert request.save.timeout is not None
            assert request.save.timeout <= wanted.limit
            assert "/" not in (request.save.image or "")
        else:
            options = request.restore
            assert "/" not in request.image
            assert (options.guest, options.into, options.xml) == (None, None, None)
            assert not (options.force or options.again or options.trust_image)
            assert not (options.trust_recorded_command or options.without_metadata)


@given(JSON | st.text(st.characters()))
def test_what_is_reported_is_json_that_postgresql_takes(found: Any) -> None:
    text = json.dumps(outcomes.clean(found), ensure_ascii=False, allow_nan=False)
    assert "\\u0000" not in text
    assert text.encode()  # no half of a surrogate pair
