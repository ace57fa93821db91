"""``HACKING.md`` is true: what it names exists, and it names every room."""

import re

from tests.kit import tree

PACKAGE = tree.ROOT / "manager/mapsave"
PAGE = (tree.ROOT / "HACKING.md").read_text()
NAMED = re.findall(r"`((?:[\w.]+/)*[\w.]+(?:/|\.py|\.md))`", PAGE)


def test_what_it_names_exists() -> None:
    for name in NAMED:
        outside = name.startswith(("manager/", "tests/", "docs/")) or name.endswith(".md")
        assert (tree.ROOT if outside else PACKAGE).joinpath(name).exists(), name


def test_every_room_is_named_and_says_where_it_is_tested() -> None:
    table = PAGE.partition("## Where each thing is tested")[2].partition("\n## ")[0]
    tested = dict(re.findall(r"^\| `([\w/]+)/` \| (.*)$", table, re.MULTILINE))
    rooms = {str(path.parent.relative_to(PACKAGE)) for path in PACKAGE.rglob("*/__init__.py")}
    assert set(tested) == rooms - {"."}
    assert all("`tests/" in files for files in tested.values())


def test_it_is_about_a_page() -> None:
    assert PAGE.count("\n") <= 150
    assert "HACKING.md" in (tree.ROOT / "README.md").read_text()
    assert "CHANGELOG.md" in (tree.ROOT / "README.md").read_text()
