"""Every test that ``docs/hazards.md`` names exists."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULT = "tests/faults/test_hazards.py"


def test_every_named_test_exists() -> None:
    named: list[tuple[str, str]] = []
    for line in (ROOT / "docs/hazards.md").read_text().splitlines():
        place = DEFAULT
        # In a row a file holds for the tests behind it; test_hazards.py for those before any.
        for word in re.findall(r"`(tests/\S+\.py|test_\w+)`", line.rpartition(" | ")[2]):
            if word.startswith("tests/"):
                place = word
                assert (ROOT / place).is_file(), place
            else:
                named.append((place, word))
    assert len(named) > 25
    for place, name in named:
        assert re.search(rf"^(async )?def {name}\(", (ROOT / place).read_text(), re.M), (
            place,
            name,
        )
