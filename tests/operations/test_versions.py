"""What `check` says of versions of QEMU and libvirt, and of states that only newer ones have."""

from types import SimpleNamespace

import pytest
from mapsave import errors
from mapsave.monitor.session import Version
from mapsave.operations import check
from mapsave.operations.save_request import Request


def preflight(**facts: object) -> check.Preflight:
    """Return what the checks get, with these facts only."""
    facts_only = SimpleNamespace(**facts)
    return SimpleNamespace(facts=facts_only, request=Request())  # type: ignore[return-value]


def domain(libvirt: tuple[int, int, int], qemu: tuple[int, int, int]) -> str:
    """Return what `check` says of a healthy domain."""
    known = SimpleNamespace(
        name="web01",
        job=None,
        state="running",
        block_jobs=(),
        has_managed_save=False,
        host_devices=(),
        is_transient=False,
        libvirt=libvirt,
    )
    return check.domain(preflight(domain=known, version=Version(*qemu, package=""), pid=None))


@pytest.mark.parametrize("libvirt", [(11, 2, 0), (11, 3, 0)])
@pytest.mark.parametrize("qemu", [(11, 0, 0), (11, 1, 3)])
def test_a_libvirt_that_cannot_save_with_this_qemu_is_named(
    libvirt: tuple[int, int, int], qemu: tuple[int, int, int]
) -> None:
    said = domain(libvirt, qemu)
    assert said.startswith("persistent, no active job; mapsave can save it")
    for part in (*(".".join(map(str, each)) for each in (libvirt, qemu)), "detach", "11.4"):
        assert part in said


@pytest.mark.parametrize(
    ("libvirt", "qemu"),
    [((11, 3, 0), (10, 2, 9)), ((11, 4, 0), (11, 0, 0)), ((12, 8, 0), (11, 1, 3))],
)
def test_other_pairs_are_not(libvirt: tuple[int, int, int], qemu: tuple[int, int, int]) -> None:
    assert domain(libvirt, qemu) == "persistent, no active job"


@pytest.mark.parametrize("status", ["active", "failing", "postcopy-device", "of-a-later-version"])
def test_a_status_that_is_not_an_end_is_a_migration_in_progress(status: str) -> None:
    with pytest.raises(errors.AlreadyMigrating, match=status):
        check.migration(preflight(migration=status))


@pytest.mark.parametrize("status", ["none", "completed", "failed", "cancelled"])
def test_an_end_is_not(status: str) -> None:
    assert check.migration(preflight(migration=status)) == "none in progress"
