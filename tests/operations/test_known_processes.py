"""What does not change of a QEMU is asked once, and a record that is wrong does no harm."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from mapsave import config as configuration
from mapsave.image import image
from mapsave.image.metadata import HardwarePart
from mapsave.monitor import process, qmp
from mapsave.operations import known_processes, save, save_request

from tests.kit import cli, commands, processes, qemu

_HARDWARE: HardwarePart = {
    "target": "x86_64",
    "model": "qemu64-x86_64-cpu",
    "vcpus": ["core-id=0"],
    "machine": {"hpet": True, "smm": "auto"},
}
_FIXED = {name: value for name, value in _HARDWARE.items() if name != "vcpus"}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def ours() -> tuple[int, int]:
    found = process.identity(os.getpid())
    assert found is not None
    return found


def record(state: Path) -> Path:
    (found,) = (state / "processes").iterdir()
    return found


def test_all_but_the_processors_that_may_be_plugged(state: Path, ours: tuple[int, int]) -> None:
    known_processes.remember(state, ours, _HARDWARE)
    assert known_processes.recall(state, ours) == _FIXED
    assert known_processes.recall(state, (ours[0], ours[1] + 1)) is None
    assert known_processes.recall(state, None) is None


def _program(content: dict[str, object]) -> None:
    content["program"] = [0, 0]


def _hardware(content: dict[str, object]) -> None:
    content["hardware"] = {**_FIXED, "machine": {"hpet": False, "smm": "auto"}}


def _wrong_type(content: dict[str, object]) -> None:
    content["hardware"] = {**_FIXED, "machine": ["hpet"]}


@pytest.mark.parametrize("change", [_program, _hardware, _wrong_type])
def test_wrong_record_counts_as_none(
    state: Path, ours: tuple[int, int], change: Callable[[dict[str, object]], None]
) -> None:
    known_processes.remember(state, ours, _HARDWARE)
    content = json.loads(record(state).read_bytes())
    change(content)
    record(state).write_text(json.dumps(content))
    assert known_processes.recall(state, ours) is None
    known_processes.remember(state, ours, _HARDWARE)
    assert known_processes.recall(state, ours) == _FIXED


@pytest.mark.parametrize("raw", [b"", b"{}", b"[" * 100_000, b"\xff", b"null"])
def test_damaged_record_counts_as_none(state: Path, ours: tuple[int, int], raw: bytes) -> None:
    known_processes.remember(state, ours, _HARDWARE)
    record(state).write_bytes(raw)
    assert known_processes.recall(state, ours) is None


def test_record_that_others_can_write_counts_as_none(state: Path, ours: tuple[int, int]) -> None:
    known_processes.remember(state, ours, _HARDWARE)
    record(state).chmod(0o666)
    assert known_processes.recall(state, ours) is None


def test_records_go_with_their_processes(state: Path, ours: tuple[int, int]) -> None:
    with processes.running(["sleep", "60"]) as other:
        known_processes.remember(state, process.identity(other.pid), _HARDWARE)
    known_processes.remember(state, ours, _HARDWARE)
    assert record(state).name.startswith(f"{ours[0]}-")


async def test_second_save_of_a_process_asks_for_less(site: cli.Site) -> None:
    with qemu.running(name="web", memory="16M", paused=False) as guest:
        site.add_guest("web", guest.qmp)
        config = configuration.load(site.config, {})
        known = config.guests["web"]
        asked, recorded = [], []
        for name in ("first", "second"):
            request = save_request.request(config, known, image=name, then="resume")
            with commands.counted(qmp.QmpSession) as count:
                await save.save(known, config, request)
            asked.append(sum(count.values()))
            with image.opened(str(site.images / name)) as opened:
                recorded.append(opened.metadata["hardware"])
        assert asked[1] < asked[0] - 40
        assert recorded[0] == recorded[1]
        assert recorded[0] is not None
        assert recorded[0]["vcpus"]
