"""A save and a restore whose AppArmor rules cannot be taken out say so, and leave their journal.

The kernel and its parser are imitated; guest, image and journal are as always.
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mapsave import config
from mapsave.labels import labelling
from mapsave.labels.policy import Policy
from mapsave.operations import restore, restore_request, save, save_request
from mapsave.operations.results import SaveResult

from tests.kit import cli
from tests.kit.emulated import emulated
from tests.labels.conftest import Host


@dataclass(frozen=True)
class Stubborn(Host):
    """A host whose apparmor_parser loads a profile once, and then no more."""

    def run(self, command: Sequence[str]) -> str | None:
        """Run nothing; complain from the second time on."""
        super().run(command)
        return "no room" if len(self.commands) > 1 else None


@pytest.fixture
def stubborn(apparmor: Host, monkeypatch: pytest.MonkeyPatch) -> Stubborn:
    host = Stubborn(apparmor.root)
    host.put("/proc/self/attr/apparmor/current", "mapsave (enforce)\n")

    def policy_labelling(*_: Any) -> labelling.Labelling:
        return labelling.Labelling(Policy("apparmor", name="mine"), host)

    monkeypatch.setattr(save_request, "policy_labelling", policy_labelling)
    return host


def confine(host: Host, pid: int) -> None:
    host.put(f"/proc/{pid}/attr/apparmor/current", "vmq (enforce)\n")


def journals(site: cli.Site) -> list[Path]:
    return sorted((site.state / "journal").glob("*"))


def assert_left(site: cli.Site, host: Host, warnings: list[str], last: str) -> None:
    """The warning says what stays and what to do, and ``mapsave recover`` has its journal."""
    profile = host.locate("/etc/apparmor.d/vmq")
    (warning,) = warnings
    assert f"{profile} failed: no room (run: apparmor_parser -r {profile})" in warning
    (journal,) = journals(site)
    assert json.loads(journal.read_text().splitlines()[-1])["step"] == last


def recovered(site: cli.Site, host: Host) -> dict[str, Any]:
    """Recover: the imitated profile is gone, and with it what was loaded."""
    host.locate("/etc/apparmor.d/vmq").unlink()
    (line,) = site.run("recover", "--json", check=0).json()["operations"]
    assert not journals(site)
    assert isinstance(line, dict)
    return line


async def saved(site: cli.Site, socket: Path, **chosen: Any) -> SaveResult:
    site.add_guest("web", socket)
    settings = config.load(site.config, {})
    request = save_request.request(settings, settings.guest("web"), image="one", **chosen)
    return await save.save(settings.guest("web"), settings, request)


@pytest.mark.parametrize("then", ["quit", "resume", "leave"])
async def test_save(site: cli.Site, tmp_path: Path, stubborn: Stubborn, then: Any) -> None:
    with emulated(tmp_path / "s") as guest:
        confine(stubborn, guest.process.pid)
        done = await saved(site, tmp_path / "s", then=then)
        assert_left(site, stubborn, done.warnings, "tidy")
        assert recovered(site, stubborn)["outcome"] == "image committed"
        assert (guest.process.poll() is None) is (then != "quit")


async def test_save_that_is_cancelled(site: cli.Site, tmp_path: Path, stubborn: Stubborn) -> None:
    with emulated(tmp_path / "s", "--throttle", "64K") as guest:
        confine(stubborn, guest.process.pid)
        saving = asyncio.create_task(saved(site, tmp_path / "s"))
        while '"migrate"' not in "".join(each.read_text() for each in journals(site)):
            assert not saving.done()
            await asyncio.sleep(0.01)
        saving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saving
        assert len(journals(site)) == 1
        assert recovered(site, stubborn)["outcome"] == "save rolled back"


async def test_restore(site: cli.Site, tmp_path: Path, stubborn: Stubborn) -> None:
    with emulated(tmp_path / "s") as guest:
        stubborn.put(f"/proc/{guest.process.pid}/status", "")  # in no profile: no rule is added
        await saved(site, tmp_path / "s")
    with emulated(tmp_path / "d", "--incoming", "defer") as waiting:
        confine(stubborn, waiting.process.pid)
        settings = config.load(site.config, {})
        request = restore_request.Request(str(site.images / "one"), into=waiting.path)
        done = await restore.restore(settings, request)
        assert_left(site, stubborn, done.warnings, "tidy")
        assert recovered(site, stubborn)["outcome"] == "guest restored"
        assert waiting.process.poll() is None
