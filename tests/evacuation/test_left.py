"""A save-all that meets a paused guest: it is safe only in the image whose save left it so."""

from pathlib import Path

import pytest
from mapsave.image import image as opening

from tests.kit import cli, emulated, qmp, wait


def save(site: cli.Site, then: str) -> str:
    return str(site.run("save", "web", "--then", then, "--json", check=0).json()["image"])


def migrate(socket: Path, target: Path) -> None:
    """Stop and migrate the guest as another tool would."""
    with qmp.connect(socket) as client:
        client.execute("stop")
        client.execute("migrate", uri=f"file:{target}")
        wait.until(
            lambda: client.execute("query-status")["status"] == "postmigrate", what="the migration"
        )


def failed(site: cli.Site) -> str:
    """Run save-all, which must fail for the guest's run state; return the hint."""
    done = site.run("save-all", "--json", check=3).json()
    (line,) = done["guests"]
    assert (line["outcome"], line["error"]["id"]) == ("failed", "check.run_state")
    assert line["image"] is None
    return str(line["error"]["hint"])


def test_an_older_image_behind_which_it_ran_on_is_not_where_it_lies(site: cli.Site) -> None:
    with emulated.guest(site, "web") as socket:
        save(site, "resume")
        left = save(site, "leave")
        assert site.run("save-all", "--json", check=0).json()["guests"][0]["image"] == left
        site.run("discard", left, "--yes", check=0)
        assert "older mapsave" in failed(site)
        assert emulated.status(socket) == "postmigrate"


@pytest.mark.parametrize("before", ["leave", "resume"])
def test_an_image_of_before_is_not_where_another_tool_left_it(
    site: cli.Site, tmp_path: Path, before: str
) -> None:
    with emulated.guest(site, "web") as socket:
        if before == "leave":
            save(site, "leave")
            with qmp.connect(socket) as client:
                client.execute("cont")
        save(site, "resume")
        migrate(socket, tmp_path / "elsewhere")
        failed(site)


def test_an_image_of_another_qemu_of_that_name_is_not_where_it_lies(
    site: cli.Site, tmp_path: Path
) -> None:
    with emulated.guest(site, "web"):
        save(site, "leave")
    with emulated.guest(site, "web") as socket:
        migrate(socket, tmp_path / "elsewhere")
        failed(site)


def test_a_paused_guest_is_left_by_a_resume_as_well(site: cli.Site) -> None:
    with emulated.guest(site, "web", paused=True) as socket:
        image = save(site, "resume")
        with opening.opened(image) as opened:
            known = opened.metadata
        with qmp.connect(socket) as client:
            pid = client.peer_pid()
        done = site.run("save-all", "--json", check=0).json()
    assert emulated.outcomes(done) == {"web": "skipped"}
    assert done["guests"][0]["image"] == image
    assert (known["then"], known["process"]["pid"]) == ("leave", pid)
