"""The boots of all modes, before the first test that wants results of any."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.vm import image, machine

Boots = Callable[[str], machine.Boot]
LIMIT = pytest.mark.timeout(machine.TIMEOUT_ALL)  # for a file of tests

# Each machine has one processor; more of them at a time than this would be short of memory.
_AT_A_TIME = min(2, os.cpu_count() or 1)


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker that says which boot a test wants results of."""
    config.addinivalue_line("markers", "boot(mode): wants results of this one of machine.MODES")


def parameters(stage: str) -> pytest.MarkDecorator:
    """Return what makes a test one of ``mode`` and ``case`` for each case of a stage."""
    return pytest.mark.parametrize(
        ("mode", "case"),
        [
            pytest.param(mode, case, marks=pytest.mark.boot(mode))
            for mode in machine.of(stage)
            for case in machine.cases(mode)
        ],
    )


@pytest.fixture(scope="session")
def booted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Boots:
    """Return what gives the results of a mode, or raises what went wrong with its boot.

    Boots that ``tests.vm.build`` has finished beforehand are not repeated.
    """
    if reason := image.unavailable():
        pytest.skip(reason)
    marks = [item.get_closest_marker("boot") for item in request.session.items]
    wanted = {mark.args[0] for mark in marks if mark}
    boots: dict[str, Future[dict[str, machine.Boot]]] = {}
    before = Path(os.environ.get("MAPSAVE_VM_BOOTS", os.devnull))
    for modes in machine.together(machine.MODES):
        if (before / modes[0]).is_dir():
            boots |= dict.fromkeys(modes, Future())
            boots[modes[0]].set_result(machine.finished(modes, before / modes[0]))
    if left := machine.together(wanted - set(boots)):
        image.files()  # once, before they all want it
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        for modes in left:
            place = tmp_path_factory.mktemp(modes[0])
            boots |= dict.fromkeys(modes, pool.submit(machine.boot, modes, place))

    def results(mode: str) -> machine.Boot:
        if mode not in boots:  # a test without the mark
            boots[mode] = Future()
            boots[mode].set_result(machine.boot([mode], tmp_path_factory.mktemp(mode)))
        return boots[mode].result()[mode]

    return results
