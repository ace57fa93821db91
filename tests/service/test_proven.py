"""The service proves what it saves, where a request, a job or the configuration says so."""

from tests.kit import cli, service

_TOY = {"emulator": {"memory": "16M", "pattern": "sparse"}, "policy": "none"}


def test_by_request_by_job_and_by_configuration(site: cli.Site) -> None:
    site.add_guest("toy", **_TOY)
    site.add_job("nightly", guests=["toy"], save={"then": "resume", "prove": "load"})
    with service.emulated_ended(site), service.running(site) as mapsaved:
        asked = mapsaved.done(kind="save", guest="toy", save={"then": "resume", "prove": "load"})
        assert asked["proof"]["by"] == "load"
        (of_job,) = mapsaved.done(kind="job", job="nightly")["guests"]
        assert of_job["result"]["proof"]["by"] == "load"
        site.add_guest("toy", save={"prove": "load"}, **_TOY)
        site.run("reload", check=0)
        done = site.run("save", "toy", "--then", "resume", "--json", check=0).json()
        assert done["proof"]["by"] == "load"
        done = mapsaved.done(kind="save", guest="toy", save={"prove": "pages"})
        assert done["proof"]["by"] == "pages"
