"""Who asks: a user's name is not looked up for every request, which may take a directory long."""

import pwd
import socket
import time
from typing import Any

import pytest
from mapsave import service_settings
from mapsave.service import peers


def test_a_name_is_looked_up_once_and_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    look_up, clock = pwd.getpwuid, time.monotonic

    def counted(uid: int) -> Any:
        asked.append(uid)
        return look_up(uid)

    monkeypatch.setattr(pwd, "getpwuid", counted)
    roles = peers.Roles(service_settings.Service())
    ours, theirs = socket.socketpair()
    with ours, theirs:
        names = {roles.of_socket(ours).name for _ in range(3)}
        assert len(names) == len(asked) == 1
        monkeypatch.setattr(time, "monotonic", lambda: clock() + 3600)
        assert roles.of_socket(ours).name in names
        assert len(asked) == 2
