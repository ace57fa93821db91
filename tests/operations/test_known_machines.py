"""What program and command line settle is asked once, and a record that is wrong does no harm."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from mapsave import config as configuration
from mapsave.image import image
from mapsave.monitor import qmp
from mapsave.operations import known_machines, restore, restore_request, save, save_request
from mapsave.operations.hardware import Options

from tests.kit import cli, commands, processes, qemu

_OPTIONS: Options = {
    "model": "qemu64-x86_64-cpu",
    "topology": {"cores": 1},
    "machine": {"hpet": True, "smm": "auto"},
    "processor": {"level": 13},
}
_SETTLED = known_machines.Settled("pc-i440fx-10.0", _OPTIONS)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def record(state: Path) -> Path:
    (found,) = (state / "machines").iterdir()
    return found


def test_kept_by_key(state: Path) -> None:
    known_machines.remember(state, "a", _SETTLED)
    assert known_machines.recall(state, "a") == _SETTLED
    assert known_machines.recall(state, "b") is None
    assert known_machines.recall(state, None) is None


def _settled(content: dict[str, object]) -> dict[str, object]:
    found = content["settled"]
    assert isinstance(found, dict)
    return found


def _type(content: dict[str, object]) -> None:
    _settled(content)["type"] = "pc-q35-10.0"


def _digest(content: dict[str, object]) -> None:
    content["digest"] = "0"


def _options(content: dict[str, object]) -> None:
    _settled(content)["options"] = {**_OPTIONS, "machine": {"hpet": False, "smm": "auto"}}


def _wrong_type(content: dict[str, object]) -> None:
    _settled(content)["options"] = {**_OPTIONS, "machine": ["hpet"]}


def _incomplete(content: dict[str, object]) -> None:
    _settled(content)["options"] = {"model": _OPTIONS["model"]}


@pytest.mark.parametrize("change", [_digest, _type, _options, _wrong_type, _incomplete])
def test_wrong_record_counts_as_none(
    state: Path, change: Callable[[dict[str, object]], None]
) -> None:
    known_machines.remember(state, "a", _SETTLED)
    content = json.loads(record(state).read_bytes())
    change(content)
    record(state).write_text(json.dumps(content))
    assert known_machines.recall(state, "a") is None
    known_machines.remember(state, "a", _SETTLED)
    assert known_machines.recall(state, "a") == _SETTLED


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100_000, b"\xff", b"null"])
def test_damaged_record_counts_as_none(state: Path, raw: bytes) -> None:
    known_machines.remember(state, "a", _SETTLED)
    record(state).write_bytes(raw)
    assert known_machines.recall(state, "a") is None


def test_record_that_others_can_write_counts_as_none(state: Path) -> None:
    known_machines.remember(state, "a", _SETTLED)
    record(state).chmod(0o666)
    assert known_machines.recall(state, "a") is None


def test_older_records_make_room(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_machines, "_MOST", 4)
    for number in range(5):
        known_machines.remember(state, str(number), _SETTLED)
        os.utime(state / "machines" / f"{number}.json", (number, number))
    left = sorted(path.stem for path in (state / "machines").iterdir())
    assert left == ["2", "3", "4"]


_ARGV = [
    *("qemu", "-name", "guest=web", "-S", "-object"),
    '{"qom-type":"secret","id":"masterKey0","file":"/var/lib/libvirt/qemu/domain-1-web/key"}',
    *("-machine", "pc,memory-backend=pc.ram", "-accel", "kvm", "-cpu", "Haswell,hv-time=on"),
    *("-object", '{"qom-type":"memory-backend-ram","id":"pc.ram"}', "-uuid", "1-2"),
    *("-smp", "2", "-chardev", "socket,id=charmonitor,fd=25", "-global", "cpu.pmu=off"),
    *("-device", '{"driver":"virtio-net-pci","mac":"52:54:00:00:00:01"}', "--no-reboot"),
    *("-object", "sev-guest,id=sev0", "-new", "on"),
]


def test_what_is_apart_from_the_machine_does_not_count() -> None:
    again = [word.replace("web", "db").replace("1", "3").replace("25", "7") for word in _ARGV]
    again += ["-incoming", "defer", "--add-fd", "set=0,fd=33"]
    assert known_machines.relevant(again) == known_machines.relevant(_ARGV)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pc,memory", "q35,memory"),
        ("kvm", "tcg"),
        ("hv-time=on", "hv-time=off"),
        ("pmu=off", "pmu=on"),
        ("id=sev0", "id=sev0,policy=1"),
        ("-new", "-newer"),
    ],
)
def test_anything_else_counts(old: str, new: str) -> None:
    other = [word.replace(old, new) for word in _ARGV]
    assert known_machines.relevant(other) != known_machines.relevant(_ARGV)


def test_command_line_with_a_file_of_options_does_not_say_it_all() -> None:
    for words, is_named in (([], True), (["-readconfig"], False)):
        sleeping = [sys.executable, "-c", "import time; time.sleep(60)", *words]
        with processes.running(sleeping) as other:
            assert (known_machines.key(other.pid) is not None) is is_named


def _facts(count: Mapping[str, int]) -> int:
    """Return how much was asked, but for how far the migration is: that goes by its time."""
    return sum(number for query, number in count.items() if '"query-migrate"' not in query)


async def test_second_guest_of_a_command_line_is_asked_for_less(site: cli.Site) -> None:
    asked, recorded = [], []
    with qemu.directory_for() as place:
        for name in ("first", "second"):
            with qemu.guest(site, "web", memory="16M", paused=False, directory=place):
                config = configuration.load(site.config, {})
                known = config.guests["web"]
                request = save_request.request(config, known, image=name)
                with commands.counted(qmp.QmpSession) as count:
                    await save.save(known, config, request)
                asked.append(_facts(count))
            with image.opened(str(site.images / name)) as opened:
                recorded.append(opened.metadata["hardware"])
        # To map its RAM it is started by another command line.
        wanted = restore_request.Request("second", guest="web", instant="off")
        with commands.counted(qmp.QmpSession) as count:
            await restore.restore(config, wanted)
        asked.append(_facts(count))
        with qemu.adopted(place, "web"):
            pass
    assert asked[1] < asked[0] - 40
    assert asked[2] < asked[0] - 40
    assert recorded[0] == recorded[1]
    assert recorded[0] is not None
    assert recorded[0]["vcpus"]
