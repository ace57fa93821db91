"""Images that a guest lives on: neither replaced nor deleted by mistake, and free after it."""

import json
from pathlib import Path

import pytest

from tests.kit import cli, memory, patterns, ram
from tests.qemu.scene import saved


def _users(site: cli.Site, name: str) -> list[dict[str, object]]:
    listed = site.run("list", "--json", check=0).json()["images"]
    (line,) = (each for each in listed if each["name"] == name)
    shown = site.run("inspect", name, "--json", check=0).json()
    assert shown["in_use_by"] == line["in_use_by"]
    found: list[dict[str, object]] = line["in_use_by"]
    return found


def test_discard_needs_in_use(site: cli.Site) -> None:
    with saved(site, ram=patterns.dense) as scene:
        assert _users(site, scene.image.name) == []
        site.run("restore", scene.image, "--instant", "on", check=0)
        with scene.guest.successor() as guest:
            assert _users(site, scene.image.name) == [{"guest": "web01", "pid": guest.pid}]
            assert f"in use by web01 (pid {guest.pid})" in site.run("list", check=0).stdout
            assert "in use by" in site.run("inspect", scene.image, check=0).stdout
            error = site.run("discard", scene.image, "--json", check=8).error("image.in_use")
            assert f"guest 'web01' (pid {guest.pid})" in error["message"]
            assert scene.image.exists()
            done = site.run("discard", scene.image, "--in-use", "--json", check=0).json()
            (line,) = done.get("images", [done])
            assert line["freed_bytes"] == 0
            assert "is freed when guest 'web01'" in line["note"]
            assert not scene.image.exists()
            ram.assert_same(scene.ram, guest.ram)  # all of it is read only now


def test_free_once_the_guest_is_gone(site: cli.Site) -> None:
    """And after a crash of the host, whose processes had the same numbers before."""
    with saved(site) as scene:
        site.run("restore", scene.image, "--instant", "on", check=0)
        (note,) = (site.state / "in-use").iterdir()
        written = note.read_text()
        with scene.guest.successor() as guest:
            stem, boot = note.stem.rsplit("-", 5)[0], json.loads(written)["pid"]
            assert boot == guest.pid
            note.rename(note.with_name(f"{stem}-1-2-3-4-5.json"))  # of another boot
            assert _users(site, scene.image.name) == []
            assert list((site.state / "in-use").iterdir()) == []
            note.write_text(written)
            assert len(_users(site, scene.image.name)) == 1
        assert _users(site, scene.image.name) == []
        site.run("discard", scene.image, check=0)


@pytest.mark.parametrize("then", ["resume", "quit"])
def test_a_save_replaces_it_only_where_its_guest_ends(site: cli.Site, then: str) -> None:
    with saved(site) as scene:
        site.run("restore", scene.image, "--instant", "on", "--run", check=0)
        with scene.guest.successor() as guest:
            words = ("save", "web01", "-o", scene.image.name, "--replace", "--then", then, "--json")
            if then == "quit":
                site.run(*words, check=0)
                guest.wait()
                return
            before = scene.image.stat().st_ino
            site.run(*words, check=8).error("image.in_use")
            assert scene.image.stat().st_ino == before
            assert guest.status() == "running"
            site.run(*words, "--in-use", check=0)
            assert scene.image.stat().st_ino != before
            assert _users(site, scene.image.name) == []  # it is another file


def test_check_says_it_beforehand(site: cli.Site) -> None:
    with saved(site) as scene:
        found = site.run("check", scene.image, "--json", check=0).json()["instant"]
        assert (found["is_possible"], found["why_not"]) == (True, [])
        launch = [*scene.guest.argv, "-overcommit", "mem-lock=on"]
        site.add_guest("web01", scene.guest.qmp, launch=launch)
        found = site.run("check", scene.image, "--json", check=0).json()["instant"]
        assert (found["is_possible"], found["is_used"]) == (False, False)
        assert "locked in memory" in found["why_not"][0]
        assert "locked in memory" in site.run("check", scene.image, check=0).stdout


_REASONS = [
    ([], ["-device", "vfio-pci,host=0000:01:00.0"], "vfio-pci pins all RAM"),
    ([], ["-overcommit", "mem-lock=on-fault"], "locked in memory"),
    ([], memory.huge("32M", name="pc.ram"), "huge pages"),
    ([], ["-mem-path", "/dev/hugepages", "-mem-prealloc"], "preallocated"),
    ([], memory.from_file(Path("/x"), "32M", shared=True, name="pc.ram"), "share=on"),
    (["sudo", "-u", "web"], [], "sudo, which closes descriptors"),
    (["bwrap", "--ro-bind", "/", "/"], [], "bwrap, which closes descriptors"),
    (["systemd-run", "--scope"], [], "systemd-run, which closes descriptors"),
]


def test_check_says_each_reason(site: cli.Site) -> None:
    """And ``on`` refuses for it, before anything is started; unknown file systems: emulator/."""
    with saved(site) as scene:
        for under, more, words in _REASONS:
            launch = [*under, *scene.guest.argv, *more]
            site.add_guest("web01", scene.guest.qmp, launch=launch)
            found = site.run("check", scene.image, "--json", check=0).json()["instant"]
            assert any(words in each for each in found["why_not"]), (words, found)
            done = site.run("restore", scene.image, "--instant", "on", "--json", check=3)
            assert words in done.error("check.instant")["message"]


def test_per_guest(site: cli.Site) -> None:
    """The guest's own setting comes before the general one, what is asked for before both."""
    with saved(site) as scene:
        site.settings["restore"] = {"instant": "off"}
        site.guests["web01"]["restore"] = {"instant": "auto"}
        site.write()
        assert "restore:" in site.run("config", "show", check=0).stdout
        done = site.run("restore", scene.image, "--json", check=0).json()
        assert done["instant"] is True
        with scene.guest.successor():
            pass
        again = ("restore", scene.image, "--again", "--instant", "off", "--json")
        done = site.run(*again, check=0).json()
        assert (done["instant"], done["reasons"]["instant"]) == (False, "it is off")
        with scene.guest.successor() as guest:
            ram.assert_same(scene.ram, guest.ram)
