"""Kernels that enforce SELinux, AppArmor (mapsave in its own profile or not), and neither."""

from tests.vm import boots

pytestmark = boots.LIMIT
CONTROL = "selinux-off"


@boots.parameters("mac")
def test_case(mode: str, case: str, booted: boots.Boots) -> None:
    """In the control nothing is enforced, and the cases that see a refusal must need that."""
    if mode != CONTROL:
        booted(mode).assert_passed(case)
    else:
        assert booted(mode).outcome(case) == "failed"
        assert "not refused" in booted(mode).results[case].words
