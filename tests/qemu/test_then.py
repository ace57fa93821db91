"""What becomes of a guest that did not run when it was saved."""

from tests.kit import cli, qemu


def test_resume_does_not_start_a_guest_that_did_not_run(site: cli.Site) -> None:
    with qemu.running(memory="32M", paused=True) as guest:
        site.add_guest("web01", guest.qmp)
        done = site.run("save", "web01", "--then", "resume", "--json", check=0).json()
        assert done["then"] == "leave"
        assert guest.status() == "postmigrate"
        assert "RESUME" not in guest.control.event_names()


def test_summary_says_why_auto_chose_what_it_chose(site: cli.Site) -> None:
    with qemu.running(memory="32M") as guest:
        site.add_guest("web01", guest.qmp)
        done = site.run("save", "web01", "--json", check=0).json()
        auto = {"direct_io", "channels", "zero_pages", "preallocate"}
        assert set(done["reasons"]) == auto | {"plan"}
