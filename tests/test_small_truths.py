"""Commands that tell the truth: help, versions, the only copy, and nothing left by a check."""

import datetime
import json
import os
from pathlib import Path

import mapsave
import pytest
from mapsave.cli.main import main
from mapsave.config import Config, Guest
from mapsave.operations import save_request

from tests.image import build
from tests.kit import cli, emulated, processes


def test_bare_command_is_help(site: cli.Site) -> None:
    for arguments in ([], ["--debug"]):
        result = cli.mapsave(*arguments, check=0)
        assert result.stdout.startswith("Usage: mapsave [OPTIONS] COMMAND")
        assert result.stderr == ""
    assert "[usage]" in cli.mapsave("no-such-command", check=2).stderr


@pytest.mark.parametrize("name", ["mapsave", "mapsaved"])
def test_version(name: str) -> None:
    module = {"mapsave": "mapsave.cli.main", "mapsaved": "mapsave.cli.daemon"}[name]
    words = f"from {module} import main; main()"
    result = cli.mapsave("--version", command=[cli.COMMAND[0], "-c", words], check=0)
    assert result.stdout == f"{name}, version {mapsave.__version__}\n"


def test_check_of_an_emulated_guest_leaves_no_process(site: cli.Site) -> None:
    site.add_guest("toy", emulator={"memory": "4M"})
    job = site.directory / "job.yaml"
    job.write_text("job: j\nguests: [toy]\n")
    for words in (("check", "toy"), ("job", "check", job), ("save-all", "--dry-run")):
        site.run(*words, check=0)
        assert not _emulators(site)
    assert not list(site.state.glob("emulated/*.qmp"))


def test_check_of_one_that_runs_leaves_it(site: cli.Site) -> None:
    with emulated.guest(site, "web01") as monitor:
        site.run("check", "web01", check=0)
        assert emulated.status(monitor) == "running"


def _emulators(site: cli.Site) -> list[str]:
    return [each for each in processes.strays().values() if str(site.state) in each]


def _put(site: cli.Site, name: str, then: str, hour: int, guest: str = "db") -> None:
    started = datetime.datetime(2026, 3, 1, hour, tzinfo=datetime.UTC).isoformat()
    metadata = {"guest": {"name": guest}, "then": then, "started": started}
    build.Image(metadata=json.dumps(metadata).encode()).built().write(site.images / name)


@pytest.mark.parametrize(
    ("others", "then", "is_only"),
    [
        ([], "quit", True),
        ([], "resume", False),
        ([], "leave", False),
        ([("later", 2, "db")], "quit", False),
        ([("earlier", 0, "db"), ("other", 2, "web")], "quit", True),
    ],
)
def test_only_copy_is_said_where_it_is(
    site: cli.Site, others: list[tuple[str, int, str]], then: str, is_only: bool
) -> None:
    _put(site, "image", then, 1)
    for name, hour, guest in others:
        _put(site, name, "resume", hour, guest)
    error = site.run("discard", "image", "--json", check=3).error("check.refused")
    assert "was never restored" in error["message"]
    assert ("the only copy" in error["message"]) == is_only
    site.run("discard", "image", "--yes", check=0)
    assert not (site.images / "image").exists()


def test_name_that_another_save_has_reserved(tmp_path: Path) -> None:
    """Guests of two daemons may have one name; neither save waits, nor fails, for the other."""
    config = Config(images=tmp_path / "images", state=tmp_path / "state")
    request = save_request.Request()
    names = []
    with save_request.place(Guest("a_b"), config, request, reserve=True) as (_, first):
        with save_request.place(Guest("qmp:a/b"), config, request, reserve=True) as (held, second):
            names += [first, second]
            (Path(held.path) / f"{second}.partial").touch()
        with save_request.place(Guest("a_b"), config, request, reserve=True) as (_, third):
            names.append(third)
    assert len(set(names)) == 3
    assert {each.partition("-")[0] for each in names} == {"a_b"}
    assert len(os.listdir(config.state / "locks")) <= 3


def test_help_of_the_command_line_runs_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 0
    assert "Commands:" in capsys.readouterr().out
