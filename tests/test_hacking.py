"""``HACKING.md`` is true: what it names exists, and it names every room."""

import re

import pytest

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


# What is to be added, a pattern of one that is there, and the files that it is found in: no more
# need to change for another one. A setting is also used, in its own place.
CHANGES = {
    "a key of manager.yaml": (r"^    stop_timeout: ", {"service_settings.py"}),
    "a label module": (
        r'"smack"|labels\.smack|class Smack\b',
        {"labels/modules.py", "labels/policy.py", "labels/smack.py", "proof/confinement.py"},
    ),
    "a kind of operation": (
        r"requests\.Discard\b|class Discard\(",
        {"client/requests.py", "service/work.py"},
    ),
    "a field of `save --json`": (r"\ballocated_bytes=", {"operations/results.py"}),
    "a command": (r'"discard": "|command\("discard"', {"cli/main.py", "cli/discard.py"}),
    "what a command asks of a host": (
        r"def discard\(self",
        {"cli/here.py", "cli/through_service.py"},
    ),
}
USED = {
    "a setting of a save": (
        r"\bpreallocate\b",
        {
            *("config.py", "cli/save.py", "operations/save.py"),
            *("plan/planner.py", "plan/strategy.py"),
        },
    ),
}


def files_of(change: str) -> set[str]:
    """Return the files that the page names for a change."""
    row = re.search(rf"^\| {re.escape(change)} \| (.*) \|$", PAGE, re.MULTILINE)
    assert row is not None, change
    return set(re.findall(r"`([\w/]+\.py)`", row[1]))


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_touches_the_files_that_the_page_names(change: str) -> None:
    pattern, files = CHANGES[change]
    found = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if re.search(pattern, path.read_text(), re.MULTILINE)
    }
    assert found == files
    assert files <= files_of(change)


@pytest.mark.parametrize("change", USED)
def test_a_setting_needs_the_files_that_the_page_names(change: str) -> None:
    pattern, files = USED[change]
    assert files == files_of(change)
    assert all(re.search(pattern, (PACKAGE / file).read_text()) for file in files)
