"""A save that may replace images of its own guest only, whenever that of another one comes up."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from mapsave import config as configuration
from mapsave import errors
from mapsave.migration.progress import Progress
from mapsave.operations import save, save_request

from tests.kit import cli, emulated

IMAGE = "one.mapsave"


async def _saved(site: cli.Site, name: str, report: Any = lambda _: None, **more: Any) -> None:
    found = configuration.load(site.config, {})
    guest = found.guest(name)
    request = save_request.request(found, guest, image=IMAGE, then="resume", **more)
    await save.save(guest, found, request, report)


async def test_the_image_of_another_guest_is_not_replaced(site: cli.Site) -> None:
    with emulated.guest(site, "web") as web, emulated.guest(site, "db"):
        await _saved(site, "db")
        with pytest.raises(errors.ImageExists, match="another guest, 'db'"):
            await _saved(site, "web", replace=True, replace_only="web")
        assert emulated.status(web) == "running"
        await _saved(site, "db", replace=True, replace_only="db")
        await _saved(site, "web", replace=True)
        assert list(site.images.iterdir()) == [site.images / IMAGE]


async def test_nor_one_that_comes_up_in_the_middle_of_the_save(
    site: cli.Site, tmp_path: Path
) -> None:
    with emulated.guest(site, "web") as web, emulated.guest(site, "db"):
        await _saved(site, "db")
        theirs = tmp_path / "theirs"
        shutil.move(site.images / IMAGE, theirs)

        def comes_up(now: Progress) -> None:
            if now.phase == "validate":
                shutil.copy(theirs, site.images / IMAGE)

        with pytest.raises(errors.ImageExists, match="another guest, 'db'"):
            await _saved(site, "web", comes_up, replace=True, replace_only="web")
        assert emulated.status(web) == "running"
        assert list(site.images.iterdir()) == [site.images / IMAGE]
        assert (site.images / IMAGE).read_bytes() == theirs.read_bytes()
