"""``--host``: the command line over TLS does what it does at the socket, as far as roles allow."""

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit import cli, emulated, ports, service, wait
from tests.service.authority import Authority

RESUME = ("--then", "resume")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The CA that both sides trust."""
    return Authority(tmp_path_factory.mktemp("host") / "ca")


@pytest.fixture(scope="module")
def mapsaved(
    authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    """The service of the other host."""
    site = cli.Site(tmp_path_factory.mktemp("host") / "site")
    listen = authority.listen(ports.reserved(), operators=["alice"])
    site.settings = {"service": {"listen": listen}}
    site.add_job("nightly", guests=["db"], save={"then": "resume"})
    with (
        emulated.guest(site, "db"),
        emulated.guest(site, "slow", throttle="32K"),
        service.running(site) as running,
    ):
        running.await_recovery()
        site.run("save", "db", *RESUME, "-o", "first", check=0)
        yield running


@pytest.fixture(scope="module")
def here(
    mapsaved: service.Service, authority: Authority, tmp_path_factory: pytest.TempPathFactory
) -> cli.Site:
    """An operator's own machine, which has no guests, and an image of the same name as theirs."""
    site = cli.Site(tmp_path_factory.mktemp("here") / "site")
    certificate, key = authority.issue("/CN=alice")
    stranger = Authority(site.directory / "stranger")
    other, other_key = stranger.issue("/CN=alice")
    known: dict[str, Any] = {
        "address": mapsaved.site.settings["service"]["listen"]["address"],
        "certificate": str(certificate),
        "key": str(key),
        "ca": str(authority.certificate),
    }
    _, port = known["address"].split(":")
    site.settings = {
        "hosts": {
            "kvm1": known,
            "impostor": {**known, "ca": str(stranger.certificate)},
            "misnamed": {**known, "address": f"localhost:{port}"},
            "stranger": {**known, "certificate": str(other), "key": str(other_key)},
            "nothing": {**known, "address": f"127.0.0.1:{ports.reserved()}"},
            "broken": {**known, "ca": str(site.config)},
        }
    }
    site.write()
    (site.images / "first").write_text("not an image")
    return site


@pytest.mark.parametrize(
    "command",
    [
        "guests",
        "list",
        "inspect first",
        "verify first",
        "check first",
        "job list",
    ],
)
def test_it_answers_as_at_the_socket(
    mapsaved: service.Service, here: cli.Site, command: str
) -> None:
    over = here.run("--host", "kvm1", "--json", *command.split())
    there = mapsaved.site.run("--json", *command.split(), check=over.returncode)
    assert over.json() == there.json()


def test_an_operator_works_as_there(mapsaved: service.Service, here: cli.Site) -> None:
    def run(*words: str, check: int = 0) -> cli.Result:
        return here.run("--host", "kvm1", *words, check=check)

    saved = run("save", "db", *RESUME, "-o", "second", "--json").json()
    assert saved["image"] == str(mapsaved.site.images / "second")
    assert run("list", "--guest", "db", "--latest", "--names").stdout == "second\n"
    assert "db can be saved" in run("check", "db").stdout
    assert "0 would fail" in run("job", "check", "nightly").stdout
    assert "would be saved" in run("save-all", "--dry-run", "db").stdout
    assert "pinned" in run("pin", "first").stdout
    assert "not pinned" in run("unpin", "first").stdout
    number = run("job", "run", "nightly", "--no-wait").stdout.strip()
    assert "1 saved" in run("wait", number).stdout
    assert "requested by certificate 'alice'" in run("logs", "-f", number).stdout
    assert number in run("ps", "--all").stdout
    assert "ok" in run("status").stdout
    assert run("discard", "first", check=7).stderr.count("permission.role") == 1
    assert "permission.role" in run("reload", check=7).stderr


def test_ctrl_c_cancels_there(mapsaved: service.Service, here: cli.Site) -> None:
    with here.start("--host", "kvm1", "save", "slow", *RESUME, "--json") as process:

        def writing() -> Any:
            found = mapsaved.get("/v1/operations?guest=slow&state=running")["operations"]
            return found[0]["id"] if found and found[0]["step"] == "migrate" else None

        number = wait.until(writing, what="a save that is writing")
        process.send_signal(signal.SIGINT)
        cli.ended(process, check=9).error("interrupted")
    assert mapsaved.ended(number)["state"] == "cancelled"


@pytest.mark.parametrize(
    "command",
    [
        "plan db",
        "probe",
        "guard db",
        "serve",
        "emulate --qmp x --memory 1M",
        "config show",
        "config schema",
        "completion bash",
        "list --libvirt",
        "list .",
        "inspect first --xml",
        "diff first first",
        "setup systemd --dry-run",
        "setup apparmor --dry-run",
        "setup selinux --dry-run",
        "setup memory toy",
        "recover --pending",
    ],
)
def test_what_works_here_only_says_so(here: cli.Site, command: str) -> None:
    error = here.run("--json", *command.split(), "--host", "kvm1", check=2).error("usage")
    assert "works on this host only, not with --host" in error["message"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("verify ./first", "'./first' is not the name of an image"),
        ("save db -o /tmp/x", "'/tmp/x' is not the name of an image"),
        ("job run ./nightly.yaml", "'./nightly.yaml' is not the name of a job"),
        ("guests --local", "--local does not go with it"),
    ],
)
def test_nothing_of_this_host_is_meant(here: cli.Site, words: str, told: str) -> None:
    error = here.run("--json", "--host", "kvm1", *words.split(), check=2).error("usage")
    assert told in error["message"]


@pytest.mark.parametrize(
    ("host", "identity", "told"),
    [
        ("kvm2", "usage", "no host 'kvm2' is configured"),
        ("", "usage", "no host '' is configured"),
        ("impostor", "service.unreachable", "has not proved that it is 127.0.0.1: "),
        ("misnamed", "service.unreachable", "has not proved that it is localhost: "),
        ("stranger", "service.unreachable", "does not answer: "),
        ("nothing", "service.unreachable", "does not answer: [Errno 111]"),
        ("broken", "config.invalid", "hosts.broken.ca: "),
    ],
)
def test_a_host_that_cannot_be_asked(
    mapsaved: service.Service, here: cli.Site, host: str, identity: str, told: str
) -> None:
    error = here.run("--json", "guests", "--host", host).error(identity)
    assert told in error["message"], error
    hint = error["hint"] or ""
    assert "--local" not in hint
    assert ("clients' of that host" in hint) == (host == "stranger")


def test_save_all_saves_nothing_here_instead(here: cli.Site) -> None:
    error = here.run("--json", "save-all", "--host", "nothing").error("service.unreachable")
    assert "hosts: nothing" in error["hint"]


def test_tab_completes_with_names_of_that_host(mapsaved: service.Service, here: cli.Site) -> None:
    def offered(line: str) -> list[str]:
        shown = here.run("__complete", "bash", line, "", command=_completing(here)).stdout
        return shown.splitlines()[1:]

    assert offered("mapsave --host k") == ["kvm1"]
    assert offered("mapsave --host kvm1 save d") == ["db"]
    assert offered("mapsave --host kvm1 verify f") == ["first"]
    assert offered("mapsave --host kvm1 job run ") == ["nightly"]


def _completing(site: cli.Site) -> list[str]:
    """Return the command with the site's configuration, and ``__complete`` as its first word."""
    program = f"import os, sys; os.environ['MAPSAVE_CONFIG'] = {str(site.config)!r}; "
    program += "from mapsave.cli import start; start.run(sys.argv[3:])"
    return [*cli.COMMAND[:1], "-c", program]


def test_names_of_hosts(tmp_path: Path) -> None:
    site = cli.Site(tmp_path / "site")
    files = dict.fromkeys(("certificate", "key", "ca"), "x.pem")
    for address in ("kvm1:0", "kvm1", "a/b:1", "::1:1", "[::1]", "1.2.3:4"):
        site.settings = {"hosts": {"kvm1": {"address": address, **files}}}
        site.write()
        error = site.run("--json", "config", "show", check=2).error("config.invalid")
        assert address in error["message"]
    for address in ("kvm1.example.org:1", "localhost:8443", "[::1]:8443", "127.0.0.1:8443"):
        site.settings = {"hosts": {"kvm1": {"address": address, **files}}}
        site.write()
        shown = site.run("--json", "config", "show", check=0).json()
        assert shown["hosts"]["kvm1"]["address"] == address
