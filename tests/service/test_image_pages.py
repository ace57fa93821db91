"""The images page by page: each once, newest first, and all of them for who follows the pages."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bench import many
from tests.kit import cli, service

COUNT = 2_300


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with more images than a page may have."""
    site = cli.Site(tmp_path_factory.mktemp("pages") / "site")
    many.fill(site.images, COUNT)
    with service.running(site) as running:
        yield running


def _names(page: dict[str, Any]) -> list[str]:
    return [each["name"] for each in page["images"]]


def test_a_page_is_a_hundred_newest_first(mapsaved: service.Service) -> None:
    page = mapsaved.get("/v1/images")
    newest = [f"image{number:06d}.mapsave" for number in range(COUNT - 1, COUNT - 101, -1)]
    assert _names(page) == newest
    assert page["next"] is not None


def test_pages_have_every_image_once(mapsaved: service.Service) -> None:
    page = mapsaved.get("/v1/images?limit=999")
    names = _names(page)
    while page["next"] is not None:
        page = mapsaved.get(f"/v1/images?limit=999&before={page['next']}")
        names += _names(page)
    assert names == [f"image{number:06d}.mapsave" for number in range(COUNT - 1, -1, -1)]


def test_the_last_page_may_be_full(site: cli.Site) -> None:
    many.fill(site.images, 4)
    with service.running(site) as mapsaved:
        first = mapsaved.get("/v1/images?limit=2")
        last = mapsaved.get(f"/v1/images?limit=2&before={first['next']}")
        assert (len(first["images"]), len(last["images"]), last["next"]) == (2, 2, None)


def test_two_names_of_one_file_are_on_one_page(site: cli.Site) -> None:
    many.fill(site.images, 3)
    os.link(site.images / "image000001.mapsave", site.images / "twin.mapsave")
    with service.running(site) as mapsaved:
        first = mapsaved.get("/v1/images?limit=2")
        last = mapsaved.get(f"/v1/images?limit=2&before={first['next']}")
        assert sorted(_names(first) + _names(last)) == sorted(os.listdir(site.images))


def test_a_page_goes_on_after_an_image_that_is_gone(site: cli.Site) -> None:
    many.fill(site.images, 6)
    with service.running(site) as mapsaved:
        first = mapsaved.get("/v1/images?limit=3")
        (site.images / _names(first)[-1]).unlink()
        mapsaved.get("/v1/images")  # a look of another client
        last = mapsaved.get(f"/v1/images?limit=3&before={first['next']}")
        assert _names(last) == [f"image{number:06d}.mapsave" for number in (2, 1, 0)]


@pytest.mark.parametrize("query", ["before=x", "before=1", "limit=0", "limit=1001", "after=1.1"])
def test_wrong_parameters_are_refused(mapsaved: service.Service, query: str) -> None:
    answer = mapsaved.request("GET", f"/v1/images?{query}")
    assert (answer.status, answer.error) == (400, "request.invalid")


def test_the_command_follows_the_pages(mapsaved: service.Service) -> None:
    through = mapsaved.site.run("list", "--json", check=0).json()
    alone = mapsaved.site.run("--local", "list", "--json", check=0).json()
    assert through == alone
    assert len(through["images"]) == COUNT
    lines = mapsaved.site.run("list", check=0).stdout.splitlines()
    assert len(lines) == COUNT + 1
    assert Path(lines[1].split()[-1]).name == f"image{COUNT - 1:06d}.mapsave"
