"""The examples and the documentation of the configuration say what the code does."""

from mapsave import config
from mapsave.jobs import job, schedule

from tests.kit import tree


def test_example_job_saves_the_guests_of_the_example_configuration() -> None:
    configured = config.load(tree.ROOT / "examples/manager.yaml", {})
    nightly = job.load(tree.ROOT / "examples/nightly.yaml")
    assert nightly.resolve(configured) == ["web01", "db01"]
    assert nightly.settings(configured).then == "resume"
    assert nightly.schedule == schedule.Schedule("30 2 * * *", "Europe/Berlin", True, 600.0)
    assert nightly.keep == job.Keep(last=3, daily=7, weekly=4)
    assert nightly.retries.times == 3
    assert configured.guests["web01"].launch[0] == "qemu-system-x86_64"
    assert "file=/srv/clones/web01-3.qcow2,if=virtio" in configured.guest("web01-3").launch


def test_example_configuration_sets_what_is_built_in_for_root() -> None:
    configured = config.load(tree.ROOT / "examples/manager.yaml", {})
    built_in = config.defaults({}, root=True)
    for name in ("images", "state", "socket", "jobs", "save", "service", "hooks", "notify"):
        assert getattr(configured, name) == getattr(built_in, name)
