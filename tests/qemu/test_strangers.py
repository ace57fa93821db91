"""A stranger's image on a host: not restored, unless root says that it is to be trusted."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kit import cli, processes, qemu, ram, service, tree, wait
from tests.qemu.scene import saved, state_of

pytestmark = pytest.mark.root

EVE = 54321


def _acl(path: Path) -> None:
    """Let EVE write ``path`` by an ACL (linux/posix_acl_xattr.h)."""
    nobody = 0xFFFFFFFF
    entries = [(1, 7, nobody), (2, 7, EVE), (4, 0, nobody), (0x10, 7, nobody), (0x20, 0, nobody)]
    raw = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *each) for each in entries)
    os.setxattr(path, "system.posix_acl_access", raw)


_WAYS: dict[str, Callable[[Path], object]] = {
    "owner": lambda path: os.chown(path, EVE, EVE),
    "group": lambda path: path.chmod(0o770),
    "others": lambda path: path.chmod(0o707),
    "acl": _acl,
}


@pytest.mark.parametrize("what", ["image", "directory", "above"])
@pytest.mark.parametrize("how", _WAYS)
def test_what_strangers_can_write_is_not_restored(site: cli.Site, what: str, how: str) -> None:
    with saved(site) as scene:
        victim = {"image": scene.image, "directory": site.images, "above": site.directory}[what]
        _WAYS[how](victim)
        error = site.run("restore", scene.image, "--json", check=7).error("image.untrusted")
        assert str(victim) in error["message"]
        assert "--trust-image" in error["hint"]
        # Nothing was started or changed; whoever looks is told.
        assert state_of(site, scene.image) == "saved"
        shown = site.run("inspect", scene.image, "--json", check=0).json()
        assert any(str(victim) in each for each in shown["writable_by"])
        assert "warning: others could have written" in site.run("inspect", scene.image).stdout
        assert site.run("verify", scene.image, "--json", check=0).json()["warnings"]
        assert "--trust-image" in site.run("check", scene.image, check=7).stdout
        assert "saved, untrusted" in site.run("list", check=0).stdout

        scene.comes_back(site, "--trust-image")


@pytest.mark.parametrize("how", _WAYS)
def test_a_guest_is_not_saved_where_strangers_can_write(site: cli.Site, how: str) -> None:
    with qemu.running(memory="16M") as guest:
        _WAYS[how](site.images)
        before = guest.state()
        found = site.run("check", guest.address, "--json", check=7).json()
        (line,) = [each for each in found["checks"] if not each["ok"]]
        assert line["error"]["id"] == "directory.untrusted"
        assert str(site.images) in line["detail"]
        site.run("save", guest.address, "--json", check=7).error("directory.untrusted")
        assert os.listdir(site.images) == []
        assert guest.state() == before
        # A directory such as /tmp is safe: no one else can rename what is ours.
        os.chown(site.images, 0, 0)
        site.images.chmod(0o1777)
        site.run("save", guest.address, "-o", site.images / "mine", check=0)
        guest.wait()
        assert site.run("check", site.images / "mine", "--json", check=0).json()["warnings"] == []


def test_the_way_by_which_a_link_leads_counts(site: cli.Site, tmp_path: Path) -> None:
    with saved(site) as scene:
        place = tmp_path / "place"
        place.mkdir()
        (place / "link").symlink_to(scene.image)
        place.chmod(0o777)
        error = site.run("restore", place / "link", "--json", check=7).error()
        assert (error["id"], str(place) in error["message"]) == ("image.untrusted", True)
        place.chmod(0o755)
        site.run("restore", place / "link", check=0)
        with scene.guest.successor() as restored:
            ram.assert_same(scene.ram, restored.ram)


def test_the_user_whom_the_policy_names_is_trusted(site: cli.Site, tmp_path: Path) -> None:
    policies = tmp_path / "policies"
    policies.mkdir()
    (policies / "theirs.yaml").write_text(f"module: dac\nowner: '{EVE}'\nmode: '0600'\n")
    site.settings |= {"policies": str(policies), "save": {"policy": "theirs"}}
    with saved(site) as scene:
        assert scene.image.stat().st_uid == EVE
        assert site.run("inspect", scene.image, "--json", check=0).json()["writable_by"] == []
        os.chown(scene.image, EVE + 1, 0)
        assert site.run("restore", scene.image, "--json", check=7).error()["data"]["strangers"]
        os.chown(scene.image, EVE, 0)
        scene.comes_back(site)


def test_the_user_who_runs_mapsave_is_trusted_and_no_other_user() -> None:
    with service.reachable_site() as site, saved(site) as scene:
        for path in (site.images, site.state, scene.image):
            os.chown(path, EVE, EVE)
        assert site.run("restore", scene.image, "--json", check=7).error()
        command = [*service.as_user(EVE, EVE, []), *cli.COMMAND, "--config", str(site.config)]
        env = processes.environment({"PYTHONPATH": tree.PYTHONPATH, "HOME": "/"})

        def check() -> int:
            words = [*command, "check", str(scene.image)]
            return subprocess.run(words, env=env, check=False, timeout=wait.LONG).returncode

        assert check() == 0
        os.chown(scene.image, EVE + 1, EVE)
        assert check() == 7


def test_writable_program(site: cli.Site, tmp_path: Path) -> None:
    place = tmp_path / "bin"
    place.mkdir()
    with saved(site, launch=False) as scene:
        site.guests.clear()
        site.write()
        program = scene.guest.argv[0]
        assert {"kind": "program", "name": program} in site.run(
            "inspect", scene.image, "--json", check=0
        ).json()["names"]
        shown = site.run("inspect", scene.image, check=0).stdout
        assert f"{program}; run only with --trust-recorded-command" in shown
        trusts = ("restore", scene.image, "--trust-recorded-command")
        (place / program).symlink_to(shutil.which(program) or "")
        place.chmod(0o777)
        path = {"PATH": f"{place}:{os.environ['PATH']}"}
        error = site.run(*trusts, "--json", check=7, env=path).error()
        assert (error["id"], str(place) in error["message"]) == ("image.untrusted", True)
        assert state_of(site, scene.image) == "saved"
        place.chmod(0o755)
        site.run(*trusts, check=0, env=path)
        with scene.guest.successor() as restored:
            ram.assert_same(scene.ram, restored.ram)
