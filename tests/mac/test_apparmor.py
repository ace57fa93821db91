"""AppArmor, enforcing, with mapsave itself in the profile that ships, and without."""

import pytest

from tests.mac import machine
from tests.mac.conftest import Boots

pytestmark = pytest.mark.timeout(machine.TIMEOUT_ALL)


@pytest.mark.boot("apparmor-confined")
@pytest.mark.parametrize("case", machine.cases("apparmor-confined"))
def test_with_mapsave_confined(case: str, booted: Boots) -> None:
    booted("apparmor-confined").assert_passed(case)


@pytest.mark.boot("apparmor")
@pytest.mark.parametrize("case", machine.cases("apparmor"))
def test_with_mapsave_unconfined(case: str, booted: Boots) -> None:
    booted("apparmor").assert_passed(case)
