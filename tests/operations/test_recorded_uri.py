"""Which libvirt an image leads to."""

import os
import socket
from pathlib import Path

import pytest
from mapsave import errors
from mapsave.operations import recorded_uri


def test_of_the_host_itself() -> None:
    assert recorded_uri.followed(None) == "qemu:///system"
    for uri in ("qemu:///system", "qemu:///session"):
        assert recorded_uri.followed(uri) == uri


def test_a_socket_is_followed_exactly(tmp_path: Path) -> None:
    path = tmp_path / "libvirt sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        for uri in (f"qemu+unix:///system?socket={path}", f"qemu+unix:///session?socket={path}"):
            assert recorded_uri.followed(uri) == uri


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("qemu+ext:///system?command=/bin/sh", "only connections to sockets"),
        ("qemu+ssh://host/system", "only connections to sockets"),
        ("qemu+unix://host/system", "only connections to sockets"),
        ("test:///default", "only connections to sockets"),
        ("qemu+unix:///system?socket=/nonexistent", "No such file"),
        ("qemu+unix:///system?socket=/a&command=/bin/sh", "options other than its socket"),
    ],
)
def test_refused_and_how_to_ask_for_it(uri: str, reason: str) -> None:
    with pytest.raises(errors.NoDestination, match=reason) as caught:
        recorded_uri.followed(uri)
    assert f"libvirt+{uri}#" in str(caught.value.hint)


@pytest.mark.root
def test_a_socket_of_a_stranger(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    path.touch()
    os.chown(path, 65534, 65534)
    with pytest.raises(errors.NoDestination, match="its socket is of uid 65534"):
        recorded_uri.followed(f"qemu+unix:///system?socket={path}")
