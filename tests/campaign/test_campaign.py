"""A minute of the campaign: one seed of every kind of fault."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.campaign import kinds, run
from tests.kit import libvirtd, need
from tests.kit.libvirtd import Daemon

pytestmark = [pytest.mark.root, pytest.mark.timeout(2 * run.MOST)]

# Where another seed than 1 meets the fault better.
_SEEDS = {"limits": 6}


@pytest.fixture(scope="module")
def daemon() -> Iterator[Callable[[], Daemon]]:
    """A libvirtd that is started when a plan wants it."""
    with ExitStack() as stack:
        found: list[Daemon] = []

        def started() -> Daemon:
            if not found:
                found.append(stack.enter_context(libvirtd.running()))
            return found[0]

        yield started


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_seed_of_every_kind(kind: str, daemon: Callable[[], Daemon]) -> None:
    plan = kinds.plan_of(_SEEDS.get(kind, 1), kind)
    if plan.world == "libvirt":
        need.skip_if(libvirtd.unavailable())
    outcome = run.run(plan, daemon)
    assert not outcome.violations, "\n".join([*plan.lines(), *outcome.trace])


def test_a_seed_gives_the_same_plan_again() -> None:
    plans = [kinds.plan_of(seed) for seed in range(200)]
    assert plans == [kinds.plan_of(seed) for seed in range(200)]
    assert {plan.world for plan in plans} == {"qemu", "libvirt", "emulator"}
