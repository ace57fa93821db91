"""Images of libvirt guests are proven by the command that libvirt would start them with."""

import subprocess
from pathlib import Path

import pytest

from tests.kit import cli, domain, patterns
from tests.kit.domain import Domain
from tests.kit.libvirtd import Daemon

NAME = "a \"b\" 'c' &<é> ünï"


@pytest.fixture
def guest(daemon: Daemon) -> Domain:
    with domain.running(daemon, NAME, ram=patterns.sparse, transient=False) as running:
        yield running


def _users_of(image: Path) -> str:
    return subprocess.run(["fuser", str(image)], capture_output=True, text=True).stdout


@pytest.mark.parametrize("how", ["load", "pages"])
def test_a_save_is_proven(site: cli.Site, guest: Domain, how: str) -> None:
    options = ["--prove", how, "--then", "resume", "--json"]
    done = site.run("save", guest.address, "-o", "it", *options, check=0).json()
    assert done["proof"]["by"] == how
    assert done["proof"]["devices"] > 10
    assert guest.state().startswith("paused")
    proven = site.run("prove", "it", "--json", check=0).json()
    assert proven["guest"] == guest.address
    assert len(proven["devices"]) == done["proof"]["devices"]
