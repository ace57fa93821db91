"""What ``mapsave recover`` must not do: end a used guest, wait with one, ask for a policy."""

import errno
from pathlib import Path
from typing import Any

import pytest

from tests.faults import struck
from tests.faults.slow import IMAGE, NAME
from tests.kit import cli, inject, patterns, qemu
from tests.kit.outcomes import COMMITTED, PUT_BACK, TAKEN_OVER
from tests.kit.qemu import Qemu


def _recovered(site: cli.Site, code: int = 0) -> dict[str, Any]:
    """Recover, and return the line of the only operation."""
    (line,) = site.run("recover", "--json", check=code).json()["operations"]
    assert isinstance(line, dict)
    return line


def _killed(site: cli.Site, guest: Qemu, step: str, *more: str) -> None:
    site.add_guest(NAME, guest.qmp, launch=guest.argv)
    struck.run(site, "after", step, "KILL", "save", NAME, "--image", IMAGE, *more)
    assert len(struck.journals(site)) == 1


@pytest.mark.parametrize("last", ["running", "paused"])
def test_saved_guest_that_was_used_since_is_not_ended(site: cli.Site, last: str) -> None:
    """Killed after the commit; its owner let the guest run on, so the image does not hold it."""
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "committed", "--then", "quit")
        assert guest.status() == "postmigrate"
        guest.control.execute("cont")
        if last == "paused":
            guest.control.execute("stop")
        assert _recovered(site)["outcome"] == TAKEN_OVER
        assert guest.status() == last
        assert not struck.journals(site)
    assert struck.states(site) == {IMAGE: "restored"}
    refused = site.run("restore", IMAGE, check=3)
    assert "is stale: another client resumed its guest" in refused.stderr


def test_guest_paused_by_its_owner_is_not_resumed_behind_the_commit(site: cli.Site) -> None:
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "committed", "--then", "resume")
        assert guest.status() == "running"
        guest.control.execute("stop")
        assert _recovered(site)["outcome"] == COMMITTED
        assert guest.status() == "paused"


def test_guest_does_not_wait_for_an_image_directory_that_is_gone(site: cli.Site) -> None:
    """It is restored at once and only once; its partial image goes when the directory is back."""
    away = site.images.with_name("away")
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "migrate")
        assert guest.status() == "paused"
        site.images.rename(away)
        line = _recovered(site, 3)
        assert line["error"]["id"] == "check.directory"
        assert line["error"]["message"].startswith(
            f"{PUT_BACK}, but its partial image could not be removed yet: cannot open"
        )
        assert guest.status() == "running"
        # What its owner does from now on is not undone by the next recovery.
        guest.control.execute("stop")
        _recovered(site, 3)
        assert guest.status() == "paused"
        away.rename(site.images)
        assert struck.partials(site)
        assert _recovered(site)["outcome"] == PUT_BACK
        assert guest.status() == "paused"
        assert not struck.partials(site)
        assert not struck.journals(site)


def test_whole_image_waits_for_its_directory(site: cli.Site) -> None:
    away = site.images.with_name("away")
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "complete")
        site.images.rename(away)
        assert _recovered(site, 3)["error"]["id"] == "check.directory"
        assert guest.status() == "postmigrate"
        away.rename(site.images)
        assert _recovered(site)["outcome"] == COMMITTED
        guest.wait()


@pytest.mark.parametrize("step", ["complete", "commit"])
@pytest.mark.parametrize("what", ["image", "directory"])
def test_guest_does_not_wait_for_rights(site: cli.Site, what: str, step: str) -> None:
    """Its image is whole, but may not be opened, or given its name: the guest runs on at once."""
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, step)
        (partial,) = struck.partials(site)
        where = partial if what == "image" else site.images
        with struck.immutable(where):
            error = _recovered(site, 7)["error"]
            assert guest.status() == "running"
            assert error["id"] == "permission.denied"
            assert error["message"].startswith(
                f"{PUT_BACK}: QEMU had finished, but mapsave may not"
            )
            assert f"could not be removed yet: '{where}'" in error["message"]
            assert "an immutable file (lsattr)" in error["hint"]
            # What its owner does from now on is not undone by the next recovery.
            guest.control.execute("stop")
            _recovered(site, 7)
            assert len(struck.journals(site)) == 1
        assert _recovered(site)["outcome"].startswith(PUT_BACK)
        assert guest.status() == "paused"
        assert not struck.partials(site)
        assert not struck.journals(site)


def test_guest_waits_where_its_image_may_have_its_name(site: cli.Site) -> None:
    """It may be restored elsewhere: who may not look does not let the guest run beside it."""
    hidden = inject.environment(inject.Rule("open", "errno", errno.EACCES, f"/{IMAGE}", count=-1))
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "committed")
        struck.cut(struck.journals(site)[0], "commit")
        (line,) = site.run("recover", "--json", env=hidden, check=7).json()["operations"]
        assert line["error"]["id"] == "permission.denied"
        assert line["error"]["hint"].count("'mapsave recover'") == 1
        assert guest.status() == "postmigrate"
        assert _recovered(site)["outcome"] == COMMITTED
        guest.wait()


@pytest.mark.parametrize("content", ["gone", "damaged", "another module"])
def test_policy_is_not_asked_for_again(site: cli.Site, tmp_path: Path, content: str) -> None:
    """What is to be done at rest is in the journal."""
    policy = tmp_path / "own.yaml"
    policy.write_text('module: dac\nmode: "0640"\n')
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "complete", "--policy", str(policy))
        (partial,) = struck.partials(site)
        partial.chmod(0o600)
        if content == "gone":
            policy.unlink()
        else:
            policy.write_text("module: smack\n" if content == "another module" else "module: [")
        line = _recovered(site)
        assert (line["outcome"], line["warnings"]) == (COMMITTED, [])
        assert (site.images / IMAGE).stat().st_mode & 0o777 == 0o640
        guest.wait()


def test_rules_that_cannot_be_taken_out_keep_the_journal(site: cli.Site, tmp_path: Path) -> None:
    """The file with the rules cannot be read: a directory is in its place."""
    rules = tmp_path / "rules"
    rules.mkdir()
    rule = f'"{site.images / IMAGE}" rw,'
    detail = {"profile": "vmq", "rules": [rule], "rules_file": str(rules)}
    detail["profile_file"] = str(tmp_path / "profile")
    label = {"module": "apparmor", "value": None, "process": None, "previous": None, "others": []}
    with qemu.running(name=NAME, memory="16M", ram=patterns.sparse, paused=False) as guest:
        _killed(site, guest, "migrate")
        (journal,) = struck.journals(site)

        def relabelled(record: dict[str, Any]) -> dict[str, Any]:
            return {**record, "label": {**label, "detail": detail}} if "label" in record else record

        struck.rewrite(journal, relabelled)
        with journal.open("a") as file:
            file.write('{"step": "compl')
        told = _recovered(site)
        assert (told["outcome"], told["error"]) == (PUT_BACK, None)
        (warning,) = told["warnings"]
        assert "Is a directory" in warning
        assert "run 'mapsave recover'" in warning
        assert guest.status() == "running"
        assert struck.journals(site) == [journal]
        assert not struck.partials(site)
        assert f"warning: {warning}" in site.run("recover", check=0).stdout
        # The guest was dealt with: it is not put back a second time.
        guest.control.execute("stop")
        assert _recovered(site)["warnings"] == [warning]
        assert guest.status() == "paused"
        rules.rmdir()
        rules.write_text(f'  "another" r,\n  {rule}  # mapsave\n')
        told = _recovered(site)
        assert (told["outcome"], told["warnings"]) == (PUT_BACK, [])
        assert rules.read_text() == '  "another" r,\n'
        assert not struck.journals(site)
