"""The quickstart of a fleet: three hosts, a job, an evacuation and its return; nothing is left."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit import need, postgres, processes, tree, wait


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the quickstart uses, in a directory with a space in its name."""
    copy = tmp_path / "check out"
    for part in ("manager", "policies", "examples"):
        shutil.copytree(tree.ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


def quickstart(checkout: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run it from elsewhere, with the environment that the tests run in instead of a new one."""
    with processes.running(
        ["bash", checkout / "examples/fleet/quickstart.sh"],
        cwd="/",
        env={"MAPSAVE_VENV": sys.prefix, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        output, errors = process.communicate(timeout=2 * wait.LONG)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def test_three_hosts_are_saved_one_is_evacuated_and_comes_back(checkout: Path) -> None:
    need.skip_if(postgres.unavailable())
    before = set(checkout.rglob("*"))
    done = quickstart(checkout)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = done.stdout.partition("$ mapsave fleet ps --all\n")[2]
    states = re.findall(r"^\S+ +\d+ +(nightly|evacuate|return) .* (succeeded)\b", shown, re.M)
    kinds = [kind for kind, _ in states]
    assert [kinds.count(each) for each in ("nightly", "evacuate", "return")] == [6, 2, 2], shown
    assert "DONE: 3 hosts, 6 guests saved; rack1-a was evacuated" in shown
    assert processes.strays() == {}
    assert set(checkout.rglob("*")) == before
    place = re.search(r"/tmp/mapsave-fleet-\w+", done.stdout)
    assert place is None or not Path(place[0]).exists()


def test_without_postgresql_it_says_how_to_get_it(checkout: Path, tmp_path: Path) -> None:
    """Where it may not be installed, as a user who is not root, or on another distribution."""
    script = checkout / "examples/fleet/quickstart.sh"
    script.write_text(script.read_text().replace("/usr/lib/postgresql/", f"{tmp_path}/none/"))
    directory = tmp_path / "bin"
    directory.mkdir()
    for command in ("bash", "dirname", "sort", "tail", "ls", "id", "readlink"):
        found = shutil.which(command)
        assert found
        (directory / command).symlink_to(found)
    done = quickstart(checkout, PATH=str(directory))
    assert done.returncode == 1
    assert "apt install postgresql" in done.stderr
