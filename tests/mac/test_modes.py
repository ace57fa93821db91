"""Kernels that enforce SELinux, AppArmor (mapsave in its own profile or not), and neither."""

import pytest

from tests.mac import machine
from tests.mac.conftest import Boots

pytestmark = pytest.mark.timeout(machine.TIMEOUT_ALL)
CONTROL = "selinux-off"


@pytest.mark.parametrize(
    ("mode", "case"),
    [
        pytest.param(mode, case, marks=pytest.mark.boot(mode))
        for mode in machine.MODES
        for case in machine.cases(mode)
    ],
)
def test_case(mode: str, case: str, booted: Boots) -> None:
    """In the control nothing is enforced, and the cases that see a refusal must need that."""
    if mode != CONTROL:
        booted(mode).assert_passed(case)
    else:
        assert booted(mode).outcome(case) == "failed"
        assert "not refused" in booted(mode).results[case].words
