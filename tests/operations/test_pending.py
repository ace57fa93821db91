"""What is in progress and what was interrupted, from the journals alone."""

import os
from pathlib import Path

import pytest

from tests.kit import cli, emulated, wait

pytestmark = pytest.mark.usefixtures("images_in_memory")


def pending(site: cli.Site, code: int) -> list[dict[str, object]]:
    found = site.run("recover", "--pending", "--json", check=code).json()["pending"]
    assert isinstance(found, list)
    return found


def test_a_save_is_pending_until_it_was_recovered(site: cli.Site, tmp_path: Path) -> None:
    """8 while it is in progress, 9 after its mapsave was killed, 0 once that is made good."""
    with emulated.emulated(tmp_path / "g.qmp", "--throttle", "1M", "--pattern", "random") as guest:
        assert pending(site, 0) == []
        with site.start("save", guest.address, "-o", site.images / "it") as saving:
            wait.until(lambda: (site.images / "it.partial").exists(), what="a partial image")
            guest.freeze()  # else the save might end meanwhile
            wait.until(lambda: pending_code(site) == 8, what="its journal")
            (found,) = pending(site, 8)
            assert found["in_progress"] is True
            assert found["image"] == os.fspath(site.images / "it")
            saving.kill()
        (found,) = pending(site, 9)
        guest.thaw()
        assert (found["operation"], found["in_progress"]) == ("save", False)
        site.run("recover", check=0)
        assert pending(site, 0) == []


def pending_code(site: cli.Site) -> int:
    return site.run("recover", "--pending").returncode
