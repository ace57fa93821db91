"""What recovery must know of an operation, and that it returns what an undisturbed one does."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from mapsave import errors
from mapsave.image import store
from mapsave.operations import interrupted, results
from mapsave.operations.begun import Noted, RestoreBegun, SaveBegun
from mapsave.operations.journal import Orphan

from tests.kit import cli
from tests.kit.emulated import emulated

JOURNAL: dict[str, Any] = {"kind": "save", "manager_pid": 7, "boot": "b", "operation": "0123"}
LABEL = {
    "module": "selinux",
    "value": "a",
    "process": "b",
    "previous": None,
    "detail": {"at_rest": "c"},
    "others": [],
}
SETTINGS: dict[str, Any] = {"capabilities": {"multifd": False}, "parameters": {"tls-creds": ""}}
MONITOR = {"socket": "/run/web.qmp", "uri": None, "domain": None}
PROCESS = {"pid": None, "process_started": None}
SAVE = {
    "guest": "web",
    "monitor": MONITOR,
    **PROCESS,
    "directory": "/images",
    "directory_inode": 5,
    "name": "one",
    "replace": False,
    "then": "quit",
    "policy": "auto",
    "was_running": True,
    "settings": SETTINGS,
    "fdset": 9,
}
RESTORE = {"image": "/images/one", "guest": "web", "through_libvirt": False}


def orphan(kind: str, facts: dict[str, Any]) -> Orphan:
    return Orphan(Path("/state/journal/x"), kind, json.loads(json.dumps(facts)), ("begin",))


@pytest.mark.parametrize(
    ("kind", "facts", "later"),
    [
        ("save", SAVE, {"label": LABEL, "uuid": "u", "outcome": "save rolled back"}),
        ("restore", RESTORE, {"monitor": MONITOR, "fdset": 9, "settings": SETTINGS, "pid": 5}),
    ],
)
def test_the_same_keys(kind: str, facts: dict[str, Any], later: dict[str, Any]) -> None:
    found = interrupted.read(orphan(kind, {**JOURNAL, **facts}))
    assert msgspec.to_builtins(found).keys() == facts.keys()
    found = interrupted.read(orphan(kind, {**JOURNAL, **facts, **later}))
    written = json.loads(json.dumps(msgspec.to_builtins(found)))
    assert written == {**facts, **later}


def test_what_steps_add_is_what_is_read() -> None:
    known = {*SaveBegun.__struct_fields__, *RestoreBegun.__struct_fields__}
    assert set(Noted.__annotations__) <= known


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"guest": 1}, "guest"),
        ({"monitor": []}, "monitor"),
        ({"settings": {"capabilities": {}}}, "parameters"),
        ({"label": {"module": 1}}, "label"),
        ({"then": "dance"}, "then"),
    ],
)
def test_one_that_is_not_as_we_write_them(wrong: dict[str, Any], key: str) -> None:
    with pytest.raises(errors.JournalUnusable, match=f"lacks '{key}'"):
        interrupted.read(orphan("save", {**SAVE, **wrong}))
    facts = {name: value for name, value in SAVE.items() if name not in wrong}
    if wrong.keys() <= SAVE.keys():
        with pytest.raises(errors.JournalUnusable, match=f"lacks '{next(iter(wrong))}'"):
            interrupted.read(orphan("save", facts))


LINE = {"image": "/images/one", "guest": "web", "monitor": None, "outcome": "image committed"}


def test_save_and_restore(site: cli.Site, tmp_path: Path) -> None:
    site.add_guest("web", tmp_path / "s")
    with emulated(tmp_path / "s"):
        saved = site.run("save", "web", "--json", check=0).json()
    with store.directory(site.images) as held:
        (entry,) = store.entries(held)
    recovered = results.recovered_save(entry).as_dict()
    assert recovered.keys() == saved.keys() == results.gone(LINE).as_dict().keys()
    assert (saved["recovered"], recovered["recovered"]) == (False, True)
    differs = {key for key in saved if saved[key] != recovered[key]}
    assert differs <= {
        "recovered",
        "phases_s",
        "reasons",
        "duration_s",
        "downtime_s",
        "bytes_per_s",
    }

    with emulated(tmp_path / "d", "--incoming", "defer") as waiting:
        arguments = ("restore", saved["image"], "--into", f"qmp:{waiting.path}", "--json")
        restored = site.run(*arguments, check=0).json()
    assert results.recovered_restore(entry, None, None).as_dict().keys() == restored.keys()
