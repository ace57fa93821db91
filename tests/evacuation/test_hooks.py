"""A save-all with hooks after its saves: they take no guest its slot, and not much more time."""

from contextlib import ExitStack

import pytest

from tests.kit import cli, emulated, qmp, service, wait


def hook(site: cli.Site, moment: str, script: str) -> None:
    """Let ``script`` run at a moment, with the directory of the site as ``$1``'s place."""
    site.add_hook(moment, f"place='{site.directory}'\n{script}", moment)


@pytest.mark.parametrize("served", [False, True], ids=["here", "service"])
def test_hooks_hold_no_slot_and_the_record_does_not_wait_for_them(
    site: cli.Site, *, served: bool
) -> None:
    names = ["one", "two", "three"]
    hook(site, "after_save", 'while [ -d "$place" -a ! -e "$place/over" ]; do sleep 0.05; done')
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(emulated.guest(site, name))
        if served:
            stack.enter_context(service.running(site))
        with site.start("save-all", "--parallel", "1", "--json") as process:
            wait.until(lambda: emulated.committed(site) == set(names), what="all in the record")
            assert process.poll() is None, "the hooks were not waited for"
            (site.directory / "over").touch()
            done = cli.ended(process, check=0).json()
    assert emulated.outcomes(done) == dict.fromkeys(names, "saved")


def test_hooks_behind_a_save_end_a_little_after_the_deadline(site: cli.Site) -> None:
    hook(site, "after_save", "exec sleep 600")
    with emulated.guest(site, "web"):
        done = site.run("save-all", "--deadline", "12s", "--json", check=0)
    assert "the hooks of after_save were stopped" in done.stderr
    assert done.json()["duration_s"] < 60
    assert emulated.committed(site) == {"web"}


def test_hooks_behind_a_failure_end_a_little_after_the_deadline(site: cli.Site) -> None:
    hook(site, "on_failure", 'touch "$place/failed"; exec sleep 600')
    with emulated.guest(site, "web", throttle="64K") as socket:
        done = site.run("save-all", "--deadline", "12s", "--json", check=4)
        assert emulated.status(socket) == "running"
        with qmp.connect(socket) as client:
            assert client.execute("query-migrate")["status"] == "cancelled"
    assert (site.directory / "failed").exists()
    assert done.json()["guests"][0]["error"]["id"] == "save.timeout"
    assert done.json()["duration_s"] < 60
