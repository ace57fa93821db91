"""A kernel without a security module that labels."""

import pytest

from tests.mac import machine
from tests.mac.conftest import Boots

pytestmark = pytest.mark.timeout(machine.TIMEOUT_ALL)


@pytest.mark.boot("none")
@pytest.mark.parametrize("case", machine.cases("none"))
def test_no_module(case: str, booted: Boots) -> None:
    booted("none").assert_passed(case)
