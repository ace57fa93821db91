"""SELinux, enforcing; and the control that the cases which see a refusal need it."""

import pytest

from tests.mac import machine
from tests.mac.conftest import Boots

pytestmark = pytest.mark.timeout(machine.TIMEOUT_ALL)


@pytest.mark.boot("selinux")
@pytest.mark.parametrize("case", machine.cases("selinux"))
def test_selinux(case: str, booted: Boots) -> None:
    booted("selinux").assert_passed(case)


@pytest.mark.boot("selinux-off")
@pytest.mark.parametrize("case", machine.cases("selinux-off"))
def test_fails_without_enforcement(case: str, booted: Boots) -> None:
    assert booted("selinux-off").outcome(case) == "failed"
    assert "not refused" in booted("selinux-off").results[case].words
