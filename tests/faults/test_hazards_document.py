"""Every test that ``docs/hazards.md`` names exists."""

import re

from tests.kit import tree

DEFAULT = "tests/faults/test_hazards.py"


def test_every_named_test_exists() -> None:
    named: list[tuple[str, str]] = []
    for line in (tree.ROOT / "docs/hazards.md").read_text().splitlines():
        place = DEFAULT
        # In a row a file holds for the tests after it; test_hazards.py for those before any.
        for word in re.findall(r"`(tests/\S+\.py|test_\w+)`", line.rpartition(" | ")[2]):
            if word.startswith("tests/"):
                place = word
                assert (tree.ROOT / place).is_file(), place
            else:
                named.append((place, word))
    assert len(named) > 25
    for place, name in named:
        assert re.search(rf"^(async )?def {name}\(", (tree.ROOT / place).read_text(), re.M), (
            place,
            name,
        )
