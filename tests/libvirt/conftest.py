"""Fixtures for tests on real libvirt: the daemons of ``tests/kit/libvirtd.py``."""

from collections.abc import Iterator

import pytest

from tests.kit import libvirtd


@pytest.fixture(scope="package")
def _shared_daemon() -> Iterator[libvirtd.Daemon]:
    with libvirtd.running() as daemon:
        yield daemon


@pytest.fixture
def daemon(_shared_daemon: libvirtd.Daemon) -> Iterator[libvirtd.Daemon]:
    """A libvirtd in system mode that all tests share; domains that a test leaves are removed."""
    assert _shared_daemon.domains() == []
    yield _shared_daemon
    crashed = _shared_daemon.crashed
    if not _shared_daemon.alive():
        _shared_daemon.start()
    _shared_daemon.clear()
    assert not crashed, f"libvirtd crashed: {_shared_daemon.log}"


@pytest.fixture
def own_daemon() -> Iterator[libvirtd.Daemon]:
    """A libvirtd in system mode for one test, which may kill it, or find out that it crashes."""
    with libvirtd.running() as daemon:
        yield daemon


@pytest.fixture
def session_daemon() -> Iterator[libvirtd.Daemon]:
    """A libvirtd in session mode of an ordinary user, for one test."""
    with libvirtd.session() as daemon:
        yield daemon


@pytest.fixture
def embedded_uri() -> Iterator[str]:
    """A URI of the embedded driver, for one test."""
    with libvirtd.embedded() as uri:
        yield uri
