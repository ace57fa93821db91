"""A host that systemd boots twice: service, roles, jobs, and the guests through a shutdown."""

from tests.vm import boots

pytestmark = boots.LIMIT


@boots.parameters("outside")
def test_case(mode: str, case: str, booted: boots.Boots) -> None:
    booted(mode).assert_passed(case)
