"""The boots, one for each mode, when the first test asks for its results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mac import image, machine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Boots = Callable[[str], machine.Boot]


@pytest.fixture(scope="session")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Boots:
    """Return what gives the results of a mode; it boots once, and its failure is remembered."""
    if reason := image.unavailable():
        pytest.skip(reason)
    done: dict[str, machine.Boot | AssertionError] = {}

    def results(mode: str) -> machine.Boot:
        if mode not in done:
            done[mode] = _boot(mode, tmp_path_factory.mktemp(mode))
        found = done[mode]
        if isinstance(found, AssertionError):
            raise found
        return found

    return results


def _boot(mode: str, directory: Path) -> machine.Boot | AssertionError:
    try:
        return machine.boot(mode, directory)
    except AssertionError as error:
        return error
