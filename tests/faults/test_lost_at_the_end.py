"""A monitor that is lost anywhere in a restore: the guest has its settings again, or is gone."""

import errno

import pytest

from tests.kit import cli, inject, patterns, qemu, state

NAME = "web01"
IMAGE = "one.mapsave"


@pytest.mark.parametrize("skip", range(15, 33, 3))
def test_a_guest_that_is_left_has_its_settings(site: cli.Site, skip: int) -> None:
    """Each of three answers in a row is lost in turn."""
    with qemu.guest(site, NAME, memory="16M", ram=patterns.sparse) as guest:
        fresh = state.of(guest.control)
        site.run("save", NAME, "--image", IMAGE, check=0)
        guest.wait()
        for lost in range(skip, skip + 3):
            rule = inject.Rule("recv", "errno", errno.ECONNRESET, ".qmp", skip=lost, count=1)
            words = ("restore", IMAGE, "--again", "--instant", "off", "--paused")
            done = site.run(*words, env=inject.environment(rule))
            if done.returncode == 0:
                with guest.successor() as restored:
                    now = state.of(restored.control)
                    assert now.parameters == fresh.parameters
                    assert now.capabilities == fresh.capabilities
            else:
                assert done.returncode == 5, done
