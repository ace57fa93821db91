"""What came of several guests, wherever a person or a script looks: none saved, some, all."""

import json
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kit import cli, emulated, service, tree

RED, YELLOW = "\x1b[1;31m", "\x1b[33m"
NONE, SOME, ALL = "0 saved, 2 FAILED", "2 saved, 1 FAILED", "2 saved"


@pytest.fixture(scope="module")
def mapsaved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with a job of which nothing, something, and everything works."""
    site = cli.Site(tmp_path_factory.mktemp("outcomes") / "site")
    for name in ("gone1", "gone2"):
        site.add_guest(name, site.directory / f"{name}.qmp")
    jobs = {"none": ["gone1", "gone2"], "some": ["a", "b", "gone1"], "all": ["a", "b"]}
    for job, guests in jobs.items():
        site.add_job(job, guests=guests, save={"then": "resume"})
    (site.jobs / "broken.yaml").write_text("job: broken\nguests: [a]\nkeeps: {last: 1}\n")
    with emulated.guest(site, "a"), emulated.guest(site, "b"), service.running(site) as running:
        yield running


@pytest.mark.parametrize(
    ("job", "state", "level", "words"),
    [
        ("none", "failed", "error", NONE),
        ("some", "done", "warning", SOME),
        ("all", "done", "info", ALL),
    ],
)
def test_a_run_is_called_what_it_was(
    mapsaved: service.Service, job: str, state: str, level: str, words: str
) -> None:
    site = mapsaved.site
    ended = mapsaved.ended(mapsaved.begin(kind="job", job=job)["id"])
    assert (ended["state"], ended["error"]) == (state, None)
    code = ended["result"]["exit_code"]
    assert (code == 0) == (job == "all")
    assert f" {level} job {state}: {words}" in mapsaved.logged().replace('"', "")
    waited = site.run("wait", ended["id"], check=code)
    assert waited.stdout == f"operation {ended['id']} {state}: {words}\n"
    assert site.run("logs", ended["id"], check=0).stdout.endswith(f"  {state}: {words}\n")
    (line,) = (each for each in _lines(site, "ps", "--all") if each.startswith(ended["id"]))
    assert f" {state} " in line and line.endswith(words)
    (line,) = (each for each in _lines(site, "job", "list") if each.startswith(f"{job} "))
    assert f" {state}: {words} " in line
    for where in ((), ("--local",)):
        assert f"job {job}: {words}\n" in site.run(*where, "job", "run", job, check=code).stdout
    failures = mapsaved.get("/v1/operations?kind=job&state=failed")["operations"]
    assert (ended["id"] in [each["id"] for each in failures]) == (state == "failed")


def _lines(site: cli.Site, *arguments: str) -> list[str]:
    return site.run(*arguments, check=0).stdout.splitlines()


def test_colour_is_for_terminals(mapsaved: service.Service) -> None:
    for job in ("none", "some"):
        mapsaved.ended(mapsaved.begin(kind="job", job=job)["id"])
    shown = _on_terminal(mapsaved.site, "job", "list")
    assert f"{RED}failed\x1b[0m: {RED}{NONE}\x1b[0m" in shown
    assert f"{YELLOW}done\x1b[0m: {YELLOW}{SOME}\x1b[0m" in shown
    assert f"{RED}INVALID\x1b[0m" in shown
    assert "\x1b[" not in _on_terminal(mapsaved.site, "job", "list", NO_COLOR="1")
    plain = mapsaved.site.run("job", "list", check=0).stdout
    assert not any(each in plain for each in "\x1b\ufdd0\ufdd1\ufdd2")


def _on_terminal(site: cli.Site, *arguments: str, **env: str) -> str:
    """Return what a command prints on a terminal."""
    ours, theirs = pty.openpty()
    words = [*cli.COMMAND, "--config", str(site.config), *arguments]
    base = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    pid = os.posix_spawnp(
        words[0],
        words,
        {**base, "PYTHONPATH": tree.PYTHONPATH, "TERM": "xterm", **env},
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs, 1), (os.POSIX_SPAWN_DUP2, theirs, 2)],
    )
    os.close(theirs)
    found = b""
    try:
        while more := os.read(ours, 65536):
            found += more
    except OSError:  # EIO: the other end is closed
        pass
    os.waitpid(pid, 0)
    os.close(ours)
    return found.decode()


def test_broken_job_is_named_with_file_and_line(mapsaved: service.Service) -> None:
    """By its name, be it through the service or here: 'no such job' helps no one."""
    where = f"{mapsaved.site.directory}/jobs/broken.yaml:3:1: unknown key 'keeps'"
    for verb in ("check", "run", "prune"):
        for how in ((), ("--local",)):
            result = mapsaved.site.run(*how, "job", verb, "broken", check=2)
            assert where in result.stderr and "[config.invalid]" in result.stderr
    answer = mapsaved.request("GET", "/v1/jobs/broken")
    assert (answer.status, answer.error) == (400, "config.invalid")
    assert "[job.unknown]" in mapsaved.site.run("job", "check", "other", check=2).stderr


def test_metrics_count_it_by_what_failed(mapsaved: service.Service) -> None:
    mapsaved.ended(mapsaved.begin(kind="job", job="none")["id"])
    text = mapsaved.request("GET", "/metrics").body.decode()
    (line,) = (
        each
        for each in text.splitlines()
        if each.startswith("mapsave_failures_total") and 'kind="job"' in each
    )
    assert 'error="check.unreachable"' in line


def test_save_all_of_nothing_that_works_has_failed(mapsaved: service.Service) -> None:
    steps = mapsaved.begin(kind="save-all", dry_run=True)
    assert mapsaved.ended(steps["id"])["state"] == "done"


def test_logs_are_for_people(mapsaved: service.Service) -> None:
    done = mapsaved.ended(mapsaved.begin(kind="save", guest="a", save={"then": "resume"})["id"])
    shown = mapsaved.site.run("logs", done["id"], check=0).stdout
    assert f"begin      to {done['image']}, then resume the guest\n" in shown
    assert "label      the image needs no label\n" in shown or "is labelled" in shown
    assert "{" not in shown
    everything: dict[str, Any] = json.loads(
        mapsaved.site.run("logs", done["id"], "--json", check=0).stdout
    )
    assert everything["steps"][0]["data"]["settings"]["capabilities"]


def test_names_never_collide(mapsaved: service.Service) -> None:
    """A hundred saves of a guest, as fast as they go, through the service and by hand."""
    before = set(os.listdir(mapsaved.site.images))
    for _ in range(30):
        ids = [
            mapsaved.begin(kind="save", guest=guest, save={"then": "resume"})["id"]
            for guest in ("a", "b")
        ]
        for each in ids:
            ended = mapsaved.ended(each)
            assert ended["state"] == "done", ended
    assert len(set(os.listdir(mapsaved.site.images)) - before) == 60
