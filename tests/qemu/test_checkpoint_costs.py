"""What a checkpoint is predicted to cost, its limits, and what its images occupy."""

import json
import mmap
import os
from pathlib import Path
from typing import Any

import pytest
from mapsave.plan import pausing

from tests.kit import cli, memory, patterns, qemu, ram, service, state
from tests.kit.reflinks import NAME, checkpoint, guest, ram_file
from tests.kit.storage import MIB
from tests.qemu import helpers

pytestmark = pytest.mark.root

ZEROED = memory.zeroed("32M")
PAGE, PAGES = 4096, 32 * MIB // 4096


def _fill(site: cli.Site) -> None:
    """Make the RAM file by pieces of a page, so that a page that is dirtied is alone in that."""
    with ram_file(site).open("wb", buffering=0) as file:
        for _ in range(PAGES):
            file.write(os.urandom(PAGE))


def _dirty(site: cli.Site, step: int) -> None:
    """Write to each page of so many, as the guest does: through a mapping of the RAM file."""
    path = ram_file(site)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), path.stat().st_size) as mapped:
        for page in range(2 * MIB // PAGE, PAGES, step):
            mapped[page * PAGE + 64] = (mapped[page * PAGE + 64] + 1) % 256


def _images(site: cli.Site) -> dict[str, dict[str, Any]]:
    found = site.run("list", "--json", check=0).json()["images"]
    return {each["name"]: each for each in found}


def test_check_and_plan_say_what_it_would_cost(xfs: cli.Site) -> None:
    with guest(xfs, paused=False, ram=patterns.dense) as source:
        found = source.state()
        checked = xfs.run("check", NAME, "--json", check=0).json()["checkpoint"]
        planned = xfs.run("plan", NAME, "--json", check=0).json()["checkpoint"]
        for each in (checked, planned):
            assert (each["is_possible"], each["error"]) == (True, None)
            assert 0 < each["pause_s"] < 1
            assert each["written_bytes"] > MIB
            assert each["extents"] > 0
        assert "checkpoint: pauses the guest for about" in xfs.run("plan", NAME, check=0).stdout
        assert "checkpoint: pauses the guest for about" in xfs.run("check", NAME, check=0).stdout
        state.assert_left_as_found(found, source.state())


def test_check_and_plan_say_why_there_is_none(xfs: cli.Site) -> None:
    with qemu.guest(xfs, NAME, memory="16M"):
        for command in ("check", "plan"):
            found = xfs.run(command, NAME, "--json", check=0).json()["checkpoint"]
            assert not found["is_possible"]
            assert "is not a shared file" in found["error"]["message"]
            assert "share=on" in found["error"]["hint"]
            assert "no checkpoint: " in xfs.run(command, NAME, check=0).stdout


def test_the_prediction_is_kept_with_the_outcome_and_corrected_by_it(xfs: cli.Site) -> None:
    with guest(xfs, paused=False, ram=patterns.dense):
        done = [checkpoint(xfs, str(number))["checkpoint"] for number in range(3)]
    factor = 1.0
    for each in done:
        predicted, paused = each["predicted_pause_s"], each["paused_s"]
        assert 0.002 < predicted < 1
        factor = min(4.0, max(0.25, factor * min(4.0, max(0.25, paused / predicted)) ** 0.3))
    shown = xfs.run("inspect", "2", "--json", check=0).json()["checkpoint"]
    assert shown["predicted_pause_s"] == done[2]["predicted_pause_s"]
    (learned,) = xfs.state.glob("probes/*.learned.json")
    assert json.loads(learned.read_text())["factors"][pausing.KIND] == pytest.approx(factor)


@pytest.mark.parametrize("above", ["refuse", "again"])
def test_a_pause_that_would_be_too_long_is_refused(xfs: cli.Site, above: str) -> None:
    xfs.settings["save"] = {"checkpoint": {"pause": "1ms", "above": above, "patience": "700ms"}}
    with guest(xfs, paused=False, ram=patterns.sparse) as source:
        found = source.state()
        error = xfs.run("checkpoint", NAME, "-o", "it", "--json", check=3).error("check.pause")
        assert "may for 1 ms" in error["message"]
        assert error["data"]["predicted_s"] > error["data"]["limit_s"] == 0.001
        state.assert_left_as_found(found, source.state())
    assert not list(xfs.images.iterdir())


def test_a_pause_that_would_be_too_long_is_taken_unless_it_is_said(xfs: cli.Site) -> None:
    xfs.settings["save"] = {"checkpoint": {"pause": "1ms"}}
    with guest(xfs, paused=False, ram=patterns.sparse):
        assert checkpoint(xfs, "it")["downtime_s"] > 0


def test_instead_of_a_pause_that_would_be_too_long_it_is_saved_live(xfs: cli.Site) -> None:
    with guest(xfs, paused=False, ram=patterns.sparse) as source:
        xfs.add_guest(NAME, source.qmp, save={"checkpoint": {"pause": "1ms", "above": "live"}})
        found = source.state()
        done = checkpoint(xfs, "it")
        assert done["checkpoint"] is None
        assert done["warnings"][-1].startswith("saved live instead: ")
        assert xfs.run("inspect", "it", "--json", check=0).json()["live"] is True
        state.assert_left_as_found(found, source.state())


def test_the_limit_does_not_matter_to_a_guest_that_is_left_paused(xfs: cli.Site) -> None:
    xfs.settings["save"] = {"checkpoint": {"pause": "1ms", "above": "refuse"}}
    with guest(xfs, ram=patterns.sparse):
        assert checkpoint(xfs, "it")["checkpoint"]["pauses"] == 1


def test_auto_saves_where_a_checkpoint_would_take_longer(place: cli.Site) -> None:
    """A guest that is to be left, in more extents than its little RAM is worth."""
    _fill(place)
    with guest(place, paused=False):
        checkpoint(place, "first")
        for step in (2, 3):
            _dirty(place, step)
            os.sync()
        words = ("save", NAME, "--method", "auto", "--then", "leave", "-o", "it", "--json")
        done = place.run(*words, check=0).json()
        assert done["checkpoint"] is None
        assert "RAM is written, which is predicted to take" in done["reasons"]["method"]


def test_memory_in_very_many_extents_is_written_afresh(place: cli.Site) -> None:
    firmware = helpers.counting_firmware(place.directory)
    _fill(place)
    with guest(place, *firmware, paused=False) as source:
        first = checkpoint(place, "first")
        assert first["checkpoint"]["afresh"] is False
        _dirty(place, 2)
        done = checkpoint(place, "second")
        part = done["checkpoint"]
        assert part["afresh"] is True
        assert part["extents"] > 4000 > part["extents_after"]
        assert any("was written afresh" in each for each in done["warnings"])
        again = checkpoint(place, "third")["checkpoint"]
        assert again["afresh"] is False
        assert again["extents"] < 1000
        source.control.execute("stop")
        before = source.ram.read("m", 2 * MIB)
    for name in ("second", "third"):
        with qemu.running(
            *ZEROED, *firmware, machine="q35", memory="32M", incoming=True
        ) as destination:
            helpers.restore(place, place.images / name, destination)
            assert destination.ram.read("m", 2 * MIB) == before


def test_what_is_shared_is_told_from_what_an_image_has_alone(xfs: cli.Site) -> None:
    with guest(xfs, paused=False, ram=patterns.dense):
        done = checkpoint(xfs, "one")
        assert done["exclusive_bytes"] < 24 * MIB < done["allocated_bytes"]
        listed = _images(xfs)["one"]
        assert listed["exclusive_bytes"] < 24 * MIB < listed["allocated_bytes"]
        assert "exclusive" in xfs.run("list", check=0).stdout.splitlines()[0]
        inspected = xfs.run("inspect", "one", "--json", check=0).json()
        assert inspected["exclusive_bytes"] == listed["exclusive_bytes"]
        assert "exclusive)" in xfs.run("inspect", "one", check=0).stdout
        # What the guest has written since is the image's alone.
        _dirty(xfs, 1)
        os.sync()
        later = _images(xfs)["one"]["exclusive_bytes"]
        assert later > listed["exclusive_bytes"] + 24 * MIB
        checkpoint(xfs, "two")
        gone = xfs.run("discard", "two", "--yes", "--json", check=0).json()
        assert gone["shared_bytes"] > 24 * MIB
        assert gone["freed_bytes"] < 24 * MIB
        checkpoint(xfs, "three")
        text = xfs.run("discard", "three", "--yes", check=0).stdout
        assert "stay: other files share them" in text
        gone = xfs.run("discard", "one", "--yes", "--json", check=0).json()
        assert gone["freed_bytes"] > 24 * MIB


def test_the_service_counts_what_images_have_alone(xfs: cli.Site) -> None:
    with guest(xfs, paused=False, ram=patterns.dense), service.running(xfs) as running:
        done = checkpoint(xfs, "one")
        (line,) = running.get("/v1/images")["images"]
        assert line["exclusive_bytes"] < 24 * MIB < line["allocated_bytes"]
        series = running.request("GET", "/metrics").body.decode().splitlines()
        own, all_of_it = (
            float(line.split()[1])
            for name in ("image_store_exclusive_bytes", "image_store_bytes")
            for line in series
            if line.startswith(f'mapsave_{name}{{state="saved"}}')
        )
        assert own < 24 * MIB < all_of_it
        (operation,) = running.get("/v1/operations?kind=save&limit=1")["operations"]
        assert operation["result"]["exclusive_bytes"] == done["exclusive_bytes"]


def test_settings_of_a_job(xfs: cli.Site) -> None:
    save = {"method": "checkpoint", "then": "resume", "checkpoint": {"pause": "1ms", "above": "no"}}
    xfs.add_job("hourly", guests=[NAME], save=save)
    with guest(xfs, paused=False, ram=patterns.sparse):
        said = xfs.run("job", "run", "hourly", check=2).stderr
        assert "above" in said
        save["checkpoint"] = {"pause": "1ms", "above": "refuse"}
        xfs.add_job("hourly", guests=[NAME], save=save)
        xfs.run("job", "run", "hourly", check=3)
        assert not list(xfs.images.iterdir())


def test_ram_is_equal_whatever_was_done_before(place: cli.Site, tmp_path: Path) -> None:
    """Written afresh, of a guest that is left paused."""
    _fill(place)
    with guest(place) as source:
        checkpoint(place, "first")
        source.control.execute("cont")
        source.control.execute("stop")
        _dirty(place, 2)
        before = source.snapshot_ram(tmp_path / "before")
        assert checkpoint(place, "second")["checkpoint"]["afresh"] is True
        ram.assert_same(before, source.ram)
    with qemu.running(*ZEROED, machine="q35", memory="32M", incoming=True) as destination:
        helpers.restore(place, place.images / "second", destination)
        ram.assert_same(before, destination.ram)
